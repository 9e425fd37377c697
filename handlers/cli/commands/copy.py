"""`workspaced cp`: copies files and directories between a workspace and this machine."""

# ruff: noqa: ASYNC240 — this process has nothing else to do while a local file blocks it

from __future__ import annotations

import base64
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress
from workspaced import Workspaced

from handlers.app import locate
from handlers.cli.client import connected
from handlers.cli.command_table import Copy
from handlers.cli.output import note
from handlers.cli.workspace_calls import CallRefused, ask_workspace
from handlers.errors import InvalidSettings, NotFoundError
from handlers.settings import Settings
from statemachine.naming import is_uuid

_PIECE: Final = 128 * 1024
"""Bytes of a file in one request."""
_DEPTH: Final = 1_000
_PART: Final = ".workspaced-part"
"""Added to the name of a file that is not complete yet."""
_MODE: Final = 0o777


async def copy(command: Copy, settings: Settings) -> int:
    """Copy a file, or a directory with all files in it."""
    source, target = _split(command.source), _split(command.target)
    if (source is None) == (target is None):
        raise InvalidSettings(
            "cp: exactly one of the two must be CHAT:PATH, the other a local path"
        )
    console = Console(stderr=True)
    with Progress(console=console, disable=not sys.stderr.isatty()) as progress:
        async with connected(locate(settings), "chat-service") as ws:
            if source is not None:
                await _Copying(ws, source[0], progress).fetch(source[1], Path(command.target))
            elif target is not None:
                await _Copying(ws, target[0], progress).send(Path(command.source), target[1])
    return 0


def _split(text: str) -> tuple[str, str] | None:
    """Return chat and path of `CHAT:PATH`, or None for a local path."""
    chat, colon, path = text.partition(":")
    return (chat.lower(), path or ".") if colon and is_uuid(chat) else None


class _Copying:
    """Copies from and to the workspace of one chat."""

    def __init__(self, ws: Workspaced, chat: str, progress: Progress) -> None:
        self.ws, self.chat, self.progress = ws, chat, progress

    async def fetch(self, path: str, local: Path) -> None:
        """Copy from the workspace."""
        try:
            entries = [entry async for entry in self._entries(path)]
        except CallRefused:  # not a directory
            await self._fetch_file(path, local / Path(path).name if local.is_dir() else local)
            return
        base = local / Path(path).name if local.is_dir() and Path(path).name else local
        base.mkdir(parents=True, exist_ok=True)
        for entry in entries:
            place = base / os.path.relpath(entry["path"], path)
            if entry["kind"] == "directory":
                place.mkdir(parents=True, exist_ok=True)
            elif entry["kind"] == "file":
                place.parent.mkdir(parents=True, exist_ok=True)
                await self._fetch_file(entry["path"], place)
            else:
                note(f"{entry['path']}: neither a file nor a directory; left out")

    async def _entries(self, path: str) -> AsyncIterator[dict[str, Any]]:
        page: dict[str, Any] = {"next": None}
        while "next" in page:
            after = {} if page["next"] is None else {"after": page["next"]}
            page = await ask_workspace(
                self.ws, "list_files", self.chat, path=path, depth=_DEPTH, hidden=True, **after
            )
            for entry in page["entries"]:
                yield entry

    async def _fetch_file(self, path: str, local: Path) -> None:
        part = local.with_name(local.name + _PART)
        page: dict[str, Any] = {"next": 0}
        task = self.progress.add_task(local.name, total=None)
        try:
            with part.open("wb") as file:
                while "next" in page:
                    page = await ask_workspace(
                        self.ws, "read_file", self.chat, path=path, offset=page["next"]
                    )
                    text = page["content"]
                    data = base64.b64decode(text) if page["encoding"] == "base64" else text.encode()
                    file.write(data)
                    self.progress.update(task, total=page["size"], advance=len(data))
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)

    async def send(self, local: Path, path: str) -> None:
        """Copy to the workspace."""
        if local.is_dir():
            base = path if path != "." else local.name
            for found in sorted(local.rglob("*")):
                if found.is_file():
                    await self._send_file(found, f"{base}/{found.relative_to(local).as_posix()}")
        elif local.is_file():
            into = path in {".", "/"} or path.endswith("/")
            await self._send_file(local, f"{path.rstrip('/')}/{local.name}" if into else path)
        else:
            raise NotFoundError(f"{local}: no such file or directory")

    async def _send_file(self, local: Path, path: str) -> None:
        """Write a small file at once, and a large one beside its place before it is moved there."""
        info = local.stat()
        task = self.progress.add_task(local.name, total=info.st_size)
        large = info.st_size > _PIECE
        place = path + _PART if large else path
        append = False
        with local.open("rb") as file:
            while (piece := file.read(_PIECE)) or not append:
                await ask_workspace(
                    self.ws,
                    "write_file",
                    self.chat,
                    path=place,
                    content=base64.b64encode(piece).decode(),
                    encoding="base64",
                    mode=f"{info.st_mode & _MODE:04o}",
                    append=append,
                    create_directories=True,
                )
                append = True
                self.progress.update(task, advance=len(piece))
        if large:
            command = f"mv -f -- {shlex.quote(place)} {shlex.quote(path)}"
            moved = await ask_workspace(
                self.ws, "execute", self.chat, command=command, wait_seconds=60
            )
            if moved.get("exit_code") != 0:
                raise CallRefused(f"{path}: {moved['output'].strip() or 'could not be written'}")
