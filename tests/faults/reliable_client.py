"""A NATS connection as the contract recommends it to programs: it reconnects whenever it ends.

It is built on nats-py and the contract; nothing is imported from the product.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext

from tests.rigs.client import ServiceError
from tests.rigs.messages import CONTENT_TYPE, Event

BACK_OFF = 0.25
Came = Callable[[Client], Awaitable[None]]
AWAY = (nats.errors.Error, OSError, TimeoutError)
"""The exceptions that nats-py raises while the servers are unreachable."""


async def _quiet(_error: Exception) -> None:
    """Ignore an error: faults cause many, and without a callback nats-py logs each one."""


class ReliableClient:
    """`run` keeps the connection open; `fresh` is called with each new client, to subscribe."""

    def __init__(self, url: str, options: Mapping[str, Any], fresh: Came | None = None) -> None:
        self._url, self._options, self._fresh = url, options, fresh
        self.client = Client()
        self.js: JetStreamContext = self.client.jetstream(timeout=3)
        self.epoch = 0
        """Counts the connections; a message that an earlier connection delivered can't be acked."""
        self.on_back: list[Callable[[], None]] = []
        self.up = asyncio.Event()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while True:
            client, closed = Client(), asyncio.Event()
            try:
                await self._connect(client, closed)
                self.client, self.js = client, client.jetstream(timeout=3)
                if self._fresh is not None:
                    await self._fresh(client)
                await self._back()
                await closed.wait()
            except AWAY:
                pass
            finally:
                self.up.clear()
                with suppress(Exception):
                    await client.close()
            await asyncio.sleep(BACK_OFF)  # back-off

    async def _connect(self, client: Client, closed: asyncio.Event) -> None:
        async def over() -> None:
            closed.set()

        async def lost() -> None:
            self.up.clear()

        await client.connect(
            self._url,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=BACK_OFF,
            connect_timeout=3,
            ping_interval=5,
            max_outstanding_pings=2,
            error_cb=_quiet,
            closed_cb=over,
            disconnected_cb=lost,
            reconnected_cb=self._back,
            **self._options,
        )
        if not client.is_connected:
            raise nats.errors.UnexpectedEOF  # nats-py reports success if the server closes early
        # Only now may it reconnect: if the first connection is refused, nats-py would both retry
        # and reconnect, on one socket.
        client.options |= {"allow_reconnect": True, "max_reconnect_attempts": -1}

    async def _back(self) -> None:
        self.epoch += 1
        self.up.set()
        for heard in self.on_back:
            heard()

    async def store(self, subject: str, event: Event) -> None:
        """Publish an event until the stream confirms it: only a PubAck makes it accepted."""
        body = json.dumps(event).encode()
        headers = {
            "Content-Type": CONTENT_TYPE,
            "Nats-Msg-Id": f"{event['source']}:{event['id']}",
        }
        while True:
            try:
                await self.up.wait()
                async with asyncio.timeout(4):
                    await self.js.publish(subject, body, headers=headers)
            except AWAY:
                await asyncio.sleep(BACK_OFF)  # back-off
            else:
                return

    async def ask(self, rpc: str, body: Event, patience: float) -> Any:
        """Call an rpc and return its reply. Raises ServiceError and the exceptions in AWAY."""
        async with asyncio.timeout(patience + 1):
            await self.up.wait()
            reply = await self.client.request(
                f"workspaced.rpc.{rpc}", json.dumps(body).encode(), timeout=patience
            )
        if reply.headers and (code := reply.headers.get("Nats-Service-Error-Code")):
            raise ServiceError(int(code), reply.headers["Nats-Service-Error"])
        return json.loads(reply.data)
