"""The port over nats-py: a connection to NATS with JetStream."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Self

import nats.errors
import nats.micro
from nats.micro.request import Handler, Request
from nats.micro.service import Service

from bus import (
    BatchMessage,
    BusError,
    Message,
    NoResponder,
    PubAck,
    Pull,
    Refused,
    Responder,
    ServiceError,
    StoredMessage,
    StreamInfo,
    Subscription,
    Unavailable,
    jsapi,
    management,
    services,
    subjects,
)
from bus import headers as names
from bus.atomic_publish import publish_batch
from bus.first_connection import open_connection
from bus.jsapi import ApiError
from bus.management import NO_RESPONDERS, ask
from bus.pull_consumer import NatsPull
from bus.request_reply import Requests
from bus.streams import Consumer, Stream
from bus.subscription import Inbox


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
    """Connect with one identity: an NKey seed, itself or in a file, and a JWT if it needs one.

    Raises Unavailable when there is no server (with `wait`: waits until there is one, and says so),
    Untrusted when its certificate is not known or it has none for `tls://`, and Refused when it does not accept the credentials.
    """
    connection = await open_connection(
        url,
        name=name,
        seed=seed,
        seed_file=seed_file,
        jwt=jwt,
        inbox_prefix=inbox_prefix,
        tls=tls,
        wait=wait,
    )
    requests = Requests(connection)
    await requests.open()
    return JetStreamBus(requests)


class JetStreamBus:
    """A connection to NATS; see `bus.Bus` for what each method promises."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._connection = requests.connection
        self._tasks = services.Tasks()
        self._services: list[Service] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    # -- streams and consumers -----------------------------------------------------------------

    async def ensure_stream(self, stream: Stream) -> StreamInfo:
        """Make the stream, or bring it up to its declaration."""
        return await management.ensure_stream(self._requests, stream)

    async def ensure_consumer(self, consumer: Consumer) -> None:
        """Make the durable consumer, or bring it up to its declaration."""
        await management.ensure_consumer(self._requests, consumer)

    async def delete_consumer(self, consumer: Consumer) -> None:
        """Forget the durable consumer and its place in the stream."""
        await management.delete_consumer(self._requests, consumer)

    async def num_pending(self, consumer: Consumer) -> int:
        """Return how many messages nobody has taken yet."""
        return await management.num_pending(self._requests, consumer)

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
        fields = names.publishing(headers, message_id, expected_last, ttl)
        return await self._store(subject, data, fields)

    async def publish_batch(self, messages: Sequence[BatchMessage]) -> Sequence[PubAck] | None:
        """Store messages of one stream at once, all or none."""
        return await publish_batch(self._requests, messages)

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
        return await self._store(subject, data, names.scheduling(headers, target, at))

    async def get_last(self, stream: str, subject: str) -> StoredMessage | None:
        """Direct get: the subject's last message, or None."""
        return await self._direct_get(subjects.direct_get(stream, subject), b"")

    async def get_next(self, stream: str, subject: str, after: int) -> StoredMessage | None:
        """Direct get: the subject's first message with a sequence above `after`, or None."""
        wanted = jsapi.write({"seq": after + 1, "next_by_subj": subject})
        return await self._direct_get(subjects.direct_get(stream), wanted)

    async def server_time(self, stream: str) -> datetime:
        """Return what the clock of the stream's server shows."""
        return await management.server_time(self._requests, stream)

    @asynccontextmanager
    async def pull(self, *consumers: Consumer, prefetch: int = 256) -> AsyncIterator[Pull]:
        """Take from durable consumers."""
        pull = NatsPull(self._connection, consumers, prefetch)
        await pull.start()
        try:
            yield pull
        finally:
            await pull.stop()

    async def _store(self, subject: str, data: bytes, fields: Mapping[str, str]) -> PubAck:
        answer = await ask(self._requests, subject, data, fields)
        try:
            return jsapi.ack(answer.data)
        except ApiError as error:
            raise error.as_bus_error(subject) from None

    async def _direct_get(self, subject: str, wanted: bytes) -> StoredMessage | None:
        answer = await ask(self._requests, subject, wanted)
        fields = dict(answer.headers)
        if names.SEQUENCE not in fields:
            return None
        place, stored_as = int(fields[names.SEQUENCE]), fields[names.SUBJECT]
        for added in names.ADDED:
            fields.pop(added, None)
        return StoredMessage(stored_as, answer.data, fields, sequence=place)

    # -- messages that are not -----------------------------------------------------------------

    async def send(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish without waiting for anybody. Raises Refused, Unavailable."""
        self._connection.post(subject, data, headers)
        await self._connection.drained()

    async def flush(self) -> None:
        """Return when the server has taken all that was sent."""
        await self._connection.round_trip()

    @asynccontextmanager
    async def subscribe(self, subject: str) -> AsyncIterator[Subscription]:
        """Subscribe, for certain, before the context is entered."""
        inbox = Inbox(subject)
        number = await self._connection.take_for_certain(subject, inbox.put)
        self._connection.gone.add_done_callback(inbox.close)
        try:
            yield inbox
        finally:
            self._connection.gone.remove_done_callback(inbox.close)
            await self._connection.leave(number)

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout: float,  # noqa: ASYNC109  # the port's
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Ask and wait."""
        answer, status = await self._requests.ask(subject, data, headers, timeout)
        if status == NO_RESPONDERS:
            raise NoResponder(f"nobody serves {subject}")
        services.raise_service_error(answer.headers)
        return answer

    async def respond(self, subject: str, queue: str, responder: Responder) -> None:
        """Answer requests on `subject`, one of the queue group each, until the bus is closed."""

        async def answer(message: Message) -> None:
            reply = await services.raw_reply(responder, message)
            if reply is not None and message.reply:
                with suppress(BusError):  # whoever asked sees that nothing comes
                    self._connection.post(message.reply, reply[0])

        await self._connection.take_for_certain(
            subject, lambda message, _status: self._tasks.spawn(answer(message)), queue
        )

    async def serve(
        self, name: str, version: str, description: str, endpoints: Mapping[str, Responder]
    ) -> None:
        """Register a NATS micro service whose endpoints are (subject -> responder)."""
        service: Service | None = None
        try:
            service = await nats.micro.add_service(
                self._connection, name=name, version=version, description=description
            )
            for subject, responder in endpoints.items():
                await service.add_endpoint(
                    name=services.endpoint_name(subject),
                    subject=subject,
                    handler=self._handler(responder),
                )
            await self._connection.round_trip()
        except (nats.errors.Error, Unavailable) as error:
            if service is not None:  # whoever tries again registers another one
                with suppress(nats.errors.Error, Unavailable, TimeoutError):
                    await service.stop()
            raise Unavailable(f"{name}: {error}") from None
        self._services.append(service)
        for subject in endpoints:
            self._connection.check_subscribed(subject)

    def _handler(self, responder: Responder) -> Handler:
        async def answer(request: Request) -> None:
            message = Message(
                request.subject,
                request.data,
                request.headers or {},
                request._msg.reply,  # noqa: SLF001  # it has no other way out
            )
            data, fields = await services.service_reply(responder, message)
            with suppress(BusError):
                try:
                    self._connection.post(message.reply, data, fields)
                except Refused as no:  # too large: whoever asked would wait in vain
                    data, fields = services.failure(
                        ServiceError(500, f"the answer can't be sent: {no}")
                    )
                    self._connection.post(message.reply, data, fields)

        async def handler(request: Request) -> None:
            self._tasks.spawn(answer(request))

        return handler

    # -- the connection ------------------------------------------------------------------------

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each reconnect."""
        self._connection.on_back.append(callback)

    @property
    def connected(self) -> bool:
        """Whether a server is there now."""
        return self._connection.is_connected

    async def wait_closed(self) -> str:
        """Wait until the bus is closed for good, and return why."""
        return await asyncio.shield(self._connection.gone)

    async def close(self) -> None:
        """Leave, after what was sent has gone out."""
        for service in self._services if self.connected else ():
            with suppress(nats.errors.Error, Unavailable, TimeoutError):
                await service.stop()
        await self._tasks.cancel()
        with suppress(BusError):
            await self._connection.round_trip(within=1.0)
        await self._connection.close()
