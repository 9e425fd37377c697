"""`workspaced events`: what happened to a chat, or to all of them."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from typing import Any

from bus import Bus
from handlers.app import locate, store_from_settings
from handlers.cli.client import paged, rpc
from handlers.cli.output import Progress, counted, tell, write_json
from handlers.errors import NotFoundError
from handlers.settings import Settings


async def events(flags: argparse.Namespace, settings: Settings) -> None:
    """Print the event log of a chat, or of all, one entry a line. Raises NotFoundError."""
    if flags.all:
        await _all(settings)
        return
    found = False
    async with locate(settings).bus("operator") as bus:
        async for entry in read(bus, flags.chat):
            write_json(entry)
            found = True
    if not found:
        raise no_chat(flags.chat)


async def sought(bus: Bus, chat_id: str) -> dict[str, Any]:
    """Return what `get_chat` tells of a chat, which tells of any. Raises NotFoundError.

    Of a chat that never had a workspace, the event log alone says that it is there.
    """
    chat = await rpc(bus, "get_chat", chat_id=chat_id)
    if chat["version"] == 0 and not chat["open_calls"]:
        page = await rpc(bus, "read_events", chat_id=chat_id)
        if not page["events"]:
            raise no_chat(chat_id)
    return chat


def no_chat(chat_id: str) -> NotFoundError:
    """Return the error that says so."""
    return NotFoundError(f"there is no chat {chat_id}; `workspaced chat list` shows all chats")


async def read(bus: Bus, chat_id: str) -> AsyncIterator[dict[str, Any]]:
    """Yield a chat's log entries, page by page."""
    async for entry in paged(bus, "read_events", "events", "after", chat_id=chat_id):
        yield entry


async def _all(settings: Settings) -> None:
    """Print all logs, chat by chat: of each as far as it went when its page was read."""
    progress, chats, entries, last = Progress("{} entries"), 0, 0, ""
    async with store_from_settings(settings) as store:
        async for chat_id, entry in store.audit.logs():
            write_json(entry)
            chats, last = chats + (chat_id != last), chat_id
            entries += 1
            progress.at(entries)
    tell(f"{counted(entries, 'entry', 'entries')} of {counted(chats, 'chat')}")
