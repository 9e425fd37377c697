"""Tells why builds are queued: whether a provisioner of their pool is present, and how many builds are ahead.

A provisioner is present if it has a pull open at the pool's consumer, or listens to the pool's cancels. The
server knows both at once, so nobody has to wait for a silence, and no worker has to live.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final

from workspaced import Log, State, Workspaced, WorkspacedError

from bus import Bus, BusError, NoResponder, subjects
from bus.streams import pool_consumer
from handlers.cli.client import rpc_pages
from handlers.errors import NotFoundError
from handlers.inspection.status import is_served
from handlers.runtime.supervise import cancel_and_wait

STALL: Final = 3.0
"""Seconds without a message after which `notice_delays` asks again what holds the chat up."""
_NEXT: Final = ": 0 jobs ahead"
_WITH_BUILDS: Final = ("building", "stopping")
ConnectOperator = Callable[[], AbstractAsyncContextManager[Bus]]
"""Connects to NATS with an operator's key. Raises BusError, NotFoundError.

The Python client cannot ask this: presence is told by the server's consumers and by who listens to requests of workers.
"""
_NOT_ESSENTIAL: Final = (BusError, NotFoundError, TimeoutError, WorkspacedError)
"""The errors of a question whose answer is only a note."""


def is_queued(chat: Mapping[str, Any]) -> bool:
    """Return whether the chat's build waits for a provisioner of a known pool."""
    build = chat["build"] or {}
    waits = chat["state"] in _WITH_BUILDS and build.get("pool") is not None
    return waits and build.get("begun_at", "") is None


class PoolQueues:
    """The queues of all pools, as they were when a command first asked for them."""

    def __init__(self, ws: Workspaced, connect_operator: ConnectOperator) -> None:
        self._ws, self._connect_operator = ws, connect_operator
        self._served: dict[str, bool] = {}
        self._builds: list[tuple[str, str]] | None = None
        """Pool and start of each build that is requested and has not ended."""

    async def add_notice(self, chat: dict[str, Any]) -> dict[str, Any]:
        """Set the notice of a chat whose build is queued, and return the chat.

        Raises BusError, NotFoundError, TimeoutError, and the errors of the client.
        """
        if is_queued(chat):
            chat["notice"] = await self._notice(chat["build"])
        return chat

    async def _notice(self, build: Mapping[str, Any]) -> str:
        pool = build["pool"]
        if pool not in self._served:
            self._served[pool] = await self._is_served(pool)
        if not self._served[pool]:
            return f"queued, pool {pool}: nobody serves it"
        if self._builds is None:
            self._builds = [
                (chat["build"]["pool"], chat["build"]["started_at"])
                for state in _WITH_BUILDS
                async for chat in rpc_pages(self._ws, "list_chats", "chats", "cursor", state=state)
            ]
        ahead = sum(one == pool and since < build["started_at"] for one, since in self._builds)
        return f"queued, pool {pool}: {ahead} {'job' if ahead == 1 else 'jobs'} ahead"

    async def _is_served(self, pool: str) -> bool:
        async with self._connect_operator() as bus:
            with suppress(BusError):  # the pool has no consumer yet
                if (await bus.consumer_state(pool_consumer(pool))).pulls:
                    return True
            return await is_served(bus, pool)


@asynccontextmanager
async def notice_delays(
    ws: Workspaced,
    chat_id: str,
    connect_operator: ConnectOperator,
    report: Callable[[str], object],
) -> AsyncIterator[Callable[[State | Log], None]]:
    """Report what holds the chat up, each reason once: no worker, no provisioner, other jobs, or its notice.

    Yields a function that the caller must call with each event of the chat. Without an operator's key only
    the notice is reported.
    """
    delays = _Delays(ws, chat_id, connect_operator, report)
    try:
        yield delays.heard
    finally:
        await delays.close()


class _Delays:
    """Asks at once, when a build is queued, and after `STALL` seconds without a message."""

    def __init__(
        self,
        ws: Workspaced,
        chat_id: str,
        connect_operator: ConnectOperator,
        report: Callable[[str], object],
    ) -> None:
        self._ws, self._chat_id, self._report = ws, chat_id, report
        self._connect_operator = connect_operator
        self._reported = set[str]()
        self._loop = asyncio.get_running_loop()
        self._asking = [self._loop.create_task(self._ask_for_worker())]
        self._timer = self._loop.call_later(STALL, self._start)

    def heard(self, event: State | Log) -> None:
        """Take an event of the chat."""
        self._timer.cancel()
        if isinstance(event, State) and event.state in _WITH_BUILDS:
            delay = 0 if is_queued(event.data) else STALL
            self._timer = self._loop.call_later(delay, self._start)

    async def close(self) -> None:
        """Ask no more."""
        self._timer.cancel()
        await cancel_and_wait(*self._asking)

    def _start(self) -> None:
        self._asking.append(self._loop.create_task(self._ask()))

    async def _ask_for_worker(self) -> None:
        with suppress(*_NOT_ESSENTIAL):
            async with self._connect_operator() as operator:
                try:
                    await operator.request(subjects.WORKER_POOLS, b"{}", timeout=STALL)
                except NoResponder:
                    self._tell("no worker runs: the next one that starts carries the request out")

    async def _ask(self) -> None:
        with suppress(*_NOT_ESSENTIAL):
            chat = await self._ws.rpc("get_chat", chat_id=self._chat_id)
            if is_queued(chat):
                with suppress(*_NOT_ESSENTIAL):
                    await PoolQueues(self._ws, self._connect_operator).add_notice(chat)
            if not chat.get("notice", _NEXT).endswith(_NEXT):
                self._tell(chat["notice"])

    def _tell(self, text: str) -> None:
        if text not in self._reported:
            self._reported.add(text)
            self._report(f"  {text}")
