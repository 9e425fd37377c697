"""The health server answers in time even if a check does not return."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from handlers.runtime import health
from tests.rigs.servers import free_port


async def test_a_slow_check_does_not_delay_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database is paused, even the cancellation of a query takes long."""
    monkeypatch.setattr(health, "ANSWER_WITHIN", 0.05)
    released = asyncio.Event()

    async def paused() -> str | None:
        try:
            await asyncio.Event().wait()
        finally:
            await released.wait()
        return None

    port = free_port()
    try:
        async with (
            health.http_server("127.0.0.1", port, {"database": paused}),
            aiohttp.ClientSession() as client,
            asyncio.timeout(20),
            client.get(f"http://127.0.0.1:{port}/readyz") as answer,
        ):
            assert answer.status == 503
            assert "no answer" in (await answer.json())["problems"]["database"]
    finally:
        released.set()
