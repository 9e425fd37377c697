"""The message bus as workspaced uses it: subjects, streams and requests, without any domain knowledge.

This module is the port. Its adapter to NATS is `bus.jetstream`; the tests have another one that works
inside the process (`tests.doubles.memory_bus`). tests/contract runs the same tests against both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

import workspaced.nats_py  # noqa: F401  # before nats-py

from bus.errors import (
    Backoff,
    BusError,
    Conflict,
    Denied,
    NoConsumer,
    NoResponder,
    Refused,
    ServiceError,
    Unavailable,
    Untrusted,
    is_final,
)
from bus.messages import (
    CLOUDEVENT,
    MARKER,
    NAK,
    ConsumerState,
    Message,
    Outbound,
    PubAck,
    Schedule,
    StoredMessage,
    StreamInfo,
)
from bus.streams import Consumer, Stream

__all__ = [
    "CLOUDEVENT",
    "MARKER",
    "NAK",
    "Backoff",
    "Bus",
    "BusError",
    "Conflict",
    "Consumer",
    "ConsumerState",
    "Delivery",
    "Denied",
    "Message",
    "NoConsumer",
    "NoResponder",
    "Outbound",
    "PubAck",
    "Pull",
    "Refused",
    "Responder",
    "Schedule",
    "ServiceError",
    "StoredMessage",
    "Stream",
    "StreamInfo",
    "Subscription",
    "Unavailable",
    "Untrusted",
    "is_final",
]


class Delivery(Protocol):
    """One message delivered by a durable consumer. The server redelivers it until it is acked."""

    @property
    def subject(self) -> str:
        """The subject on which it was published."""
        ...

    @property
    def data(self) -> bytes:
        """Its payload."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of its publisher and of the server."""
        ...

    @property
    def stream(self) -> str:
        """Name of its stream."""
        ...

    @property
    def sequence(self) -> int:
        """Its sequence in the stream."""
        ...

    @property
    def redelivered(self) -> bool:
        """Whether the server knows that it delivered the message before. A server that crashed may have forgotten."""
        ...

    @property
    def is_delete_marker(self) -> bool:
        """Whether the server stored this in place of a message whose TTL expired."""
        ...

    async def ack(self) -> bool:
        """Acknowledge: never redeliver. Not confirmed; if the ack is lost, the message is redelivered.

        Does nothing and returns False while disconnected, and after a reconnect to another server process:
        its store may have been lost, and the ack would then apply to a new message with the same sequence.
        """
        ...

    async def in_progress(self) -> None:
        """Restart the `ack_wait` of this message. Does nothing under the same conditions as `ack`."""
        ...

    async def nak(self) -> None:
        """Negatively acknowledge: redeliver immediately. Does nothing under the same conditions as `ack`."""
        ...

    @property
    def reply(self) -> str:
        """The subject on which another process may publish NAK for this message; empty: none.

        If the message was redelivered before, a NAK may cause one more delivery.
        """
        ...


class Pull(Protocol):
    """Pulls batches from one or several durable consumers."""

    async def next(self, limit: int) -> Sequence[Delivery]:
        """Wait for at least one message, then return 1 to `limit` messages without more waiting.

        Continues after a reconnect; messages that were buffered before it are dropped and requested again.
        Raises NoConsumer when a consumer does not exist (create it and call again), Unavailable when the
        bus is closed, Refused when pulling is not permitted.
        """
        ...


class Subscription(Protocol):
    """Messages in the order of their arrival, from the moment in which the context was entered.

    It continues after a reconnect, but messages published in between are missed.
    """

    def __aiter__(self) -> AsyncIterator[Message]: ...
    async def next(self, timeout: float | None = None) -> Message:  # noqa: ASYNC109
        """Return the next message; a reconnect goes unnoticed.

        Raises TimeoutError after `timeout` seconds, Unavailable when the bus is closed.
        """
        ...

    async def next_or_reconnect(self) -> Message | None:
        """Return the next message, or None if the connection was lost and is back.

        After None, messages may have been missed. Raises Unavailable when the bus is closed.
        """
        ...


Responder = Callable[[Message], Awaitable[bytes]]
"""Returns the reply to one request, or raises ServiceError. Each call runs in a task of its own."""


class Bus(Protocol):
    """A connection with one identity."""

    async def ensure_stream(self, stream: Stream) -> StreamInfo:
        """Create or update the stream. Safe to call from several processes at once.

        A server can't change a stream's retention. A stream with another one is closed: it keeps and delivers
        what it holds, but stores nothing until `replace_stream` has recreated it.
        Raises Refused, Unavailable.
        """
        ...

    async def ensure_consumer(self, consumer: Consumer) -> None:
        """Create or update the durable consumer. Raises Refused, Unavailable."""
        ...

    async def delete_consumer(self, consumer: Consumer) -> None:
        """Delete the durable consumer with its position in the stream, if it exists."""
        ...

    async def consumer_state(self, consumer: Consumer) -> ConsumerState:
        """Return how far a durable consumer is. Raises Unavailable if it does not exist."""
        ...

    async def stream_info(self, name: str) -> StreamInfo:
        """Return what a stream holds. Raises Unavailable if it does not exist."""
        ...

    async def purge(self, stream: str, last: int) -> None:
        """Delete the messages of a stream up to and including the sequence `last`, in one step."""
        ...

    async def delete_message(self, stream: str, sequence: int) -> None:
        """Delete one message of a stream, if it exists."""
        ...

    async def replace_stream(self, stream: Stream, *, until: float) -> bool:
        """Recreate a stream that has an outdated configuration, if it is empty; return whether that was done.

        `ensure_stream` has closed it for new messages. Sequences continue, so an ack of a message of the old
        stream, which may come late, acknowledges no message of the new one. Consumers are deleted with the
        old stream. Only one process may call this at a time: `until`, a time of the event loop in seconds, is
        how long the caller is sure of that. Raises Unavailable, also after `until`.
        """
        ...

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        expected_last: int | None = None,
        ttl: float | None = None,
        schedule: Schedule | None = None,
    ) -> PubAck:
        """Publish one message as `publish_many` does, and return its acknowledgement or raise its error.

        `Outbound` explains the arguments. Raises Conflict, Refused, Unavailable.
        """
        message = Outbound(subject, data, headers, message_id, expected_last, ttl, schedule)
        (result,) = await self.publish_many([message])
        if isinstance(result, BusError):
            raise result
        return result

    async def publish_many(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
        """Publish messages side by side, and wait for the acknowledgements of their streams.

        Return for each message its acknowledgement, or why there is none: Conflict, Refused, or Unavailable (also
        when no stream has the subject), after which the message may be stored nevertheless. Messages of one
        stream are stored in their order. If the connection breaks, none is sent after that. Raises Refused, before
        anything is sent, if the name of a header is invalid.
        """
        ...

    async def publish_together(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
        """Publish messages for one stream that has `allow_atomic`, with one write to the disk for all of them.

        Return the same as `publish_many`; if no answer comes, any of them may be stored. If the stream refuses them
        together, such as because it has one of them already, they are published by `publish_many`.
        """
        ...

    async def get_last(self, stream: str, subject: str) -> StoredMessage | None:
        """Direct get: return the subject's last message, or None."""
        ...

    async def get_next(self, stream: str, subject: str, after: int) -> StoredMessage | None:
        """Direct get: return the subject's first message with a sequence above `after`, or None."""
        ...

    async def server_time(self, stream: str) -> datetime:
        """Return the time of the clock by which the server fires the stream's schedules.

        Raises Unavailable.
        """
        ...

    def pull(self, *consumers: Consumer, prefetch: int = 256) -> AbstractAsyncContextManager[Pull]:
        """Pull from durable consumers; buffer at most `prefetch` messages of each.

        Messages are requested only when `next` is called: with `prefetch=1` none is taken in advance.
        When the context is left, buffered messages are redelivered to other processes.
        """
        ...

    async def send(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish without an acknowledgement. Raises Refused, Unavailable; then nothing is sent later."""
        ...

    async def flush(self) -> None:
        """Return when the server has processed everything sent so far. Raises Unavailable."""
        ...

    def subscribe(self, subject: str) -> AbstractAsyncContextManager[Subscription]:
        """Subscribe; the server has confirmed it when the context is entered.

        Raises Refused, Unavailable.
        """
        ...

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout: float,  # noqa: ASYNC109
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Send a request and return the reply.

        Raises NoResponder, ServiceError, Refused, TimeoutError, Unavailable.
        """
        ...

    async def request_many(
        self,
        subject: str,
        data: bytes,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> Sequence[Message]:
        """Send a request and return all replies of the next `timeout` seconds; at once none if nobody listens.

        Raises Refused, Unavailable.
        """
        ...

    async def respond(self, subject: str, queue: str, responder: Responder) -> None:
        """Reply to requests on `subject` until the bus is closed; each goes to one member of `queue`.

        The reply is what `responder` returns. There is no reply when it raises.
        """
        ...

    async def serve(
        self, name: str, version: str, description: str, endpoints: Mapping[str, Responder]
    ) -> None:
        """Register a NATS micro service; `endpoints` maps subjects to responders.

        An exception other than ServiceError is logged, and the reply is error 500 without its text.
        Requests that are in progress when the bus is closed get error 503.
        """
        ...

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each reconnect. Deliveries received before it can't be acked any more."""
        ...

    @property
    def connected(self) -> bool:
        """Whether a server is connected now."""
        ...

    @property
    def server_id(self) -> str:
        """The id of the connected server process; a restarted server has another one."""
        ...

    async def wait_closed(self) -> str:
        """Wait until the bus is closed for good, and return the reason; empty: `close` was called.

        The server closes a connection for good when its credentials expire or are revoked.
        """
        ...

    async def close(self) -> None:
        """Send what is buffered, and close the connection."""
        ...
