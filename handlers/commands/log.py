"""`workspaced events`: what happened to a chat, or to all of them."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from typing import Any

from bus import Bus
from handlers.app import database, locate
from handlers.commands.printing import Progress, tell, write_json
from handlers.commands.speaking import paged
from handlers.settings import Settings


async def events(flags: argparse.Namespace, settings: Settings) -> None:
    """Print the event log of a chat, or of all, one entry a line."""
    if flags.all:
        await _all(settings)
        return
    async with locate(settings).bus("operator") as bus:
        async for entry in read(bus, flags.chat):
            write_json(entry)


async def read(bus: Bus, chat_id: str) -> AsyncIterator[dict[str, Any]]:
    """Yield a chat's log entries, page by page."""
    async for entry in paged(bus, "read_events", "events", "after", chat_id=chat_id):
        yield entry


async def _all(settings: Settings) -> None:
    """Print all logs, chat by chat: of each as far as it went when its page was read."""
    progress, chats, entries, last = Progress("{} entries"), 0, 0, ""
    async with database(settings) as store:
        async for chat_id, entry in store.logs():
            write_json(entry)
            chats, last = chats + (chat_id != last), chat_id
            entries += 1
            progress.at(entries)
    tell(f"{entries} entries of {chats} chats")
