"""An event that the database cannot accept now is redelivered; only bad data or a bug makes a dead letter."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bus.streams import WORKER_IN
from handlers.worker import committer, worker
from statemachine.store import (
    Changes,
    StoreUnavailableError,
    TransientError,
    WorkRefusedError,
)
from tests.doubles.memory_store import MemoryStore
from tests.rigs.messages import new_id
from tests.worker.messages import Senders
from tests.worker.rig import Hand, Rig


class Refusing(MemoryStore):
    """A store that refuses the events of some chats, or of all, with errors like PostgreSQL's."""

    refused: frozenset[str] | None = frozenset()
    """The chats whose events it refuses; None: all."""
    error: type[Exception] = WorkRefusedError
    tries = 0

    async def write(self, changes: Changes) -> set[str]:
        self.tries += 1
        if self.refused is None or self.refused & {chat.chat_id for chat in changes.chats}:
            raise self.error("a trigger says no")
        return await super().write(changes)

    async def check_writable(self) -> None:
        if self.refused is None:
            raise StoreUnavailableError("the database has no table chat")


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    rig = Rig()
    rig.store = Refusing(rig.now)
    monkeypatch.setattr(committer, "LONGEST_DELAY", 0.01)
    monkeypatch.setattr(worker, "LONGEST_DELAY", 0.01)
    return await rig.open()


@pytest.fixture
def store(rig: Rig) -> Refusing:
    assert isinstance(rig.store, Refusing)
    return rig.store


async def redeliver_postponed(hand: Hand) -> None:
    """Wait until postponed events are redelivered, and process them."""
    await asyncio.gather(*hand.worker.postponing)
    await hand.pump()


@pytest.mark.parametrize("neighbours", [0, 1, 6])
async def test_an_event_that_the_database_refuses_is_postponed_and_other_events_are_committed(
    rig: Rig, hand: Hand, send: Senders, store: Refusing, neighbours: int
) -> None:
    chat, others = new_id(), [new_id() for _ in range(neighbours)]
    for n, other in enumerate((*others, new_id())):
        if n == neighbours // 2:
            await send.create(chat)
        await send.create(other)
        others.append(other)
    store.refused = frozenset({chat})

    await hand.pump()

    assert {job["chat_id"] for job in rig.jobs()} == {*others}
    assert rig.dead == []
    assert "a trigger says no" in (await store.blocked({chat, *others}))[chat]
    assert set(await store.blocked({chat, *others})) == {chat}
    assert "a trigger says no" in str(hand.worker.problems.of("database"))
    for _ in range(3):
        await redeliver_postponed(hand)
    assert rig.dead == []

    store.refused = frozenset()
    await redeliver_postponed(hand)

    assert {job["chat_id"] for job in rig.jobs()} == {chat, *others}
    assert await store.blocked({chat}) == {}
    assert hand.worker.problems.of("database") is None
    assert (await rig.bus.consumer_state(WORKER_IN)).backlog == 0


@pytest.mark.parametrize("error", [WorkRefusedError, StoreUnavailableError])
async def test_a_batch_is_retried_as_a_whole_while_the_database_accepts_nothing(
    rig: Rig, hand: Hand, send: Senders, store: Refusing, error: type[Exception]
) -> None:
    chats = [new_id() for _ in range(32)]
    for chat in chats:
        await send.create(chat)
    store.refused, store.error = None, error

    working = asyncio.create_task(hand.pump())
    while store.tries < 5:
        await asyncio.sleep(0)
    assert "the database does not take events" in str(hand.worker.problems.of("database"))
    assert set(await store.blocked(set(chats))) == (
        set(chats) if error is WorkRefusedError else set()
    )
    store.refused = frozenset()
    tries = store.tries
    await working

    assert store.tries == tries + 1
    assert len(rig.jobs()) == 32
    assert rig.dead == []
    assert hand.worker.problems.of("database") is None
    assert await store.blocked(set(chats)) == {}


async def test_the_worker_waits_for_a_database_that_goes_away_while_a_batch_is_halved(
    rig: Rig, hand: Hand, send: Senders, store: Refusing
) -> None:
    refused, others = new_id(), [new_id() for _ in range(7)]
    for chat in (refused, *others):
        await send.create(chat)
    store.refused = frozenset({refused})
    noted = store.note_blocked

    async def away_from_now(*args: Any) -> None:
        await noted(*args)
        store.refused, store.error = None, StoreUnavailableError

    store.note_blocked = away_from_now  # type: ignore[method-assign]
    working = asyncio.create_task(hand.pump())
    async with asyncio.timeout(60):
        while "does not take events" not in str(hand.worker.problems.of("database")):
            await asyncio.sleep(0)
    store.note_blocked = noted  # type: ignore[method-assign]
    store.refused, store.error = frozenset({refused}), WorkRefusedError
    await working

    assert {job["chat_id"] for job in rig.jobs()} == {*others}
    assert set(await store.blocked({refused, *others})) == {refused}


async def test_an_event_whose_chat_stays_locked_does_not_block_other_events(
    rig: Rig, hand: Hand, send: Senders, store: Refusing
) -> None:
    """Another session holds a lock on the chat's row."""
    locked, others = new_id(), [new_id() for _ in range(3)]
    for chat in (locked, *others):
        await send.create(chat)
    store.refused, store.error = frozenset({locked}), TransientError

    async with asyncio.timeout(60):
        await hand.pump()

    assert {job["chat_id"] for job in rig.jobs()} == {*others}
    assert set(await store.blocked({locked, *others})) == {locked}
    assert rig.dead == []
    store.refused = frozenset()
    await redeliver_postponed(hand)
    assert {job["chat_id"] for job in rig.jobs()} == {locked, *others}


async def test_a_chat_with_several_postponed_events_is_noted_once(
    rig: Rig, hand: Hand, send: Senders, store: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LONGEST_DELAY", 60.0)  # none is redelivered during the test
    refused = new_id()
    for _ in range(4):
        await send.create(refused)
    store.refused, noted, notes = frozenset({refused}), store.note_blocked, list[Any]()

    async def hold_up(*args: Any) -> None:
        notes.append(args)
        await noted(*args)

    store.note_blocked = hold_up  # type: ignore[method-assign]
    await hand.pump()

    assert len(notes) == 1


async def test_an_event_that_hits_a_bug_becomes_a_dead_letter_while_another_chat_is_refused(
    rig: Rig, hand: Hand, send: Senders, store: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, bad = new_id(), new_id()
    await send.create(refused)
    await send.create(bad)
    await send.create(other := new_id())
    store.refused = frozenset({refused})
    decide = worker.apply

    async def applied(items: Any, *more: Any) -> Any:
        if any(getattr(item, "event", None) and item.event.chat_id == bad for item in items):
            raise KeyError("a bug")
        return await decide(items, *more)

    monkeypatch.setattr(worker, "apply", applied)
    await hand.pump()

    (letter,) = rig.dead
    assert letter.headers["Workspaced-Detail"] == "internal error: KeyError"
    assert [job["chat_id"] for job in rig.jobs()] == [other]
    assert set(await store.blocked({refused, bad, other})) == {refused}


async def test_events_of_a_chat_that_always_changes_meanwhile_are_postponed(
    rig: Rig, hand: Hand, send: Senders, store: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other chats of the batch are committed with the first attempt."""
    busy, other = new_id(), new_id()
    await send.create(busy)
    await send.create(other)
    with monkeypatch.context() as patch:
        patch.setattr(
            MemoryStore,
            "changed_rows",
            lambda _store, changes: {c.chat_id for c in changes.chats} & {busy},
        )
        await hand.pump()

        assert store.tries >= committer.CONFLICT_RETRIES + 1
        assert [job["chat_id"] for job in rig.jobs()] == [other]
        assert "others change" in str(hand.worker.problems.of("database"))
        assert set(await store.blocked({busy, other})) == {busy}

    await redeliver_postponed(hand)

    assert {job["chat_id"] for job in rig.jobs()} == {busy, other}
    assert hand.worker.problems.of("database") is None
    assert rig.dead == []
