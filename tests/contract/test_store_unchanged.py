"""The rules of every store for changes without locks: what changed since it was read is not written."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from msgspec import structs

from statemachine.calls import StoredCall
from statemachine.chat import Chat
from statemachine.store import CallKey, Changes, Look
from tests.contract.stores import Shelf, answered, call, digest, entry, key, outgoing, uid, write


def next_changes(chat: Chat, name: str = "next") -> Changes:
    """Return one row for each table that can be written without locks."""
    after = structs.replace(chat, version=chat.version + 1, seq=chat.seq + 1)
    return Changes(
        chats=[after],
        entries=[(chat.chat_id, entry(after.seq, chat.chat_id))],
        identities=[(chat.chat_id, digest(name))],
        calls=[answered(call(chat.chat_id))],
        outbox=[outgoing(chat.chat_id, name, version=after.version)],
    )


def together(*some: Changes) -> Changes:
    return Changes(
        chats=[c for one in some for c in one.chats],
        entries=[e for one in some for e in one.entries],
        identities=[i for one in some for i in one.identities],
        calls=[c for one in some for c in one.calls],
        outbox=[o for one in some for o in one.outbox],
    )


async def look(shelf: Shelf, *chat_ids: str) -> Look:
    identities = [(chat_id, digest("next")) for chat_id in chat_ids]
    return await shelf.store.look(set(chat_ids), identities, {"p"})


async def test_a_look_reads_chats_events_open_calls_and_pools(shelf: Shelf) -> None:
    chat, other, unknown = Chat(chat_id=uid(), seq=3), Chat(chat_id=uid()), uid()
    first, second, done = (
        call(chat.chat_id, "a", 2),
        call(chat.chat_id, "b", 1),
        call(other.chat_id),
    )
    waiting = [StoredCall(first, None), StoredCall(second, None), answered(done)]
    known = [(chat.chat_id, digest("next"))]
    await write(shelf.store, Changes(chats=[chat, other], identities=known, calls=waiting))
    await shelf.store.credentials.bind_provisioner("p", "gpu")

    found = await look(shelf, chat.chat_id, other.chat_id, unknown)

    assert found.chats == {chat.chat_id: chat, other.chat_id: other}
    assert found.row_versions.keys() == found.chats.keys()
    assert found.found.known == set(known)
    assert {c: calls for c, calls in found.found.waiting.items() if calls} == {
        chat.chat_id: [second, first]
    }
    assert found.found.pools == {"p": "gpu"}
    assert found.now is not None


async def test_a_look_at_unknown_chats_creates_none(shelf: Shelf) -> None:
    unknown = uid()

    found = await look(shelf, unknown)

    assert (found.chats, found.now) == ({}, None)
    assert await shelf.store.chats.get(unknown) is None


async def test_unchanged_chats_are_written(shelf: Shelf) -> None:
    chats = [Chat(chat_id=uid()) for _ in range(3)]
    await write(shelf.store, Changes(chats=chats))
    seen = await look(shelf, *(chat.chat_id for chat in chats))
    changes = together(*(next_changes(chat) for chat in chats))

    rows, skipped = await shelf.store.write_unchanged(changes, seen.row_versions)

    assert skipped == set()
    assert [replace(row, id=0) for row in rows] == changes.outbox
    assert list(await shelf.store.recovery.outbox()) == rows
    for after in changes.chats:
        assert await shelf.store.chats.get(after.chat_id) == after
        assert len(await shelf.store.chats.log(after.chat_id)) == 1
        assert await shelf.store.chats.is_answered(after.chat_id, "c")
    assert (await look(shelf, chats[0].chat_id)).found.known == {(chats[0].chat_id, digest("next"))}


@pytest.mark.parametrize("longer", [True, False])
async def test_a_chat_that_changed_is_skipped_with_all_that_belongs_to_it(
    shelf: Shelf, *, longer: bool
) -> None:
    """Also if its log has not become longer, as when a restore closes a call."""
    one, changed, three = (Chat(chat_id=uid()) for _ in range(3))
    await write(shelf.store, Changes(chats=[one, changed, three]))
    seen = await look(shelf, one.chat_id, changed.chat_id, three.chat_id)
    between = structs.replace(changed, open_calls=7, seq=1 if longer else 0)
    await write(shelf.store, Changes(chats=[between]))
    changes = together(*(next_changes(chat) for chat in (one, changed, three)))

    rows, skipped = await shelf.store.write_unchanged(changes, seen.row_versions)

    assert skipped == {changed.chat_id}
    assert [row.chat_id for row in rows] == [one.chat_id, three.chat_id]
    assert list(await shelf.store.recovery.outbox()) == rows
    assert await shelf.store.chats.get(changed.chat_id) == between
    assert await shelf.store.chats.log(changed.chat_id) == []
    assert not await shelf.store.chats.is_answered(changed.chat_id, "c")
    assert (await look(shelf, changed.chat_id)).found.known == set()
    assert await shelf.store.chats.get(three.chat_id) == changes.chats[2]


async def test_of_two_writes_from_one_look_the_second_is_skipped(shelf: Shelf) -> None:
    chat = Chat(chat_id=uid())
    await write(shelf.store, Changes(chats=[chat]))
    seen = await look(shelf, chat.chat_id)

    both = await asyncio.gather(
        shelf.store.write_unchanged(next_changes(chat, "one"), seen.row_versions),
        shelf.store.write_unchanged(next_changes(chat, "two"), seen.row_versions),
    )

    assert sorted(len(skipped) for _, skipped in both) == [0, 1]
    assert len(await shelf.store.chats.log(chat.chat_id)) == 1


async def test_many_writes_of_the_same_chats_in_any_order_end(shelf: Shelf) -> None:
    """Each statement locks its rows in the same order, so none waits for another for ever."""
    chats = [Chat(chat_id=uid()) for _ in range(20)]
    await write(shelf.store, Changes(chats=chats))
    seen = await look(shelf, *(chat.chat_id for chat in chats))
    orders = [chats, chats[::-1], chats[10:] + chats[:10]]

    done = await asyncio.gather(
        *(
            shelf.store.write_unchanged(
                together(*(next_changes(chat, f"{n}") for chat in order)), seen.row_versions
            )
            for n, order in enumerate(orders)
        )
    )

    assert sum(len(rows) for rows, _ in done) == len(chats)
    assert sum(len(skipped) for _, skipped in done) == 2 * len(chats)


async def test_a_write_waits_for_a_transaction_and_skips_what_it_changed(shelf: Shelf) -> None:
    chat = Chat(chat_id=uid())
    await write(shelf.store, Changes(chats=[chat]))
    seen = await look(shelf, chat.chat_id)
    locked = structs.replace(chat, version=1, seq=1)

    async with shelf.store.transaction() as tx:
        await tx.lock({chat.chat_id})
        late = asyncio.create_task(
            shelf.store.write_unchanged(next_changes(chat), seen.row_versions)
        )
        if shelf.url is not None:
            await shelf.until_one_waits()
        await tx.write(Changes(chats=[locked]))

    assert await late == ([], {chat.chat_id})
    assert await shelf.store.chats.get(chat.chat_id) == locked


async def test_changes_of_other_tables_need_a_transaction(shelf: Shelf) -> None:
    chat = Chat(chat_id=uid())
    await write(shelf.store, Changes(chats=[chat]))
    seen = await look(shelf, chat.chat_id)
    canceled = Changes(chats=[chat], cancellations=[CallKey(chat.chat_id, "c")])

    with pytest.raises(ValueError, match="transaction"):
        await shelf.store.write_unchanged(canceled, seen.row_versions)


async def test_an_answered_call_is_not_answered_again(shelf: Shelf) -> None:
    chat = Chat(chat_id=uid())
    first = call(chat.chat_id)
    await write(shelf.store, Changes(chats=[chat], calls=[answered(first)]))
    seen = await look(shelf, chat.chat_id)
    again = Changes(chats=[chat], calls=[answered(first, {"created": False})])

    await shelf.store.write_unchanged(again, seen.row_versions)

    async with shelf.store.transaction() as tx:
        await tx.lock({chat.chat_id})
        assert (await tx.calls({key(first)}))[key(first)] == answered(first)
