"""A queued build says whether anybody serves its pool, told from presence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus import Bus
from bus.jetstream import connect
from bus.streams import JOB, pool_consumer
from handlers.access.identities import seed_file
from handlers.cli import pool_queue
from handlers.cli.pool_queue import PoolQueues
from handlers.embedded import Servers
from handlers.runtime.supervise import cancel_and_wait

POOL = "some"


def chat(minute: int, pool: str = POOL, **build: Any) -> dict[str, Any]:
    at = f"2026-03-02T11:{minute}:44.866000Z"
    shown = {"pool": pool, "started_at": at, "begun_at": None, **build}
    return {"state": "building", "build": shown}


async def role(servers: Servers, name: str, prefix: str) -> Bus:
    seed = seed_file(servers.credentials, name).read_text().strip()
    return await connect(servers.nats_url, seed=seed, inbox_prefix=prefix)


async def notice(bus: Bus, shown: dict[str, Any]) -> str | None:
    return (await PoolQueues(bus).add_notice(shown)).get("notice")


async def test_a_queued_build_says_whether_anybody_serves_its_pool(
    own_nats: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def all_chats(*_: object, state: str) -> AsyncIterator[dict[str, Any]]:
        others = [chat(10, begun_at="…"), chat(11), chat(12), chat(10, "other"), chat(13)]
        for one in others if state == "building" else []:
            yield one

    monkeypatch.setattr(pool_queue, "rpc_pages", all_chats)
    operator = await role(own_nats, "operator", "_INBOX")
    nobody = f"queued, pool {POOL}: nobody serves it"
    assert await notice(operator, chat(12)) == nobody, "there is not even a consumer"
    await operator.ensure_stream(JOB)
    await operator.ensure_consumer(pool_consumer(POOL))
    assert await notice(operator, chat(12)) == nobody

    listening = await role(own_nats, "provisioner", "_INBOX_provisioner")
    async with listening.subscribe(f"workspaced.cancel.{POOL}"):
        assert await notice(operator, chat(12)) == f"queued, pool {POOL}: 2 jobs ahead"
        assert await notice(operator, chat(11)) == f"queued, pool {POOL}: 1 job ahead"
    assert await notice(operator, chat(12)) == nobody

    async with listening.pull(pool_consumer(POOL)) as pull:
        taking = asyncio.create_task(pull.next(1))  # type: ignore[arg-type]
        while not (await operator.consumer_state(pool_consumer(POOL))).pulls:
            await asyncio.sleep(0)  # back-off
        assert await notice(operator, chat(10)) == f"queued, pool {POOL}: 0 jobs ahead"
        await cancel_and_wait(taking)
    await listening.close()
    assert await notice(operator, chat(12)) == nobody

    assert await notice(operator, chat(12, begun_at="2026-03-02T11:30:44Z")) is None
    assert await notice(operator, {"state": "none", "build": None}) is None
    assert await notice(operator, {**chat(12), "state": "failed"}) is None
    await operator.close()
