"""A participant as the contract recommends it to programs: it reconnects, and repeats what failed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.rigs.client import TIMEOUT, Participant, ServiceError, cancel_and_wait, connect
from tests.rigs.messages import Event, headers_of, subject_of

BACK_OFF = 0.25
PATIENCE = 3.0
"""Seconds after which a request to NATS is repeated."""
Subscribe = Callable[[Client], Awaitable[None]]
AWAY = (nats.errors.Error, OSError, TimeoutError)
"""The exceptions that nats-py raises while there is no server, or no leader."""


async def _ignore(_error: Exception) -> None:
    """Ignore an error: outages cause many, and without a callback nats-py logs each one."""


class ReliableClient(Participant):
    """`run` keeps the connection open; it calls `subscribe` with each new client of nats-py."""

    def __init__(
        self, url: str | list[str], options: Mapping[str, Any], subscribe: Subscribe | None = None
    ) -> None:
        super().__init__()
        self._url, self._options, self._subscribe = url, options, subscribe
        self.epoch = 0
        """Counts the connections; a message that an earlier connection delivered can't be acked."""
        self.on_back: list[Callable[[], None]] = []
        self.up = asyncio.Event()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while True:
            attempt, closed = Participant(), asyncio.Event()
            try:
                await self._connect(attempt, closed)
                self.client = attempt.client
                self.js = self.client.jetstream(timeout=PATIENCE)
                if self._subscribe is not None:
                    await self._subscribe(self.client)
                await self._back()
                await closed.wait()
            except AWAY:
                pass
            finally:
                self.up.clear()
                with suppress(Exception):
                    await attempt.client.close()
            await asyncio.sleep(BACK_OFF)  # back-off

    async def _connect(self, attempt: Participant, closed: asyncio.Event) -> None:
        async def over() -> None:
            closed.set()

        async def lost() -> None:
            self.up.clear()

        settings = {
            "reconnect_time_wait": BACK_OFF,
            "connect_timeout": 3,
            "ping_interval": 5,
            "max_outstanding_pings": 2,
            "error_cb": _ignore,
            "closed_cb": over,
            "disconnected_cb": lost,
            "reconnected_cb": self._back,
        }
        await connect(attempt, self._url, **(settings | dict(self._options)))
        # Only now may it reconnect: if the first connection is refused, nats-py would both retry
        # and reconnect, on one socket.
        attempt.client.options |= {"allow_reconnect": True, "max_reconnect_attempts": -1}

    async def _back(self) -> None:
        self.epoch += 1
        self.up.set()
        for heard in self.on_back:
            heard()

    async def store(self, event: Event, subject: str | None = None) -> None:
        """Publish an event until the stream confirms it: only a PubAck makes it accepted.

        Without `subject`, on that of its source.
        """
        body = json.dumps(event).encode()
        while True:
            try:
                await self.up.wait()
                async with asyncio.timeout(PATIENCE + 1):
                    to = subject or subject_of(event)
                    await self.js.publish(to, body, headers=headers_of(event))
            except AWAY:
                await asyncio.sleep(BACK_OFF)  # back-off
            else:
                return

    async def ask(self, rpc: str, body: Event | bytes, patience: float = TIMEOUT) -> bytes:
        """Call an rpc and return its reply. Raises ServiceError and the exceptions in AWAY."""
        async with asyncio.timeout(patience + 1):
            await self.up.wait()
            return await super().ask(rpc, body, patience)

    async def agent_credential(self, build: Event, agent_id: str) -> Event | None:
        """Request an agent's credential until it is issued; None if its build is superseded."""
        body = {key: build[key] for key in ("chat_id", "workspace_id", "build_id")}
        while True:
            try:
                reply = await self.ask("agent_credential", body | {"agent_id": agent_id}, PATIENCE)
                return dict(json.loads(reply))
            except ServiceError as refused:
                if refused.code in (400, 403, 404):
                    return None
            except AWAY:
                pass
            await asyncio.sleep(BACK_OFF)  # back-off

    async def jobs(self, pool: str, batch: int = 1) -> AsyncIterator[tuple[Msg, int]]:
        """Yield the jobs of a pool without end, each with the epoch in which it can be acked."""
        while True:
            await self.up.wait()
            epoch = self.epoch
            with suppress(*AWAY):
                pulling = await self.js.pull_subscribe_bind(f"pool-{pool}", stream="WORKSPACED_JOB")
                while self.epoch == epoch:
                    with suppress(TimeoutError):
                        for message in await pulling.fetch(batch, timeout=5):
                            yield message, epoch
            await asyncio.sleep(BACK_OFF)  # back-off


@asynccontextmanager
async def kept_connected(client: ReliableClient) -> AsyncIterator[ReliableClient]:
    """Keep a client connected inside the block, which begins when it is."""
    running = asyncio.create_task(client.run())
    try:
        await client.up.wait()
        yield client
    finally:
        await cancel_and_wait(running)
