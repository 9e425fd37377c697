"""Temporal: one workflow a chat, the events are signals, the tool call awaits the result.

The server is the CLI's development server with a SQLite file (the only self-contained one), in
write-ahead mode with full sync: twice as fast as its default rollback journal and just as durable.
The workflow history is the event log and the persisted state.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio import workflow
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():  # not to be loaded anew for every workflow
    from tests.bench.peer import Event, Peer, make_event
    from tests.bench.processes import Server, answers, free_port

# --- flow begin
AFTER = {
    "build_started": "building",
    "build_succeeded": "agent_connecting",
    "agent_connected": "scripts_running",
    "lifecycle_ready": "ready",
}
ORDER = ["none", *AFTER.values(), "failed"]


@workflow.defn
class Workspace:
    def __init__(self) -> None:
        self.state, self.seen = "none", set[str]()

    @workflow.signal
    def event(self, event: dict[str, Any]) -> None:
        if event["id"] not in self.seen:
            self.seen.add(event["id"])
            self.state = max(self.state, AFTER[event["kind"]], key=ORDER.index)

    @workflow.run
    async def run(self, chat: str) -> dict[str, Any]:
        await workflow.wait_condition(lambda: self.state in ("ready", "failed"))
        return {"chat": chat, "state": self.state, "events": len(self.seen)}


async def create_workspace(client: Client, chat: str) -> asyncio.Task[dict[str, Any]]:
    handle = await client.start_workflow(Workspace.run, chat, id=chat, task_queue="workspaces")
    return asyncio.create_task(handle.result())


async def report(client: Client, event: Event) -> None:
    await client.get_workflow_handle(event["chat"]).signal(Workspace.event, event)


# --- flow end

DURABLE = ("--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=2")


class Driver(Peer):
    """The development server, with a worker in the app's process."""

    async def start(self) -> None:
        self.port = free_port()
        program = Path(sys.executable).parent / "temporal"
        words = ["server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(self.port)]
        words += ["--db-filename", str(self.root / "temporal.db"), "--log-level", "error", *DURABLE]
        self.server = Server([program, *words], self.root / "temporal.log")
        self.stack.callback(self.server.stop)
        await answers(self.port)
        self.client = await _client(self.port)
        worker = Worker(
            self.client,
            task_queue="workspaces",
            workflows=[Workspace],
            max_cached_workflows=max(1000, 2 * self.most),
            graceful_shutdown_timeout=timedelta(seconds=1),
        )
        self.stack.push_async_callback(_ended, asyncio.create_task(worker.run()))

    async def create(self, chat: str) -> Awaitable[Mapping[str, Any]]:
        return await create_workspace(self.client, chat)

    def pids(self) -> dict[str, int]:
        return {"temporal": self.server.pid}

    def address(self) -> dict[str, Any]:
        return {"port": self.port}

    async def verify(self, chats: Sequence[str]) -> dict[str, int]:
        """From the histories themselves, of at most 50 chats."""
        sample = chats[:: max(1, len(chats) // 50)]
        ready = logged = 0
        for chat in sample:
            seen = set()
            async for event in self.client.get_workflow_handle(chat).fetch_history_events():
                if event.HasField("workflow_execution_signaled_event_attributes"):
                    signal = event.workflow_execution_signaled_event_attributes
                    seen.add(signal.input.payloads[0].data)
                ready += event.HasField("workflow_execution_completed_event_attributes")
            logged += len(seen)
        return {"ready": ready, "logged": logged, "sampled": len(sample)}

    async def connect(self, address: Mapping[str, Any]) -> None:
        self.client = await Client.connect(f"127.0.0.1:{address['port']}")

    async def event(self, chat: str, kind: str) -> None:
        await report(self.client, make_event(chat, kind))


async def _client(port: int) -> Client:
    """Connect as soon as the server has made its namespace."""
    for _ in range(150):
        with suppress(RPCError, RuntimeError):
            client = await Client.connect(f"127.0.0.1:{port}")
            await client.count_workflows("")
            return client
        await asyncio.sleep(0.2)
    raise RuntimeError("the development server has no namespace after 30 s")


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
