"""The rules of every store for alarms: when they are due, when they are deleted, and when they stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from statemachine.chat import Chat
from statemachine.store import Alarm, Changes, Store, Wanted
from tests.contract.stores import NOW, Shelf, uid, until_one_waits, write

LONG_AGO = timedelta(hours=1)
MARK = "insert into alarm (at, chat_id) values ($1, $2) on conflict (at, chat_id) do update set handled_at = null"
"""What a statement that stores an alarm again does to its row."""


def waiting(chat_id: str, **more: Any) -> Chat:
    """Return a chat that needs a timer."""
    return Chat(chat_id=chat_id, deadline=NOW, **more)


async def some_time_ago(store: Store, seconds: float = 0) -> datetime:
    """Return a time that has passed, later by `seconds` than the first such time."""
    return await store.now() - LONG_AGO + timedelta(seconds=seconds)


async def due_alarms(store: Store) -> list[Alarm]:
    """Return all alarms that are due, in the order in which the store lists them."""
    found = await store.due_alarms(1000)
    return [alarm for alarms in found.alarms.values() for alarm in alarms]


async def handle(store: Store, *alarms: Alarm) -> None:
    """Mark alarms as handled, as the changes of a batch do."""
    assert (await store.write(Changes(handled=list(alarms)))).skipped == set()


async def test_alarms_are_due_when_their_time_has_come(shelf: Shelf) -> None:
    chat_id = uid()
    soon = Alarm(await shelf.store.now() + LONG_AGO, chat_id)
    await write(shelf.store, Changes(chats=[waiting(chat_id)], alarms=[soon]))

    before = await shelf.store.due_alarms(10)
    await shelf.later(2 * LONG_AGO)
    after = await shelf.store.due_alarms(10)

    assert (before.alarms, before.handled, before.is_full) == ({}, set(), False)
    assert list(after.alarms) == [chat_id]
    assert before.now <= after.now
    assert await shelf.store.recovery.alarm_times() != []


async def test_due_alarms_are_listed_by_chat_the_earliest_first(shelf: Shelf) -> None:
    first, second = uid(), uid()
    times = [await some_time_ago(shelf.store, seconds) for seconds in range(4)]
    alarms = [Alarm(times[n], chat_id) for n, chat_id in enumerate([second, first, second, first])]
    chats = [waiting(first), waiting(second)]
    await write(shelf.store, Changes(chats=chats, alarms=alarms[::-1]))

    found = await shelf.store.due_alarms(10)

    assert found.alarms == {first: [alarms[1], alarms[3]], second: [alarms[0], alarms[2]]}
    assert list(found.alarms) == [second, first]


async def test_a_page_of_due_alarms_has_the_earliest_and_tells_whether_it_is_full(
    shelf: Shelf,
) -> None:
    chats = [uid() for _ in range(3)]
    alarms = [Alarm(await some_time_ago(shelf.store, n), chat) for n, chat in enumerate(chats)]
    await write(shelf.store, Changes(chats=[waiting(c) for c in chats], alarms=alarms))

    pages = [await shelf.store.due_alarms(limit) for limit in (2, 3, 4)]

    assert [list(page.alarms) for page in pages] == [chats[:2], chats, chats]
    assert [page.is_full for page in pages] == [True, True, False]


async def test_alarms_of_chats_that_need_no_timer_are_deleted(shelf: Shelf) -> None:
    resting, other = uid(), uid()
    at = await some_time_ago(shelf.store)
    chats = [Chat(chat_id=resting), waiting(other)]
    alarms = [Alarm(at, resting), Alarm(at, other)]
    await write(shelf.store, Changes(chats=chats, alarms=alarms))

    found = await shelf.store.due_alarms(2)

    assert found.alarms == {other: [Alarm(at, other)]}
    assert found.is_full  # there may be more behind the alarms that were deleted
    again = await shelf.store.due_alarms(2)
    assert (again.alarms, again.is_full) == (found.alarms, False)


async def test_an_alarm_that_is_not_due_is_not_deleted(shelf: Shelf) -> None:
    """The chat may need a timer again before its time comes."""
    chat_id = uid()
    later = Alarm(await shelf.store.now() + LONG_AGO, chat_id)
    await write(shelf.store, Changes(chats=[Chat(chat_id=chat_id)], alarms=[later]))

    await shelf.store.due_alarms(10)

    assert await shelf.store.recovery.alarm_times() == [later.at]


async def test_handled_alarms_stay_until_they_are_deleted(shelf: Shelf) -> None:
    """Also those of chats that need no timer any more: what follows may not be published."""
    one, other = uid(), uid()
    at = await some_time_ago(shelf.store)
    alarms = [Alarm(at, one), Alarm(at, other)]
    await write(shelf.store, Changes(chats=[waiting(one), waiting(other)], alarms=alarms))

    await write(shelf.store, Changes(chats=[Chat(chat_id=one)], handled=[alarms[0]]))

    for _ in range(2):
        found = await shelf.store.due_alarms(10)
        assert found.alarms == {one: [alarms[0]], other: [alarms[1]]}
        assert found.handled == {one}
    await shelf.store.delete_alarms(alarms)
    found = await shelf.store.due_alarms(10)
    assert (found.alarms, found.handled) == ({other: [alarms[1]]}, set())
    await shelf.store.delete_alarms(alarms)  # no harm is done if it is repeated


async def test_alarms_of_chats_that_failed_are_deleted_though_they_were_not_handled(
    shelf: Shelf,
) -> None:
    one, other = uid(), uid()
    at = await some_time_ago(shelf.store)
    alarms = [Alarm(at, one), Alarm(at, other)]
    await write(shelf.store, Changes(chats=[waiting(one), waiting(other)], alarms=alarms))

    await shelf.store.delete_alarms(alarms[:1], unhandled=True)

    assert await due_alarms(shelf.store) == alarms[1:]


async def test_an_alarm_that_was_deleted_before_it_was_handled_does_not_come_back(
    shelf: Shelf,
) -> None:
    chat_id = uid()
    alarm = Alarm(await some_time_ago(shelf.store), chat_id)
    await write(shelf.store, Changes(chats=[waiting(chat_id)]))

    await handle(shelf.store, alarm)

    assert await due_alarms(shelf.store) == []


async def test_an_alarm_that_is_stored_again_after_it_was_handled_stays(shelf: Shelf) -> None:
    chat_id = uid()
    alarm = Alarm(await some_time_ago(shelf.store), chat_id)
    await write(shelf.store, Changes(chats=[waiting(chat_id)], alarms=[alarm]))
    await handle(shelf.store, alarm)

    await write(shelf.store, Changes(alarms=[alarm]))
    await shelf.store.delete_alarms([alarm])

    found = await shelf.store.due_alarms(10)
    assert (found.alarms, found.handled) == ({chat_id: [alarm]}, set())


async def test_an_alarm_that_is_handled_and_set_again_by_the_same_changes_stays(
    shelf: Shelf,
) -> None:
    """As when a timer takes effect, and the next one is due at a time that has passed."""
    chat_id = uid()
    alarm = Alarm(await some_time_ago(shelf.store), chat_id)
    await write(shelf.store, Changes(chats=[waiting(chat_id)], alarms=[alarm]))

    await write(shelf.store, Changes(alarms=[alarm], handled=[alarm]))
    await shelf.store.delete_alarms([alarm])

    assert await due_alarms(shelf.store) == [alarm]


async def test_alarms_of_a_chat_that_is_skipped_are_neither_stored_nor_marked(
    shelf: Shelf,
) -> None:
    skipped, written = uid(), uid()
    rang = [Alarm(await some_time_ago(shelf.store), chat_id) for chat_id in (skipped, written)]
    chats = [waiting(skipped), waiting(written)]
    await write(shelf.store, Changes(chats=chats, alarms=rang))
    versions = (await shelf.store.look(Wanted({skipped, written}))).row_versions
    await write(shelf.store, Changes(chats=[waiting(skipped, seq=1)]))
    next_ = [Alarm(await some_time_ago(shelf.store, 1), chat_id) for chat_id in (skipped, written)]

    found = await shelf.store.write(
        Changes(chats=chats, alarms=next_, handled=rang, row_versions=versions)
    )

    assert (found.skipped, found.repeated) == ({skipped}, set())
    due = await shelf.store.due_alarms(10)
    assert due.alarms == {skipped: rang[:1], written: [rang[1], next_[1]]}
    assert due.handled == {written}


async def test_a_chat_that_is_only_compared_keeps_its_row(shelf: Shelf) -> None:
    chat = waiting(uid(), version=3)
    alarm = Alarm(await some_time_ago(shelf.store), chat.chat_id)
    await write(shelf.store, Changes(chats=[chat], alarms=[alarm]))
    before = await shelf.store.look(Wanted({chat.chat_id}))
    changes = Changes(handled=[alarm], unchanged=[chat.chat_id], row_versions=before.row_versions)

    assert (await shelf.store.write(changes)).skipped == set()

    after = await shelf.store.look(Wanted({chat.chat_id}))
    assert after.row_versions == before.row_versions
    assert after.chats == {chat.chat_id: chat}
    assert (await shelf.store.due_alarms(10)).handled == {chat.chat_id}


async def test_a_chat_that_is_only_compared_is_skipped_when_its_row_has_changed(
    shelf: Shelf,
) -> None:
    chat = waiting(uid())
    alarm = Alarm(await some_time_ago(shelf.store), chat.chat_id)
    await write(shelf.store, Changes(chats=[chat], alarms=[alarm]))
    seen = await shelf.store.look(Wanted({chat.chat_id}))
    await write(shelf.store, Changes(chats=[waiting(chat.chat_id, seq=1)]))
    changes = Changes(handled=[alarm], unchanged=[chat.chat_id], row_versions=seen.row_versions)

    assert (await shelf.store.write(changes)).skipped == {chat.chat_id}

    assert (await shelf.store.due_alarms(10)).handled == set()


async def test_the_times_of_alarms_are_listed_once_and_by_page(shelf: Shelf) -> None:
    one, other = uid(), uid()
    times = [await some_time_ago(shelf.store, 5_000 * n) for n in range(3)]
    alarms = [Alarm(at, chat_id) for at in times for chat_id in (one, other)]
    await write(shelf.store, Changes(chats=[waiting(one), waiting(other)], alarms=alarms[::-1]))
    await handle(shelf.store, *alarms[:2])

    list_times = shelf.store.recovery.alarm_times

    assert list(await list_times()) == times
    assert list(await list_times(limit=2)) == times[:2]
    assert list(await list_times(after=times[0], limit=1)) == times[1:2]
    assert list(await list_times(after=times[2])) == []


# -- other sessions of PostgreSQL -----------------------------------------------------------------


@asynccontextmanager
async def session(shelf: Shelf) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Begin a transaction in a session of its own, and roll it back unless the test commits it."""
    assert shelf.url is not None
    db = await asyncpg.connect(shelf.url)
    try:
        await db.execute("begin")
        yield db
        await db.execute("rollback")
    finally:
        db.terminate()


async def given_handled_alarm(store: Store) -> Alarm:
    """Store a due alarm of a chat that needs it, and mark it as handled."""
    alarm = Alarm(await some_time_ago(store), uid())
    await write(store, Changes(chats=[waiting(alarm.chat_id)], alarms=[alarm]))
    await handle(store, alarm)
    return alarm


async def test_alarms_are_not_deleted_while_another_session_changes_their_chat(
    postgres_shelf: Shelf,
) -> None:
    """Its changes may be that the chat needs a timer, and has this alarm already."""
    store, chat_id = postgres_shelf.store, uid()
    alarm = Alarm(await some_time_ago(store), chat_id)
    await write(store, Changes(chats=[Chat(chat_id=chat_id)], alarms=[alarm]))

    async with session(postgres_shelf) as other:
        await other.execute("select from chat where chat_id = $1 for update", chat_id)
        assert await due_alarms(store) == [alarm]

    assert await due_alarms(store) == []


async def test_an_alarm_that_is_being_stored_again_is_not_deleted(postgres_shelf: Shelf) -> None:
    """The delete waits for the other session, and then looks at the row again."""
    store = postgres_shelf.store
    assert postgres_shelf.url is not None
    alarm = await given_handled_alarm(store)

    async with session(postgres_shelf) as other:
        await other.execute(MARK, *alarm)
        deleting = asyncio.create_task(store.delete_alarms([alarm]))
        await until_one_waits(postgres_shelf.url)
        await other.execute("commit")
        await deleting

    assert await due_alarms(store) == [alarm]


async def test_an_alarm_that_is_being_deleted_is_stored_again(postgres_shelf: Shelf) -> None:
    store = postgres_shelf.store
    assert postgres_shelf.url is not None
    alarm = await given_handled_alarm(store)

    async with session(postgres_shelf) as other:
        await other.execute("delete from alarm where handled_at is not null")
        writing = asyncio.create_task(store.write(Changes(alarms=[alarm])))
        await until_one_waits(postgres_shelf.url)
        await other.execute("commit")
        assert (await writing).skipped == set()

    assert await due_alarms(store) == [alarm]


async def test_who_handles_an_alarm_after_another_worker_is_told_so(shelf: Shelf) -> None:
    """The other one may not have published yet what follows."""
    chat = waiting(uid())
    alarm = Alarm(await some_time_ago(shelf.store), chat.chat_id)
    await write(shelf.store, Changes(chats=[chat], alarms=[alarm]))
    both = Changes(handled=[alarm], unchanged=[chat.chat_id])

    assert (await shelf.store.write(both)).repeated == set()
    assert (await shelf.store.write(both)).repeated == {chat.chat_id}

    await shelf.store.delete_alarms([alarm])
    assert (await shelf.store.write(both)).repeated == set()


async def test_alarms_that_were_just_handled_are_left_to_their_worker(shelf: Shelf) -> None:
    chat, other = waiting(uid()), waiting(uid())
    at = await some_time_ago(shelf.store)
    alarms = [Alarm(at, one.chat_id) for one in (chat, other)]
    await write(shelf.store, Changes(chats=[chat, other], alarms=alarms))
    await shelf.store.write(Changes(handled=alarms[:1]))

    found = await shelf.store.due_alarms(10, publishing=60.0)
    assert (found.alarms, found.publishing) == ({other.chat_id: alarms[1:]}, True)
    found = await shelf.store.due_alarms(10, publishing=60.0, without=[other.chat_id])
    assert (found.alarms, found.publishing) == ({}, True)
    found = await shelf.store.due_alarms(10)
    assert (len(found.alarms), found.handled, found.publishing) == (2, {chat.chat_id}, False)


async def test_the_next_alarm_is_named(shelf: Shelf) -> None:
    chat, now = waiting(uid()), await shelf.store.now()
    later = [Alarm(now + timedelta(hours=n), chat.chat_id) for n in (2, 1, 3)]
    assert (await shelf.store.due_alarms(10)).next is None

    await write(shelf.store, Changes(chats=[chat], alarms=later))

    assert (await shelf.store.due_alarms(10)).next == later[1].at


async def test_alarms_without_a_chat_are_deleted(shelf: Shelf) -> None:
    at = await some_time_ago(shelf.store)
    await shelf.store.write(Changes(alarms=[Alarm(at, uid()) for _ in range(3)]))

    assert (await shelf.store.due_alarms(2)).alarms == {}
    found = await shelf.store.due_alarms(2)
    assert (found.alarms, found.is_full) == ({}, False)
