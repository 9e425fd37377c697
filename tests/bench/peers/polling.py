"""Polling: the tool call asks the database every two seconds how far things are.

The build phase makes two queries a tick (the build, then its job), the agent's and the scripts' one
each; each phase looks once at once and then on its own ticker. Reports are written straight to the
tables by whoever receives them, one transaction an event.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tests.bench.peer import Event, make_event
from tests.bench.peers.servers import PooledPeer

# --- flow begin
TICK = 2.0
DDL = """
create table jobs (id text primary key, status text not null default 'pending', error text);
create table builds (id text primary key, chat text not null unique, job text not null);
create table agents (chat text primary key, connected boolean not null default false,
                     lifecycle text not null default 'created');
create table event_log (id text primary key, chat text not null, kind text not null,
                        body jsonb not null, at timestamptz not null default now());
"""
CREATE = """
with j as (insert into jobs (id) values ('job-' || $1)),
     a as (insert into agents (chat) values ($1))
insert into builds (id, chat, job) values ('build-' || $1, $1, 'job-' || $1)
"""
LOG = """
with fresh as (insert into event_log (id, chat, kind, body) values ($1, $2, $3, $4)
               on conflict do nothing returning chat)
"""
JOB = LOG + "update jobs set status = $5 from fresh where jobs.id = 'job-' || fresh.chat"
CONNECTED = LOG + "update agents set connected = $5 from fresh where agents.chat = fresh.chat"
LIFECYCLE = LOG + "update agents set lifecycle = $5 from fresh where agents.chat = fresh.chat"
WRITE: dict[str, tuple[str, Any]] = {
    "build_started": (JOB, "running"),
    "build_succeeded": (JOB, "succeeded"),
    "agent_connected": (CONNECTED, True),
    "lifecycle_ready": (LIFECYCLE, "ready"),
}


async def report(pool: Any, event: Event) -> None:
    sql, value = WRITE[event["kind"]]
    await pool.execute(sql, event["id"], event["chat"], event["kind"], json.dumps(event), value)


async def poll(look: Callable[[], Awaitable[Any]]) -> Any:
    loop = asyncio.get_running_loop()
    due = loop.time()
    while (found := await look()) is None:
        due += TICK
        if (late := loop.time() - due) > 0:  # a ticker drops the ticks it missed
            due += TICK * (late // TICK)
        await asyncio.sleep(due - loop.time())
    return found


async def wait_ready(pool: Any, chat: str) -> Mapping[str, Any]:
    async def build() -> str | None:
        job = await pool.fetchval("select job from builds where id = $1", f"build-{chat}")
        row = await pool.fetchrow("select status, error from jobs where id = $1", job)
        return row["status"] if row["status"] in ("succeeded", "failed") else None

    async def agent() -> bool | None:
        row = await pool.fetchrow("select connected from agents where chat = $1", chat)
        return row["connected"] or None

    async def scripts() -> str | None:
        row = await pool.fetchrow("select lifecycle from agents where chat = $1", chat)
        return row["lifecycle"] if row["lifecycle"] in ("ready", "failed") else None

    if await poll(build) == "failed":
        return {"chat": chat, "state": "failed"}
    await poll(agent)
    return {"chat": chat, "state": await poll(scripts)}


async def create_workspace(pool: Any, chat: str) -> asyncio.Task[Mapping[str, Any]]:
    await pool.execute(CREATE, chat)
    return asyncio.create_task(wait_ready(pool, chat))


# --- flow end

VERIFY = """
select (select count(*) from agents where chat = any($1) and lifecycle = 'ready') as ready,
       (select count(*) from event_log where chat = any($1)) as logged
"""


class Driver(PooledPeer):
    """Polling of PostgreSQL, by asyncpg."""

    ddl, verify_query = DDL, VERIFY

    async def start(self) -> None:
        self.waiting: set[asyncio.Task[Mapping[str, Any]]] = set()
        await super().start()

    async def create(self, chat: str) -> Awaitable[Mapping[str, Any]]:
        task = await create_workspace(self.pool, chat)
        self.waiting.add(task)
        task.add_done_callback(self.waiting.discard)
        return task

    async def stop(self) -> None:
        waiting = list(getattr(self, "waiting", ()))
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await super().stop()

    async def event(self, chat: str, kind: str) -> None:
        await report(self.pool, make_event(chat, kind))
