"""`workspaced events` and `workspaced replay`: what happened to a chat, and whether it adds up."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from bus import Bus
from handlers.app import locate
from handlers.commands.printing import write_json
from handlers.commands.speaking import paged
from handlers.settings import Settings
from statemachine.replay import replay


async def events(chat_id: str, settings: Settings) -> None:
    """Print a chat's event log, one entry a line."""
    async with locate(settings).bus("operator") as bus:
        async for entry in read(bus, chat_id):
            write_json(entry)


async def read(bus: Bus, chat_id: str) -> AsyncIterator[dict[str, Any]]:
    """Yield a chat's log entries, page by page."""
    async for entry in paged(bus, "read_events", "events", "after", chat_id=chat_id):
        yield entry


def replay_file(file: str) -> int:
    """Fold a log and print each chat's path; return 1 when it differs from what was recorded."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
        replayed = replay(_entries(text))
    except (OSError, ValueError) as bad:
        sys.stderr.write(f"workspaced: {file}: {bad}\n")
        return 1
    for chat_id, chat in replayed.items():
        sys.stdout.write(f"{chat_id}  {' -> '.join(chat.path)}\n")
        for difference in chat.differences:
            sys.stderr.write(f"{chat_id}  {difference}\n")
    return 1 if any(chat.differences for chat in replayed.values()) else 0


def _entries(text: str) -> Iterator[dict[str, Any]]:
    """Read the lines of a log. Raises ValueError that names the line."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as bad:
            raise ValueError(f"line {number} is not JSON: {bad}") from bad
        if not isinstance(entry, dict) or not isinstance(entry.get("event"), dict):
            raise ValueError(  # noqa: TRY004 — as bad as what is no JSON
                f"line {number} is no entry of an event log"
            )
        yield entry
