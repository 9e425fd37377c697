"""Rpcs over the in-memory adapters: validation of bodies, limits, and forwarded headers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bus import Bus, Message, ServiceError, Subscription, subjects
from bus.streams import LOG, STREAMS
from handlers.access import nkey
from handlers.app import Endpoints
from handlers.errors import NotFoundError
from handlers.gateway import tool_calls
from handlers.gateway.gateway import Gateway
from handlers.gateway.queries import Queries
from handlers.gateway.requests import LogBody
from statemachine.tool_rules import BUSY
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_server import MemoryServer
from tests.doubles.memory_store import MemoryStore

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    """A bus with a running gateway."""
    async with MemoryBus(MemoryServer()) as bus:
        for stream in STREAMS:
            await bus.ensure_stream(stream)
        gateway = Gateway(MemoryStore(), bus)
        running = asyncio.create_task(gateway.run())
        await gateway.ready.wait()
        yield bus
        running.cancel()


def body(args: str = "{}") -> bytes:
    ids = {key: str(uuid4()) for key in ("chat_id", "organization_id", "owner_id")}
    text = json.dumps({**ids, "owner_name": "ann", "call_id": "c", "args": None})
    return text.replace("null", args).encode()


@pytest.mark.parametrize(
    "data",
    [
        body('{"a": NaN}'),
        body('{"a": 1e999}'),
        body('{"a": ' + "9" * 5000 + "}"),
        body('{"a": "\\u0000"}'),
        body('{"a": "\\ud800"}'),
        body('{"a": ' + "[" * 40 + "]" * 40 + "}"),
        body('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        b"\xff",
        b"[]",
    ],
    ids=["NaN", "1e999", "digits", "NUL", "surrogate", "deep", "abyss", "no text", "no object"],
)
async def test_a_body_that_cannot_be_stored_gets_400(bus: Bus, data: bytes) -> None:
    for rpc in ("list_templates", "list_chats"):
        with pytest.raises(ServiceError) as refused:
            await bus.request(f"workspaced.rpc.{rpc}", data, timeout=5)

        assert refused.value.code == 400
        assert refused.value.description.startswith("body")


@pytest.mark.parametrize(
    ("headers", "trace"),
    [
        ({"traceparent": TRACE}, TRACE),
        ({"Traceparent": TRACE}, TRACE),
        ({"traceparent": "x"}, None),
    ],
)
async def test_a_tool_request_carries_the_traceparent_of_its_caller(
    bus: Bus, headers: dict[str, str], trace: str | None
) -> None:
    asked: dict[str, Any] = {}
    async with bus.subscribe("workspaced.in.tool.*.*") as seen:
        rpc = "workspaced.rpc.list_templates"
        asking = asyncio.create_task(bus.request(rpc, body(), timeout=5, headers=headers))
        asked = json.loads((await seen.next(5)).data)
        asking.cancel()

    assert asked.get("traceparent") == trace


def test_a_missing_issuer_seed_is_logged_with_its_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert Endpoints("", None, tmp_path).issuer_seed() is None

    assert str(tmp_path / "issuer.nk") in caplog.text
    assert "agents and frontends can't connect" in caplog.text


def test_an_invalid_issuer_seed_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "issuer.nk"
    file.write_text("nothing")
    with pytest.raises(NotFoundError, match="issuer"):
        Endpoints("", None, tmp_path).issuer_seed()

    file.write_text(seed := nkey.new_seed("account"))
    assert Endpoints("", None, tmp_path).issuer_seed() == seed


async def answer_next(seen: Subscription, bus: Bus, error: str) -> None:
    asked = json.loads((await seen.next(5)).data)
    chat, call = asked["subject"], asked["data"]["call_id"]
    data = {"call_id": call, "tool": "list_templates", "is_error": True, "result": {"error": error}}
    await bus.publish(subjects.result(chat, call), json.dumps({"data": data}).encode())


@pytest.mark.parametrize(
    "name",
    [
        *("agent_credential", "frontend_credential", "issue_credential", "revoke_credential"),
        "issue_token",
    ],
)
async def test_a_body_that_grants_something_or_takes_it_back_has_no_unknown_keys(
    bus: Bus, name: str
) -> None:
    with pytest.raises(ServiceError, match=r"body\.colour") as refused:
        await bus.request(f"workspaced.rpc.{name}", b'{"colour": "red"}', timeout=5)

    assert refused.value.code == 400


async def test_a_call_without_a_result_in_time_gets_504(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_calls, "MAX_WAIT", 0.05)

    with pytest.raises(ServiceError, match="call c has no result yet") as refused:
        await bus.request("workspaced.rpc.list_templates", body(), timeout=5)

    assert refused.value.code == 504


async def test_a_call_refused_for_load_gets_429(bus: Bus) -> None:
    async with bus.subscribe("workspaced.in.tool.*.*") as seen:
        asking = asyncio.create_task(
            bus.request("workspaced.rpc.list_templates", body(), timeout=5)
        )
        await answer_next(seen, bus, BUSY + "try again later")

        with pytest.raises(ServiceError, match="try again later") as refused:
            await asking
    assert refused.value.code == 429


async def test_a_gateway_at_its_limit_of_held_calls_answers_429() -> None:
    async with MemoryBus(MemoryServer()) as bus:
        for stream in STREAMS:
            await bus.ensure_stream(stream)
        gateway = Gateway(MemoryStore(), bus, held_calls=1)
        running = asyncio.create_task(gateway.run())
        await gateway.ready.wait()
        ask = partial(bus.request, "workspaced.rpc.list_templates", timeout=5)
        async with bus.subscribe("workspaced.in.tool.*.*") as seen:
            asking = asyncio.create_task(ask(body()))
            first = await seen.next(5)

            with pytest.raises(ServiceError, match="holds 1 calls already") as refused:
                await ask(body())
            assert refused.value.code == 429

            asking.cancel()
            data = json.loads(first.data)
            chat, call = data["subject"], data["data"]["call_id"]
            done = {"is_error": False, "result": {}}
            await bus.publish(subjects.result(chat, call), json.dumps({"data": done}).encode())
            asking = asyncio.create_task(ask(body()))
            await answer_next(seen, bus, "no")
            assert json.loads((await asking).data)["result"] == {"error": "no"}
        running.cancel()


async def test_a_truncated_log_is_read_from_its_first_stored_line() -> None:
    async with MemoryBus(MemoryServer()) as bus:
        await bus.ensure_stream(replace(LOG, max_msgs_per_subject=3))
        chat, build, other = (str(uuid4()) for _ in range(3))
        for of, number in [(other, 0), *((build, number) for number in range(1, 6))]:
            line = json.dumps({"data": {"sequence": number}}).encode()
            await bus.publish(subjects.log(chat, of), line)
        reader = Queries(MemoryStore(), bus)

        asking = Message(subjects.rpc("read_log"), b"")
        kept = await reader.read_log(LogBody(chat_id=chat, build_id=build), asking)
        others = await reader.read_log(LogBody(chat_id=chat, build_id=other), asking)

    assert [line["sequence"] for line in kept["lines"]] == [3, 4, 5]
    assert [line["sequence"] for line in others["lines"]] == [0]
