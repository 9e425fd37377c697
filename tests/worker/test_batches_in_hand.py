"""Several batches are in hand at the same time: they are committed and published in order, or delivered again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import pytest

from bus import Delivery, Unavailable
from handlers.worker.alarms import Bell, Ringing
from handlers.worker.committer import Read
from handlers.worker.publications import Publication
from handlers.worker.relay import Relay
from tests.rigs.messages import new_id
from tests.worker.messages import Senders
from tests.worker.rig import Hand, Rig


async def handle(hand: Hand, *batches: Sequence[Delivery]) -> None:
    """Begin all batches at once, as if they had arrived during the first one, and wait for them."""
    worker, previous = hand.worker, asyncio.create_task(asyncio.sleep(0))
    for batch in batches:
        await worker._free_hands.acquire()
        previous = asyncio.create_task(worker._handle(batch, previous, worker._failures))
    await previous


async def requests(send: Senders, hand: Hand, count: int) -> list[list[Delivery]]:
    """Return batches of one request each, of different chats."""
    for _ in range(count):
        await send.create(new_id(), owner=new_id())
    return [hand.take(1) for _ in range(count)]


async def test_batches_in_hand_are_published_in_order(rig: Rig, hand: Hand, send: Senders) -> None:
    first, second, third = await requests(send, hand, 3)
    await handle(hand, first, second, third)
    chats = [batch[0].subject.split(".")[3] for batch in (first, second, third)]
    assert list(rig.states) == chats
    assert hand.worker._in_hand == set()


async def test_batches_behind_one_that_is_not_published_are_delivered_again(
    rig: Rig, hand: Hand, send: Senders, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, published = Relay.publish, list[str]()

    async def fail_once(
        self: Relay, messages: Sequence[Publication], *, jobs_until: float
    ) -> set[str]:
        monkeypatch.setattr(Relay, "publish", publish)
        raise Unavailable("NATS is away")

    monkeypatch.setattr(Relay, "publish", fail_once)
    first, second, third = await requests(send, hand, 3)

    await handle(hand, first, second)
    published += rig.states
    await handle(hand, third)

    assert published == []
    assert list(rig.states) == [third[0].subject.split(".")[3]]
    await hand.let_time_pass(10)  # NATS delivers the first two again
    assert len(rig.states) == 3
    assert len(rig.jobs()) == 3
    for chat in rig.states:
        await rig.check(chat)


async def test_a_batch_that_is_not_committed_does_not_hold_up_the_next(
    rig: Rig, hand: Hand, send: Senders, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = Bell.ring

    async def away_once(self: Bell, items: Iterable[Read]) -> Ringing:
        monkeypatch.setattr(Bell, "ring", ring)
        raise Unavailable("NATS is away")

    monkeypatch.setattr(Bell, "ring", away_once)
    first, second = await requests(send, hand, 2)

    await handle(hand, first, second)

    assert list(rig.states) == [second[0].subject.split(".")[3]]
    await hand.let_time_pass(10)
    assert len(rig.states) == 2
