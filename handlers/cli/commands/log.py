"""`workspaced log`: what a build and its agents wrote, and what they write now."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from bus import Bus
from handlers.app import locate
from handlers.cli.client import paged, rpc, watching
from handlers.cli.commands import events
from handlers.cli.commands.state_text import SETTLED, Describing
from handlers.cli.output import for_people, tell, tell_nobody, write_json
from handlers.cli.sanitize import plain
from handlers.publishing.build_log import is_complete_line
from handlers.settings import Settings

LAST_WORDS: Final = 0.5
"""Seconds for which what was written before the chat was settled may still be on its way."""


@dataclass(slots=True)
class Printer:
    """Prints pieces of log, each once."""

    as_json: bool
    people: bool
    _seen: set[tuple[str, str, int]] = field(default_factory=set)
    _writer: tuple[str, str] | None = None
    """(build, origin) of a line that has no end yet."""

    @property
    def empty(self) -> bool:
        """Whether nothing was printed."""
        return not self._seen

    def write(self, piece: dict[str, Any]) -> None:
        """Print a piece, unless it was printed before."""
        name = (piece["build_id"], piece["origin"], piece["sequence"])
        if name in self._seen:
            return
        self._seen.add(name)
        if self.as_json:
            write_json(piece)
        elif piece["output"]:
            self._write(name[:2], piece["output"])
        sys.stdout.flush()

    def close(self) -> None:
        """End the last line."""
        if self._writer is not None:
            sys.stdout.write("\n")
            self._writer = None

    def _write(self, writer: tuple[str, str], output: str) -> None:
        if self._writer not in (None, writer):
            self.close()  # another's line would go on in the middle of this one
        sys.stdout.write(plain(output) if self.people else output)
        self._writer = None if output.endswith("\n") else writer


async def show(flags: argparse.Namespace, settings: Settings) -> int:
    """Print a build's log; return 1 when there is no build. Raises NotFoundError."""
    printer = Printer(flags.json, for_people(as_json=flags.json))
    async with locate(settings).bus("operator") as bus:
        await events.sought(bus, flags.chat)
        build_id = flags.build or await newest_build(bus, flags.chat)
        if build_id is None:
            tell(f"workspaced: chat {flags.chat} has had no build")
            return 1
        try:
            if flags.follow:
                words = tell_nobody if flags.json else tell
                await Follower(bus, flags.chat, flags.build, printer, words).follow()
            else:
                await _print(bus, flags.chat, build_id, printer)
        finally:
            printer.close()
    if printer.empty and not flags.json:
        tell(f"nothing is kept of the log of build {build_id}")
    return 0


async def newest_build(bus: Bus, chat_id: str) -> str | None:
    """Return the id of the chat's newest build, also when its workspace is gone."""
    chat = await rpc(bus, "get_chat", chat_id=chat_id)
    if chat["build"] is not None:
        return str(chat["build"]["id"])
    found: str | None = None
    async for entry in events.read(bus, chat_id):
        if entry["outcome"] == "moved":
            found = entry["event"]["data"].get("build_id") or found
    return found


@dataclass(frozen=True, slots=True)
class Follower:
    """Prints what was written of a chat's builds and what comes."""

    bus: Bus
    chat_id: str
    only: str | None
    """The one build that is asked for."""
    printer: Printer
    words: Callable[[str], None]
    _describing: Describing = field(default_factory=Describing)

    async def follow(self) -> None:
        """Go on until the chat is settled and all of it is printed."""
        async with watching(self.bus, self.chat_id) as changes:
            async for change in changes:
                if change is not None:
                    self._take(change)
                    if change["data"].get("state") not in SETTLED:
                        continue
                if await self._looked_settled():
                    break
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    async for change in changes:
                        self._take(change)

    def _take(self, change: dict[str, Any] | None) -> None:
        if change is None:
            return
        if "output" not in change["data"]:
            for line in self._describing.lines(change):
                self.words(line)
        elif self.only in (None, change["data"]["build_id"]):
            self.printer.write(change["data"])

    async def _looked_settled(self) -> bool:
        """Print what there is; say whether the chat was settled before that."""
        chat = await rpc(self.bus, "get_chat", chat_id=self.chat_id)
        build_id = self.only or await newest_build(self.bus, self.chat_id)
        if build_id is not None:
            await _print(self.bus, self.chat_id, build_id, self.printer)
        return chat["state"] in SETTLED


async def _print(bus: Bus, chat_id: str, build_id: str, printer: Printer) -> None:
    asked = {"chat_id": chat_id, "build_id": build_id}
    async for piece in paged(bus, "read_log", "lines", "after", **asked):
        if is_complete_line(piece):
            printer.write(piece)
