"""The NATS client of the commands: publishes as a chat service, calls rpcs, and watches chats."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from bus import Bus, NoResponder, Subscription, subjects
from handlers.errors import NotFoundError
from handlers.publishing import new_event, publish_once
from handlers.publishing.build_log import read_ui_message

SERVICE: Final = "cli"
"""The command line's name as a chat service."""
_RPC_TIMEOUT: Final = 10.0


async def publish(bus: Bus, type_name: str, chat_id: str, data: dict[str, Any]) -> str:
    """Publish an event as a chat service; return its id."""
    event = new_event("tool", SERVICE, chat_id, type_name, data)
    await publish_once(bus, event)
    return event.identity.partition(":")[2]


async def rpc(bus: Bus, name: str, /, **body: Any) -> dict[str, Any]:
    """Call an rpc of the gateway, without the arguments that are None; return its reply.

    Raises BusError, TimeoutError, and NotFoundError if no gateway runs.
    """
    given = {key: value for key, value in body.items() if value is not None}
    try:
        reply = await bus.request(
            subjects.rpc(name), json.dumps(given).encode(), timeout=_RPC_TIMEOUT
        )
    except NoResponder as error:
        raise NotFoundError(
            f"{error}: start `workspaced gateway` on this NATS, or `workspaced up`"
        ) from error
    return json.loads(reply.data)  # type: ignore[no-any-return]


async def rpc_pages(
    bus: Bus, name: str, key: str, cursor: str, /, **body: Any
) -> AsyncIterator[dict[str, Any]]:
    """Yield the entries under `key` of all pages; `cursor` is the argument that names the page."""
    page: dict[str, Any] = {"next": None}
    while "next" in page:
        page = await rpc(bus, name, **{**body, cursor: page["next"]})
        for entry in page[key]:
            yield entry


async def read_events(bus: Bus, chat_id: str) -> AsyncIterator[dict[str, Any]]:
    """Yield the entries of a chat's event log."""
    async for entry in rpc_pages(bus, "read_events", "events", "after", chat_id=chat_id):
        yield entry


async def get_known_chat(bus: Bus, chat_id: str) -> dict[str, Any]:
    """Return the reply of `get_chat`; raises NotFoundError if the chat never received an event.

    `get_chat` answers for every id. Only its event log shows a chat that never had a workspace.
    """
    chat = await rpc(bus, "get_chat", chat_id=chat_id)
    if chat["version"] == 0 and not chat["open_calls"]:
        page = await rpc(bus, "read_events", chat_id=chat_id)
        if not page["events"]:
            raise unknown_chat(chat_id)
    return chat


def unknown_chat(chat_id: str) -> NotFoundError:
    """Return the error that there is no such chat."""
    return NotFoundError(f"there is no chat {chat_id}; `workspaced chat list` shows all chats")


@asynccontextmanager
async def watch_chat(bus: Bus, chat_id: str) -> AsyncIterator[AsyncIterator[dict[str, Any] | None]]:
    """Watch a chat as a frontend does; the iterator yields its states and log lines from now on.

    It yields None first and after each reconnect: messages may have been missed, so ask for the state.
    """
    async with bus.subscribe(subjects.ui(chat_id)) as subscription:
        changes = _changes(subscription)
        try:
            yield changes
        finally:
            await changes.aclose()


async def _changes(subscription: Subscription) -> Any:
    yield None
    while True:
        message = await subscription.next_or_reconnect()
        if message is None:
            yield None
        elif (envelope := read_ui_message(message.subject, message.data)) is not None:
            yield envelope
