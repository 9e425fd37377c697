"""Limits count by the database clock, timers fire by the NATS clock; they may differ or be set."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import pytest

from bus import Bus, Unavailable
from bus.jetstream import connect
from bus.streams import TIMER
from handlers.access.identities import seed_file
from handlers.embedded import Servers
from handlers.worker.clock_skew import LATE, read_clocks
from handlers.worker.worker import Worker
from statemachine.chat import Limits
from statemachine.timers import TimerKind, due_at
from tests.doubles.memory_store import MemoryStore
from tests.rigs.messages import new_id
from tests.unit.driver import ORG, PYTHON
from tests.worker.messages import Answers, Senders
from tests.worker.rig import Hand, Rig

HOUR = timedelta(hours=1)
TEN_MINUTES = 600.0
DIFFERENCES = [HOUR, -HOUR, timedelta(days=40), timedelta(days=-40), timedelta(seconds=0.3)]
"""How far the database's clock is behind NATS's."""


def count_timers(rig: Rig) -> int:
    """Return how many messages the timer stream has stored: alarms that were set, and those that rang."""
    return rig.server.streams[TIMER.name].last_sequence


async def given_chat_with_limit(rig: Rig, hand: Hand, chat: str) -> None:
    """Start a build that will not end."""
    await rig.senders.create(chat)
    await hand.pump()
    assert rig.state(chat)["state"] == "building"


async def expect_limit_holds(rig: Rig, hand: Hand, chat: str, seconds: float = TEN_MINUTES) -> None:
    """Expect that the limit passes after `seconds`, not earlier."""
    await hand.let_time_pass(seconds - 1)
    assert rig.state(chat)["state"] == "building"
    await hand.let_time_pass(1.5)
    assert rig.state(chat)["state"] == "failed"
    await rig.check(chat)


@pytest.mark.parametrize("behind", DIFFERENCES)
async def test_a_worker_that_knows_the_clock_difference_arms_each_timer_once(
    rig: Rig, hand: Hand, chat: str, behind: timedelta
) -> None:
    rig.skew = behind
    await hand.prepare()
    assert hand.worker.skew.ahead == behind

    await given_chat_with_limit(rig, hand, chat)
    await expect_limit_holds(rig, hand, chat)

    assert count_timers(rig) == 2


@pytest.mark.parametrize("behind", [HOUR, timedelta(days=40), timedelta(seconds=3)])
async def test_a_clock_that_is_set_back_causes_one_more_timer_per_open_limit(
    rig: Rig, hand: Hand, behind: timedelta
) -> None:
    await hand.prepare()
    rig.skew = behind
    chats = [new_id() for _ in range(5)]
    for chat in chats:
        await rig.senders.create(chat)
    await hand.pump()

    await hand.let_time_pass(TEN_MINUTES)

    assert all(rig.state(chat)["state"] == "failed" for chat in chats)
    # Timers of the first batch were armed before the worker knew the difference: each fired early.
    assert count_timers(rig) <= 4 * len(chats)
    for chat in chats:
        await rig.check(chat)


async def test_open_limits_fire_early_once_after_the_database_clock_is_set_back(
    rig: Rig, hand: Hand, chat: str
) -> None:
    await hand.prepare()
    await given_chat_with_limit(rig, hand, chat)
    rig.skew = HOUR

    await hand.let_time_pass(TEN_MINUTES)
    assert rig.state(chat)["state"] == "building"
    assert count_timers(rig) == 3
    await hand.let_time_pass(HOUR.total_seconds())

    assert rig.state(chat)["state"] == "failed"
    assert count_timers(rig) == 4


async def test_all_timers_are_armed_again_when_a_clock_change_makes_one_fire_late(
    rig: Rig, hand: Hand
) -> None:
    """NATS's clock was an hour ahead and is corrected, or the database's was an hour behind."""
    rig.skew = HOUR
    await hand.prepare()
    first, second = new_id(), new_id()
    await given_chat_with_limit(rig, hand, first)
    rig.clock.advance(10)
    await given_chat_with_limit(rig, hand, second)

    rig.skew = timedelta(0)
    await hand.let_time_pass(TEN_MINUTES - 10)

    assert rig.state(first)["state"] == "failed"
    assert hand.worker.skew.ahead == timedelta(0)
    assert hand.worker.preparation_due.is_set()
    await hand.prepare()
    await hand.let_time_pass(0)
    assert rig.state(second)["state"] == "failed"


async def test_timers_delayed_by_a_backlog_are_not_armed_again(
    rig: Rig, hand: Hand, chat: str
) -> None:
    await hand.prepare()
    await given_chat_with_limit(rig, hand, chat)

    await hand.let_time_pass(TEN_MINUTES + 10 * LATE.total_seconds())

    assert rig.state(chat)["state"] == "failed"
    assert not hand.worker.preparation_due.is_set()
    assert count_timers(rig) == 2


async def test_a_batch_is_redelivered_if_the_clocks_cannot_be_read(
    rig: Rig, hand: Hand, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(stream: str) -> datetime:
        raise Unavailable(stream)

    await given_chat_with_limit(rig, hand, chat)
    rig.skew = timedelta(seconds=3)
    rig.clock.advance(TEN_MINUTES)
    with monkeypatch.context() as patch:
        patch.setattr(rig.bus, "server_time", away)
        await hand.pump()
    assert rig.state(chat)["state"] == "building"
    await hand.let_time_pass(30)

    assert rig.state(chat)["state"] == "failed"


async def test_timers_do_not_depend_on_the_workers_own_clock(
    rig: Rig, hand: Hand, chat: str
) -> None:
    """The rig's time is years away from the worker's own, by which a timer would never be due."""
    await hand.prepare()
    await given_chat_with_limit(rig, hand, chat)
    rig.server.stop(lose=True)
    rig.server.start()

    again = rig.hand()
    await again.prepare()
    rig.clock.advance(TEN_MINUTES - 1)
    await again.pump()
    assert rig.state(chat)["state"] == "building"
    rig.clock.advance(1)
    await again.pump()
    assert rig.state(chat)["state"] == "failed"


class WrongClock:
    """A database clock that is behind."""

    def __init__(self, behind: timedelta) -> None:
        self.behind = behind

    def __call__(self) -> datetime:
        return datetime.now(UTC) - self.behind


@pytest.mark.parametrize(("known", "behind"), [(True, HOUR), (True, -HOUR), (False, HOUR)])
async def test_on_a_real_server_a_limit_needs_at_most_one_more_timer(
    own_nats: Servers, known: bool, behind: timedelta
) -> None:
    """A real server fires timers by its own clock; the in-memory store has a different one."""
    clock = WrongClock(behind if known else timedelta(0))
    store = MemoryStore(clock)
    await store.templates.push(ORG, PYTHON.active, b"")
    limits = Limits(build=timedelta(seconds=1))
    async with AsyncExitStack() as stack:

        async def bus(role: str) -> Bus:
            file = seed_file(own_nats.credentials, role)
            made = await connect(own_nats.nats_url, name=role, seed_file=file)
            return await stack.enter_async_context(made)

        worker, operator = Worker(store, await bus("worker"), limits), await bus("operator")
        running = asyncio.create_task(worker.run())
        stack.push_async_callback(asyncio.wait, [running])
        stack.callback(running.cancel)
        await asyncio.wait_for(worker.ready.wait(), 20)
        clocks = await read_clocks(store, operator)
        assert abs(clocks.ahead - clock.behind) < timedelta(seconds=10)
        clock.behind = behind
        chats = [new_id() for _ in range(3)]
        async with operator.subscribe("workspaced.result.>") as results:
            answers = Answers(results)
            for chat in chats:
                await Senders(operator).create(chat)
            for _ in chats:
                await answers.next(20)
        for chat in chats:
            kept = await store.chats.get(chat)
            assert kept is not None
            assert due_at(kept, TimerKind.DEADLINE, limits) is None
        stored = (await operator.ensure_stream(TIMER)).last
        assert stored <= (2 if known else 4) * len(chats)


async def test_a_pause_between_two_readings_does_not_count_as_a_difference(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.skew = timedelta(milliseconds=50)
    read, pauses = rig.store.now, iter([16, 3])

    async def then_pause() -> datetime:
        at = await read()
        rig.clock.advance(next(pauses, 0))
        return at

    monkeypatch.setattr(rig.store, "now", then_pause)

    assert (await read_clocks(rig.store, rig.bus)).ahead == rig.skew
