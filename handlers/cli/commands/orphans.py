"""`workspaced workspace orphans`: what runs, and costs money, though no chat has it."""

from __future__ import annotations

from typing import Final

from handlers.app import locate
from handlers.cli.client import paged
from handlers.cli.output import for_people, local_time, table, tell, write_json, write_lines
from handlers.settings import Settings

TITLES: Final = ("WORKSPACE", "NAME", "CHAT", "SINCE", "IS STOPPED AT")


async def show(settings: Settings, *, as_json: bool) -> None:
    """Print the orphans, one a line."""
    async with locate(settings).bus("operator") as bus:
        found = [entry async for entry in paged(bus, "list_orphans", "orphans", "cursor")]
    if not for_people(as_json=as_json):
        for entry in found:
            write_json(entry)
    elif found:
        rows = [
            (
                entry["workspace_id"],
                f"{entry['owner_name'] or '?'}/{entry['name'] or '?'}",
                entry["chat_id"],
                local_time(entry["since"]),
                local_time(entry["stops_at"]) if "stops_at" in entry else "not known",
            )
            for entry in found
        ]
        write_lines(table(TITLES, rows))
    else:
        tell("no workspace runs without a chat")
