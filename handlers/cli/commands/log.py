"""`workspaced log`: prints what a build and its agents wrote, and with --follow what they write."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from workspaced import Log, State, Workspaced

from handlers.app import locate
from handlers.cli.client import connected, get_known_chat, read_events, rpc_pages
from handlers.cli.command_table.chats import ShowLog
from handlers.cli.commands.texts import SETTLED, ChangeDescriber
from handlers.cli.output import for_people, no_note, note, plain, write_json
from handlers.cli.status_line import status_line
from handlers.publishing.build_log import is_complete_line
from handlers.settings import Settings

LAST_LINES: Final = 0.5
"""Seconds to wait for lines that were written before the chat settled and are still on their way."""


async def show_log(command: ShowLog, settings: Settings) -> int:
    """Print a build's log; return 1 if the chat has had no build. Raises NotFoundError."""
    printer = LogPrinter(command.json, for_people(as_json=command.json))
    async with connected(locate(settings), "operator") as ws:
        await get_known_chat(ws, command.chat)
        build_id = command.build or await newest_build(ws, command.chat)
        if build_id is None:
            note(f"workspaced: chat {command.chat} has had no build")
            return 1
        try:
            if command.follow:
                report, text = no_note if command.json else note, f"following chat {command.chat}"
                with status_line(text, shown=printer.people, stdout=True) as line:
                    await LogFollower(
                        ws, command.chat, command.build, printer, report, line.heard
                    ).follow()
                    printer.close()
            else:
                await _print_stored(ws, command.chat, build_id, printer)
        finally:
            printer.close()
    if printer.empty and not command.json:
        note(
            f"no log of build {build_id} is stored: it wrote nothing, its log has expired, or the chat has no such build"
        )
    return 0


@dataclass(slots=True)
class LogPrinter:
    """Prints pieces of log, each of them once."""

    as_json: bool
    people: bool
    _seen: set[tuple[str, str, int]] = field(default_factory=set)
    _writer: tuple[str, str] | None = None
    """(build, origin) of a printed line that has no end yet."""

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
            self.close()  # do not continue a line of another writer
        sys.stdout.write(plain(output) if self.people else output)
        self._writer = None if output.endswith("\n") else writer


@dataclass(frozen=True, slots=True)
class LogFollower:
    """Prints the stored and the new log lines of a chat's builds."""

    ws: Workspaced
    chat_id: str
    only: str | None
    """The one build to print, or None for all from the newest."""
    printer: LogPrinter
    report: Callable[[str], None]
    show: Callable[[State | Log], None] = lambda _: None
    """Called with each event of the chat."""
    _describer: ChangeDescriber = field(default_factory=ChangeDescriber)

    async def follow(self) -> None:
        """Return when the chat is settled and all of its log is printed."""
        async with aclosing(self.ws.chat(self.chat_id).watch(old_log=False)) as events:
            async for event in events:
                self._print(event)
                if isinstance(event, State) and event.settled and await self._is_all_printed():
                    break
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_LINES):
                    async for event in events:
                        self._print(event)

    def _print(self, event: State | Log) -> None:
        self.show(event)
        if isinstance(event, State):
            for line in self._describer.lines(event):
                self.report(line)
        elif self.only in (None, event.build_id) and is_complete_line(event.model_dump()):
            self.printer.write(event.model_dump())

    async def _is_all_printed(self) -> bool:
        """Print what is stored; return whether the chat was settled before that."""
        chat = await self.ws.rpc("get_chat", chat_id=self.chat_id)
        build_id = self.only or await newest_build(self.ws, self.chat_id)
        if build_id is not None:
            await _print_stored(self.ws, self.chat_id, build_id, self.printer)
        return chat["state"] in SETTLED


async def newest_build(ws: Workspaced, chat_id: str) -> str | None:
    """Return the id of the chat's newest build, even if its workspace is deleted."""
    chat = await ws.rpc("get_chat", chat_id=chat_id)
    if chat["build"] is not None:
        return str(chat["build"]["id"])
    found: str | None = None
    async for entry in read_events(ws, chat_id):
        if entry["outcome"] == "moved":
            found = entry["event"]["data"].get("build_id") or found
    return found


async def _print_stored(ws: Workspaced, chat_id: str, build_id: str, printer: LogPrinter) -> None:
    pieces = rpc_pages(ws, "read_log", "lines", "after", chat_id=chat_id, build_id=build_id)
    async for piece in pieces:
        if is_complete_line(piece):
            printer.write(piece)
