"""How requests are answered, the same over every adapter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from bus import Message, Responder, ServiceError, headers

log = logging.getLogger(__name__)

Reply = tuple[bytes, dict[str, str] | None]
"""Body and headers of an answer."""

QUEUE: Final = "q"
"""The queue group of micro services: each request goes to one of them."""

_INTERNAL: Final = ServiceError(500, "internal error")
_LEAVING: Final = ServiceError(503, "going away: ask again")


class Tasks:
    """Requests being worked on: each in a task of its own, since callbacks come one at a time."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Work on a request without holding up the next one."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def cancel(self) -> None:
        """Stop all of them, and wait until each has said its last word."""
        running = self._running - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def service_reply(responder: Responder, message: Message) -> Reply:
    """Let a responder answer as a micro service does: errors are answers too."""
    try:
        return await responder(message), None
    except ServiceError as error:
        return failure(error)
    except asyncio.CancelledError:
        return failure(_LEAVING)
    except Exception:
        log.exception("a request on %s failed", message.subject)
        return failure(_INTERNAL)


async def raw_reply(responder: Responder, message: Message) -> Reply | None:
    """Let a responder answer, or stay silent when it raises."""
    try:
        return await responder(message), None
    except Exception:
        log.exception("a request on %s failed", message.subject)
        return None


def raise_service_error(fields: Mapping[str, str]) -> None:
    """Raise what a micro service answered, if that is an error."""
    code = fields.get(headers.SERVICE_ERROR_CODE)
    if code is not None:
        raise ServiceError(
            int(code) if code.isdecimal() else 500, fields.get(headers.SERVICE_ERROR, "")
        )


def endpoint_name(subject: str) -> str:
    """Name an endpoint after the last token of its subject."""
    return subject.rpartition(".")[2]


def failure(error: ServiceError) -> Reply:
    """Return a service error as the answer that a caller of any language knows as one."""
    fields = {
        headers.SERVICE_ERROR: error.description,
        headers.SERVICE_ERROR_CODE: str(error.code),
    }
    return b"", fields
