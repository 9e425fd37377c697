"""The interface through which a provisioner uses the bus, and its implementation on the client's connection."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from workspaced import subjects
from workspaced.connection import Connection, Rejected, open_connection
from workspaced.errors import Refused, Unavailable, WorkspacedError
from workspaced.nats_py import Msg
from workspaced.retrying import Backoff

_PULL_EXPIRES: Final = 60.0
_HEARTBEAT: Final = 5.0
_LATER: Final = ("408", "425", "429")
"""Errors of rpcs that a later attempt may not get, although they are the request's."""
_REJECTIONS: Final = 8
"""Rejections of the key in a row before connecting is given up: a gateway that checks keys may start late."""

_log = logging.getLogger(__name__)


class Delivery(Protocol):
    """A delivered job. It is delivered again until it is acknowledged."""

    @property
    def data(self) -> bytes:
        """The CloudEvent."""
        ...

    @property
    def reply(self) -> str:
        """Where also another process can hand the job back."""
        ...

    async def ack(self) -> object:
        """Never deliver the job again. Does nothing while disconnected, and at another server process."""
        ...

    async def in_progress(self) -> None:
        """Tell the server that the job is being worked on."""
        ...

    async def nak(self) -> None:
        """Hand the job back: it is delivered again at once."""
        ...


class NoDelivery:
    """Stands for the delivery of a job that is not in hand, so there is nothing to acknowledge."""

    data = b""
    reply = ""

    async def ack(self) -> None:
        """Do nothing."""

    async def in_progress(self) -> None:
        """Do nothing."""

    async def nak(self) -> None:
        """Do nothing."""


class Link(Protocol):
    """A connection to the bus with the key of a provisioner."""

    @property
    def connected(self) -> bool:
        """Whether a server is connected now."""
        ...

    async def store(self, subject: str, body: bytes, identity: str) -> None:
        """Publish an event, with retries, until its stream has stored it.

        Workers know an event by its identity, so it may be stored twice. Raises Refused.
        """
        ...

    async def send_log(self, subject: str, body: bytes, identity: str) -> None:
        """Publish lines of a log once. Raises Refused, or Unavailable if the same lines have to be sent again."""
        ...

    async def hand_back(self, reply: str) -> None:
        """Hand back a job that an earlier process took; without a connection nothing is sent."""
        ...

    async def rpc_until_answered(self, name: str, body: Mapping[str, Any]) -> bytes:
        """Call an rpc of the gateway, with retries, until it is answered. Raises WorkspacedError, not Unavailable."""
        ...

    async def listen(
        self, subject: str, take: Callable[[bytes], None], renewed: Callable[[], None]
    ) -> NoReturn:
        """Call `take` with each message. Calls `renewed` whenever messages may have been missed before. Raises Refused."""
        ...

    def jobs(self, pool: str, most: int) -> AsyncGenerator[Delivery, None]:
        """Yield the jobs of a pool, whose consumer may not exist yet; `most` may be unanswered. Raises Refused."""
        ...


class NatsDelivery:
    """A job that NATS has delivered."""

    def __init__(self, connection: Connection, message: Msg) -> None:
        self._connection, self._server = connection, connection.server_id
        self.data, self.reply = bytes(message.data), str(message.reply)

    async def ack(self) -> None:
        """Acknowledge it."""
        await self._answer(b"+ACK")

    async def in_progress(self) -> None:
        """Restart the time after which it is delivered again."""
        await self._answer(b"+WPI")

    async def nak(self) -> None:
        """Have it delivered again at once."""
        await self._answer(b"-NAK")

    async def _answer(self, word: bytes) -> None:
        # Another server process may have lost the stream, and would take the word for another job.
        if self._connection.server_id == self._server:
            await self._connection.send(self.reply, word)


class NatsLink:
    """A `Link` over the client's connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def connected(self) -> bool:
        """Whether a server is connected now."""
        return self._connection.connected

    async def store(self, subject: str, body: bytes, identity: str) -> None:
        """Publish an event until its stream has stored it."""
        backoff = Backoff()
        message_id: str | None = identity
        while True:
            try:
                if not await self._connection.put(subject, body, message_id):
                    return
                # NATS drops a message whose id it has seen, also if another sender used that id before.
                message_id = None
                continue
            except Unavailable as error:
                _log.info("event %s waits for NATS: %s", identity, error)
            await backoff.wait()

    async def send_log(self, subject: str, body: bytes, identity: str) -> None:
        """Publish lines of a log; if they were stored before, nothing happens."""
        await self._connection.put(subject, body, identity)

    async def hand_back(self, reply: str) -> None:
        """Hand back a job."""
        await self._connection.send(reply, b"-NAK")

    async def rpc_until_answered(self, name: str, body: Mapping[str, Any]) -> bytes:
        """Call an rpc until it is answered."""
        backoff = Backoff()
        while True:
            try:
                reply = await self._connection.request(
                    subjects.rpc(name), json.dumps(body).encode()
                )
                headers = reply.headers or {}
                code = headers.get("Nats-Service-Error-Code")
                if code is None:
                    return bytes(reply.data)
                text = f"{name}: {code} {headers.get('Nats-Service-Error', '')}"
                if code.startswith("4") and code not in _LATER:
                    raise Refused(text)
                _log.info("%s, trying again", text)
            except Unavailable as error:
                _log.info("%s, trying again", error)
            await backoff.wait()

    async def listen(
        self, subject: str, take: Callable[[bytes], None], renewed: Callable[[], None]
    ) -> NoReturn:
        """Call `take` with each message, until cancelled."""
        backoff = Backoff()
        while True:
            try:
                subscription = await self._connection.subscribe(subject)
                try:
                    renewed()
                    backoff.reset()
                    while True:
                        message = await subscription.next()
                        if message is None:
                            renewed()
                        else:
                            take(bytes(message.data))
                finally:
                    await self._connection.unsubscribe(subscription)
            except Unavailable as error:
                _log.info("can't listen to %s now: %s", subject, error)
            await backoff.wait()

    async def jobs(self, pool: str, most: int) -> AsyncGenerator[Delivery, None]:
        """Yield the jobs of a pool."""
        backoff, subject = Backoff(), subjects.next_jobs(pool)
        while True:
            try:
                async with aclosing(self._jobs(subject, most)) as deliveries:
                    async for delivery in deliveries:
                        backoff.reset()
                        yield delivery
            except Unavailable as error:
                _log.info("jobs of pool %s can't be taken now: %s", pool, error)
            await backoff.wait()

    async def _jobs(self, subject: str, most: int) -> AsyncGenerator[Delivery, None]:
        """Yield jobs until the pool has no consumer, or NATS does not answer."""
        connection = self._connection
        inbox = connection.new_inbox()
        request = {
            "batch": most,
            "expires": round(_PULL_EXPIRES * 1e9),
            "idle_heartbeat": round(_HEARTBEAT * 1e9),
        }
        arrived = await connection.subscribe(inbox, answers_to=subject)
        try:
            while True:
                await connection.send(subject, json.dumps(request).encode(), reply=inbox)
                requested = most
                while requested > 0:
                    try:
                        async with asyncio.timeout(2.5 * _HEARTBEAT):
                            message = await arrived.next()
                    except TimeoutError:  # no heartbeat: the request is lost
                        break
                    if message is None:
                        break
                    status = (message.headers or {}).get("Status")
                    if not status:
                        requested -= 1
                        yield NatsDelivery(connection, message)
                    elif status == "408":
                        break
                    elif status != "100":
                        return
        finally:
            await connection.unsubscribe(arrived)
            while not arrived.queue.empty():
                left = arrived.queue.get_nowait()
                if isinstance(left, Msg) and left.reply:
                    await NatsDelivery(connection, left).nak()


@asynccontextmanager
async def connected(
    url: str, key: str | Path, *, name: str, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Connection]:
    """Connect with a key, waiting until there is a server; close the connection at the end of the block.

    Raises Refused if NATS does not accept the key.
    """
    backoff, rejections, last = Backoff(limit=2.0), 0, ""
    while True:
        try:
            connection = await open_connection(url, key=key, name=name, tls=tls)
            break
        except Unavailable as error:
            reason: WorkspacedError = error
        except Rejected as error:
            rejections += 1
            if rejections >= _REJECTIONS:
                raise
            reason = error
        if str(reason) != last:
            _log.warning("%s; trying again", reason)
            last = str(reason)
        await backoff.wait()
    try:
        yield connection
    finally:
        await connection.close()
