"""LISTEN/NOTIFY by hand: the peer to beat.

The accepting transaction logs the event, moves the state and, at the end of the road, notifies; the
app keeps one listening connection and a table of futures.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Mapping
from typing import Any

import asyncpg

from tests.bench.peer import Event, make_event
from tests.bench.peers.servers import PooledPeer

# --- flow begin
DDL = """
create type state as enum ('none', 'building', 'agent_connecting', 'scripts_running', 'ready', 'failed');
create table workspaces (chat text primary key, state state not null default 'none',
                         updated timestamptz not null default now());
create table event_log (id text primary key, chat text not null, kind text not null,
                        body jsonb not null, at timestamptz not null default now());
"""
AFTER = {
    "build_started": "building",
    "build_succeeded": "agent_connecting",
    "agent_connected": "scripts_running",
    "lifecycle_ready": "ready",
}
APPLY = """
with fresh as (insert into event_log (id, chat, kind, body) values ($1, $2, $3, $4)
               on conflict do nothing returning chat),
     moved as (update workspaces w set state = greatest(w.state, $5::state), updated = now()
               from fresh where w.chat = fresh.chat returning w.chat, w.state)
select pg_notify('workspace', json_build_object('chat', chat, 'state', state)::text)
from moved where state >= 'ready'
"""


async def report(pool: Any, event: Event) -> None:
    body, state = json.dumps(event), AFTER[event["kind"]]
    await pool.execute(APPLY, event["id"], event["chat"], event["kind"], body, state)


class Waiters:
    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.futures: dict[str, asyncio.Future[Mapping[str, Any]]] = {}

    async def listen(self, dsn: str) -> None:
        self.connection = await asyncpg.connect(dsn)
        self.connection.add_termination_listener(
            lambda _: asyncio.ensure_future(self.listen(dsn)) if self.futures else None
        )
        await self.connection.add_listener("workspace", lambda *a: self.settle(json.loads(a[3])))
        for row in await self.pool.fetch(  # whatever was missed while not listening
            "select chat, state::text from workspaces where chat = any($1)", list(self.futures)
        ):
            self.settle(dict(row))

    def settle(self, row: Mapping[str, Any]) -> None:
        done = row["state"] in ("ready", "failed")
        if done and (future := self.futures.pop(row["chat"], None)):
            future.set_result(row)

    async def create_workspace(self, chat: str) -> Awaitable[Mapping[str, Any]]:
        future = self.futures[chat] = asyncio.get_running_loop().create_future()
        await self.pool.execute("insert into workspaces (chat) values ($1)", chat)
        return future


# --- flow end

VERIFY = """
select (select count(*) from workspaces where chat = any($1) and state = 'ready') as ready,
       (select count(*) from event_log where chat = any($1)) as logged
"""


class Driver(PooledPeer):
    """LISTEN/NOTIFY on PostgreSQL, by asyncpg."""

    ddl, verify_query = DDL, VERIFY

    async def start(self) -> None:
        await super().start()
        self.waiters = Waiters(self.pool)
        await self.waiters.listen(self.dsn)

    async def create(self, chat: str) -> Awaitable[Mapping[str, Any]]:
        return await self.waiters.create_workspace(chat)

    async def stop(self) -> None:
        if hasattr(self, "waiters"):
            self.waiters.futures.clear()
            await self.waiters.connection.close()
        await super().stop()

    async def event(self, chat: str, kind: str) -> None:
        await report(self.pool, make_event(chat, kind))
