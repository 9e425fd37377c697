"""`workspaced.rpc.*`: the tools, and the rpcs that read chats."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.rigs import shapes
from tests.rigs.client import Chat, ServiceError
from tests.rigs.messages import new_id
from tests.rigs.world import World
from tests.schemas import SCHEMAS

RPCS = {path.name.removesuffix(".body.json") for path in (SCHEMAS / "rpcs").glob("*.body.json")}
"""The rpcs that docs/schemas describes."""


def tool_body(chat: Chat, args: Any = None, **more: Any) -> dict[str, Any]:
    return {"chat_id": chat.id, **chat.identity, "args": {} if args is None else args, **more}


async def test_the_service_and_its_endpoints_can_be_found(world: World) -> None:
    pong = await world.operator.client.request("$SRV.PING.workspaced", b"", timeout=5)
    info = await world.operator.client.request("$SRV.INFO.workspaced", b"", timeout=5)

    assert json.loads(pong.data)["name"] == "workspaced"
    subjects = {endpoint["subject"] for endpoint in json.loads(info.data)["endpoints"]}
    assert subjects == {f"workspaced.rpc.{name}" for name in RPCS}


async def test_a_tool_by_rpc_is_answered_and_published(world: World) -> None:
    chat = await world.chat()

    resolved = await world.service.rpc("list_templates", **tool_body(chat))
    published = await chat.answer(resolved["call_id"])

    shapes.tool_resolved(resolved)
    assert resolved == published
    assert resolved["tool"] == "list_templates"


async def test_a_create_by_rpc_is_held_until_it_is_ready(world: World) -> None:
    chat = await world.chat()
    asked = tool_body(chat, {"template_id": world.plain}, call_id="mine")

    held = asyncio.create_task(world.service.rpc("create_workspace", **asked))
    job = await world.provisioner.job(chat)
    again = asyncio.create_task(world.service.rpc("create_workspace", **asked))
    await world.provisioner.succeed(job)

    assert (await held)["result"]["build_id"] == job.build_id
    assert await again == await held
    assert await world.service.rpc("create_workspace", **asked) == await held
    assert (await held)["call_id"] == "mine"


async def test_an_error_of_a_tool_is_in_its_answer(world: World) -> None:
    chat = await world.chat()

    resolved = await world.service.rpc("start_workspace", **tool_body(chat))

    assert resolved["is_error"] is True
    assert "create_workspace" in resolved["result"]["error"]


@pytest.mark.parametrize(
    ("rpc", "wrong", "code"),
    [
        ("create_workspace", b"not json", 400),
        ("create_workspace", b"[]", 400),
        ("create_workspace", {"chat_id": "x"}, 400),
        ("list_templates", {"call_id": "a.b"}, 400),
        ("list_templates", {"args": []}, 400),
        ("get_chat", {}, 400),
        ("get_chat", {"chat_id": 7}, 400),
        ("list_chats", {"state": "sleeping"}, 400),
        ("read_log", {"chat_id": new_id()}, 400),
        ("read_events", {"chat_id": new_id(), "after": -1}, 400),
        ("cancel", {"chat_id": new_id()}, 400),
        ("frontend_credential", {"chat_ids": [], "ttl_seconds": 10}, 400),
        ("frontend_credential", {"chat_ids": [new_id()], "ttl_seconds": "long"}, 400),
    ],
)
async def test_an_invalid_body_is_a_service_error(
    world: World, rpc: str, wrong: Any, code: int
) -> None:
    if isinstance(wrong, dict) and rpc == "list_templates":
        wrong = tool_body(await world.chat()) | wrong

    with pytest.raises(ServiceError) as fault:
        await world.service.ask(rpc, wrong)

    assert fault.value.code == code
    assert fault.value.text


async def test_an_invalid_credential_request_is_answered_400_or_404(world: World) -> None:
    with pytest.raises(ServiceError) as unknown:
        await world.provisioner.ask("template_archive", {"version_id": new_id(), "offset": 0})
    with pytest.raises(ServiceError) as negative:
        await world.provisioner.ask("template_archive", {"version_id": new_id(), "offset": -1})

    assert (unknown.value.code, negative.value.code) == (404, 400)


async def test_a_role_without_permission_cannot_call_rpcs(world: World) -> None:
    await world.provisioner.client.publish("workspaced.rpc.get_chat", b"{}")
    await world.service.client.publish("workspaced.rpc.agent_credential", b"{}")
    await world.service.client.publish(f"workspaced.in.provisioner.{new_id()}.x", b"{}")

    first = await world.provisioner.errors.first(lambda e: "get_chat" in str(e).lower())
    await world.service.errors.first(lambda e: "agent_credential" in str(e).lower())
    await world.service.errors.first(lambda e: "in.provisioner" in str(e).lower())
    assert "permissions violation" in str(first).lower()


async def error_code(world: World, asked: dict[str, Any]) -> int | str:
    """Return the code of the service error that a request gets, or what its answer is without one."""
    try:
        resolved = await world.service.rpc("list_templates", **asked)
    except ServiceError as fault:
        return fault.code
    return "is_error" if resolved["is_error"] else "well"


@pytest.mark.parametrize(
    "args",
    [{"query": "\x00"}, {"query": "\ud800"}],
    ids=["NUL", "a lone surrogate"],
)
async def test_values_that_the_database_cannot_store_are_refused(world: World, args: Any) -> None:
    chat = await world.chat()

    refusal = await error_code(world, tool_body(chat, args))

    assert refusal in (400, 413, "is_error")
    await chat.call("list_templates")


@pytest.mark.parametrize("size", [300_000, 950_000], ids=["an event", "a body"])
async def test_a_request_that_is_too_large_is_refused_with_413(world: World, size: int) -> None:
    chat = await world.chat()

    assert await error_code(world, tool_body(chat, {"query": "x" * size})) == 413


async def test_a_malformed_id_says_what_it_must_be(world: World) -> None:
    with pytest.raises(ServiceError, match="chat_id must be a lower-case UUID") as refused:
        await world.service.rpc("get_chat", chat_id=new_id().upper())

    assert refused.value.code == 400


async def test_unknown_keys_are_named_in_every_reply(world: World) -> None:
    chat = await world.chat()
    await chat.call("list_templates")

    shown = await world.service.rpc("get_chat", chat_id=chat.id, chat=chat.id, other=None)
    plain = await world.service.rpc("get_chat", chat_id=chat.id)
    body = tool_body(chat, {"querry": "x", "page": 1})
    called = await world.service.rpc("list_templates", **body, wait=5)
    canceled = await world.service.rpc("cancel", chat_id=chat.id, call_id="none", reason="x")
    ended = await world.service.rpc("cancel_build", chat_id=chat.id, call_id="none")

    assert shown["ignored"] == ["chat"]
    assert "ignored" not in plain
    assert sorted(called["ignored"]) == ["querry", "wait"]
    published = await chat.results.first(lambda e: e["data"]["call_id"] == called["call_id"])
    assert published["data"]["ignored"] == ["querry"]
    assert canceled == {"canceled": True, "ignored": ["reason"]}
    assert ended == {"canceled": False, "ignored": ["call_id"]}
    with pytest.raises(ServiceError, match=r"body\.exek") as refused:
        await world.service.rpc("frontend_credential", chat_ids=[chat.id], exek=True)
    assert refused.value.code == 400


async def test_a_known_call_with_other_content_is_409_and_nothing_is_asked(world: World) -> None:
    chat = await world.chat()
    first = await world.service.rpc("list_templates", **tool_body(chat, {"page": 1}, call_id="c"))

    for tool, args in (("list_templates", {"page": 2}), ("stop_workspace", {})):
        with pytest.raises(ServiceError, match="call_id c was used") as refused:
            await world.service.rpc(tool, **tool_body(chat, args, call_id="c"))
        assert refused.value.code == 409
    spelled = {"page": 1.0, "query": None, "other": 1}
    again = await world.service.rpc("list_templates", **tool_body(chat, spelled, call_id="c"))

    assert again == {**first, "ignored": ["other"]}
    log = (await world.service.rpc("read_events", chat_id=chat.id))["events"]
    asked = [e for e in log if e["event"]["type"] == "workspaced.tool_requested.v1"]
    assert len(asked) == 2


async def test_an_rpc_for_the_chat_of_another_owner_is_an_error(world: World) -> None:
    chat = await world.chat()
    await chat.call("list_templates")

    resolved = await world.service.rpc("list_templates", **tool_body(chat, owner_id=new_id()))

    assert resolved["is_error"] is True
