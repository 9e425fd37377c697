"""A message that cannot be accepted becomes an unchanged dead letter with a reason, and later ones are applied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from nats.aio.msg import Msg

from tests.rigs.client import Chat
from tests.rigs.messages import build_fact, new_id
from tests.rigs.world import World

NUL, SURROGATE = "\x00", "\ud800"


def nested_objects(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


async def dead_letter_of(
    world: World,
    chat: Chat,
    body: bytes,
    *,
    kind: str = "tool",
    sender: str = "chatd",
    headers: Mapping[str, str] | None = None,
) -> Msg:
    """Publish a message that can't be accepted; check that later events are applied; return the dead letter."""
    letters = await world.operator.hear(f"workspaced.dead.{kind}")
    party = world.service if kind == "tool" else world.provisioner
    subject = f"workspaced.in.{kind}.{chat.id}.{sender}"
    await party.publish(subject, body, headers)
    letter = await letters.first(
        lambda letter: (letter.headers or {}).get("Workspaced-Subject") == subject
    )
    assert letter.data == body
    assert letter.headers is not None
    assert letter.headers["Workspaced-Detail"]
    sent = json.loads(letter.headers["Workspaced-Headers"])
    assert sent == {"Content-Type": "application/cloudevents+json", **(headers or {})}
    await chat.call("list_templates")
    return letter


CASES: dict[str, tuple[str, Any]] = {
    "no JSON": ("not_json", b"{"),
    "no UTF-8": ("not_json", b'{"a": "\xff"}'),
    "nothing": ("not_json", b""),
    "no object": ("not_cloudevents", b"[1]"),
    "no CloudEvent": ("not_cloudevents", b"{}"),
    "another specversion": ("not_cloudevents", {"specversion": "0.3"}),
    "no id": ("not_cloudevents", {"id": None}),
    "an empty id": ("not_cloudevents", {"id": ""}),
    "no source": ("not_cloudevents", {"source": None}),
    "no type": ("not_cloudevents", {"type": None}),
    "no subject": ("not_cloudevents", {"subject": None}),
    "a time that is none": ("not_cloudevents", {"time": "yesterday"}),
    "another type": ("bad_type", {"type": "com.example.order.v1"}),
    "a type of another sender": ("bad_type", {"type": "workspaced.build_started.v1"}),
    "one of our own types": ("bad_type", {"type": "workspaced.state_changed.v1"}),
    "a newer schema version": ("bad_type", {"type": "workspaced.tool_requested.v2"}),
    "another source": ("bad_source", {"source": "/chat/other"}),
    "a source of another kind": ("bad_source", {"source": "/agent/chatd"}),
    "another chat": ("chat_mismatch", {"subject": new_id()}),
    "no data": ("bad_data", {"data": None}),
    "data that is no object": ("bad_data", {"data": "x"}),
    "no tool": ("bad_data", {"data": {"call_id": "c"}}),
    "an owner that is none": ("bad_data", {"owner_id": "me"}),
    "an upper-case id": ("bad_data", {"owner_id": new_id().upper()}),
    "a call id that is none": ("bad_data", {"call_id": "a b"}),
    "a call id that is too long": ("bad_data", {"call_id": "c" * 129}),
    "NUL": ("bad_data", {"args": {"a": NUL}}),
    "NUL in a key": ("bad_data", {"args": {NUL: 1}}),
    "a lone surrogate": ("bad_data", {"args": {"a": SURROGATE}}),
    "too deep": ("bad_data", {"args": json.loads(nested_objects(31))}),
    "too large": ("too_large", {"args": {"a": "x" * 262_144}}),
}


@pytest.mark.parametrize(("reason", "change"), CASES.values(), ids=CASES.keys())
async def test_an_invalid_request_becomes_a_dead_letter_with_its_reason(
    world: World, reason: str, change: Any
) -> None:
    chat = await world.chat()
    body = (
        change
        if isinstance(change, bytes)
        else json.dumps(chat.request("list_templates", **change)).encode()
    )

    letter = await dead_letter_of(world, chat, body)

    assert letter.headers is not None
    assert letter.headers["Workspaced-Reason"] == reason


@pytest.mark.parametrize(
    "value",
    ["1e999999", "9" * 400, "-1e400", "[" * 20_000 + "]" * 20_000],
    ids=["exponent", "digits", "negative", "nesting"],
)
async def test_a_number_beyond_a_double_or_deep_nesting_becomes_a_dead_letter(
    world: World, value: str
) -> None:
    chat = await world.chat()
    request = json.dumps(chat.request("list_templates", {"n": "here"}))

    letter = await dead_letter_of(world, chat, request.replace('"here"', value).encode())

    assert letter.headers is not None
    assert letter.headers["Workspaced-Reason"] == "bad_data"


async def test_another_content_type_becomes_a_dead_letter(world: World) -> None:
    chat = await world.chat()
    body = json.dumps(chat.request("list_templates")).encode()

    letter = await dead_letter_of(world, chat, body, headers={"Content-Type": "application/json"})

    assert letter.headers is not None
    assert letter.headers["Workspaced-Reason"] == "not_cloudevents"


async def test_headers_of_the_sender_have_no_effect_in_a_dead_letter(world: World) -> None:
    chat = await world.chat()
    headers = {"X-Mine": "1", "Workspaced-Reason": "forged", "Nats-Msg-Id": new_id()}

    letter = await dead_letter_of(world, chat, b"{", headers=headers)

    assert letter.headers is not None
    assert letter.headers["Workspaced-Reason"] == "not_json"
    assert "X-Mine" not in letter.headers
    assert "Nats-Msg-Id" not in letter.headers


async def test_an_invalid_fact_of_a_provisioner_becomes_a_dead_letter(world: World) -> None:
    chat = await world.chat()
    build = {"workspace_id": new_id(), "build_id": new_id(), "build_number": "one"}
    fact = build_fact("build_started", "forge", build, {}, subject=chat.id)

    letter = await dead_letter_of(
        world, chat, json.dumps(fact).encode(), kind="provisioner", sender="forge"
    )

    assert letter.headers is not None
    assert letter.headers["Workspaced-Reason"] == "bad_data"
    assert "build_number" in letter.headers["Workspaced-Detail"]
    assert chat.states.all == []


async def test_a_fact_about_another_agent_becomes_a_dead_letter(world: World) -> None:
    chat = await world.chat()
    _, agent = await world.ready(chat)
    letters = await world.operator.hear("workspaced.dead.agent")

    await agent.publish_event("agent_disconnected", agent_id=new_id())
    letter = await letters.first(lambda _: True)

    assert letter.headers is not None
    assert letter.headers["Workspaced-Reason"] == "bad_data"


async def test_an_invalid_request_with_a_readable_call_id_is_answered(world: World) -> None:
    chat = await world.chat()
    wrong = chat.request("list_templates", call_id="readable", owner_id="nobody")

    await dead_letter_of(world, chat, json.dumps(wrong).encode())
    resolved = await chat.answer("readable")

    assert resolved["is_error"] is True
    assert resolved["tool"] == "list_templates"
    assert "owner_id" in resolved["result"]["error"]


async def test_a_dead_letter_does_not_change_an_answered_call(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    await dead_letter_of(
        world, chat, json.dumps(chat.request("list_templates", call_id=call, owner_id="x")).encode()
    )
    await world.provisioner.succeed(job)

    assert (await chat.answer(call))["result"]["created"] is True


async def test_dead_letters_can_be_read_later(world: World) -> None:
    chat = await world.chat()

    await dead_letter_of(world, chat, b"{")
    found = await world.operator.js.get_last_msg("WORKSPACED_DEAD", "workspaced.dead.tool")

    assert found.data == b"{"


async def test_the_stream_refuses_messages_over_900_kib(world: World) -> None:
    chat = await world.chat()
    subject = chat.subject

    reply = await world.service.client.request(subject, b"x" * 950_000, timeout=5)

    assert "error" in json.loads(reply.data)
    await chat.call("list_templates")


@pytest.mark.parametrize(
    "more",
    [
        {"time": None},
        {"time": "2026-01-02T03:04:05.678901+05:30"},
        {"extra": 1},
        {"datacontenttype": "application/json"},
    ],
    ids=["no time", "another offset", "unknown keys", "a content type"],
)
async def test_unusual_but_valid_messages_are_accepted(world: World, more: dict[str, Any]) -> None:
    chat = await world.chat()
    request = chat.request("list_templates", call_id="fine", **more)
    request["data"]["unknown"] = {"a": 1}

    await world.service.js.publish(chat.subject, json.dumps(request).encode())

    assert (await chat.answer("fine"))["is_error"] is False


async def test_large_answers_do_not_stop_the_stream(world: World) -> None:
    """The detail quotes values, which makes them longer. The dead letter must stay within NATS's limit."""
    chat = await world.chat()
    name = "\u0080" * 120_000
    args = {"template_id": world.rich, "parameters": {name: "x"}}
    request = chat.request("create_workspace", args)

    body = json.dumps(request, ensure_ascii=False).encode()
    await world.service.publish(chat.subject, body)

    assert "error" in (await chat.answer("call"))["result"]
    await chat.call("list_templates")
