"""A floor, not a product: JetStream events, one PostgreSQL transaction a batch.

The shortest pipeline that does the same work: no validation, no rules, no published states, and a
`create` that inserts a row. Sources publish with a message id and wait for the stream's ack; the app
drains what has been delivered, applies it in one statement, acknowledges the last message, and
settles the futures of the chats that reached the end.

Option `sync`: `always` syncs every message before its ack; None is JetStream's default.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Mapping
from typing import Any

import nats
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from tests.bench.peer import Event, make_event
from tests.bench.peers.servers import PostgresPeer, pool, start_nats

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
with incoming as (select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::state[])
                  as t (id, chat, kind, body, state)),
     fresh as (insert into event_log (id, chat, kind, body)
               select id, chat, kind, body::jsonb from incoming on conflict do nothing returning id),
     top as (select chat, max(state) as state from incoming join fresh using (id) group by chat)
update workspaces w set state = greatest(w.state, top.state), updated = now()
from top where w.chat = top.chat returning w.chat, w.state::text as state
"""


class Engine:
    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.futures: dict[str, asyncio.Future[Mapping[str, Any]]] = {}
        self.new: list[tuple[str, asyncio.Future[None]]] = []
        self.delivered: list[Msg] = []
        self.kick, self.arrived = asyncio.Event(), asyncio.Event()

    async def start(self, js: JetStreamContext) -> None:
        await js.add_stream(StreamConfig(name="EVENTS", subjects=["ws.*"]))
        await js.subscribe(
            "ws.*",
            durable="engine",
            cb=self.receive,
            manual_ack=True,
            pending_msgs_limit=-1,
            config=ConsumerConfig(ack_policy=AckPolicy.ALL, max_ack_pending=5000),
        )
        self.tasks = [asyncio.create_task(self.apply()), asyncio.create_task(self.insert())]

    async def receive(self, message: Msg) -> None:
        self.delivered.append(message)
        self.arrived.set()

    async def apply(self) -> None:
        while True:
            await self.arrived.wait()
            self.arrived.clear()
            batch, self.delivered = self.delivered, []
            events = [json.loads(message.data) for message in batch]
            rows = await self.pool.fetch(
                APPLY,
                *([event[key] for event in events] for key in ("id", "chat", "kind")),
                [message.data.decode() for message in batch],
                [AFTER[event["kind"]] for event in events],
            )
            await batch[-1].ack()
            for row in rows:
                done = row["state"] in ("ready", "failed")
                if done and (future := self.futures.pop(row["chat"], None)):
                    future.set_result(dict(row))

    async def insert(self) -> None:
        while True:
            await self.kick.wait()
            self.kick.clear()
            batch, self.new = self.new, []
            await self.pool.execute(
                "insert into workspaces (chat) select unnest($1::text[])",
                [chat for chat, _ in batch],
            )
            for _, accepted in batch:
                accepted.set_result(None)

    async def create_workspace(self, chat: str) -> Awaitable[Mapping[str, Any]]:
        loop = asyncio.get_running_loop()
        future = self.futures[chat] = loop.create_future()
        self.new.append((chat, accepted := loop.create_future()))
        self.kick.set()
        await accepted
        return future


async def report(js: JetStreamContext, event: Event) -> None:
    headers = {"Nats-Msg-Id": event["id"]}
    await js.publish(f"ws.{event['chat']}", json.dumps(event).encode(), headers=headers)


# --- flow end

VERIFY = """
select (select count(*) from workspaces where chat = any($1) and state = 'ready') as ready,
       (select count(*) from event_log where chat = any($1)) as logged
"""


class Driver(PostgresPeer):
    """The sketch, in the app's process."""

    verify_query = VERIFY

    async def start(self) -> None:
        await super().start()
        self.url, self.nats = await start_nats(self.stack, self.root, self.options["sync"])
        self.client = await nats.connect(self.url)
        self.stack.push_async_callback(self.client.close)
        self.pool = await pool(self.dsn, 4)
        self.stack.callback(self.pool.terminate)
        await self.pool.execute(DDL)
        self.engine = Engine(self.pool)
        await self.engine.start(self.client.jetstream())

    async def create(self, chat: str) -> Awaitable[Mapping[str, Any]]:
        return await self.engine.create_workspace(chat)

    async def stop(self) -> None:
        if hasattr(self, "engine"):
            for task in self.engine.tasks:
                task.cancel()
        await super().stop()

    def pids(self) -> dict[str, int]:
        return {"postgres": self.postgres.pid, "nats": self.nats.pid}

    def address(self) -> dict[str, Any]:
        return {"url": self.url}

    async def connect(self, address: Mapping[str, Any]) -> None:
        self.client = await nats.connect(address["url"])
        self.js = self.client.jetstream(publish_async_max_pending=4000)

    async def event(self, chat: str, kind: str) -> None:
        await report(self.js, make_event(chat, kind))

    async def close(self) -> None:
        await self.client.close()
