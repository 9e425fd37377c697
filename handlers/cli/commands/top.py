"""`workspaced top`: all chats on the whole terminal, as they change."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

from workspaced import Log, State, Workspaced

from bus import Bus, subjects
from handlers.app import locate
from handlers.cli.client import connected, rpc_pages
from handlers.cli.command_table.operations import ShowTop
from handlers.errors import InvalidSettings, NotFoundError
from handlers.settings import Settings


async def top(_: ShowTop, settings: Settings) -> None:
    """Show the chats until the user quits. Raises InvalidSettings, NotFoundError."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidSettings("`top` needs a terminal; `workspaced chat list` prints the chats")
    try:
        from handlers.cli.commands.top_app import TopApp  # noqa: PLC0415 — slow to import, and an extra
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("textual"):
            raise
        raise NotFoundError(
            "`workspaced top` needs the extra `terminal`, which is not installed: pip install 'workspaced[terminal]'"
        ) from error
    endpoints = locate(settings)
    async with endpoints.bus("operator") as bus, connected(endpoints, "operator") as ws:

        async def follow(chat_id: str) -> AsyncIterator[State | Log]:
            async for event in ws.chat(chat_id).watch():
                yield event

        await TopApp(lambda: chats(bus, ws), follow).run_async()


async def chats(bus: Bus, ws: Workspaced) -> AsyncIterator[Mapping[str, Any]]:
    """Yield the data of the state of each chat, then of each new state; of all again after a reconnect."""
    async with bus.subscribe(subjects.ALL_UI_STATES) as states:
        while True:
            async for chat in rpc_pages(ws, "list_chats", "chats", "cursor"):
                yield chat
            while (message := await states.next_or_reconnect()) is not None:
                yield json.loads(message.data)["data"]
