"""workspaced itself, over the wire: its own servers, worker and gateway processes, and the contract.

Here the app's process is the chat service, which asks and holds the result with the Python client, as a user's
would; the sources' process is the provisioner and all agents. Neither is counted as a part of the system, but both
share the machine with it: a call costs the client about 0.19 ms of CPU, and bare nats-py 0.14 ms. What the product
does more than the others: a create is a request on the stream that is judged (rules, template, name), makes a build,
and leaves as a job; each event is a validated CloudEvent of about 430 bytes with an identity of its own; each move is
a published state, each limit a timer; the answer is a published result.

Options: `sync` (None: JetStream's default instead of the product's `always`), `workers`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import workspaced

from tests.bench.peer import Peer
from tests.bench.peers.product_processes import Processes
from tests.bench.peers.product_sources import Sources
from tests.bench.peers.product_wire import (
    ORGANIZATION,
    OWNED,
    SERVICE,
    chat_id,
    fixed_id,
)
from tests.bench.peers.servers import ready_and_logged, transactions
from tests.bench.processes import rss, tree_cpu

WHOLE = {"created", "workspace_id", "workspace_name", "build_id"}
"""The exact keys of the answer of a create that reached `ready`."""
VERIFY = """
select (select count(*) from chat where chat_id = any($1::uuid[]) and state = 'ready') as ready,
       (select count(*) from event_log where chat_id = any($1::uuid[]) and outcome <> 'repeat'
        and event ->> 'source' ~ '^/(provisioner|agent)/') as logged
"""
CONNECTING = "select count(*) from chat where state = 'agent_connecting'"
ASKED = """
select count(*) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
  and query_start > $1
"""


_CALM: Final = 5.0
"""Seconds in which processes at rest compute for less than 2 % of the time."""
_REST_LIMIT: Final = 300.0
"""Seconds after which a worker that started is not waited for."""


class _Result:
    """The pending result of a call; the call goes on also if nobody awaits it."""

    def __init__(self, call: workspaced.Call) -> None:
        self._call = call

    def __await__(self) -> Generator[Any, None, Mapping[str, Any]]:
        """Wait for the answer; return it with the state that it stands for."""
        answer = yield from self._call.__await__()
        whole = not answer.is_error and answer.result.keys() == WHOLE
        return {"state": "ready" if whole else "failed", "result": answer.result}


class Driver(Peer):
    """The whole product, with a caller."""

    app_is_load = True

    async def start(self) -> None:
        self.processes = Processes(self.root, self.stack)
        await self.processes.start(**self.options)
        self.template = self.processes.template["template_id"]
        self.service = await self.stack.enter_async_context(
            workspaced.connect(
                self.processes.nats_url, key=self.processes.seed("chat-service"), service=SERVICE
            )
        )

    async def create(self, chat: str) -> Awaitable[Mapping[str, Any]]:
        return await self._ask(chat, "create_workspace", {"template_id": self.template})

    async def stop_workspace(self, chat: str) -> None:
        """Stop the chat's workspace; its build ends by itself."""
        await (await self._ask(chat, "stop_workspace", {}))

    async def _ask(
        self, chat: str, tool: str, args: Mapping[str, Any]
    ) -> Awaitable[Mapping[str, Any]]:
        run, _, number = chat.rpartition("-")
        owner = workspaced.Owner(
            id=fixed_id(f"owner-{run}-{int(number) // OWNED}"),
            name="bench",
            organization=ORGANIZATION,
        )
        call = await self.service.chat(chat_id(chat), owner=owner).call(tool, args, call_id=tool)
        return _Result(call)

    def pids(self) -> dict[str, int]:
        return self.processes.pids()

    def id_of(self, chat: str) -> str:
        """Return the id of a chat that the benchmark knows by its name."""
        return chat_id(chat)

    def resident(self) -> dict[str, float]:
        """Return MiB of worker and gateway, pages shared with other processes included."""
        return {
            name: rss(pid)
            for name, pid in self.pids().items()
            if name.startswith(("worker", "gateway"))
        }

    async def started_worker(self) -> dict[str, float]:
        """Start one more worker, and stop it when the whole product is at rest, or after five minutes.

        Return the seconds until it was ready, those until all was at rest, the CPU seconds of all
        processes until then, and the worker's resident MiB.
        """
        before, began = sum(map(tree_cpu, self.pids().values())), time.monotonic()
        async with self.processes.one_more_worker() as pid:
            ready = time.monotonic()
            used, rested = await _at_rest([pid, *self.pids().values()], began + _REST_LIMIT)
            return {
                "ready_s": round(ready - began, 3),
                "rest_s": round(rested - began, 1),
                "cpu_s": round(used - before, 2),
                "resident": rss(pid),
            }

    def address(self) -> dict[str, Any]:
        seed = str(self.processes.seed("operator"))
        return {"url": self.processes.nats_url, "seed": seed}

    async def counters(self) -> dict[str, int]:
        return await transactions(self.processes.database_url)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Any]:
        """Connect to the database beside the product."""
        connection = await asyncpg.connect(self.processes.database_url)
        try:
            yield connection
        finally:
            await connection.close()

    async def now(self) -> Any:
        """Return the database's time."""
        async with self.database() as database:
            return await database.fetchval("select clock_timestamp()")

    async def asked_since(self, then: Any) -> int:
        """Return how many connections of the product made a query since then."""
        async with self.database() as database:
            return int(await database.fetchval(ASKED, then))

    async def wait_for_agents(self, chats: int) -> None:
        """Wait until at least so many chats wait for their agents: what was accepted is applied."""
        async with self.database() as database:
            while await database.fetchval(CONNECTING) < chats:
                await asyncio.sleep(0.2)

    async def verify(self, chats: Sequence[str]) -> dict[str, int]:
        ids = [chat_id(chat) for chat in chats]
        return await ready_and_logged(self.processes.database_url, VERIFY, ids)

    async def connect(self, address: Mapping[str, Any]) -> None:
        self.sources = Sources()
        await self.sources.connect(address["url"], address["seed"])

    async def created(self, chats: Sequence[str]) -> None:
        for chat in chats:
            await self.sources.job(chat)

    async def event(self, chat: str, kind: str) -> None:
        await self.sources.tell(chat, kind)

    async def close(self) -> None:
        await self.sources.close()


async def _at_rest(pids: Sequence[int], deadline: float) -> tuple[float, float]:
    """Wait until processes compute no more; return their CPU seconds, and the time since when."""
    while True:
        before, since = sum(map(tree_cpu, pids)), time.monotonic()
        await asyncio.sleep(_CALM)
        if sum(map(tree_cpu, pids)) - before < _CALM / 50 or since > deadline:
            return before, since
