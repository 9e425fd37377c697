"""A queued build says whether anybody serves its pool, told from presence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import pytest
from workspaced.following import read_state

from bus import Bus, Message
from bus.jetstream import connect
from bus.streams import JOB, pool_consumer
from handlers.access.identities import seed_file
from handlers.cli import pool_queue
from handlers.cli.pool_queue import PoolQueues, notice_delays
from handlers.embedded import Servers
from handlers.runtime.supervise import cancel_and_wait
from tests.rigs.messages import new_id

POOL = "some"
NO_CLIENT: Any = None


def chat(minute: int, pool: str = POOL, **build: Any) -> dict[str, Any]:
    at = f"2026-03-02T11:{minute}:44.866000Z"
    known = {"id": new_id(), "number": 1, "transition": "start", "pool": pool, "started_at": at}
    shown = {**known, "begun_at": None, **build}
    return {"state": "building", "build": shown}


async def role(servers: Servers, name: str, prefix: str) -> Bus:
    seed = seed_file(servers.credentials, name).read_text().strip()
    return await connect(servers.nats_url, seed=seed, inbox_prefix=prefix)


async def notice(bus: Bus, shown: dict[str, Any]) -> str | None:
    queues = PoolQueues(NO_CLIENT, partial(nullcontext, bus))
    return (await queues.add_notice(shown)).get("notice")


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


async def test_a_call_says_at_once_that_no_worker_runs(own_nats: Servers) -> None:
    heard = asyncio.Queue[str]()
    operator = await role(own_nats, "operator", "_INBOX")
    connect_operator = partial(nullcontext, operator)
    async with notice_delays(NO_CLIENT, new_id(), connect_operator, heard.put_nowait):
        assert "no worker runs" in await heard.get()
    await operator.close()


async def test_a_call_says_at_once_that_nobody_serves_the_pool_of_its_queued_build(
    own_nats: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        async def rpc(self, *_: object, **__: object) -> dict[str, Any]:
            return chat(12)

    monkeypatch.setattr(pool_queue, "STALL", 3600.0)
    heard = asyncio.Queue[str]()

    async def pools(_: Message) -> bytes:
        return b"{}"

    operator = await role(own_nats, "operator", "_INBOX")
    await operator.respond("workspaced.worker.pools", "workers", pools)
    ws, connect_operator = cast("Any", Client()), partial(nullcontext, operator)
    async with notice_delays(ws, new_id(), connect_operator, heard.put_nowait) as saw:
        for _ in range(3):
            saw(read_state({"data": {"chat_id": new_id(), "version": 1, **chat(12)}}))
        assert await heard.get() == f"  queued, pool {POOL}: nobody serves it"
    assert heard.empty(), "each reason is reported once"
    await operator.close()
