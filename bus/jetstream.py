"""The adapter of the port `bus.Bus` to NATS with JetStream, on top of nats-py."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, Self

import msgspec
from msgspec import Struct
from nats.js.errors import APIError, NotFoundError
from nats.micro.service import Service
from typing_extensions import override

from bus import Bus, Pull, Responder, Subscription, services
from bus.connect import open_connection
from bus.errors import BusError, NoResponder, Refused, Unavailable
from bus.exchange import Reply
from bus.management import API_TIMEOUT, Management, bus_error, translated_errors
from bus.messages import (
    ADDED_BY_DIRECT_GET,
    BATCH,
    BATCH_COMMIT,
    BATCH_SEQUENCE,
    TIME_STAMP,
    ConsumerState,
    Message,
    Outbound,
    PubAck,
    StoredMessage,
    StreamInfo,
    read_headers,
    write_headers,
)
from bus.nats_client import MOST_BYTES_IN_FLIGHT, NO_RESPONDERS, NatsClient
from bus.pull_consumer import NatsPull
from bus.streams import Consumer, Stream
from bus.subscription import MessageQueue

_MOST_TOGETHER: Final = 1000
"""How many messages the server accepts in an atomic batch."""


async def connect(
    url: str,
    *,
    name: str | None = None,
    seed: str | None = None,
    seed_file: Path | None = None,
    jwt: str | None = None,
    inbox_prefix: str = "_INBOX",
    tls: ssl.SSLContext | None = None,
    wait: bool = False,
) -> JetStreamBus:
    """Connect to NATS with an NKey seed (as text or in a file), and a JWT if the server requires one.

    Raises Unavailable when there is no server (with `wait`: waits for one and logs that), Untrusted when
    its certificate can't be verified or it offers no TLS, Refused when it rejects the credentials.
    """
    client = await open_connection(
        url,
        name=name,
        seed=seed,
        seed_file=seed_file,
        jwt=jwt,
        inbox_prefix=inbox_prefix,
        tls=tls,
        wait=wait,
    )
    await client.start_requests()
    return JetStreamBus(client)


class JetStreamBus(Bus):
    """A connection to NATS; `bus.Bus` documents the methods."""

    def __init__(self, client: NatsClient) -> None:
        self._client = client
        self._management = Management(client)
        self._tasks = services.Tasks()
        self._services: list[Service] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    # -- streams and consumers -----------------------------------------------------------------

    @override
    async def ensure_stream(self, stream: Stream) -> StreamInfo:
        return await self._management.ensure_stream(stream)

    @override
    async def ensure_consumer(self, consumer: Consumer) -> None:
        await self._management.ensure_consumer(consumer)

    @override
    async def delete_consumer(self, consumer: Consumer) -> None:
        await self._management.delete_consumer(consumer)

    @override
    async def consumer_state(self, consumer: Consumer) -> ConsumerState:
        return await self._management.consumer_state(consumer)

    @override
    async def stream_info(self, name: str) -> StreamInfo:
        return await self._management.stream_info(name)

    @override
    async def purge(self, stream: str, last: int) -> None:
        await self._management.purge(stream, last)

    @override
    async def delete_message(self, stream: str, sequence: int) -> None:
        await self._management.delete_message(stream, sequence)

    @override
    async def replace_stream(self, stream: Stream, *, until: float) -> bool:
        return await self._management.replace_stream(stream, until=until)

    @override
    async def server_time(self, stream: str) -> datetime:
        return await self._management.server_time(stream)

    # -- stored messages -----------------------------------------------------------------------

    @override
    async def publish_many(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
        requests = [(m.subject, m.data, m.header_block()) for m in messages]
        replies = await self._client.ask_many(requests, API_TIMEOUT)
        return [_result(m.subject, reply) for m, reply in zip(messages, replies, strict=True)]

    @override
    async def publish_together(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
        results = list[PubAck | BusError]()
        for batch in _batches(messages):
            results += await self._publish_batch(batch)
            if isinstance(results[-1], Unavailable):
                results += [results[-1]] * (len(messages) - len(results))
                break
        return results

    async def _publish_batch(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
        """Publish messages as an atomic batch, or one by one if the stream refuses it."""
        name, count = token_hex(16), len(messages)
        more = [f"{BATCH}: {name}\r\n{BATCH_SEQUENCE}: {n}\r\n" for n in range(1, count + 1)]
        more[-1] += f"{BATCH_COMMIT}: 1\r\n"
        *others, last = [
            (message.subject, message.data, message.header_block(lines))
            for message, lines in zip(messages, more, strict=True)
        ]
        try:
            for request in others:
                self._client.publish_nowait(*request)
                await self._client.wait_if_behind()
            reply: Reply | Exception = await self._client.ask(*last, API_TIMEOUT)
        except (BusError, TimeoutError) as error:
            reply = error
        result = _result(messages[-1].subject, reply)
        if isinstance(result, PubAck):
            first = result.sequence - count + 1
            return [PubAck(result.stream, first + number) for number in range(count)]
        if isinstance(result, Unavailable):
            return [result] * count
        return await self.publish_many(messages)

    @override
    async def get_last(self, stream: str, subject: str) -> StoredMessage | None:
        return await self._direct_get(stream, subject, None)

    @override
    async def get_next(self, stream: str, subject: str, after: int) -> StoredMessage | None:
        return await self._direct_get(stream, subject, after + 1)

    async def _direct_get(
        self, stream: str, subject: str, first: int | None
    ) -> StoredMessage | None:
        with translated_errors(f"{subject} of {stream}"):
            try:
                found = await self._management.manager.get_msg(
                    stream, seq=first, subject=subject, direct=True, next=first is not None
                )
            except NotFoundError:
                return None
        fields = found.headers or {}
        headers = {name: value for name, value in fields.items() if name not in ADDED_BY_DIRECT_GET}
        return StoredMessage(
            found.subject or "",
            found.data or b"",
            headers,
            sequence=found.seq or 0,
            stored_at=datetime.fromisoformat(fields[TIME_STAMP]) if TIME_STAMP in fields else None,
        )

    @override
    @asynccontextmanager
    async def pull(self, *consumers: Consumer, prefetch: int = 256) -> AsyncIterator[Pull]:
        pull = NatsPull(self._client, consumers, prefetch)
        await pull.start()
        try:
            yield pull
        finally:
            await pull.stop()

    # -- messages that are not stored ----------------------------------------------------------

    @override
    async def send(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        self._client.publish_nowait(subject, data, write_headers(headers))
        await self._client.wait_if_behind()

    @override
    async def flush(self) -> None:
        await self._client.round_trip()

    @override
    @asynccontextmanager
    async def subscribe(self, subject: str) -> AsyncIterator[Subscription]:
        client, queue = self._client, MessageQueue(subject)
        number = await client.listen_confirmed(subject, queue.put)
        client.on_reconnect.append(queue.put_reconnect)
        client.closed_for_good.add_done_callback(queue.close)
        try:
            yield queue
        finally:
            client.closed_for_good.remove_done_callback(queue.close)
            client.on_reconnect.remove(queue.put_reconnect)
            await client.unlisten(number)

    @override
    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        block = write_headers(headers)
        reply, reply_block = await self._client.ask(subject, data, block, timeout)
        status, fields = read_headers(reply_block)
        if status == NO_RESPONDERS:
            raise NoResponder(f"nobody serves {subject}")
        services.raise_service_error(fields)
        return Message(subject, reply, fields)

    @override
    async def request_many(self, subject: str, data: bytes, *, timeout: float) -> Sequence[Message]:
        client, inbox = self._client, self._client.new_inbox()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        found: list[Message] = []

        def take(message: Message, status: str) -> None:
            if status != NO_RESPONDERS:
                found.append(message)
            elif not ended.done():
                ended.set_result(None)

        def is_denied(denied: str, error: Refused) -> bool:
            if denied != subject.lower() or ended.done():
                return False
            ended.set_exception(error)
            return True

        number = await client.listen_confirmed(inbox, take)
        client.on_denied.append(is_denied)
        client.waiting.add(ended)
        try:
            client.publish_nowait(subject, data, reply=inbox)
            await asyncio.wait((ended,), timeout=timeout)
            if ended.done():
                ended.result()
            return found
        finally:
            client.waiting.discard(ended)
            client.on_denied.remove(is_denied)
            await client.unlisten(number)

    @override
    async def respond(self, subject: str, queue: str, responder: Responder) -> None:
        async def answer(message: Message) -> None:
            data = await services.plain_reply(responder, message)
            if data is not None and message.reply:
                with suppress(BusError):  # the caller's request times out
                    self._client.publish_nowait(message.reply, data)

        await self._client.listen_confirmed(
            subject, lambda message, _status: self._tasks.spawn(answer(message)), queue
        )

    @override
    async def serve(
        self, name: str, version: str, description: str, endpoints: Mapping[str, Responder]
    ) -> None:
        service = await services.start_service(
            self._client, self._tasks, name, version, description, endpoints
        )
        self._services.append(service)
        for subject in endpoints:
            self._client.check_subscribed(subject)

    # -- the connection ------------------------------------------------------------------------

    @override
    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._client.on_reconnect.append(callback)

    @property
    @override
    def connected(self) -> bool:
        return self._client.is_connected

    @property
    @override
    def server_id(self) -> str:
        return self._client.server_id

    @override
    async def wait_closed(self) -> str:
        return await asyncio.shield(self._client.closed_for_good)

    @override
    async def close(self) -> None:
        for service in self._services if self.connected else ():
            await services.stop_service(service)
        await self._tasks.cancel()
        with suppress(BusError):
            await self._client.round_trip(timeout=1.0)
        await self._client.close()


class _StreamReply(Struct):
    """What a stream replies to a publish."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: dict[str, Any] | None = None


_STREAM_REPLY: Final = msgspec.json.Decoder(_StreamReply)


def _batches(messages: Sequence[Outbound]) -> Iterator[Sequence[Outbound]]:
    """Yield the messages in batches that the server accepts, and can store within the time of a request."""
    batch, size = list[Outbound](), 0
    for message in messages:
        if batch and (
            len(batch) == _MOST_TOGETHER or size + len(message.data) > MOST_BYTES_IN_FLIGHT
        ):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message.data)
    if batch:
        yield batch


def _result(subject: str, reply: Reply | Exception) -> PubAck | BusError:
    """Return what the reply to a publish says."""
    if isinstance(reply, Exception):
        return reply if isinstance(reply, BusError) else Unavailable(str(reply))
    data, header_block = reply
    if header_block and read_headers(header_block)[0] == NO_RESPONDERS:
        return Unavailable(f"no stream answers on {subject}")
    found = _STREAM_REPLY.decode(data)
    if found.error is not None:
        return bus_error(APIError(**found.error), subject)
    return PubAck(found.stream, found.seq, found.duplicate)
