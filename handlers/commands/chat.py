"""`workspaced chat`: what the chats are at."""

from __future__ import annotations

import argparse

from handlers.app import locate
from handlers.commands.describing import TITLES, about, row
from handlers.commands.printing import fields, for_people, table, tell, write_json, write_lines
from handlers.commands.speaking import paged, rpc
from handlers.settings import Settings


async def show_all(flags: argparse.Namespace, settings: Settings) -> None:
    """Print the chats that are asked for, one a line."""
    people = for_people(as_json=flags.json)
    rows = []
    wanted = {
        "state": flags.state,
        "organization_id": flags.organization,
        "owner_id": flags.owner,
    }
    async with locate(settings).bus("operator") as bus:
        async for chat in paged(bus, "list_chats", "chats", "cursor", **wanted):
            if people:
                rows.append(row(chat))
            else:
                write_json(chat)
    if rows:
        write_lines(table(TITLES, rows))
    elif people:
        tell("no such chats")


async def show(chat_id: str, settings: Settings, *, as_json: bool) -> None:
    """Print all that is known of a chat."""
    async with locate(settings).bus("operator") as bus:
        chat = await rpc(bus, "get_chat", chat_id=chat_id)
    if for_people(as_json=as_json):
        write_lines(fields(about(chat)))
    else:
        write_json(chat)
