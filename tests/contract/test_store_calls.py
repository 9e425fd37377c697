"""The rules of every store for calls, cancellations and names, tested with both adapters."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from msgspec.structs import replace

from statemachine.calls import StoredCall
from statemachine.store import CallKey, Changes
from tests.contract.stores import Shelf, answered, call, key, uid, write


async def test_a_call_is_read_as_it_was_written(shelf: Shelf) -> None:
    asked = call(uid())
    await write(shelf.store, Changes(calls=[StoredCall(asked, None)]))
    assert not await shelf.store.chats.is_answered(*key(asked))

    async with shelf.store.transaction() as tx:
        await tx.lock({asked.chat_id})
        assert await tx.calls({key(asked), CallKey(asked.chat_id, "other")}) == {
            key(asked): StoredCall(asked, None)
        }
        found = await tx.prefetch([], {key(asked)}, {asked.chat_id})
        assert found.waiting == {asked.chat_id: [asked]}
        assert found.calls == {key(asked): StoredCall(asked, None)}
        assert await tx.calls(set()) == {}
    assert await shelf.store.chats.open_calls(asked.chat_id) == [asked]


async def test_an_answered_call_keeps_its_answer(shelf: Shelf) -> None:
    asked = call(uid())
    over = answered(replace(asked, args={"parameters": {"token": "***"}}))
    await write(shelf.store, Changes(calls=[StoredCall(asked, None)]))

    await write(shelf.store, Changes(calls=[over]))
    await write(shelf.store, Changes(calls=[answered(asked, {"created": False})]))

    async with shelf.store.transaction() as tx:
        await tx.lock({asked.chat_id})
        assert await tx.calls({key(asked)}) == {key(asked): over}
        found = await tx.prefetch([], {key(asked)}, {asked.chat_id})
        assert found.waiting == {asked.chat_id: []}
        assert found.calls == {key(asked): over}
    assert await shelf.store.chats.is_answered(*key(asked))
    assert await shelf.store.chats.open_calls(asked.chat_id) == []


async def test_open_calls_are_sorted_by_their_arrival(shelf: Shelf) -> None:
    chat_id, other = uid(), uid()
    calls = [call(chat_id, name, order) for name, order in (("z", 10), ("m", 2), ("a", 30))]
    elsewhere = call(other)
    await write(shelf.store, Changes(calls=[StoredCall(c, None) for c in (*calls, elsewhere)]))
    await write(shelf.store, Changes(calls=[StoredCall(calls[1], None)]))

    async with shelf.store.transaction() as tx:
        await tx.lock({chat_id, other})
        found = (await tx.prefetch([], set(), {chat_id, other})).waiting

    assert [c.call_id for c in found[chat_id]] == ["m", "z", "a"]
    assert [c.call_id for c in await shelf.store.chats.open_calls(chat_id)] == ["m", "z", "a"]
    assert found[other] == [elsewhere]


@pytest.mark.parametrize(("minutes", "counts"), [(9, True), (11, False)])
async def test_a_cancellation_before_its_call_counts_for_ten_minutes(
    shelf: Shelf, minutes: int, *, counts: bool
) -> None:
    late = CallKey(uid(), "c")
    await write(shelf.store, Changes(cancellations=[late, late]), lock=[late.chat_id])

    await shelf.later(timedelta(minutes=minutes))

    async with shelf.store.transaction() as tx:
        await tx.lock({late.chat_id})
        found = (await tx.prefetch([], {late, CallKey(late.chat_id, "d")}, set())).canceled
        assert found == ({late} if counts else set())


async def test_a_repeated_cancellation_counts_for_another_ten_minutes(shelf: Shelf) -> None:
    late = CallKey(uid(), "c")
    for _ in range(2):
        await write(shelf.store, Changes(cancellations=[late]), lock=[late.chat_id])
        await shelf.later(timedelta(minutes=6))

    async with shelf.store.transaction() as tx:
        await tx.lock({late.chat_id})
        assert (await tx.prefetch([], {late}, set())).canceled == {late}


async def test_a_name_is_in_use_in_lower_case_until_its_workspace_is_deleted(shelf: Shelf) -> None:
    chat_id, ann, bob, one, two = uid(), uid(), uid(), uid(), uid()
    await write(
        shelf.store,
        Changes(names=[(one, chat_id, ann, "Blue"), (two, chat_id, ann, "green")]),
        lock=[chat_id],
    )

    async def names() -> dict[str, set[str]]:
        async with shelf.store.transaction() as tx:
            return await tx.workspace_names({ann, bob})

    assert await names() == {ann: {"blue", "green"}, bob: set()}
    await write(shelf.store, Changes(freed=[(one, uid())]), lock=[chat_id])
    assert (await names())[ann] == {"blue", "green"}, "another chat's word frees nothing"
    await write(shelf.store, Changes(freed=[(one, chat_id)]), lock=[chat_id])
    assert (await names())[ann] == {"green"}


async def test_one_transaction_at_a_time_gives_out_an_owners_names(shelf: Shelf) -> None:
    ann = uid()

    async def take(wanted: str) -> None:
        chat_id = uid()
        async with shelf.store.transaction() as tx:
            await tx.lock({chat_id})
            taken = await tx.workspace_names({ann})
            name = wanted if wanted not in taken[ann] else f"{wanted}-{len(taken[ann])}"
            await tx.write(Changes(names=[(uid(), chat_id, ann, name)]))

    await asyncio.gather(*(take("x") for _ in range(6)))

    async with shelf.store.transaction() as tx:
        assert await tx.workspace_names({ann}) == {ann: {"x", "x-1", "x-2", "x-3", "x-4", "x-5"}}


async def test_open_calls_of_all_chats_are_counted_up_to_the_limit(shelf: Shelf) -> None:
    asked = [call(uid(), name) for name in "abc"]
    await write(shelf.store, Changes(calls=[StoredCall(c, None) for c in asked]))
    await write(shelf.store, Changes(calls=[answered(asked[0])]))

    assert await shelf.store.chats.count_open_calls(100) == 2
    assert await shelf.store.chats.count_open_calls(1) == 1
