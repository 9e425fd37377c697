"""Any value that a chat accepts is read from the store as it was written, tested with both adapters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from msgspec.structs import replace

from statemachine.calls import Answered, StoredCall
from statemachine.chat import Cause
from statemachine.events import DeleteRequested
from statemachine.lookups import Lookups
from statemachine.step import WorkspaceName
from statemachine.store import Alarm, CallKey, Changes, StoredJob, Wanted
from tests.contract.stores import NOW, Shelf, call, entry, key, owned, uid, write

TEXTS = [
    "",
    " ",
    '"',
    "'; drop table chat; --",
    '{"chat_id":"x"}',
    "[]",
    "null",
    "\\",
    "\\u0041",
    "\\\\u0000",
    "\t\r\n\b\f\x01\x1f\x7f",
    "$1 %s {} :name",
    "ä\N{SNOWMAN}\u2028\u2029\ufeff\uffff",
    "\U0001f600\U0010ffff",
    "e\u0301",
    "x" * 20_000 + '"',
]
# PostgreSQL returns floats from 1e16 on as integers of the same value.
NUMBERS = [
    0,
    -1,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    2**200,
    -(2**200),
    0.1,
    -0.5,
    1e15,
    1e-7,
    5e-324,
]
TIMES = [
    datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(1900, 1, 1, tzinfo=UTC),
    datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
    datetime(2026, 3, 29, 2, 30, 0, 1, tzinfo=timezone(timedelta(hours=2))),
    datetime(2030, 1, 2, 3, 4, 5, 100, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
]


@pytest.mark.parametrize("text", TEXTS)
async def test_any_text_is_read_as_it_was_written(shelf: Shelf, text: str) -> None:
    chat = owned(uid(), uid(), uid(), cause=Cause(source=text, id=text, type=text))
    asked = call(chat.chat_id, text or "c", args={text: [text, {text: text}]})
    over = StoredCall(asked, Answered({text: [text]}, is_error=True))
    logged = entry(1, chat.chat_id, data=DeleteRequested(reason=text))
    job = StoredJob(uid(), chat.chat_id, text, text.encode(), NOW)
    late = CallKey(chat.chat_id, f"late {text}")

    await write(
        shelf.store,
        Changes(
            chats=[chat],
            entries=[(chat.chat_id, logged)],
            calls=[over],
            jobs=[job],
            cancellations=[late],
        ),
    )

    found = await shelf.store.look(Wanted({chat.chat_id}, calls={key(asked), late}))
    assert found.chats == {chat.chat_id: chat}
    assert found.calls == {key(asked): over}
    assert found.canceled == {late}
    (read,) = await shelf.store.chats.log(chat.chat_id)
    assert read["event"]["data"] == {"reason": text}
    assert list(await shelf.store.recovery.unpublished_jobs([job.chat_id])) == [job]


@pytest.mark.parametrize("name", [text for text in TEXTS if len(text) < 1000])
async def test_any_name_is_in_use_as_it_was_written(shelf: Shelf, name: str) -> None:
    chat_id, ann = uid(), uid()
    named = WorkspaceName(uid(), chat_id, ann, name, requested=True)

    await write(shelf.store, Changes(names=[named]), new=[chat_id])

    found = await shelf.store.look_up(Lookups(owners=frozenset({ann})))
    assert found.names == {ann: {name.lower()}}


@pytest.mark.parametrize("number", NUMBERS)
async def test_any_number_in_arguments_and_results_keeps_its_value_and_kind(
    shelf: Shelf, number: float
) -> None:
    values: dict[str, Any] = {"n": number, "list": [number, {"deep": number}], "text": str(number)}
    open_call = call(uid(), args=values)
    over = StoredCall(replace(open_call, call_id="over"), Answered(values))

    await write(shelf.store, Changes(calls=[StoredCall(open_call, None), over]))

    chat_id = open_call.chat_id
    found = await shelf.store.look(
        Wanted({chat_id}, calls={key(open_call), key(over.call)}, waiting={chat_id})
    )
    assert found.calls == {key(open_call): StoredCall(open_call, None), key(over.call): over}
    (waiting,) = found.waiting[chat_id]
    assert type(waiting.args["n"]) is type(number)
    result = found.calls[key(over.call)].answer
    assert result is not None
    assert type(result.result["n"]) is type(number)
    assert list(await shelf.store.recovery.answers_of([chat_id])) == [over]


@pytest.mark.parametrize("at", TIMES, ids=str)
async def test_any_time_is_read_as_it_was_written(shelf: Shelf, at: datetime) -> None:
    chat = owned(uid(), uid(), uid(), deadline=at)
    logged = entry(1, chat.chat_id, at=at)
    asked = call(chat.chat_id, asked_at=at)
    job = StoredJob(uid(), chat.chat_id, "s", b"{}", at)

    await write(
        shelf.store,
        Changes(
            chats=[chat],
            entries=[(chat.chat_id, logged)],
            calls=[StoredCall(asked, None)],
            jobs=[job],
            alarms=[Alarm(at, chat.chat_id)],
        ),
    )

    assert await shelf.store.chats.get(chat.chat_id) == chat
    assert await shelf.store.chats.open_calls(chat.chat_id) == [asked]
    (read,) = await shelf.store.chats.log(chat.chat_id)
    assert datetime.fromisoformat(read["at"]) == at
    assert list(await shelf.store.recovery.unpublished_jobs([job.chat_id])) == [job]
    assert list(await shelf.store.recovery.alarm_times()) == [at]
