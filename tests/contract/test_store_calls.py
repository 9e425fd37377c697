"""The rules of every store for calls, cancellations and names, tested with both adapters."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import pytest
from msgspec.structs import replace

from statemachine.calls import StoredCall
from statemachine.lookups import Lookups
from statemachine.step import WorkspaceName
from statemachine.store import CallKey, Changes, Wanted
from tests.contract.stores import Shelf, answered, call, key, uid, write


async def test_a_call_is_read_as_it_was_written(shelf: Shelf) -> None:
    asked = call(uid())
    await write(shelf.store, Changes(calls=[StoredCall(asked, None)]))
    assert not await shelf.store.chats.is_answered(*key(asked))

    keys = {key(asked), CallKey(asked.chat_id, "other")}
    found = await shelf.store.look(Wanted(calls=keys, waiting={asked.chat_id}))
    assert found.waiting == {asked.chat_id: [asked]}
    assert found.calls == {key(asked): StoredCall(asked, None)}
    assert await shelf.store.chats.open_calls(asked.chat_id) == [asked]


async def test_an_answered_call_keeps_its_answer(shelf: Shelf) -> None:
    asked = call(uid())
    over = answered(replace(asked, args={"parameters": {"token": "***"}}))
    await write(shelf.store, Changes(calls=[StoredCall(asked, None)]))

    await write(shelf.store, Changes(calls=[over]))
    await write(shelf.store, Changes(calls=[answered(asked, {"created": False})]))

    found = await shelf.store.look(Wanted(calls={key(asked)}, waiting={asked.chat_id}))
    assert found.waiting == {}
    assert found.calls == {key(asked): over}
    assert await shelf.store.chats.is_answered(*key(asked))
    assert await shelf.store.chats.open_calls(asked.chat_id) == []


async def test_open_calls_are_sorted_by_their_arrival(shelf: Shelf) -> None:
    chat_id, other = uid(), uid()
    calls = [call(chat_id, name, order) for name, order in (("z", 10), ("m", 2), ("a", 30))]
    elsewhere = call(other)
    await write(shelf.store, Changes(calls=[StoredCall(c, None) for c in (*calls, elsewhere)]))
    await write(shelf.store, Changes(calls=[StoredCall(calls[1], None)]))

    found = (await shelf.store.look(Wanted(waiting={chat_id, other}))).waiting

    assert [c.call_id for c in found[chat_id]] == ["m", "z", "a"]
    assert [c.call_id for c in await shelf.store.chats.open_calls(chat_id)] == ["m", "z", "a"]
    assert found[other] == [elsewhere]


@pytest.mark.parametrize(("minutes", "counts"), [(9, True), (11, False)])
async def test_a_cancellation_before_its_call_counts_for_ten_minutes(
    shelf: Shelf, minutes: int, *, counts: bool
) -> None:
    late = CallKey(uid(), "c")
    await write(shelf.store, Changes(cancellations=[late]), new=[late.chat_id])

    await shelf.later(timedelta(minutes=minutes))

    found = await shelf.store.look(Wanted(calls={late, CallKey(late.chat_id, "d")}))
    assert found.canceled == ({late} if counts else set())


async def test_a_repeated_cancellation_counts_for_another_ten_minutes(shelf: Shelf) -> None:
    late = CallKey(uid(), "c")
    for _ in range(2):
        await write(shelf.store, Changes(cancellations=[late]), new=[late.chat_id])
        await shelf.later(timedelta(minutes=6))

    assert (await shelf.store.look(Wanted(calls={late}))).canceled == {late}


async def test_a_name_is_in_use_in_lower_case_until_its_workspace_is_deleted(shelf: Shelf) -> None:
    chat_id, ann, bob, one, two = uid(), uid(), uid(), uid(), uid()
    await write(
        shelf.store,
        Changes(
            names=[
                WorkspaceName(one, chat_id, ann, "Blue"),
                WorkspaceName(two, chat_id, ann, "green"),
            ]
        ),
        new=[chat_id],
    )

    async def names() -> Mapping[str, set[str]]:
        return (await shelf.store.look_up(Lookups(owners=frozenset({ann, bob})))).names

    assert await names() == {ann: {"blue", "green"}, bob: set()}
    await write(shelf.store, Changes(freed=[(one, uid())]), new=[chat_id])
    assert (await names())[ann] == {"blue", "green"}, "another chat's word frees nothing"
    await write(shelf.store, Changes(freed=[(one, chat_id)]), new=[chat_id])
    assert (await names())[ann] == {"green"}


async def test_open_calls_of_all_chats_are_counted_up_to_the_limit(shelf: Shelf) -> None:
    asked = [call(uid(), name) for name in "abc"]
    await write(shelf.store, Changes(calls=[StoredCall(c, None) for c in asked]))
    await write(shelf.store, Changes(calls=[answered(asked[0])]))

    assert await shelf.store.chats.count_open_calls(100) == 2
    assert await shelf.store.chats.count_open_calls(1) == 1
