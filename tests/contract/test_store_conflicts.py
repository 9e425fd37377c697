"""The rules of every store for concurrent changes: a chat that changed since it was read is not written."""

from __future__ import annotations

import asyncio
from uuid import NAMESPACE_OID, uuid5

import pytest
from msgspec import structs

from statemachine.calls import StoredCall
from statemachine.chat import Chat
from statemachine.states import State
from statemachine.step import WorkspaceName
from statemachine.store import (
    NO_ROW,
    Alarm,
    CallKey,
    Changes,
    Look,
    StoredJob,
    TransientError,
    Wanted,
)
from tests.contract.stores import (
    NOW,
    Shelf,
    answered,
    call,
    digest,
    entry,
    key,
    names_of,
    uid,
    write,
)


def job_of(chat_id: str) -> str:
    """Return the id of the build that `next_changes` requests for a chat."""
    return str(uuid5(NAMESPACE_OID, chat_id))


def next_changes(look: Look, *chat_ids: str, name: str = "next") -> Changes:
    """Return one row for each table and chat, made for the rows that `look` saw."""
    changes = Changes(row_versions=look.row_versions)
    for chat_id in chat_ids:
        chat = look.chats.get(chat_id, Chat(chat_id=chat_id))
        after = structs.replace(chat, version=chat.version + 1, seq=chat.seq + 1)
        changes.chats.append(after)
        changes.entries.append((chat_id, entry(after.seq, chat_id)))
        changes.identities.append((chat_id, digest(name)))
        changes.calls.append(answered(call(chat_id)))
        changes.cancellations.append(CallKey(chat_id, "late"))
        changes.names.append(WorkspaceName(uid(), chat_id, chat_id, "blue", requested=True))
        changes.alarms.append(Alarm(NOW, chat_id))
        changes.jobs.append(StoredJob(job_of(chat_id), chat_id, "s", b"job", NOW))
    return changes


async def look(shelf: Shelf, *chat_ids: str) -> Look:
    identities = [(chat_id, digest("next")) for chat_id in chat_ids]
    calls = {CallKey(chat_id, call_id) for chat_id in chat_ids for call_id in ("c", "late")}
    return await shelf.store.look(Wanted(frozenset(chat_ids), identities, calls))


async def expect_untouched(shelf: Shelf, chat_id: str) -> None:
    """Check that nothing of `next_changes` was written for a chat."""
    found = await look(shelf, chat_id)
    assert await shelf.store.chats.log(chat_id) == []
    assert (found.known, found.calls, found.canceled) == (set(), {}, set())
    assert await names_of(shelf, chat_id) == set()
    assert await shelf.store.recovery.unpublished_jobs([chat_id]) == []


async def test_a_look_reads_chats_events_calls_and_pools(shelf: Shelf) -> None:
    chat, other, unknown = Chat(chat_id=uid(), seq=3), Chat(chat_id=uid()), uid()
    first, second, done = (
        call(chat.chat_id, "a", 2),
        call(chat.chat_id, "b", 1),
        call(other.chat_id),
    )
    calls = [StoredCall(first, None), StoredCall(second, None), answered(done)]
    known = [(chat.chat_id, digest("next"))]
    await write(shelf.store, Changes(chats=[chat, other], identities=known, calls=calls))
    await shelf.store.credentials.bind_provisioner("p", "gpu")

    chats = frozenset({chat.chat_id, other.chat_id, unknown})
    found = await shelf.store.look(
        Wanted(chats, known, {key(first), key(done)}, chats, provisioners={"p", "q"})
    )

    assert found.chats == {chat.chat_id: chat, other.chat_id: other}
    assert found.row_versions.keys() == chats
    assert found.row_versions[unknown] == NO_ROW
    assert found.known == set(known)
    assert found.calls == {key(first): StoredCall(first, None), key(done): answered(done)}
    assert found.waiting == {chat.chat_id: [second, first]}
    assert found.pools == {"p": "gpu"}
    assert await shelf.store.chats.get(unknown) is None


@pytest.mark.parametrize("state", State)
async def test_open_calls_are_read_unless_new_calls_only_join(shelf: Shelf, state: State) -> None:
    chat = Chat(chat_id=uid(), state=state)
    asked = call(chat.chat_id)
    await write(shelf.store, Changes(chats=[chat], calls=[StoredCall(asked, None)]))

    found = await shelf.store.look(Wanted({chat.chat_id}, waiting_unless_joined={chat.chat_id}))

    assert found.waiting == ({} if chat.calls_only_join else {chat.chat_id: [asked]})


async def test_the_time_of_a_look_is_that_of_the_database(shelf: Shelf) -> None:
    before = await shelf.store.now()
    found = await shelf.store.look(Wanted())

    assert before <= found.now <= await shelf.store.now()


async def test_chats_that_have_not_changed_are_written(shelf: Shelf) -> None:
    """Those that exist, and those that do not exist yet."""
    old, new = [uid(), uid()], [uid(), uid()]
    await write(shelf.store, Changes(chats=[Chat(chat_id=chat_id) for chat_id in old]))
    changes = next_changes(await look(shelf, *old, *new), *old, *new)

    assert (await shelf.store.write(changes)).skipped == set()

    jobs = await shelf.store.recovery.unpublished_jobs([job.chat_id for job in changes.jobs])
    assert {job.build_id: job for job in jobs} == {job.build_id: job for job in changes.jobs}
    found = await look(shelf, *old, *new)
    assert found.known == set(changes.identities)
    assert found.canceled == set(changes.cancellations)
    for after in changes.chats:
        assert await shelf.store.chats.get(after.chat_id) == after
        assert len(await shelf.store.chats.log(after.chat_id)) == 1
        assert await shelf.store.chats.is_answered(after.chat_id, "c")
        assert await names_of(shelf, after.chat_id) == {"blue"}


@pytest.mark.parametrize("longer", [True, False])
async def test_a_chat_that_changed_is_skipped_with_all_that_belongs_to_it(
    shelf: Shelf, *, longer: bool
) -> None:
    """Also if its log has not become longer, as when a restore closes a call."""
    one, changed, three = uid(), uid(), uid()
    await write(shelf.store, Changes(chats=[Chat(chat_id=c) for c in (one, changed, three)]))
    changes = next_changes(await look(shelf, one, changed, three), one, changed, three)
    between = Chat(chat_id=changed, open_calls=7, seq=1 if longer else 0)
    await write(shelf.store, Changes(chats=[between]))

    assert (await shelf.store.write(changes)).skipped == {changed}

    jobs = await shelf.store.recovery.unpublished_jobs([job.chat_id for job in changes.jobs])
    assert {job.chat_id for job in jobs} == {one, three}
    assert await shelf.store.chats.get(changed) == between
    await expect_untouched(shelf, changed)
    assert await shelf.store.chats.get(three) == changes.chats[2]


async def test_a_chat_that_was_created_meanwhile_is_skipped(shelf: Shelf) -> None:
    chat_id = uid()
    changes = next_changes(await look(shelf, chat_id), chat_id)
    await write(shelf.store, Changes(chats=[Chat(chat_id=chat_id, version=8)]))

    assert (await shelf.store.write(changes)).skipped == {chat_id}

    await expect_untouched(shelf, chat_id)


@pytest.mark.parametrize("exists", [True, False])
async def test_of_writes_after_one_look_the_first_counts(shelf: Shelf, *, exists: bool) -> None:
    chat_id = uid()
    if exists:
        await write(shelf.store, Changes(chats=[Chat(chat_id=chat_id)]))
    seen = await look(shelf, chat_id)

    done = await asyncio.gather(
        *(shelf.store.write(next_changes(seen, chat_id, name=f"{n}")) for n in range(8))
    )

    assert sorted(len(written.skipped) for written in done) == [0] + [1] * 7
    assert len(await shelf.store.chats.log(chat_id)) == 1


@pytest.mark.parametrize("exist", ["all", "some", "none"])
async def test_writes_of_the_same_chats_in_any_order_do_not_deadlock(
    shelf: Shelf, exist: str
) -> None:
    chats = sorted(uid() for _ in range(20))
    made = {"all": chats, "some": chats[::2], "none": []}[exist]
    await write(shelf.store, Changes(chats=[Chat(chat_id=chat_id) for chat_id in made]))
    seen = await look(shelf, *chats)
    orders = [chats, chats[::-1], chats[10:] + chats[:10], chats[1::2] + chats[::2]] * 3

    done = await asyncio.gather(
        *(
            shelf.store.write(next_changes(seen, *order, name=f"{n}"))
            for n, order in enumerate(orders)
        )
    )

    assert sum(len(chats) - len(written.skipped) for written in done) == len(chats)
    for chat_id in chats:
        assert len(await shelf.store.chats.log(chat_id)) == 1


async def test_a_chat_is_skipped_if_one_of_its_events_was_applied_before(shelf: Shelf) -> None:
    """The caller did not look the event up, because it remembers the chat."""
    applied, other = uid(), uid()
    await write(shelf.store, Changes(identities=[(applied, digest("next"))]), new=[applied, other])
    seen = await shelf.store.look(Wanted(frozenset((applied, other))))

    written = await shelf.store.write(next_changes(seen, applied, other))

    assert written.skipped == {applied}
    assert await shelf.store.chats.log(applied) == []
    assert len(await shelf.store.chats.log(other)) == 1


async def test_nothing_is_written_if_a_name_is_bound_that_counts_as_not_bound(shelf: Shelf) -> None:
    known, new = uid(), uid()
    await write(shelf.store, Changes(), new=[known])
    seen = await look(shelf, known, new)
    changes = next_changes(seen, known, new)
    changes.unbound = {"p", "q"}
    await shelf.store.credentials.bind_provisioner("q", "gpu")

    written = await shelf.store.write(changes)

    assert written.skipped == {known, new}
    await expect_untouched(shelf, known)
    changes.unbound = {"p"}
    assert (await shelf.store.write(changes)).skipped == set()


async def test_a_write_tells_the_version_of_its_rows_and_the_time(shelf: Shelf) -> None:
    known, new, untouched = uid(), uid(), uid()
    await write(shelf.store, Changes(), new=[known, untouched])
    before = await look(shelf, known, new, untouched)
    changes = next_changes(before, known, new)
    changes.unchanged.append(untouched)

    written = await shelf.store.write(changes)

    after = await look(shelf, known, new, untouched)
    assert after.row_versions == {
        known: written.row_version,
        new: written.row_version,
        untouched: before.row_versions[untouched],
    }
    assert before.now <= written.now <= after.now


async def test_read_and_write_until_nothing_is_skipped_loses_no_change(shelf: Shelf) -> None:
    chats = [uid() for _ in range(6)]

    async def count(mine: list[str]) -> None:
        while mine:
            seen = await look(shelf, *mine)
            changes = Changes(row_versions=seen.row_versions)
            for chat_id in mine:
                chat = seen.chats.get(chat_id, Chat(chat_id=chat_id))
                changes.chats.append(structs.replace(chat, version=chat.version + 1))
            mine = list((await shelf.store.write(changes)).skipped)

    orders = (chats, chats[::-1], chats[3:] + chats[:3], chats[::2], chats[1::2])
    await asyncio.gather(*(count(list(order)) for order in orders * 4))

    found = [await shelf.store.chats.get(chat_id) for chat_id in chats]
    assert [chat.version for chat in found if chat] == [16] * 6


@pytest.mark.parametrize("spelled", ["blue", "BLUE"])
async def test_a_requested_name_is_given_to_one_workspace_of_an_owner(
    shelf: Shelf, spelled: str
) -> None:
    """The names were free when both were looked up."""
    one, two, three, ann = uid(), uid(), uid(), uid()
    taken = WorkspaceName(uid(), one, ann, "blue", requested=True)
    await write(shelf.store, Changes(names=[taken]), new=[one])
    clash = Changes(names=[WorkspaceName(uid(), two, ann, spelled, requested=True)])

    with pytest.raises(TransientError):
        await write(shelf.store, clash, new=[two])

    assert await names_of(shelf, ann) == {"blue"}
    reported = WorkspaceName(uid(), three, ann, spelled)
    await write(shelf.store, Changes(names=[reported]), new=[three])
    other = WorkspaceName(uid(), two, uid(), spelled, requested=True)
    await write(shelf.store, Changes(names=[other]), new=[two])
    await write(shelf.store, Changes(freed=[(taken.workspace_id, one)]), new=[one])
    await write(shelf.store, clash, new=[two])


async def test_a_workspace_may_get_its_name_and_lose_it_in_one_batch(shelf: Shelf) -> None:
    chat_id, ann, workspace_id = uid(), uid(), uid()
    name = WorkspaceName(workspace_id, chat_id, ann, "blue", requested=True)

    await write(shelf.store, Changes(names=[name], freed=[(workspace_id, chat_id)]), new=[chat_id])

    assert await names_of(shelf, ann) == set()
    again = WorkspaceName(uid(), chat_id, ann, "blue", requested=True)
    await write(shelf.store, Changes(names=[again]), new=[chat_id])
    assert await names_of(shelf, ann) == {"blue"}
