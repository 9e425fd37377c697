"""DBOS: one durable workflow a chat, which receives the events as DBOS messages.

The message table and the workflow's recorded steps are the event log; the state is published with
set_event. The app uses DBOS's defaults; the sources use a DBOSClient.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Any

from dbos import DBOS, DBOSClient, SetWorkflowID

from tests.bench.peer import Event, make_event
from tests.bench.peers.servers import POOL, PostgresPeer

# --- flow begin
AFTER = {
    "build_started": "building",
    "build_succeeded": "agent_connecting",
    "agent_connected": "scripts_running",
    "lifecycle_ready": "ready",
}
ORDER = ["none", *AFTER.values(), "failed"]


@DBOS.workflow()
async def workspace(chat: str) -> dict[str, Any]:
    state = "none"
    while state not in ("ready", "failed"):
        event = await DBOS.recv_async("event", timeout_seconds=600)
        state = "failed" if event is None else max(state, AFTER[event["kind"]], key=ORDER.index)
        await DBOS.set_event_async("state", state)
    return {"chat": chat, "state": state}


async def create_workspace(chat: str) -> asyncio.Task[dict[str, Any]]:
    with SetWorkflowID(chat):
        handle = await DBOS.start_workflow_async(workspace, chat)
    return asyncio.create_task(handle.get_result())


async def report(client: DBOSClient, event: Event) -> None:
    await client.send_async(event["chat"], event, "event", idempotency_key=event["id"])


# --- flow end

VERIFY = """
select (select count(*) from dbos.workflow_status
        where workflow_uuid = any($1) and status = 'SUCCESS') as ready,
       (select count(*) from dbos.notifications
        where destination_uuid = any($1) and consumed) as logged
"""


class Driver(PostgresPeer):
    """DBOS in the app's process, on PostgreSQL."""

    verify_query = VERIFY

    async def start(self) -> None:
        await super().start()
        logging.getLogger("dbos").setLevel(logging.ERROR)
        DBOS(config={"name": "peer", "system_database_url": self.dsn, "log_level": "ERROR"})
        DBOS.launch()
        self.stack.callback(DBOS.destroy)

    async def create(self, chat: str) -> Awaitable[Mapping[str, Any]]:
        return await create_workspace(chat)

    async def connect(self, address: Mapping[str, Any]) -> None:
        self.client = DBOSClient(system_database_url=address["dsn"], system_database_pool_size=POOL)

    async def event(self, chat: str, kind: str) -> None:
        await report(self.client, make_event(chat, kind))

    async def close(self) -> None:
        self.client.destroy()
