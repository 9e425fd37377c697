"""Rpcs over the adapters in this process: what a body may be, and what of its request goes on."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bus import Bus, ServiceError
from bus.memory import MemoryBus
from bus.memory_server import MemoryServer
from bus.streams import STREAMS
from handlers import nkey
from handlers.app import NotFoundError, Place
from handlers.gateway.gateway import Gateway
from statemachine.store.memory import MemoryStore

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    """A bus on which a gateway answers."""
    async with MemoryBus(MemoryServer()) as bus:
        for stream in STREAMS:
            await bus.ensure_stream(stream)
        gateway = Gateway(MemoryStore(), bus, orphan_grace=timedelta(minutes=1))
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
async def test_a_body_that_no_store_can_hold_is_the_callers_fault(bus: Bus, data: bytes) -> None:
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
async def test_a_tool_carries_its_callers_trace(
    bus: Bus, headers: dict[str, str], trace: str | None
) -> None:
    asked: dict[str, Any] = {}
    async with bus.subscribe("workspaced.in.tool.*.*") as seen:
        rpc = "workspaced.rpc.list_templates"
        asking = asyncio.create_task(bus.request(rpc, body(), timeout=5, headers=headers))
        asked = json.loads((await seen.next(5)).data)
        asking.cancel()

    assert asked.get("traceparent") == trace


def test_without_the_seed_that_signs_the_file_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert Place("", None, tmp_path).issuer_seed() is None

    assert str(tmp_path / "issuer.nk") in caplog.text
    assert "agents and frontends can't connect" in caplog.text


def test_a_seed_that_signs_nothing_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "issuer.nk"
    file.write_text("nothing")
    with pytest.raises(NotFoundError, match="issuer"):
        Place("", None, tmp_path).issuer_seed()

    file.write_text(seed := nkey.new_seed("account"))
    assert Place("", None, tmp_path).issuer_seed() == seed
