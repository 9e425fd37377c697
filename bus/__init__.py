"""How messages travel: bytes, subjects and streams. Knows nothing of workspaces.

This module is the port. `bus.jetstream` fills it over nats-py, `tests.doubles.memory_bus` inside this process;
one contract suite (tests/contract) holds both to the same conduct.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from bus.errors import (
    BusError,
    Conflict,
    Denied,
    NoConsumer,
    NoResponder,
    Refused,
    ServiceError,
    Unavailable,
    Untrusted,
)
from bus.messages import (
    BATCH_LIMIT,
    BATCH_WORTHWHILE,
    CLOUDEVENT,
    MARKER,
    NAK,
    BatchMessage,
    Message,
    PubAck,
    Scheduled,
    StoredMessage,
    StreamInfo,
)
from bus.streams import Consumer, Stream

__all__ = [
    "BATCH_LIMIT",
    "BATCH_WORTHWHILE",
    "CLOUDEVENT",
    "MARKER",
    "NAK",
    "BatchMessage",
    "Bus",
    "BusError",
    "Conflict",
    "Consumer",
    "Delivery",
    "Denied",
    "Message",
    "NoConsumer",
    "NoResponder",
    "PubAck",
    "Pull",
    "Refused",
    "Responder",
    "Scheduled",
    "ServiceError",
    "StoredMessage",
    "Stream",
    "StreamInfo",
    "Subscription",
    "Unavailable",
    "Untrusted",
]


class Delivery(Protocol):
    """One message handed out by a durable consumer; unless acked it comes again."""

    @property
    def subject(self) -> str:
        """What it was published on."""
        ...

    @property
    def data(self) -> bytes:
        """Its body."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Its publisher's headers, and the server's."""
        ...

    @property
    def stream(self) -> str:
        """Name of the stream that holds it."""
        ...

    @property
    def sequence(self) -> int:
        """Place in its stream."""
        ...

    @property
    def is_delete_marker(self) -> bool:
        """It is the server's mark that a message with a time to live has gone, not a message."""
        ...

    async def ack(self) -> None:
        """Done: never deliver it again. Not confirmed; a lost ack is a redelivery.

        Does nothing while disconnected, nor once the connection went to another server process:
        its store may have been lost, and the ack would swallow a new message of that number.
        """
        ...

    async def in_progress(self) -> None:
        """Ask for another `ack_wait` (+WPI); under the same conditions as `ack`."""
        ...

    async def nak(self) -> None:
        """Let it come again at once, to whoever pulls next; under the same conditions as `ack`."""
        ...

    @property
    def reply(self) -> str:
        """Where another process may send NAK in our place; empty: nowhere.

        It is not known there whose the message is by then: it may come twice.
        """
        ...


class Pull(Protocol):
    """Batches from one or several durable consumers."""

    async def next(self, limit: int) -> Sequence[Delivery]:
        """Wait until something is there, then return what is there now: 1 to `limit`.

        Outlasts a reconnect: what was not handed out yet is forgotten, and asked for anew.
        Raises NoConsumer when one is gone (make it, and call again), Unavailable when the bus is closed,
        Refused when pulling from it is not allowed.
        """
        ...


class Subscription(Protocol):
    """Messages as they come, from the moment the context was entered.

    Outlasts a reconnect, but misses what was sent meanwhile: see `Bus.on_reconnect`.
    """

    def __aiter__(self) -> AsyncIterator[Message]: ...
    async def next(self, timeout: float | None = None) -> Message:  # noqa: ASYNC109
        """Return the next message.

        Raises TimeoutError after `timeout` seconds, Unavailable when the bus is closed.
        """
        ...


Responder = Callable[[Message], Awaitable[bytes]]
"""Answers one request; raise ServiceError to answer with an error. Runs in a task of its own."""


class Bus(Protocol):
    """A connection with one identity."""

    async def ensure_stream(self, stream: Stream) -> StreamInfo:
        """Make the stream, or bring it up to its declaration; any number may do so at once."""
        ...

    async def ensure_consumer(self, consumer: Consumer) -> None:
        """Make the durable consumer, or bring it up to its declaration."""
        ...

    async def delete_consumer(self, consumer: Consumer) -> None:
        """Forget the durable consumer and its place in the stream, if it is there."""
        ...

    async def num_pending(self, consumer: Consumer) -> int:
        """Return how many messages nobody has taken yet. Raises Unavailable without consumer."""
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
    ) -> PubAck:
        """Store a message in the stream of `subject`, and wait for the word that it is.

        `message_id` lets the stream drop a repeat within its duplicate window; `expected_last` is
        the sequence of the subject's last message (0: none); `ttl` in seconds.
        Raises Conflict, Refused, Unavailable (also when no stream has the subject).
        """
        ...

    async def publish_batch(self, messages: Sequence[BatchMessage]) -> Sequence[PubAck] | None:
        """Store up to 1,000 messages of one stream at once, side by side, all or none.

        `expected_last` is compared with what the stream held before. None: not stored, or not known
        to be: one was a repeat, or expected something else, or the server is away. Ask one by one.
        """
        ...

    async def schedule(
        self,
        subject: str,
        target: str,
        at: datetime,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        """Store a message that makes the server store `data` on `target` at `at`.

        A second one on the same subject replaces the first. `headers` come with the fired message.
        """
        ...

    async def get_last(self, stream: str, subject: str) -> StoredMessage | None:
        """Direct get: the subject's last message, or None."""
        ...

    async def get_next(self, stream: str, subject: str, after: int) -> StoredMessage | None:
        """Direct get: the subject's first message with a sequence above `after`, or None."""
        ...

    async def server_time(self, stream: str) -> datetime:
        """Return what the clock shows by which `stream` fires scheduled messages. Raises Unavailable."""
        ...

    def pull(self, *consumers: Consumer, prefetch: int = 256) -> AbstractAsyncContextManager[Pull]:
        """Take from durable consumers, at most `prefetch` of each ahead of what `next` returned.

        It asks only when `next` is called, so with `prefetch=1` nothing is taken that nobody awaits.
        What was taken and not handed out when the context is left goes to whoever pulls next.
        """
        ...

    async def send(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish without waiting for anybody. Raises Unavailable, and nothing is sent later."""
        ...

    async def flush(self) -> None:
        """Return when the server has taken all that was sent. Raises Unavailable."""
        ...

    def subscribe(self, subject: str) -> AbstractAsyncContextManager[Subscription]:
        """Be subscribed, for certain, from entering the context. Raises Refused, Unavailable."""
        ...

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout: float,  # noqa: ASYNC109
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Ask and wait. Raises NoResponder, ServiceError, Refused, TimeoutError, Unavailable."""
        ...

    async def respond(self, subject: str, queue: str, responder: Responder) -> None:
        """Answer requests on `subject`, one of the queue group each, until the bus is closed.

        Raw: the reply is what `responder` returns, and nothing when it raises.
        """
        ...

    async def serve(
        self, name: str, version: str, description: str, endpoints: Mapping[str, Responder]
    ) -> None:
        """Register a NATS micro service whose endpoints are (subject -> responder).

        An exception other than ServiceError is logged, and answered 500 without its words;
        what is still being worked on when the bus is closed is answered 503.
        """
        ...

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each reconnect; what was in hand before it is void."""
        ...

    @property
    def connected(self) -> bool:
        """Whether a server is there now."""
        ...

    async def wait_closed(self) -> str:
        """Wait until the bus is closed for good, and return why; empty: `close` was called.

        The server closes a connection for good when its credential expires or is taken away.
        """
        ...

    async def close(self) -> None:
        """Leave, after what was sent has gone out."""
        ...
