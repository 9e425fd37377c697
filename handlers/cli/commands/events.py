"""`workspaced events`: exports event logs as JSON lines."""

from __future__ import annotations

from handlers.app import locate, store_from_settings
from handlers.cli.client import read_events, unknown_chat
from handlers.cli.command_table import ExportEvents
from handlers.cli.output import Progress, counted, note, write_json
from handlers.settings import Settings


async def export_events(command: ExportEvents, settings: Settings) -> None:
    """Print the event log of one chat or of all. Raises NotFoundError."""
    if command.chat is None:
        await _export_all(settings)
        return
    found = False
    async with locate(settings).bus("operator") as bus:
        async for entry in read_events(bus, command.chat):
            write_json(entry)
            found = True
    if not found:
        raise unknown_chat(command.chat)


async def _export_all(settings: Settings) -> None:
    """Print all event logs, chat by chat, each as it was when its page was read."""
    progress, chats, entries, last = Progress("{} entries"), 0, 0, ""
    async with store_from_settings(settings) as store:
        async for chat_id, entry in store.audit.logs():
            write_json(entry)
            chats, last = chats + (chat_id != last), chat_id
            entries += 1
            progress.at(entries)
    note(f"{counted(entries, 'entry', 'entries')} of {counted(chats, 'chat')}")
