"""An in-memory adapter of `bus.Bus`: deterministic and fast, for simulations and unit tests."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Self

from nats.js.api import DiscardPolicy
from typing_extensions import override

from bus import (
    Bus,
    BusError,
    ConsumerState,
    Message,
    Outbound,
    PubAck,
    Pull,
    Refused,
    Responder,
    StoredMessage,
    StreamInfo,
    Subscription,
    Unavailable,
)
from bus.messages import read_headers
from bus.streams import Consumer, Stream
from bus.subjects import check
from bus.subscription import MessageQueue
from tests.doubles.memory_consumer import MemoryConsumer, MemoryPull
from tests.doubles.memory_requests import MemoryRequests
from tests.doubles.memory_server import MemoryServer
from tests.doubles.memory_stream import MemoryStream


class MemoryBus(Bus):
    """A connection to a `MemoryServer`; `bus.Bus` documents the methods of the port."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._closed_reason: Future[str] = asyncio.get_running_loop().create_future()
        self._requests = MemoryRequests(server)
        self._queues: list[MessageQueue] = []
        self._pulls: list[MemoryPull] = []
        self._on_reconnect: list[Callable[[], None]] = []
        server.attach(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    # -- streams and consumers -----------------------------------------------------------------

    @override
    async def ensure_stream(self, stream: Stream) -> StreamInfo:
        await self._round_trip()
        server = self._server
        there = server.streams.get(stream.name)
        if there is None:
            return server.add_stream(stream).info()
        if there.declared.storage != stream.storage:
            raise Refused(f"{stream.name}: storage can't be changed")
        kept = there.declared.retention
        if kept != stream.retention:
            stream = replace(stream, retention=kept, discard=DiscardPolicy.NEW, max_bytes=1)
        there.declared = stream
        return there.info()

    @override
    async def ensure_consumer(self, consumer: Consumer) -> None:
        await self._round_trip()
        stream = self._server.stream(consumer.stream)
        there = stream.consumers.get(consumer.name)
        if there is None:
            stream.consumers[consumer.name] = MemoryConsumer(consumer, stream, self._server.clock)
        else:
            there.declared = consumer

    @override
    async def delete_consumer(self, consumer: Consumer) -> None:
        await self._round_trip()
        self._server.delete_consumer(consumer)

    @override
    async def consumer_state(self, consumer: Consumer) -> ConsumerState:
        await self._round_trip()
        return self._server.consumer_state(consumer)

    @override
    async def stream_info(self, name: str) -> StreamInfo:
        await self._round_trip()
        return self._server.stream(name).info()

    @override
    async def purge(self, stream: str, last: int) -> None:
        await self._round_trip()
        self._server.stream(stream).purge(last)

    @override
    async def delete_message(self, stream: str, sequence: int) -> None:
        await self._round_trip()
        self._server.stream(stream).remove(sequence)

    @override
    async def replace_stream(self, stream: Stream, *, until: float) -> bool:
        await self._round_trip()
        old = self._server.stream(stream.name)
        if old.declared.retention == stream.retention:
            return True
        if old.messages:
            return False
        if asyncio.get_running_loop().time() > until:
            raise Unavailable(f"{stream.name} could not be replaced in time")
        self._server.delete_stream(stream.name)
        self._server.add_stream(stream, after=old.last_sequence)
        return True

    def consumer(self, consumer: Consumer) -> MemoryConsumer | None:
        """Return the durable consumer, or None."""
        stream = self._server.streams.get(consumer.stream)
        return stream.consumers.get(consumer.name) if stream else None

    # -- stored messages -----------------------------------------------------------------------

    @override
    async def publish_together(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
        return await self.publish_many(messages)

    @override
    async def publish_many(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
        try:
            await self._round_trip()
        except Unavailable as error:
            return [error] * len(messages)
        results = [self._stored(message) for message in messages]
        try:
            await self._requests.travel()
        except Unavailable as error:
            return [error] * len(messages)
        return results

    @override
    async def get_last(self, stream: str, subject: str) -> StoredMessage | None:
        await self._round_trip()
        return self._direct(stream).last_of(subject)

    @override
    async def get_next(self, stream: str, subject: str, after: int) -> StoredMessage | None:
        await self._round_trip()
        return self._direct(stream).get_next(subject, after)

    @override
    async def server_time(self, stream: str) -> datetime:
        await self._round_trip()
        self._server.stream(stream)
        return datetime.fromtimestamp(self._server.clock.now(), UTC)

    @override
    @asynccontextmanager
    async def pull(self, *consumers: Consumer, prefetch: int = 256) -> AsyncIterator[Pull]:
        self.raise_if_closed()
        pull = MemoryPull(self, consumers, prefetch)
        self._pulls.append(pull)
        try:
            yield pull
        finally:
            self._pulls.remove(pull)
            await pull.release()

    def _stored(self, message: Outbound) -> PubAck | BusError:
        """Deliver a message that has arrived, and store it."""
        _, fields = read_headers(message.header_block())
        try:
            check(message.subject)
            self._server.deliver(Message(message.subject, message.data, fields))
            stream = self._server.stream_of(message.subject)
            if stream is None:
                raise Unavailable(f"no stream answers on {message.subject}")
            return stream.store(message.subject, message.data, fields)
        except BusError as error:
            return error

    def _direct(self, name: str) -> MemoryStream:
        stream = self._server.stream(name)
        if not stream.declared.allow_direct:
            raise Unavailable(f"no stream answers on $JS.API.DIRECT.GET.{name}")
        return stream

    # -- messages that are not stored -----------------------------------------------------------------

    @override
    async def send(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        await self._round_trip()
        check(subject)
        fields = dict(headers) if headers else {}
        self._server.deliver(Message(subject, data, fields))
        stream = self._server.stream_of(subject)
        if stream is not None:
            with suppress(BusError):
                stream.store(subject, data, fields)

    @override
    async def flush(self) -> None:
        await self._round_trip()

    @override
    @asynccontextmanager
    async def subscribe(self, subject: str) -> AsyncIterator[Subscription]:
        await self._round_trip()
        queue = MessageQueue(subject, self._server.clock.call_later)
        interest = self._requests.listen(subject, "", queue.put)
        self._queues.append(queue)
        try:
            yield queue
        finally:
            self._queues.remove(queue)
            self._requests.unlisten(interest)

    @override
    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout: float,  # as in the port
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        await self._round_trip()
        return await self._requests.ask(subject, data, headers, timeout)

    @override
    async def request_many(self, subject: str, data: bytes, *, timeout: float) -> Sequence[Message]:
        await self._round_trip()
        return await self._requests.ask_many(subject, data, timeout)

    @override
    async def respond(self, subject: str, queue: str, responder: Responder) -> None:
        await self._round_trip()
        self._requests.answer(subject, queue, responder)

    @override
    async def serve(
        self, name: str, version: str, description: str, endpoints: Mapping[str, Responder]
    ) -> None:
        del name, version, description
        await self._round_trip()
        for subject, responder in endpoints.items():
            self._requests.answer_as_service(subject, responder)

    @override
    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._on_reconnect.append(callback)

    @property
    @override
    def connected(self) -> bool:
        return self._server.up and not self._closed_reason.done()

    @property
    @override
    def server_id(self) -> str:
        return str(self._server.run)

    @property
    def run(self) -> int:
        """The number of the server start to which this bus is connected."""
        return self._server.run

    def raise_if_closed(self) -> None:
        """Raise Unavailable when the bus is closed."""
        if self._closed_reason.done():
            raise Unavailable(self._closed_reason.result() or "the bus is closed")

    @override
    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed_reason)

    @override
    async def close(self) -> None:
        await self._requests.cancel()
        self.end("")

    def end(self, reason: str) -> None:
        """Close for good, as the server does when a credential expires."""
        if self._closed_reason.done():
            return
        self._closed_reason.set_result(reason)
        self._server.detach(self)
        self._requests.unlisten_all()
        for queue in self._queues:
            queue.close()
        self.disconnected()
        self.wake_pulls()

    # -- called by the server ---------------------------------------------------------------------

    def disconnected(self) -> None:
        """Discard everything that belonged to the lost connection."""
        self._requests.fail_all()
        for pull in self._pulls:
            pull.reset()

    def reconnected(self) -> None:
        """Report the reconnect to pulls, subscriptions and callbacks."""
        self.wake_pulls()
        for queue in self._queues:
            queue.put_reconnect()
        for callback in self._on_reconnect:
            callback()

    def wake_pulls(self) -> None:
        """Make every waiting pull look for messages again."""
        for pull in self._pulls:
            pull.wake()

    async def _round_trip(self) -> None:
        """Let other tasks run, as a round trip would. Raises Unavailable when disconnected."""
        self._check_connected()
        await self._requests.travel()
        self._check_connected()

    def _check_connected(self) -> None:
        self.raise_if_closed()
        if not self.connected:
            raise Unavailable("not connected")
