"""Calls and jobs beyond a limit are refused at once, and accepted again when there is room."""

from __future__ import annotations

import asyncio

import pytest

from handlers.worker import call_limits
from handlers.worker.call_limits import LoadSampler, WaitingLimits
from handlers.worker.worker import Worker
from statemachine.tool_rules import BUSY
from tests.rigs.messages import new_id
from tests.worker.messages import Senders
from tests.worker.rig import POOL, Hand, Rig


def worker_with(rig: Rig, waiting_limits: WaitingLimits) -> Hand:
    hand = rig.hand()
    hand.worker = Worker(rig.store, rig.bus, rig.limits, waiting_limits=waiting_limits)
    return hand


async def sample_load(hand: Hand) -> None:
    """Make the worker count the waiting calls and jobs now."""
    await hand.worker.load.sample()


def is_refused(rig: Rig, chat: str, call: str = "c") -> bool:
    answer = rig.answer(chat, call)
    return bool(answer["is_error"]) and answer["result"]["error"].startswith(BUSY)


async def test_a_call_above_the_limit_of_its_chat_is_refused(
    rig: Rig, send: Senders, chat: str
) -> None:
    hand = worker_with(rig, WaitingLimits(calls_per_chat=2))
    for call in ("a", "b", "c", "a"):
        await send.create(chat, call)
    await hand.pump()

    assert is_refused(rig, chat, "c")
    assert not {(chat, "a"), (chat, "b")} & rig.results.keys()

    await send.built(rig.job, "failed")
    await hand.pump()
    assert (
        rig.answer(chat, "a")["result"]["build_id"] == rig.answer(chat, "b")["result"]["build_id"]
    )
    await rig.check(chat)


async def test_a_refused_call_creates_no_build_and_no_workspace(rig: Rig, send: Senders) -> None:
    hand, waiting, late = worker_with(rig, WaitingLimits(calls=1)), new_id(), new_id()
    await send.create(waiting)
    await hand.pump()
    await sample_load(hand)

    await send.create(late)
    await hand.pump()

    assert is_refused(rig, late)
    assert rig.path(late) == []
    assert [job["chat_id"] for job in rig.jobs()] == [waiting]
    await rig.check(late)


async def test_calls_are_accepted_again_when_others_are_answered(rig: Rig, send: Senders) -> None:
    hand, waiting, late = worker_with(rig, WaitingLimits(calls=1)), new_id(), new_id()
    await send.create(waiting)
    await hand.pump()
    await sample_load(hand)
    await send.built(rig.job, "failed")
    await hand.pump()
    await sample_load(hand)

    await send.create(late)
    await hand.pump()

    assert rig.path(late) == ["building"]


async def test_no_job_is_added_to_a_full_queue(rig: Rig, send: Senders) -> None:
    hand, chats = worker_with(rig, WaitingLimits(jobs=1)), [new_id() for _ in range(3)]
    await send.create(chats[0])
    await hand.pump()
    await sample_load(hand)
    await send.create(chats[1])
    await hand.pump()
    assert is_refused(rig, chats[1])
    assert len(rig.jobs()) == 1

    async with rig.bus.pull(POOL, prefetch=1) as pull:
        (taken,) = await pull.next(1)
        await taken.ack()
    await sample_load(hand)
    await send.create(chats[2])
    await hand.pump()

    assert [job["chat_id"] for job in rig.jobs()] == [chats[2]]


async def test_the_load_is_sampled_at_most_once_a_second_and_only_for_calls(rig: Rig) -> None:
    gauge = LoadSampler(rig.store, rig.bus, WaitingLimits(calls=1))

    gauge.load(sample=False)
    assert gauge._sampling is None
    gauge.load(sample=True)
    first = gauge._sampling
    assert first is not None
    await asyncio.wait_for(first, 5)
    gauge.load(sample=True)
    assert gauge._sampling is first
    await gauge.close()


async def test_a_sample_that_takes_long_counts_longer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples must not keep the database busy when very many calls wait."""
    monkeypatch.setattr(call_limits, "SAMPLE_SECONDS", 0.0)
    gauge = LoadSampler(rig.store, rig.bus, WaitingLimits())

    async def samples(share: float) -> bool:
        """Return whether a second sample follows the first at once."""
        monkeypatch.setattr(call_limits, "SAMPLE_SHARE", share)
        gauge.load(sample=True)
        first = gauge._sampling
        assert first is not None
        await first
        gauge.load(sample=True)
        return gauge._sampling is not first

    assert await samples(share=1.0)
    assert not await samples(share=1e-9)
    await gauge.close()


async def test_while_nats_is_away_the_last_sample_of_the_load_counts(
    rig: Rig, send: Senders
) -> None:
    hand = worker_with(rig, WaitingLimits(calls=1))
    await send.create(new_id())
    await hand.pump()
    await sample_load(hand)
    before = hand.worker.load.load(sample=False)

    rig.server.stop()
    await sample_load(hand)

    assert before.full
    assert hand.worker.load.load(sample=False) == before
