"""The commands' access to workspaced: the Python client with the key of a role, and pages of rpcs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import workspaced

from handlers.app import Endpoints, Role, WrongKey
from handlers.errors import NotFoundError
from handlers.runtime.listeners import client_context

SERVICE: Final = "cli"
"""The command line's name as a chat service."""


@asynccontextmanager
async def connected(endpoints: Endpoints, role: Role) -> AsyncIterator[workspaced.Workspaced]:
    """Connect to NATS as `role`.

    Raises NotFoundError, and the errors of the client; WrongKey also when the key does not permit what the block does.
    """
    endpoints.seed(role)  # the error names the role
    file = endpoints.seed_file(role)
    tls = client_context(endpoints.nats_ca)
    try:
        async with workspaced.connect(endpoints.nats_url, key=file, service=SERVICE, tls=tls) as ws:
            yield ws
    except workspaced.Refused as error:
        raise WrongKey(file, role, error) from error


async def rpc_pages(
    ws: workspaced.Workspaced, name: str, key: str, cursor: str, /, **body: Any
) -> AsyncIterator[dict[str, Any]]:
    """Yield the entries under `key` of all pages; `cursor` is the argument that names the page."""
    page: dict[str, Any] = {"next": None}
    while "next" in page:
        page = await ws.rpc(name, **{**body, cursor: page["next"]})
        for entry in page[key]:
            yield entry


async def read_events(ws: workspaced.Workspaced, chat_id: str) -> AsyncIterator[dict[str, Any]]:
    """Yield the entries of a chat's event log."""
    async for entry in rpc_pages(ws, "read_events", "events", "after", chat_id=chat_id):
        yield entry


async def find_owner(ws: workspaced.Workspaced, chat_id: str) -> workspaced.Owner | None:
    """Return the owner that a chat's first request named; None if it had none, or no gateway tells it."""
    try:
        page = await ws.rpc("read_events", chat_id=chat_id)
    except workspaced.Unavailable:
        return None
    for entry in page["events"]:
        data = entry["event"]["data"]
        if entry["event"]["type"].startswith("workspaced.tool_requested."):
            return workspaced.Owner(
                id=data["owner_id"], name=data["owner_name"], organization=data["organization_id"]
            )
    return None


async def get_known_chat(ws: workspaced.Workspaced, chat_id: str) -> dict[str, Any]:
    """Return the reply of `get_chat`; raises NotFoundError if the chat never received an event.

    `get_chat` answers for every id. Only its event log shows a chat that never had a workspace.
    """
    chat: dict[str, Any] = await ws.rpc("get_chat", chat_id=chat_id)
    if chat["version"] == 0 and not chat["open_calls"]:
        page = await ws.rpc("read_events", chat_id=chat_id)
        if not page["events"]:
            raise unknown_chat(chat_id)
    return chat


def unknown_chat(chat_id: str) -> NotFoundError:
    """Return the error that there is no such chat."""
    return NotFoundError(f"there is no chat {chat_id}; `workspaced chat list` shows all chats")
