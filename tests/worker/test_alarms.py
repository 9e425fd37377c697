"""Alarms: one message for all chats of a time, pages of due chats, and what a crash or a bad chat leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from bus import Unavailable
from bus.streams import TIMER, WORKER_ALARM
from handlers.worker import committer, worker
from handlers.worker.alarms import PAGE
from handlers.worker.committer import LONGEST_DELAY
from statemachine.store import Alarm, Changes, StoreUnavailableError, WorkRefusedError, Written
from tests.doubles.memory_store import MemoryStore
from tests.rigs.messages import new_id
from tests.worker.messages import Senders
from tests.worker.rig import Hand, Rig

TEN_MINUTES = 600.0


class Unreliable(MemoryStore):
    """A store that refuses to write some chats, and can be unavailable when alarms are deleted."""

    refused: frozenset[str] = frozenset()
    away = False
    written: tuple[set[str], set[str]] = set(), set()
    """The chats of the last write whose rows changed, and those whose rows did not."""

    async def write(self, changes: Changes) -> set[str]:
        written = {chat.chat_id for chat in changes.chats}
        if self.refused & (written | {*changes.unchanged}):
            raise WorkRefusedError("a trigger says no")
        self.written = written, {*changes.unchanged}
        return await super().write(changes)

    async def delete_alarms(self, alarms: Sequence[Alarm], *, unhandled: bool = False) -> None:
        if self.away:
            raise StoreUnavailableError("away")
        await super().delete_alarms(alarms, unhandled=unhandled)


@pytest.fixture
async def rig(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Rig:
    templates = rig.store.templates
    rig.store = Unreliable(rig.now)
    rig.store.templates = templates
    monkeypatch.setattr(committer, "LONGEST_DELAY", 0.01)
    monkeypatch.setattr(worker, "LONGEST_DELAY", 0.01)
    return rig


@pytest.fixture
def store(rig: Rig) -> Unreliable:
    assert isinstance(rig.store, Unreliable)
    return rig.store


async def given_builds(rig: Rig, hand: Hand, count: int) -> list[str]:
    """Start builds in so many chats at the same time; they will not end."""
    chats = [new_id() for _ in range(count)]
    for chat in chats:
        await rig.senders.create(chat, owner=new_id())
    await hand.pump(most=1024)
    return chats


def states(rig: Rig, chats: Sequence[str]) -> set[str]:
    return {rig.state(chat)["state"] for chat in chats}


def failed(rig: Rig, chats: Sequence[str]) -> set[str]:
    return {chat for chat in chats if rig.state(chat)["state"] == "failed"}


async def test_all_chats_of_a_time_have_one_alarm(rig: Rig, hand: Hand) -> None:
    chats = await given_builds(rig, hand, 100)

    assert rig.server.streams[TIMER.name].last_sequence == 1
    assert len(rig.store.alarms) == len(chats)
    rig.clock.advance(TEN_MINUTES)
    assert await hand.pump() == 1

    assert states(rig, chats) == {"failed"}
    assert rig.store.alarms == {}
    for chat in chats:
        await rig.check(chat)


async def test_more_alarms_than_a_batch_takes_are_handled_page_by_page(
    rig: Rig, hand: Hand, send: Senders
) -> None:
    """Events that arrive meanwhile are applied with the next page, and do not wait for the last."""
    chats = await given_builds(rig, hand, 2 * PAGE + 10)
    rig.clock.advance(TEN_MINUTES)

    await hand.work(hand.take())
    assert len(failed(rig, chats)) == PAGE
    await send.ask(other := new_id(), "list_templates")
    await hand.work(hand.take())
    assert len(failed(rig, chats)) == 2 * PAGE
    assert rig.answer(other)["result"]["count"] == 1
    assert await hand.pump() == 1

    assert states(rig, chats) == {"failed"}
    assert rig.store.alarms == {}
    assert (await rig.bus.consumer_state(WORKER_ALARM)).backlog == 0


async def test_a_page_that_was_exactly_full_is_followed_by_an_empty_one(
    rig: Rig, hand: Hand
) -> None:
    chats = await given_builds(rig, hand, PAGE)
    rig.clock.advance(TEN_MINUTES)

    assert await hand.pump() == 2

    assert states(rig, chats) == {"failed"}
    assert rig.store.alarms == {}


async def test_two_workers_that_ring_the_same_alarm_let_each_limit_pass_once(
    rig: Rig, hand: Hand
) -> None:
    chats, other = await given_builds(rig, hand, 5), rig.hand()
    rig.clock.advance(TEN_MINUTES)
    first = hand.take()
    rig.clock.advance(WORKER_ALARM.ack_wait)
    second = other.take()
    assert len(first) == len(second) == 1

    await asyncio.gather(hand.work(first), other.work(second))

    for chat in chats:
        assert rig.path(chat) == ["building", "failed"]
        assert len(rig.results[chat, "c"]) == 1
        assert len(await rig.outcomes(chat)) == 3
        await rig.check(chat)
    assert rig.store.alarms == {}


async def test_a_crash_between_commit_and_publish_leaves_alarms_whose_chats_are_published(
    rig: Rig, hand: Hand
) -> None:
    """Also when the message that rang is gone, because another one replaced it."""
    (chat,) = await given_builds(rig, hand, 1)
    rig.clock.advance(TEN_MINUTES)
    assert await rig.hand().worker.commit(hand.take()) is not None
    assert rig.state(chat)["state"] == "building"
    assert all(rig.store.alarms.values()), "they are handled"
    rig.clock.advance(1)
    (later,) = await given_builds(rig, hand, 1)

    rig.clock.advance(TEN_MINUTES)
    await rig.hand().pump()

    assert states(rig, [chat, later]) == {"failed"}
    assert "error" in rig.answer(chat)["result"]
    assert rig.store.alarms == {}
    await rig.check(chat)


async def test_a_crash_between_publish_and_the_deletion_of_alarms_publishes_nothing_twice(
    rig: Rig, hand: Hand, store: Unreliable
) -> None:
    chats = await given_builds(rig, hand, 3)
    rig.clock.advance(TEN_MINUTES)
    store.away = True
    await rig.hand().pump()
    assert states(rig, chats) == {"failed"}
    assert all(store.alarms.values()), "they are handled"
    assert len(store.alarms) == 3
    store.away = False

    rig.clock.advance(WORKER_ALARM.ack_wait)
    await rig.hand().pump()

    assert store.alarms == {}
    for chat in chats:
        assert len(rig.results[chat, "c"]) == 1
        await rig.check(chat)


@pytest.mark.parametrize("neighbours", [0, 5])
async def test_a_damaged_chat_does_not_stop_the_alarms_of_others(
    rig: Rig, hand: Hand, store: Unreliable, neighbours: int
) -> None:
    damaged, *others = await given_builds(rig, hand, neighbours + 1)
    due = rig.store.due_alarms

    async def unreadable(limit: int, **more: Any) -> Any:  # PostgreSQL reads no snapshot there
        whole, store.snapshots[damaged] = store.snapshots[damaged], readable
        try:
            return await due(limit, **more)
        finally:
            store.snapshots[damaged] = whole

    readable = store.snapshots[damaged]
    store.due_alarms = unreadable  # type: ignore[method-assign]
    store.snapshots[damaged] = "{}"

    await hand.let_time_pass(TEN_MINUTES)

    assert failed(rig, others) == {*others}
    (letter,) = rig.dead
    assert letter.headers["Workspaced-Reason"] == "internal"
    assert damaged in letter.data.decode()
    assert store.alarms == {}, "it would ring again and again"
    assert (await rig.bus.consumer_state(WORKER_ALARM)).backlog == 0


async def test_alarms_of_a_chat_that_the_database_refuses_come_again(
    rig: Rig, hand: Hand, store: Unreliable
) -> None:
    refused, *others = await given_builds(rig, hand, 4)
    store.refused = frozenset({refused})
    rig.clock.advance(TEN_MINUTES)
    for _ in range(2):
        await hand.pump()
        await asyncio.gather(*hand.worker.postponing)
        assert failed(rig, [refused, *others]) == {*others}
        assert [alarm.chat_id for alarm in store.alarms] == [refused]
    assert rig.dead == []

    store.refused = frozenset()
    await hand.let_time_pass(LONGEST_DELAY)

    assert rig.state(refused)["state"] == "failed"
    assert store.alarms == {}
    assert (await rig.bus.consumer_state(WORKER_ALARM)).backlog == 0


async def test_an_alarm_that_changes_nothing_leaves_the_row_of_its_chat_unwritten(
    rig: Rig, hand: Hand, store: Unreliable
) -> None:
    """The chat has a later limit than when the alarm was set."""
    (chat,) = await given_builds(rig, hand, 1)
    rig.clock.advance(TEN_MINUTES - 50)
    await rig.senders.built(rig.job)
    await hand.pump()
    assert rig.state(chat)["state"] == "agent_connecting"
    before = store.row_versions[chat]

    await hand.let_time_pass(50)

    assert store.written == (set(), {chat})
    assert store.row_versions[chat] == before
    assert [alarm.at > rig.now() for alarm in store.alarms] == [True]
    await hand.let_time_pass(TEN_MINUTES)
    assert rig.state(chat)["state"] == "failed"


async def test_an_alarm_that_changes_nothing_is_looked_at_again_if_its_chat_changes_meanwhile(
    rig: Rig, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker applies an event between the reading of the chat and the writing."""
    (chat,) = await given_builds(rig, hand, 1)
    job, other, write = rig.job, rig.hand(), Unreliable.write
    rig.clock.advance(TEN_MINUTES - 50)
    await rig.senders.built(job)
    await hand.pump()
    rig.clock.advance(50)
    rang = hand.take()
    done: list[Written] = []

    async def overtaken(self: Unreliable, changes: Changes) -> Written:
        monkeypatch.setattr(Unreliable, "write", write)
        await rig.senders.agent(job, "connected", 1)
        await other.work(other.take())
        done.append(await write(self, changes))
        return done[0]

    monkeypatch.setattr(Unreliable, "write", overtaken)
    await hand.work(rang)

    assert [(one.skipped, one.repeated) for one in done] == [({chat}, set())]
    assert rig.state(chat)["state"] == "scripts_running"
    await hand.let_time_pass(2 * TEN_MINUTES)
    assert rig.state(chat)["state"] != "scripts_running"
    await rig.check(chat)


async def test_an_alarm_of_a_chat_that_needs_no_timer_any_more_is_deleted_unseen(
    rig: Rig, hand: Hand, store: Unreliable
) -> None:
    (chat,) = await given_builds(rig, hand, 1)
    await rig.senders.built(rig.job, "failed")
    await hand.pump()
    before, store.written = store.row_versions[chat], (set(), set())

    await hand.let_time_pass(TEN_MINUTES)

    assert store.alarms == {}
    assert store.written == (set(), set())
    assert store.row_versions[chat] == before


async def test_alarms_that_ring_early_are_set_again_for_all_their_chats(
    rig: Rig, hand: Hand
) -> None:
    chats = await given_builds(rig, hand, 5)
    rig.skew = timedelta(seconds=30)

    rig.clock.advance(TEN_MINUTES)
    assert await hand.pump() == 1
    assert states(rig, chats) == {"building"}
    await hand.let_time_pass(30)

    assert states(rig, chats) == {"failed"}
    assert rig.server.streams[TIMER.name].last_sequence == 4


async def test_alarms_are_handled_after_nats_was_away_when_they_were_published(
    rig: Rig, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = await given_builds(rig, hand, 3)
    rig.clock.advance(TEN_MINUTES)

    async def died(rows: Any, **_more: Any) -> None:
        raise Unavailable(f"died with {rows}")

    with monkeypatch.context() as patch:
        patch.setattr(hand.relay, "publish", died)
        await hand.pump()
    assert states(rig, chats) == {"building"}
    await hand.let_time_pass(WORKER_ALARM.ack_wait)

    assert states(rig, chats) == {"failed"}
    assert all("error" in rig.answer(chat)["result"] for chat in chats)
    assert rig.store.alarms == {}
