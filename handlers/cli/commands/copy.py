"""`workspaced cp`: copies files and directories between a workspace and this machine."""

# ruff: noqa: ASYNC240 — this process has nothing else to do while a local file blocks it

from __future__ import annotations

import base64
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from workspaced import CannotRun, Workspaced

from handlers.app import locate
from handlers.cli.client import connected
from handlers.cli.command_table.processes import Copy
from handlers.cli.output import note
from handlers.cli.workspace_calls import CallRefused, ask_workspace
from handlers.errors import InvalidSettings, NotFoundError
from handlers.settings import Settings
from statemachine.naming import is_uuid

_PIECE: Final = 256 * 1024
"""Bytes of a file in one request; a file of more is sent to a command that writes it."""
_DEPTH: Final = 1_000
_PART: Final = ".workspaced-part"
"""Added to the name of a file that is not complete yet."""
_MODE: Final = 0o777
_EXECUTABLE: Final = 0o111
_ARGUMENTS: Final = 64 * 1024
"""Bytes of paths that one command gets at most."""


async def copy(command: Copy, settings: Settings) -> int:
    """Copy a file, or a directory with all files in it."""
    source, target = _split(command.source), _split(command.target)
    if (source is None) == (target is None):
        raise InvalidSettings(
            "cp: exactly one of the two must be CHAT:PATH, the other a local path"
        )
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:-1], DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
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
        self._bar = progress.add_task("copying", total=None)

    # -- out of the workspace ------------------------------------------------------------------

    async def fetch(self, path: str, local: Path) -> None:
        """Copy from the workspace."""
        name = Path(path).name
        into = local.is_dir() and name not in {"", ".."}
        place = local / name if into else local
        try:
            entries = [entry async for entry in self._entries(path)]
        except CallRefused:  # not a directory, or nothing that can be read: reading it says what
            await self._fetch_file(path, place, executable=bool(await self._executables(path)))
            return
        place.mkdir(parents=True, exist_ok=True)
        self.progress.update(
            self._bar, total=sum(e["size"] for e in entries if e["kind"] == "file")
        )
        executables = await self._executables(path)
        for entry in entries:
            relative = os.path.relpath(entry["path"], path)
            if relative.partition("/")[0] == "..":
                raise CallRefused(f"list_files: {entry['path']} is not below {path}")
            target = place / relative
            if entry["kind"] == "directory":
                target.mkdir(parents=True, exist_ok=True)
            elif entry["kind"] == "file":
                await self._fetch_file(
                    entry["path"], target, executable=os.path.normpath(entry["path"]) in executables
                )
            else:
                note(f"{entry['path']}: neither a file nor a directory; left out")

    async def _entries(self, path: str) -> AsyncIterator[dict[str, Any]]:
        page: dict[str, Any] = {"next": None}
        while "next" in page:
            after = {} if page["next"] is None else {"after": page["next"]}
            page = await self._ask("list_files", path=path, depth=_DEPTH, hidden=True, **after)
            for entry in page["entries"]:
                yield entry

    async def _executables(self, path: str) -> set[str]:
        """Return the files at and below a path that their owner may execute."""
        where = path if path.startswith("/") else f"./{path}"
        find = f"find {shlex.quote(where)} -type f -perm -100 -print0 2>/dev/null"
        text = ""
        async with self.ws.chat(self.chat).execute(find) as process:
            async for piece in process:
                text += piece
        return {os.path.normpath(found) for found in text.split("\0") if found}

    async def _fetch_file(self, path: str, local: Path, *, executable: bool) -> None:
        part = local.with_name(local.name + _PART)
        page: dict[str, Any] = {"next": 0}
        self.progress.update(self._bar, description=local.name)
        try:
            with part.open("wb") as file:
                while "next" in page:
                    page = await self._ask("read_file", path=path, offset=page["next"])
                    text = page["content"]
                    data = base64.b64decode(text) if page["encoding"] == "base64" else text.encode()
                    file.write(data)
                    self._advance(len(data), page["size"])
            if executable:
                part.chmod(part.stat().st_mode | _EXECUTABLE & ~_umask())
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)

    def _advance(self, size: int, total: int) -> None:
        """Move the progress bar; that of one file learns its size only now."""
        if self.progress.tasks[self._bar].total is None:
            self.progress.update(self._bar, total=total)
        self.progress.advance(self._bar, size)

    # -- into the workspace --------------------------------------------------------------------

    async def send(self, local: Path, path: str) -> None:
        """Copy to the workspace."""
        if not local.is_dir() and not local.is_file():
            fault = (
                "neither a file nor a directory"
                if os.path.lexists(local)
                else "no such file or directory"
            )
            raise NotFoundError(f"{local}: {fault}")
        name = local.resolve().name
        base = f"{path.rstrip('/')}/{name}" if await self._is_directory(path) else path
        if local.is_file():
            self.progress.update(self._bar, total=local.stat().st_size)
            await self._send_file(local, f"{base}{name}" if base.endswith("/") else base)
            return
        files, directories = [], [base]
        for found in sorted(local.rglob("*")):
            target = f"{base.rstrip('/')}/{found.relative_to(local).as_posix()}"
            if found.is_file():
                files.append((found, target))
            elif found.is_dir() and not found.is_symlink():
                directories.append(target)
            else:
                note(f"{found}: neither a file nor a directory; left out")
        self.progress.update(self._bar, total=sum(found.stat().st_size for found, _ in files))
        await self._make_directories(directories)
        for found, target in files:
            await self._send_file(found, target)

    async def _is_directory(self, path: str) -> bool:
        try:
            await self._ask("list_files", path=path, depth=1)
        except CallRefused:
            return False
        return True

    async def _make_directories(self, paths: list[str]) -> None:
        """Make directories, also those that get no files."""
        while paths:
            words, size = [], 0
            while paths and size < _ARGUMENTS:
                words.append(shlex.quote(paths.pop(0)))
                size += len(words[-1].encode())
            await self._run(f"mkdir -p -- {' '.join(words)}", words[0])

    async def _send_file(self, local: Path, path: str) -> None:
        """Write a small file at once, and a large one beside its place before it is moved there."""
        info = local.stat()
        mode = f"{info.st_mode & _MODE:04o}"
        self.progress.update(self._bar, description=local.name)
        with local.open("rb") as file:
            if info.st_size > _PIECE:
                await self._send_large(file, path, mode)
                return
            data = file.read()
        await self._ask(
            "write_file",
            path=path,
            content=base64.b64encode(data).decode(),
            encoding="base64",
            mode=mode,
            create_directories=True,
        )
        self.progress.advance(self._bar, len(data))

    async def _send_large(self, file: BinaryIO, path: str, mode: str) -> None:
        """Stream a file to a command; to append with `write_file` would write what is there again each time."""
        place, part, folder = map(
            shlex.quote, (path, path + _PART, str(PurePosixPath(path).parent))
        )
        command = (
            f"part={part}; trap 'rm -f -- \"$part\"' EXIT; trap 'exit 1' TERM; mkdir -p -- {folder} "
            f'&& cat > "$part" && chmod {mode} -- "$part" && mv -f -- "$part" {place}'
        )
        async with self.ws.chat(self.chat).execute(command, open_stdin=True) as process:
            try:
                while piece := file.read(_PIECE):
                    await process.write(piece)
                    self.progress.advance(self._bar, len(piece))
                await process.close_input()
            except CannotRun:  # it has ended, and its output says why
                pass
            text = "".join([piece async for piece in process]).strip()
            if (await process.wait()).exit_code != 0:
                raise CallRefused(f"{path}: {text or 'could not be written'}")

    async def _run(self, command: str, what: str) -> None:
        done = await self._ask("execute", command=command, wait_seconds=60)
        if done.get("exit_code") != 0:
            raise CallRefused(f"{what}: {done['output'].strip() or 'could not be written'}")

    async def _ask(self, tool: str, **args: Any) -> dict[str, Any]:
        return await ask_workspace(self.ws, tool, self.chat, **args)


def _umask() -> int:
    """Return this process's umask, which can only be read by setting it."""
    os.umask(mask := os.umask(0))
    return mask
