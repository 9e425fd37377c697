"""Queries with which workers repair losses of the bus, tested with both adapters."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from msgspec import structs

from statemachine.calls import StoredCall
from statemachine.chat import AgentFacts, Chat
from statemachine.store import CallKey, Changes, SeenServer, StoredJob, StreamPosition
from tests.contract.stores import Shelf, answered, call, key, uid, write

SOON = timedelta(minutes=10)
DAY = timedelta(days=1)


def job(chat_id: str, *, begins: timedelta = SOON) -> StoredJob:
    return StoredJob(
        uid(), chat_id, "workspaced.job.local", b'{"name": "\xc3\xa4"}', datetime.now(UTC) + begins
    )


async def test_a_position_moves_forward_and_only_a_reset_replaces_it(shelf: Shelf) -> None:
    store = shelf.store
    await store.recovery.advance_positions(
        {"A": StreamPosition("monday", 5), "B": StreamPosition("monday", 1)}, "server"
    )

    await store.recovery.advance_positions(
        {"A": StreamPosition("monday", 9), "B": StreamPosition("sunday", 7)}, "server"
    )
    await store.recovery.advance_positions({"A": StreamPosition("monday", 8)}, "server")
    followed = await store.recovery.stream_positions()
    await store.recovery.reset_positions(
        {"A": StreamPosition("monday", 2), "B": StreamPosition("tuesday", 0)}
    )

    assert followed == {"A": StreamPosition("monday", 9), "B": StreamPosition("monday", 1)}
    assert await store.recovery.stream_positions() == {
        "A": StreamPosition("monday", 2),
        "B": StreamPosition("tuesday", 0),
    }


async def test_a_server_is_seen_at_the_time_up_to_which_everything_is_published(
    shelf: Shelf,
) -> None:
    recovery = shelf.store.recovery

    async def seen() -> SeenServer | None:
        await recovery.advance_positions({}, "first")
        return await recovery.seen_server()

    assert await seen() is None  # not recorded yet
    await recovery.record_server("first")
    first = await recovery.seen_server()
    await recovery.advance_positions({}, "another")
    assert await recovery.seen_server() == first
    times = [await seen(), await seen()]
    await recovery.record_server("second")

    assert all(a and b and a.at < b.at for a, b in pairwise([first, *times]))
    last = await recovery.seen_server()
    assert last == SeenServer("second", times[-1].at)  # not on its disk yet, for all we know


async def test_chats_that_changed_since_a_time_are_listed_by_page(shelf: Shelf) -> None:
    old, *new = sorted(uid() for _ in range(3))
    await write(shelf.store, Changes(chats=[Chat(chat_id=old, version=1)]))
    await shelf.later(SOON)
    since = await shelf.store.now()
    await write(shelf.store, Changes(chats=[Chat(chat_id=chat_id) for chat_id in new]))
    changed_chats = shelf.store.recovery.changed_chats

    assert [chat.chat_id for chat in await changed_chats(since)] == new
    assert [chat.chat_id for chat in await changed_chats(since, limit=1)] == new[:1]
    assert [chat.chat_id for chat in await changed_chats(since, after=new[0])] == new[1:]
    assert list(await changed_chats(await shelf.store.now())) == []
    assert len(await changed_chats(since - 2 * SOON)) == 3


async def test_the_answers_of_some_chats_are_those_since_a_time_and_of_a_day(shelf: Shelf) -> None:
    asked, other = uid(), uid()
    old, new = answered(call(asked, "old")), answered(call(asked, "new"))
    await write(shelf.store, Changes(calls=[old, answered(call(other))]))
    await shelf.later(SOON)
    since = await shelf.store.now()
    waiting = StoredCall(call(asked, "waiting"), None)
    await write(shelf.store, Changes(calls=[new, waiting]))
    answers_of = shelf.store.recovery.answers_of

    everything = await answers_of([asked, uid()])
    later = await answers_of([asked], since)
    await shelf.later(DAY - SOON)

    assert {key(stored.call): stored for stored in everything} == {
        key(stored.call): stored for stored in (old, new)
    }
    assert list(later) == [new]
    assert list(await answers_of([asked])) == [new]
    assert list(await answers_of([asked], since - DAY)) == [new]
    assert list(await answers_of([])) == []


async def test_jobs_are_unpublished_until_they_are_marked(shelf: Shelf) -> None:
    chat_id, other_id = uid(), uid()
    one, two, other = job(chat_id), job(chat_id), job(other_id)
    await write(shelf.store, Changes(jobs=[one, two, other]), new=[chat_id, other_id])
    recovery = shelf.store.recovery
    found = await recovery.unpublished_jobs([chat_id])
    assert {found.build_id for found in found} == {one.build_id, two.build_id}

    assert await recovery.mark_published({one.build_id: 7, uid(): 8}) == set()

    assert list(await recovery.unpublished_jobs([chat_id, uid()])) == [two]
    assert list(await recovery.unpublished_jobs([])) == []
    await write(shelf.store, Changes(jobs=[one]))
    assert list(await recovery.unpublished_jobs([chat_id])) == [two]


async def test_a_published_job_that_nobody_needs_is_taken_back_once(shelf: Shelf) -> None:
    chat_id = uid()
    published, late, unneeded = job(chat_id), job(chat_id), job(chat_id)
    unneeded = replace(unneeded, unneeded=True)
    await write(shelf.store, Changes(jobs=[published, late, unneeded]), new=[chat_id])
    recovery = shelf.store.recovery
    assert await recovery.mark_published({published.build_id: 7}) == set()
    builds = [(one.build_id, chat_id) for one in (published, late)]
    await write(shelf.store, Changes(unneeded_jobs=builds))

    assert list(await recovery.unpublished_jobs([chat_id])) == []
    assert await recovery.mark_published({late.build_id: 9}) == {chat_id}
    found = await recovery.unneeded_jobs([chat_id])
    assert {(one.build_id, one.sequence) for one in found} == {
        (published.build_id, 7),
        (late.build_id, 9),
    }
    await recovery.mark_taken_back([published.build_id, late.build_id])
    assert list(await recovery.unneeded_jobs([chat_id])) == []


async def test_workers_that_find_the_same_loss_agree_on_one_mark(shelf: Shelf) -> None:
    store, noted = shelf.store, StreamPosition("monday", 5)
    await store.recovery.advance_positions({"A": noted, "B": noted, "C": noted}, "server")

    await store.recovery.mark_lost({"A": noted, "NEW": None}, "first")
    await store.recovery.mark_lost({"A": noted, "B": noted, "NEW": None}, "second")
    await store.recovery.mark_lost({"C": StreamPosition("monday", 4)}, "of what is noted no more")
    marked = await store.recovery.stream_positions()
    await store.recovery.advance_positions({"A": StreamPosition("monday", 6)}, "server")
    await store.recovery.reset_positions({"B": StreamPosition("tuesday", 1)})

    assert {name: seen.loss_token for name, seen in marked.items()} == {
        "A": "first",
        "B": "second",
        "C": None,
        "NEW": "first",
    }
    assert marked["C"] == noted
    after = await store.recovery.stream_positions()
    assert (after["A"].loss_token, after["B"]) == ("first", StreamPosition("tuesday", 1))


async def test_a_job_is_kept_for_a_day_after_it_may_begin(shelf: Shelf) -> None:
    chat_id = uid()
    first, second = sorted((job(chat_id), job(chat_id)), key=lambda j: j.build_id)
    chat = Chat(chat_id=chat_id, version=1)
    await write(shelf.store, Changes(chats=[chat], jobs=[first, second]))
    await write(shelf.store, Changes(chats=[chat], jobs=[first]))

    kept = await shelf.store.recovery.jobs()
    page = await shelf.store.recovery.jobs(after=first.build_id)
    await shelf.later(SOON)
    late = await shelf.store.recovery.jobs()
    await shelf.later(DAY)

    assert kept == [(first, chat), (second, chat)]
    assert page == [(second, chat)]
    assert [job.build_id for job, _ in late] == [first.build_id, second.build_id]
    assert await shelf.store.recovery.jobs() == []


async def test_an_old_job_is_deleted_when_another_one_is_written(shelf: Shelf) -> None:
    chat_id, late = uid(), job(uid(), begins=-DAY - timedelta(seconds=1))
    await write(shelf.store, Changes(jobs=[replace(late, chat_id=chat_id)]), new=[chat_id])

    await write(shelf.store, Changes(jobs=[job(chat_id)]), new=[chat_id])
    await write(shelf.store, Changes(jobs=[job(chat_id)]), new=[chat_id])

    assert len(await shelf.store.recovery.jobs()) == 2


async def test_answered_calls_of_a_day_are_listed_by_page(shelf: Shelf) -> None:
    chat_id = uid()
    stored = [answered(call(chat_id, name)) for name in ("a", "b", "c")]
    waiting = structs.replace(stored[0], call=call(chat_id, "d"), answer=None)
    await write(shelf.store, Changes(calls=[*stored, waiting]))

    first = await shelf.store.recovery.answered_calls(limit=2)
    rest = await shelf.store.recovery.answered_calls(after=key(first[-1].call), limit=2)
    await shelf.later(timedelta(hours=24))

    assert [s.call.call_id for s in (*first, *rest)] == ["a", "b", "c"]
    assert first[0] == stored[0]
    assert await shelf.store.recovery.answered_calls(after=CallKey(chat_id, "c")) == []
    assert await shelf.store.recovery.answered_calls() == []


async def test_published_chats_and_chats_with_agents_are_listed_by_page(shelf: Shelf) -> None:
    facts = AgentFacts(id=uid(), workspace_id=uid(), build_id=uid(), reported_connected=True)
    ids = sorted(uid() for _ in range(4))
    chats = [
        Chat(chat_id=ids[0], version=1),
        Chat(chat_id=ids[1]),
        Chat(chat_id=ids[2], version=3, agents=(facts,)),
        Chat(chat_id=ids[3], agents=(facts,)),
    ]
    await write(shelf.store, Changes(chats=chats))

    assert await shelf.store.recovery.published_chats() == [chats[0], chats[2]]
    assert await shelf.store.recovery.published_chats(after=ids[0], limit=1) == [chats[2]]
    assert await shelf.store.recovery.chats_with_agents() == chats[2:]
    assert await shelf.store.recovery.chats_with_agents(after=ids[2]) == [chats[3]]


async def test_chats_with_agents_leaves_out_chats_whose_agents_are_disconnected(
    shelf: Shelf,
) -> None:
    """Most chats have ended; a worker must not read all of them when it starts."""
    ids = sorted(uid() for _ in range(4))
    there = AgentFacts(id=uid(), workspace_id=uid(), build_id=uid(), reported_connected=True)
    left = structs.replace(there, reported_connected=False)
    lost = structs.replace(there, lost_at=7)
    silent = structs.replace(there, reported_connected=None)
    chats = [
        Chat(chat_id=ids[0], agents=(left,)),
        Chat(chat_id=ids[1], agents=(lost, there)),
        Chat(chat_id=ids[2], agents=(lost,)),
        Chat(chat_id=ids[3], agents=(silent,)),
    ]

    await write(shelf.store, Changes(chats=chats))

    assert await shelf.store.recovery.chats_with_agents() == [chats[1]]


async def test_the_origin_differs_until_it_is_recorded_and_after_a_restore(shelf: Shelf) -> None:
    new = await shelf.store.recovery.origin()
    assert new.differs, "nobody has said where they are"

    await shelf.store.recovery.record_origin(new.current)
    settled = await shelf.store.recovery.origin()
    await shelf.store.recovery.record_origin("another database")
    restored = await shelf.store.recovery.origin()

    assert (settled.current, settled.recorded, settled.differs) == (new.current, new.current, False)
    assert (restored.current, restored.recorded, restored.differs) == (
        new.current,
        "another database",
        True,
    )
