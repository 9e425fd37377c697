"""The command line on the bus: what it publishes as a chat service, asks, and watches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from bus import CLOUDEVENT, Bus, NoResponder, Subscription, subjects
from handlers.errors import NotFoundError
from handlers.publishing.build_log import read_ui_message
from statemachine.codec import encode

SOURCE: Final = "cli"
"""The chat service that the command line is."""
_PATIENCE: Final = 10.0


async def publish(bus: Bus, type_name: str, chat_id: str, data: dict[str, Any]) -> str:
    """Publish an event of a chat service; return its id."""
    source, event_id = f"/chat/{SOURCE}", str(uuid4())
    await bus.publish(
        subjects.inbound("tool", chat_id, SOURCE),
        encode(type_name, source, chat_id, data, event_id=event_id, time=datetime.now(UTC)),
        headers=CLOUDEVENT,
        message_id=f"{source}:{event_id}",
    )
    return event_id


async def rpc(bus: Bus, name: str, /, **body: Any) -> dict[str, Any]:
    """Call an rpc of the gateway, without the arguments that are None; return its reply.

    Raises BusError, TimeoutError, NotFoundError if no gateway runs.
    """
    given = {key: value for key, value in body.items() if value is not None}
    try:
        reply = await bus.request(subjects.rpc(name), json.dumps(given).encode(), timeout=_PATIENCE)
    except NoResponder as error:
        raise NotFoundError(
            f"{error}: start `workspaced gateway` on this NATS, or `workspaced up`"
        ) from error
    return json.loads(reply.data)  # type: ignore[no-any-return]


async def paged(
    bus: Bus, name: str, key: str, cursor: str, /, **body: Any
) -> AsyncIterator[dict[str, Any]]:
    """Yield the entries of all pages; `cursor` is what the next page is asked by."""
    page: dict[str, Any] = {"next": None}
    while "next" in page:
        page = await rpc(bus, name, **{**body, cursor: page["next"]})
        for entry in page[key]:
            yield entry


@asynccontextmanager
async def watching(bus: Bus, chat_id: str) -> AsyncIterator[AsyncIterator[dict[str, Any] | None]]:
    """Watch a chat as a frontend does: its states and logs, from now on.

    None comes first, and after each reconnect: something may have passed, look at the whole.
    """
    look = asyncio.Event()
    look.set()
    bus.on_reconnect(look.set)
    async with bus.subscribe(subjects.ui(chat_id)) as heard:
        changes = _changes(heard, look)
        try:
            yield changes
        finally:
            await changes.aclose()


async def _changes(heard: Subscription, look: asyncio.Event) -> Any:
    message = asyncio.ensure_future(heard.next())
    lost = asyncio.ensure_future(look.wait())
    try:
        while True:
            await asyncio.wait((message, lost), return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                look.clear()
                lost = asyncio.ensure_future(look.wait())
                yield None
            else:
                came = message.result()
                message = asyncio.ensure_future(heard.next())
                if (envelope := read_ui_message(came.subject, came.data)) is not None:
                    yield envelope
    finally:
        for task in (message, lost):
            task.cancel()
        await asyncio.gather(message, lost, return_exceptions=True)
