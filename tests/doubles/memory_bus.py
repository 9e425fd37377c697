"""The port inside this process: deterministic, and fast, for simulations and unit tests."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Self

from bus import (
    BatchMessage,
    BusError,
    Message,
    PubAck,
    Pull,
    Refused,
    Responder,
    StoredMessage,
    StreamInfo,
    Subscription,
    Unavailable,
    messages,
)
from bus.streams import Consumer, Stream
from bus.subjects import check
from bus.subscription import MessageQueue
from tests.doubles.memory_consumer import MemoryConsumer, MemoryPull
from tests.doubles.memory_requests import MemoryRequests
from tests.doubles.memory_server import MemoryServer
from tests.doubles.memory_stream import MemoryStream


class MemoryBus:
    """A connection to a `MemoryServer`; see `bus.Bus` for what each method promises."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._gone: Future[str] = asyncio.get_running_loop().create_future()
        self._requests = MemoryRequests(server)
        self._inboxes: list[MessageQueue] = []
        self._pulls: list[MemoryPull] = []
        self._on_back: list[Callable[[], None]] = []
        server.attach(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    # -- streams and consumers -----------------------------------------------------------------

    async def ensure_stream(self, stream: Stream) -> StreamInfo:
        """Make the stream, or bring it up to its declaration."""
        await self._turn()
        server = self._server
        there = server.streams.get(stream.name)
        if there is None:
            created = f"{server.clock.now()}/{next(server.numbers)}"
            there = MemoryStream(stream, server.clock, created, server.deliver)
            server.streams[stream.name] = there
        elif (there.declared.storage, there.declared.retention) != (
            stream.storage,
            stream.retention,
        ):
            raise Refused(f"{stream.name}: storage and retention can't be changed")
        there.declared = stream
        return there.info()

    async def ensure_consumer(self, consumer: Consumer) -> None:
        """Make the durable consumer, or bring it up to its declaration."""
        await self._turn()
        stream = self._server.stream(consumer.stream)
        there = stream.consumers.get(consumer.name)
        if there is None:
            stream.consumers[consumer.name] = MemoryConsumer(consumer, stream, self._server.clock)
        else:
            there.declared = consumer

    async def delete_consumer(self, consumer: Consumer) -> None:
        """Forget the durable consumer and its place in the stream."""
        await self._turn()
        self._server.delete_consumer(consumer)

    async def num_pending(self, consumer: Consumer) -> int:
        """Return how many messages nobody has taken yet."""
        await self._turn()
        return self._server.num_pending(consumer)

    def consumer(self, consumer: Consumer) -> MemoryConsumer | None:
        """Return the durable consumer, if it is there."""
        stream = self._server.streams.get(consumer.stream)
        return stream.consumers.get(consumer.name) if stream else None

    # -- messages that are stored --------------------------------------------------------------

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
        """Store a message in the stream of `subject`, and wait for the word that it is."""
        fields = messages.publish_headers(headers, message_id, expected_last, ttl)
        return await self._store(subject, data, fields)

    async def publish_batch(self, messages: Sequence[BatchMessage]) -> Sequence[PubAck] | None:
        """Store messages of one stream at once, all or none."""
        await self._turn()
        for message in messages:
            self._server.deliver(Message(message.subject, message.data, message.all_headers()))
        stream = self._server.stream_of(messages[0].subject)
        acks = None if stream is None else stream.publish_batch(messages)
        return acks if await self._requests.answered() else None

    async def schedule(
        self,
        subject: str,
        target: str,
        at: datetime,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        """Store a message that makes the server store `data` on `target` at `at`."""
        return await self._store(subject, data, messages.schedule_headers(headers, target, at))

    async def get_last(self, stream: str, subject: str) -> StoredMessage | None:
        """Direct get: the subject's last message, or None."""
        await self._turn()
        return self._direct(stream).last_of(subject)

    async def get_next(self, stream: str, subject: str, after: int) -> StoredMessage | None:
        """Direct get: the subject's first message with a sequence above `after`, or None."""
        await self._turn()
        return self._direct(stream).get_next(subject, after)

    async def server_time(self, stream: str) -> datetime:
        """Return what the server's clock shows."""
        await self._turn()
        self._server.stream(stream)
        return datetime.fromtimestamp(self._server.clock.now(), UTC)

    @asynccontextmanager
    async def pull(self, *consumers: Consumer, prefetch: int = 256) -> AsyncIterator[Pull]:
        """Take from durable consumers."""
        self.check_open()
        pull = MemoryPull(self, consumers, prefetch)
        self._pulls.append(pull)
        try:
            yield pull
        finally:
            self._pulls.remove(pull)
            await pull.release()

    async def _store(self, subject: str, data: bytes, fields: Mapping[str, str]) -> PubAck:
        await self._turn()
        check(subject)
        stream = self._server.stream_of(subject)
        self._server.deliver(Message(subject, data, fields))
        if stream is None:
            raise Unavailable(f"no stream answers on {subject}")
        ack = stream.store(subject, data, fields)
        await self._requests.trip()
        return ack

    def _direct(self, name: str) -> MemoryStream:
        stream = self._server.stream(name)
        if not stream.declared.allow_direct:
            raise Unavailable(f"no stream answers on $JS.API.DIRECT.GET.{name}")
        return stream

    # -- messages that are not -----------------------------------------------------------------

    async def send(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish without waiting for anybody."""
        await self._turn()
        check(subject)
        fields = dict(headers) if headers else {}
        self._server.deliver(Message(subject, data, fields))
        stream = self._server.stream_of(subject)
        if stream is not None:
            with suppress(BusError):
                stream.store(subject, data, fields)

    async def flush(self) -> None:
        """Return when the server has taken all that was sent."""
        await self._turn()

    @asynccontextmanager
    async def subscribe(self, subject: str) -> AsyncIterator[Subscription]:
        """Subscribe, for certain, before the context is entered."""
        await self._turn()
        inbox = MessageQueue(subject, self._server.clock.call_later)
        interest = self._requests.listen(subject, "", inbox.put)
        self._inboxes.append(inbox)
        try:
            yield inbox
        finally:
            self._inboxes.remove(inbox)
            self._requests.unlisten(interest)

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout: float,  # the port's
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Ask and wait."""
        await self._turn()
        return await self._requests.ask(subject, data, headers, timeout)

    async def respond(self, subject: str, queue: str, responder: Responder) -> None:
        """Answer requests on `subject`, one of the queue group each, until the bus is closed."""
        await self._turn()
        self._requests.answer(subject, queue, responder)

    async def serve(
        self, name: str, version: str, description: str, endpoints: Mapping[str, Responder]
    ) -> None:
        """Answer as a micro service does; its discovery subjects are not served."""
        del name, version, description
        await self._turn()
        for subject, responder in endpoints.items():
            self._requests.answer_as_service(subject, responder)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each reconnect."""
        self._on_back.append(callback)

    @property
    def connected(self) -> bool:
        """Whether a server is there now."""
        return self._server.up and not self._gone.done()

    @property
    def run(self) -> int:
        """Which start of the server it is connected to."""
        return self._server.run

    def check_open(self) -> None:
        """Raise Unavailable when the bus is closed."""
        if self._gone.done():
            raise Unavailable(self._gone.result() or "the bus is closed")

    async def wait_closed(self) -> str:
        """Wait until the bus is closed for good, and return why."""
        return await asyncio.shield(self._gone)

    async def close(self) -> None:
        """Leave, after what was sent has gone out."""
        await self._requests.cancel()
        self.end("")

    def end(self, reason: str) -> None:
        """Be closed for good, as by the server when a credential expires."""
        if self._gone.done():
            return
        self._gone.set_result(reason)
        self._server.detach(self)
        self._requests.unlisten_all()
        for inbox in self._inboxes:
            inbox.close()
        self.lost()
        self.look_again()

    # -- what the server tells -----------------------------------------------------------------

    def lost(self) -> None:
        """Void all that belonged to the connection as it was."""
        self._requests.fail_all()
        for pull in self._pulls:
            pull.void()

    def back(self) -> None:
        """Tell everybody that there is a server again."""
        self.look_again()
        for inbox in self._inboxes:
            inbox.put_reconnect()
        for callback in self._on_back:
            callback()

    def look_again(self) -> None:
        """Let those who pull see what has changed."""
        for pull in self._pulls:
            pull.wake()

    async def _turn(self) -> None:
        """Let everybody else have a turn, as a round trip would; nothing is kept for a reconnect."""
        self._check_connected()
        await self._requests.trip()
        self._check_connected()

    def _check_connected(self) -> None:
        self.check_open()
        if not self.connected:
            raise Unavailable("not connected")
