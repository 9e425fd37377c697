"""Pull messages from durable consumers: one open request per consumer, answered into one buffer."""

from __future__ import annotations

import asyncio
import json
from asyncio import Future, TimerHandle
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from nats.aio.msg import Msg

from bus import Delivery, subjects
from bus.errors import BusError, NoConsumer, Refused, Unavailable
from bus.messages import DESCRIPTION, MARKER, NAK, Message
from bus.nats_client import NatsClient
from bus.streams import Consumer

EXPIRES: Final = 300.0
"""Seconds until a request for messages expires at the server."""
HEARTBEAT: Final = 2.0
"""Seconds between the server's heartbeats; after two and a half the request is considered lost."""

_BACK_OFF: Final = 0.25

# $JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>...; newer servers insert domain and account.
_TOKENS: Final = 9
_SEQUENCE: Final = 5
_SEQUENCE_WITH_DOMAIN: Final = 7


class NatsDelivery:
    """A message of a durable consumer. It is acked by a message to its reply subject."""

    __slots__ = (
        "_client",
        "_server_id",
        "data",
        "headers",
        "redelivered",
        "reply",
        "sequence",
        "stream",
        "subject",
    )

    def __init__(self, client: NatsClient, stream: str, message: Message) -> None:
        self.subject: str = message.subject
        self.data: bytes = message.data
        self.headers: Mapping[str, str] = message.headers
        self.stream = stream
        self.reply = message.reply
        tokens = message.reply.split(".")
        place = _SEQUENCE if len(tokens) == _TOKENS else _SEQUENCE_WITH_DOMAIN
        self.sequence = int(tokens[place])
        self.redelivered = tokens[place - 1] != "1"
        self._client = client
        self._server_id = client.server_id

    @property
    def is_delete_marker(self) -> bool:
        """Whether the server stored this in place of an expired message."""
        return MARKER in self.headers

    async def ack(self) -> bool:
        """Acknowledge: never redeliver."""
        return await self._reply_with(Msg.Ack.Ack)

    async def in_progress(self) -> None:
        """Restart the `ack_wait` of this message."""
        await self._reply_with(Msg.Ack.Progress)

    async def nak(self) -> None:
        """Negatively acknowledge: redeliver immediately."""
        await self._reply_with(NAK)

    async def _reply_with(self, word: bytes) -> bool:
        client = self._client
        if client.server_id == self._server_id:
            with suppress(Unavailable):  # the server redelivers the message
                client.publish_nowait(self.reply, word)
                await client.wait_if_behind()
                return True
        return False


class _Source:
    """The requests that are open at one consumer."""

    def __init__(self, pull: NatsPull, consumer: Consumer) -> None:
        self._pull = pull
        self._client = pull.client
        self.stream = consumer.stream
        self.name = consumer.name
        self.subject = subjects.next_messages(consumer.stream, consumer.name)
        self.requested = 0
        """Messages that were requested and have not arrived."""
        self.buffered = 0
        self._inbox = self._client.new_inbox()
        self._subscription = 0
        self._last_arrival = 0.0
        self._paused = False
        self._heartbeat_timer: TimerHandle | None = None

    async def start(self) -> None:
        self._subscription = await self._client.listen(self._inbox, self._receive)

    async def stop(self) -> None:
        if self._heartbeat_timer is not None:
            self._heartbeat_timer.cancel()
        await self._client.unlisten_drained(self._subscription)

    def request(self, limit: int) -> None:
        """Request messages up to `limit`, unless at least half of them are there or requested."""
        present = self.requested + self.buffered
        if self._paused or (present and present * 2 > limit) or not self._client.is_usable:
            return
        request = {
            "batch": limit - present,
            "expires": round(EXPIRES * 1_000_000_000),
            "idle_heartbeat": round(HEARTBEAT * 1_000_000_000),
        }
        self._client.publish_nowait(self.subject, json.dumps(request).encode(), reply=self._inbox)
        self.requested += limit - present
        self._last_arrival = self._loop.time()
        if self._heartbeat_timer is None:
            self._heartbeat_timer = self._loop.call_later(2.5 * HEARTBEAT, self._check_heartbeat)

    def reset(self) -> None:
        """Forget requests and messages, because their connection was lost."""
        self.requested = self.buffered = 0
        self._paused = False

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def _receive(self, message: Message, status: str) -> None:
        self._last_arrival = self._loop.time()
        if not status:
            self.requested = max(0, self.requested - 1)
            self.buffered += 1
            self._pull.put(self, message)
        elif status != "100":
            self._end_request(status, message.headers)

    def _end_request(self, status: str, headers: Mapping[str, str]) -> None:
        left = int(headers.get("Nats-Pending-Messages", self.requested))
        self.requested = max(0, self.requested - left)
        if status == "408":
            self._pull.request_if_awaited(self)
        elif status in ("404", "503") or headers.get(DESCRIPTION, "") == "Consumer Deleted":
            self._pull.fail(NoConsumer(f"no consumer {self.name} of {self.stream}"))
        else:
            # A leader election, or too many requests: a transient state of the server.
            self._paused = True
            self._loop.call_later(_BACK_OFF, self._resume)  # back-off

    def _resume(self) -> None:
        self._paused = False
        self._pull.request_if_awaited(self)

    def _check_heartbeat(self) -> None:
        silent = self._loop.time() - self._last_arrival
        self._heartbeat_timer = None
        if not self.requested:
            return
        if silent > 2 * HEARTBEAT:
            self.requested = 0
            self._pull.request_if_awaited(self)
        if self.requested:
            self._heartbeat_timer = self._loop.call_later(2.5 * HEARTBEAT, self._check_heartbeat)


class NatsPull:
    """The messages of several consumers, in one buffer."""

    def __init__(self, client: NatsClient, consumers: Sequence[Consumer], prefetch: int) -> None:
        self.client = client
        self._sources = [_Source(self, consumer) for consumer in consumers]
        self._prefetch = prefetch
        self._buffer: deque[tuple[_Source, NatsDelivery]] = deque()
        self._waiter: Future[None] | None = None
        self._error: BusError | None = None

    async def start(self) -> None:
        """Subscribe to the inboxes to which the consumers deliver."""
        self.client.on_disconnect.append(self._disconnected)
        self.client.on_reconnect.append(self._reconnected)
        self.client.on_denied.append(self._denied)
        for source in self._sources:
            await source.start()

    async def stop(self) -> None:
        """Unsubscribe, and nak the messages that `next` did not return.

        Those that were on their way when the subscription ended are among them: the server would
        not deliver them to anybody before their `ack_wait` has passed.
        """
        self.client.on_disconnect.remove(self._disconnected)
        self.client.on_reconnect.remove(self._reconnected)
        self.client.on_denied.remove(self._denied)
        await asyncio.gather(*(source.stop() for source in self._sources))
        for _, delivery in self._buffer:
            await delivery.nak()

    async def next(self, limit: int) -> Sequence[Delivery]:
        """Wait for at least one message, then return 1 to `limit` messages."""
        while True:
            if self.client.is_closed:
                raise Unavailable(self.client.error_text or "the bus is closed")
            if self._error is not None and not self._buffer:
                error, self._error = self._error, None
                raise error
            for source in self._sources:
                source.request(self._prefetch)
            if self._buffer:
                return self._take(limit)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def put(self, source: _Source, message: Message) -> None:
        """Add a message to the buffer and wake `next`."""
        self._buffer.append((source, NatsDelivery(self.client, source.stream, message)))
        self._wake()

    def fail(self, error: BusError) -> None:
        """Make `next` raise the error once."""
        self._error = error
        self._wake()

    def request_if_awaited(self, source: _Source) -> None:
        """Request more messages if `next` is waiting; otherwise the next call of it does."""
        if self._waiter is not None:
            source.request(self._prefetch)

    def _take(self, limit: int) -> list[NatsDelivery]:
        taken: list[NatsDelivery] = []
        while self._buffer and len(taken) < limit:
            source, delivery = self._buffer.popleft()
            source.buffered -= 1
            taken.append(delivery)
        return taken

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _disconnected(self) -> None:
        self._buffer.clear()
        self._error = None
        for source in self._sources:
            source.reset()
        if self.client.is_closed:
            self._wake()

    def _reconnected(self) -> None:
        for source in self._sources:
            self.request_if_awaited(source)

    def _denied(self, subject: str, refusal: Refused) -> bool:
        for source in self._sources:
            if source.subject.lower() == subject:
                source.requested = 0
                self.fail(refusal)
                return True
        return False
