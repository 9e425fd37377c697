"""Batches from durable consumers over nats-py: one open request each, fed by the read loop."""

from __future__ import annotations

import asyncio
from asyncio import Future, TimerHandle
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from bus import (
    MARKER,
    NAK,
    BusError,
    Delivery,
    Message,
    NoConsumer,
    Refused,
    Unavailable,
    jsapi,
    subjects,
)
from bus.connection import Connection
from bus.streams import Consumer

EXPIRES: Final = 300.0
"""How long the server keeps a request for messages."""

HEARTBEAT: Final = 2.0
"""How often it says that it still does; after two and a half silent ones the request is lost."""

_BACK_OFF: Final = 0.25

# $JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.…; some servers name domain and account before
_TOKENS: Final = 9
_SEQUENCE: Final = 5
_SEQUENCE_WITH_DOMAIN: Final = 7


class NatsDelivery:
    """A message of a durable consumer, acked by a word to its reply subject."""

    __slots__ = ("_connection", "_server_id", "data", "headers", "reply", "stream", "subject")

    def __init__(self, connection: Connection, stream: str, message: Message) -> None:
        self.subject: str = message.subject
        self.data: bytes = message.data
        self.headers: Mapping[str, str] = message.headers
        self.stream = stream
        self.reply = message.reply
        self._connection = connection
        self._server_id = connection.server_id

    @property
    def sequence(self) -> int:
        """Place in its stream."""
        tokens = self.reply.split(".")
        return int(tokens[_SEQUENCE if len(tokens) == _TOKENS else _SEQUENCE_WITH_DOMAIN])

    @property
    def is_delete_marker(self) -> bool:
        """It is the server's mark that a message with a time to live has gone."""
        return MARKER in self.headers

    async def ack(self) -> None:
        """Done: never deliver it again."""
        await self._say(b"+ACK")

    async def in_progress(self) -> None:
        """Ask for another `ack_wait`."""
        await self._say(b"+WPI")

    async def nak(self) -> None:
        """Let it come again at once, to whoever pulls next."""
        await self._say(NAK)

    async def _say(self, word: bytes) -> None:
        connection = self._connection
        if connection.server_id == self._server_id:
            with suppress(Unavailable):  # then it comes again
                connection.post(self.reply, word)
                await connection.drained()


class _Source:
    """The requests open at one consumer."""

    def __init__(self, pull: NatsPull, consumer: Consumer) -> None:
        self._pull = pull
        self._connection = pull.connection
        self.stream = consumer.stream
        self.name = consumer.name
        self.subject = subjects.next_messages(consumer.stream, consumer.name)
        self.open = 0
        """Messages asked for that have not come yet."""
        self.buffered = 0
        self._inbox = self._connection.new_inbox()
        self._subscription = 0
        self._heard = 0.0
        self._paused = False
        self._watch: TimerHandle | None = None

    async def start(self) -> None:
        self._subscription = await self._connection.take(self._inbox, self._take)

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await self._connection.leave(self._subscription)

    def ask(self, limit: int) -> None:
        """Ask for what is missing to `limit`, unless that is little."""
        there = self.open + self.buffered
        if self._paused or (there and there * 2 > limit) or not self._connection.is_usable:
            return
        request = jsapi.pull_request(limit - there, EXPIRES, HEARTBEAT)
        self._connection.post(self.subject, request, None, self._inbox)
        self.open += limit - there
        self._heard = self._loop.time()
        if self._watch is None:
            self._watch = self._loop.call_later(2.5 * HEARTBEAT, self._check)

    def void(self) -> None:
        """Forget requests and messages: the connection that they belonged to is gone."""
        self.open = self.buffered = 0
        self._paused = False

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def _take(self, message: Message, status: str) -> None:
        self._heard = self._loop.time()
        if not status:
            self.open = max(0, self.open - 1)
            self.buffered += 1
            self._pull.put(self, message)
        elif status != "100":
            self._request_over(status, message.headers)

    def _request_over(self, status: str, headers: Mapping[str, str]) -> None:
        left = int(headers.get("Nats-Pending-Messages", self.open))
        self.open = max(0, self.open - left)
        words = headers.get("Description", "")
        if status == "408":
            self._pull.ask_if_awaited(self)
        elif status in ("404", "503") or words == "Consumer Deleted":
            self._pull.fail(NoConsumer(f"no consumer {self.name} of {self.stream}"))
        else:
            # Another leader, too many requests: the server says that it will be over soon.
            self._paused = True
            self._loop.call_later(_BACK_OFF, self._resume)  # back-off

    def _resume(self) -> None:
        self._paused = False
        self._pull.ask_if_awaited(self)

    def _check(self) -> None:
        silent = self._loop.time() - self._heard
        self._watch = None
        if not self.open:
            return
        if silent > 2 * HEARTBEAT:
            self.open = 0
            self._pull.ask_if_awaited(self)
        if self.open:
            self._watch = self._loop.call_later(2.5 * HEARTBEAT, self._check)


class NatsPull:
    """What several consumers delivered, in one buffer."""

    def __init__(
        self, connection: Connection, consumers: Sequence[Consumer], prefetch: int
    ) -> None:
        self.connection = connection
        self._sources = [_Source(self, consumer) for consumer in consumers]
        self._prefetch = prefetch
        self._buffer: deque[tuple[_Source, NatsDelivery]] = deque()
        self._awaited: Future[None] | None = None
        self._error: BusError | None = None

    async def start(self) -> None:
        """Subscribe to where the consumers deliver."""
        self.connection.on_lost.append(self._lost)
        self.connection.on_back.append(self._back)
        self.connection.on_denied.append(self._denied)
        for source in self._sources:
            await source.start()

    async def stop(self) -> None:
        """Take no more; what was not handed out goes to whoever pulls next."""
        self.connection.on_lost.remove(self._lost)
        self.connection.on_back.remove(self._back)
        self.connection.on_denied.remove(self._denied)
        for source in self._sources:
            await source.stop()
        for _, delivery in self._buffer:
            await delivery.nak()

    async def next(self, limit: int) -> Sequence[Delivery]:
        """Wait until something is there, then return what is there now: 1 to `limit`."""
        while True:
            if self.connection.is_closed:
                raise Unavailable(self.connection.reason or "the bus is closed")
            if self._error is not None and not self._buffer:
                error, self._error = self._error, None
                raise error
            for source in self._sources:
                source.ask(self._prefetch)
            if self._buffer:
                return self._hand_out(limit)
            self._awaited = asyncio.get_running_loop().create_future()
            try:
                await self._awaited
            finally:
                self._awaited = None

    def put(self, source: _Source, message: Message) -> None:
        """Add a message, and wake whoever awaits one."""
        delivery = NatsDelivery(self.connection, source.stream, message)
        self._buffer.append((source, delivery))
        self._wake()

    def fail(self, error: BusError) -> None:
        """Let `next` raise, once."""
        self._error = error
        self._wake()

    def ask_if_awaited(self, source: _Source) -> None:
        """Ask again when somebody waits; else the next call of `next` does."""
        if self._awaited is not None:
            source.ask(self._prefetch)

    def _hand_out(self, limit: int) -> list[NatsDelivery]:
        taken: list[NatsDelivery] = []
        while self._buffer and len(taken) < limit:
            source, delivery = self._buffer.popleft()
            source.buffered -= 1
            taken.append(delivery)
        return taken

    def _wake(self) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)

    def _lost(self) -> None:
        self._buffer.clear()
        self._error = None
        for source in self._sources:
            source.void()
        if self.connection.is_closed:
            self._wake()

    def _back(self) -> None:
        for source in self._sources:
            self.ask_if_awaited(source)

    def _denied(self, subject: str, refusal: Refused) -> bool:
        for source in self._sources:
            if source.subject.lower() == subject:
                source.open = 0
                self.fail(refusal)
                return True
        return False
