"""Replies to requests, plain or of a NATS micro service; used by every adapter of the bus."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final

import nats.errors
import nats.micro
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER, Handler, Request
from nats.micro.service import Service

from bus import Responder
from bus.errors import BusError, Refused, ServiceError, Unavailable
from bus.messages import Message, write_headers
from bus.nats_client import NatsClient, service_message

log = logging.getLogger(__name__)

Reply = tuple[bytes, dict[str, str] | None]
"""Data and headers of a reply."""

QUEUE: Final = "q"
"""nats-py's queue group of micro services: each request goes to one member."""

_INTERNAL: Final = ServiceError(500, "internal error")
_CLOSING: Final = ServiceError(503, "going away: ask again")


class Tasks:
    """The requests in progress, each in a task of its own."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task for a request."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def cancel(self) -> None:
        """Cancel all tasks except the current one, and wait until they have ended."""
        running = self._running - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def service_reply(responder: Responder, message: Message) -> Reply:
    """Call a responder of a micro service, and turn its exception into an error reply."""
    try:
        return await responder(message), None
    except ServiceError as error:
        return error_reply(error)
    except asyncio.CancelledError:
        return error_reply(_CLOSING)
    except Exception:
        log.exception("a request on %s failed", message.subject)
        return error_reply(_INTERNAL)


async def plain_reply(responder: Responder, message: Message) -> bytes | None:
    """Call a responder; log its exception and return None when it raises."""
    try:
        return await responder(message)
    except Exception:
        log.exception("a request on %s failed", message.subject)
        return None


def raise_service_error(headers: Mapping[str, str]) -> None:
    """Raise ServiceError if these are the headers of a micro service's error reply."""
    code = headers.get(ERROR_CODE_HEADER)
    if code is not None:
        raise ServiceError(int(code) if code.isdecimal() else 500, headers.get(ERROR_HEADER, ""))


def error_reply(error: ServiceError) -> Reply:
    """Return the reply by which clients in every language recognise a service error."""
    return b"", {ERROR_HEADER: error.description, ERROR_CODE_HEADER: str(error.code)}


async def start_service(
    client: NatsClient,
    tasks: Tasks,
    name: str,
    version: str,
    description: str,
    endpoints: Mapping[str, Responder],
) -> Service:
    """Register a NATS micro service; its endpoints are named by the last token of their subjects.

    Raises Unavailable, Denied.
    """
    service: Service | None = None
    try:
        service = await nats.micro.add_service(
            client, name=name, version=version, description=description
        )
        for subject, responder in endpoints.items():
            await service.add_endpoint(
                name=subject.rpartition(".")[2],
                subject=subject,
                handler=_handler(client, tasks, responder),
            )
        await client.round_trip()
    except (nats.errors.Error, Unavailable) as error:
        if service is not None:  # a retry registers another one
            await stop_service(service)
        raise Unavailable(f"{name}: {error}") from None
    return service


async def stop_service(service: Service) -> None:
    """Deregister a micro service, if there is a connection."""
    with suppress(nats.errors.Error, Unavailable, TimeoutError):
        await service.stop()


def _handler(client: NatsClient, tasks: Tasks, responder: Responder) -> Handler:
    async def answer(message: Message) -> None:
        data, headers = await service_reply(responder, message)
        with suppress(BusError):
            try:
                client.publish_nowait(message.reply, data, write_headers(headers))
            except Refused as error:  # too large: without a reply the caller would wait in vain
                data, headers = error_reply(ServiceError(500, f"the answer can't be sent: {error}"))
                client.publish_nowait(message.reply, data, write_headers(headers))

    async def handler(request: Request) -> None:
        tasks.spawn(answer(service_message(request)))

    return handler
