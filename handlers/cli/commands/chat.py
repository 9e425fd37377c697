"""`workspaced chat`: what the chats are at."""

from __future__ import annotations

import argparse

from handlers.app import locate
from handlers.cli.client import paged
from handlers.cli.commands.events import sought
from handlers.cli.commands.state_text import TITLES, about, row
from handlers.cli.output import fields, for_people, write_json, write_lines, write_listed
from handlers.settings import Settings


async def show_all(flags: argparse.Namespace, settings: Settings) -> None:
    """Print the chats that are asked for, one a line."""
    wanted = {
        "state": flags.state,
        "organization_id": flags.organization,
        "owner_id": flags.owner,
    }
    async with locate(settings).bus("operator") as bus:
        chats = paged(bus, "list_chats", "chats", "cursor", **wanted)
        await write_listed(chats, TITLES, row, "no such chats", as_json=flags.json)


async def show(chat_id: str, settings: Settings, *, as_json: bool) -> None:
    """Print all that is known of a chat. Raises NotFoundError."""
    async with locate(settings).bus("operator") as bus:
        chat = await sought(bus, chat_id)
    if for_people(as_json=as_json):
        write_lines(fields(about(chat)))
    else:
        write_json(chat)
