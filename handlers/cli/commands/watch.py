"""`workspaced watch`: follows a chat until it is interrupted."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import Any

from workspaced import Log, State

from handlers.app import locate
from handlers.cli.client import connected, get_known_chat
from handlers.cli.command_table.chats import WatchChat
from handlers.cli.commands.texts import ChangeDescriber
from handlers.cli.output import for_people, write_json, write_lines
from handlers.cli.status_line import status_line
from handlers.settings import Settings


async def watch(command: WatchChat, settings: Settings) -> None:
    """Print a chat's states and the log of its builds as they come. Raises NotFoundError."""
    people, describer = for_people(as_json=command.json), ChangeDescriber()
    async with connected(locate(settings), "operator") as ws:
        await get_known_chat(ws, command.chat)
        with status_line(f"watching chat {command.chat}", shown=people, stdout=True) as line:
            async with aclosing(ws.chat(command.chat).watch(old_log=False)) as events:
                async for event in events:
                    line.heard(event)
                    if people:
                        write_lines(describer.lines(event))
                    else:
                        write_json(_as_json(event))
                    sys.stdout.flush()


def _as_json(event: State | Log) -> dict[str, Any]:
    kind = "log" if isinstance(event, Log) else "state"
    return {"event": kind, **(event.model_dump() if isinstance(event, Log) else event.data)}
