"""Workers delete the events that were acknowledged, and no others."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest
from nats.js.api import RetentionPolicy

from bus import Delivery, Unavailable
from bus.streams import IN, WORKER_IN
from handlers.worker import acked_events
from handlers.worker.acked_events import AckedEvents
from tests.worker.messages import Senders, new_id
from tests.worker.rig import Hand, Rig
from tests.worker.test_on_servers import WITHIN, Place, new_place, next_data

__all__ = ["new_place"]


async def taken(rig: Rig, hand: Hand, count: int) -> list[Delivery]:
    """Let senders send so many events, and return the deliveries."""
    for _ in range(count):
        await rig.senders.create(new_id())
    return hand.take()


async def acknowledge(hand: Hand, deliveries: list[Delivery]) -> None:
    hand.worker.acked_events.add([d for d in deliveries if await d.ack()])


def stored(rig: Rig) -> list[int]:
    return list(rig.server.streams[IN.name].messages)


async def test_one_purge_deletes_what_all_workers_have_acknowledged(rig: Rig, hand: Hand) -> None:
    deliveries = await taken(rig, hand, 4)
    other = rig.hand()
    await acknowledge(other, deliveries[:2])
    await acknowledge(hand, deliveries[2:])
    assert stored(rig) == [1, 2, 3, 4]

    await hand.worker.acked_events.delete()

    assert stored(rig) == []


async def test_an_event_that_is_not_acknowledged_is_never_deleted(rig: Rig, hand: Hand) -> None:
    deliveries = await taken(rig, hand, 4)
    await acknowledge(hand, [deliveries[0], deliveries[3]])

    await hand.worker.acked_events.delete()

    assert stored(rig) == [2, 3, 4]
    await acknowledge(hand, deliveries[1:3])
    await hand.worker.acked_events.delete()
    assert stored(rig) == []


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time of the worker's clock; the test advances it."""
    time = [100.0]
    monkeypatch.setattr(acked_events, "clock", lambda: time[0])
    return time


async def test_an_event_that_stays_unacknowledged_is_reported_and_later_ones_are_deleted_singly(
    rig: Rig, hand: Hand, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    worker = hand.worker
    stuck, *others = await taken(rig, hand, 3)
    await acknowledge(hand, others)
    await worker.acked_events.delete()
    now[0] += acked_events.PATIENCE * WORKER_IN.ack_wait
    await worker.acked_events.delete()
    assert stored(rig) == [1, 2, 3]
    assert worker.problems.of("nats") is None

    now[0] += 0.1
    with caplog.at_level(logging.WARNING, acked_events.__name__):
        await worker.acked_events.delete()

    assert stored(rig) == [stuck.sequence]
    assert "above sequence 0 has not been acknowledged" in (worker.problems.of("nats") or "")
    assert "above sequence 0" in caplog.text
    await acknowledge(hand, (await taken(rig, hand, 1))[-1:])  # at once from now on
    await worker.acked_events.delete()
    assert stored(rig) == [stuck.sequence]

    await acknowledge(hand, [stuck])
    await worker.acked_events.delete()
    assert stored(rig) == []
    assert worker.problems.of("nats") is None


async def test_a_floor_that_moves_is_not_reported(rig: Rig, hand: Hand, now: list[float]) -> None:
    deliveries = await taken(rig, hand, 6)
    for n in (1, 3, 5):
        await acknowledge(hand, [deliveries[n]])
        await hand.worker.acked_events.delete()
        now[0] += 10
        await acknowledge(hand, [deliveries[n - 1]])
        await hand.worker.acked_events.delete()
    now[0] += 3600  # idle
    first, second = await taken(rig, hand, 2)
    await acknowledge(hand, [second])

    await hand.worker.acked_events.delete()

    assert stored(rig) == [first.sequence, second.sequence]
    assert hand.worker.problems.of("nats") is None


async def test_a_stream_that_is_half_full_is_relieved_without_waiting_for_the_floor(
    rig: Rig, hand: Hand
) -> None:
    stuck, *others = await taken(rig, hand, 3)
    await acknowledge(hand, others)
    size = (await rig.bus.stream_info(IN.name)).size
    await rig.bus.ensure_stream(replace(IN, max_bytes=2 * size - 1))

    await hand.worker.acked_events.delete()

    assert stored(rig) == [stuck.sequence]


async def test_after_a_reconnect_no_sequence_of_before_is_deleted(
    rig: Rig, hand: Hand, now: list[float]
) -> None:
    """NATS lost its store, and has assigned the same sequences to other events."""
    _, *others = await taken(rig, hand, 3)
    worker = hand.worker
    rig.bus.on_reconnect(worker.acked_events.forget)
    await acknowledge(hand, others[:1])
    await worker.acked_events.delete()
    rig.server.stop(lose=True)
    rig.server.start()
    await hand.prepare()
    await acknowledge(hand, others[1:])  # received before the loss: the ack is not sent
    await taken(rig, hand, 4)
    now[0] += 3600

    for _ in range(2):
        await worker.acked_events.delete()
        now[0] += 3600

    assert stored(rig) == [1, 2, 3, 4]


async def test_much_acknowledged_data_is_purged_at_once(
    rig: Rig, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acked_events, "PURGE_DELAY", 3600.0)
    worker = hand.worker
    size = (await rig.bus.stream_info(IN.name)).max_size
    acked = AckedEvents(rig.store, rig.bus, replace(worker.tuning, disk=1000), worker.problems)
    deliveries = await taken(rig, hand, 3)
    assert size > 1000
    for delivery in deliveries:
        await delivery.ack()
    running = asyncio.create_task(acked.run())

    acked.add(deliveries)

    async with asyncio.timeout(WITHIN):
        while stored(rig):
            await asyncio.sleep(0)  # back-off
    running.cancel()


async def test_on_servers_a_new_worker_deletes_what_a_killed_one_had_acknowledged(
    new_place: Place,
) -> None:
    await new_place.bus.ensure_stream(IN)
    await new_place.bus.ensure_consumer(WORKER_IN)
    for _ in range(3):
        await new_place.send.create(new_id())
    async with new_place.bus.pull(WORKER_IN) as pull:
        left = 3
        while left:
            for delivery in await pull.next(3):
                await delivery.ack()
                left -= 1

    await new_place.start()

    await emptied(new_place)


async def test_on_servers_an_old_work_queue_is_emptied_and_created_anew(new_place: Place) -> None:
    """Nothing that was accepted is lost; senders are refused meanwhile and try again."""
    old = replace(IN, retention=RetentionPolicy.WORK_QUEUE)
    before = await new_place.bus.ensure_stream(old)
    await new_place.bus.ensure_consumer(WORKER_IN)
    chats = [new_id() for _ in range(20)]
    async with new_place.answers() as answers:
        for chat in chats:
            await new_place.send.create(chat, chat)
        await asyncio.gather(*(new_place.start() for _ in range(3)))
        later = [new_id() for _ in range(20)]
        await asyncio.gather(*(persistently(new_place.send, chat) for chat in later))
        built: set[str] = set()
        while built != {*chats, *later}:  # a job may be published again: the database is new
            job = await new_place.next_job()
            if job["chat_id"] not in built:
                built.add(job["chat_id"])
                await new_place.send.built(job, agents=())
        answered: set[str] = set()
        while answered != {*chats, *later}:  # so may an answer
            answered.add((await next_data(answers))["call_id"])

    info = await new_place.bus.stream_info(IN.name)
    assert info.retention is RetentionPolicy.LIMITS
    assert info.created != before.created
    assert info.first > before.last
    await emptied(new_place)


async def persistently(send: Senders, chat: str) -> None:
    while True:
        try:
            return await send.create(chat, chat)
        except Unavailable:
            await asyncio.sleep(0.05)  # back-off


async def emptied(place: Place) -> None:
    """Wait until the stream is empty. This asks again and again: the server does not announce it."""
    async with asyncio.timeout(WITHIN):
        while (await place.bus.stream_info(IN.name)).messages:
            await asyncio.sleep(0.05)  # back-off
