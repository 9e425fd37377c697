"""`workspaced exec`, `ps` and `kill`: run commands in a chat's workspace, and control them."""

from __future__ import annotations

import asyncio
import base64
import os
import shlex
import signal
import sys
import termios
import threading
import tty
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from workspaced import Workspaced
from workspaced import WorkspacedError as ClientError

from bus import Backoff
from handlers.app import locate
from handlers.cli.client import connected
from handlers.cli.command_table import Execute, KillProcess, ListProcesses
from handlers.cli.output import local_time, note, write_entries
from handlers.cli.workspace_calls import CallRefused, ask_workspace
from handlers.runtime.supervise import cancel_and_wait
from handlers.settings import Settings

_WAIT: Final = 50
"""Seconds that one request for output waits for more."""
_PIECE: Final = 64 * 1024
"""Bytes of input in one request."""
_DETACHED: Final = 130
_LOST: Final = 1
_OF_SIGNAL: Final = 128
_TITLES: Final = ("PROCESS", "STATUS", "STARTED", "COMMAND")


async def run(command: Execute, settings: Settings) -> int:
    """Run a command in the workspace, or follow one; return its exit status."""
    async with connected(locate(settings), "chat-service") as ws:
        session = _Session(ws, command.chat, command.attach or "")
        if not command.attach:
            if not command.words:
                note("workspaced: name the command after --, or a process with --attach")
                return 2
            await session.start(command.words, terminal=command.terminal)
        with _raw_terminal(active=command.terminal and sys.stdin.isatty()):
            return await session.follow(terminal=command.terminal)


async def list_processes(command: ListProcesses, settings: Settings) -> None:
    """Print the processes of a workspace."""
    async with connected(locate(settings), "chat-service") as ws:
        listed = await ask_workspace(ws, "process_list", command.chat)

        async def entries() -> AsyncIterator[dict[str, Any]]:
            for process in listed["processes"]:
                yield process

        none = "no command runs or ran in this workspace"
        await write_entries(entries(), _TITLES, _row, none=none, as_json=command.json)


async def kill(command: KillProcess, settings: Settings) -> int:
    """Send a signal to a process; return 1 if nothing of it was left."""
    async with connected(locate(settings), "chat-service") as ws:
        result = await ask_workspace(
            ws, "process_signal", command.chat, exec_id=command.process, signal=command.signal
        )
    if not result["signaled"]:
        note("workspaced: nothing of the process was left to get the signal")
    return 0 if result["signaled"] else 1


class _Session:
    """A process that is followed: its output is printed, and it gets input and signals."""

    def __init__(self, ws: Workspaced, chat: str, exec_id: str) -> None:
        self.ws, self.chat, self.exec_id = ws, chat, exec_id
        self._interrupted = 0
        self._detach = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self, words: list[str], *, terminal: bool) -> None:
        """Start the command; a repeated request starts it only once."""
        text = words[0] if len(words) == 1 else shlex.join(words)
        mode = {"pty": _terminal_size()} if terminal else {"open_stdin": True}
        result = await self._ask("execute", command=text, wait_seconds=0, **mode)
        self.exec_id = result["exec_id"]

    async def follow(self, *, terminal: bool) -> int:
        """Print the output until the process has exited or the user detaches."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        if terminal:
            loop.add_signal_handler(signal.SIGWINCH, self._resize)
        output = loop.create_task(self._print_output())
        reading = loop.create_task(self._send_input())
        detaching = loop.create_task(self._detach.wait())
        try:
            await asyncio.wait((output, detaching), return_when=asyncio.FIRST_COMPLETED)
            if output.done():
                return output.result()
            note(
                "detached; the command goes on. To come back: "
                f"workspaced exec {self.chat} --attach {self.exec_id}"
            )
            return _DETACHED
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            await cancel_and_wait(output, reading, detaching, *self._tasks)

    async def _print_output(self) -> int:
        after = 0
        while True:
            page = await self._ask(
                "process_output", exec_id=self.exec_id, after=after, wait_seconds=_WAIT
            )
            if page["offset"] > after:
                note(f"{page['offset'] - after} bytes of the output are no longer kept")
            sys.stdout.write(page["output"])
            sys.stdout.flush()
            after = page["next"]
            if page["status"] == "exited" and not page["output"]:
                return _exit_status(page)

    async def _send_input(self) -> None:
        async for piece in _standard_input():
            await self._input(piece)
        with suppress(ClientError, CallRefused):
            await self._ask("process_input", exec_id=self.exec_id, close=True)

    async def _input(self, piece: bytes) -> None:
        backoff = Backoff(first=0.02, limit=1.0)
        while piece:
            try:
                result = await self._ask(
                    "process_input",
                    exec_id=self.exec_id,
                    data=base64.b64encode(piece).decode(),
                    encoding="base64",
                )
            except CallRefused:  # the input is closed: the command reads no more
                return
            piece = piece[result["written"] :]
            if piece and not result["written"]:
                await backoff.wait()

    def _interrupt(self) -> None:
        self._interrupted += 1
        if self._interrupted > 1:
            self._detach.set()
            return
        note("sent INT; press Ctrl-C again to detach")
        self._spawn("process_signal", exec_id=self.exec_id, signal="INT")

    def _resize(self) -> None:
        self._spawn("process_input", exec_id=self.exec_id, **_terminal_size())

    def _spawn(self, tool: str, **args: Any) -> None:
        async def ask() -> None:
            with suppress(ClientError, CallRefused):
                await self._ask(tool, **args)

        task = asyncio.get_running_loop().create_task(ask())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, tool: str, **args: Any) -> dict[str, Any]:
        """Ask, again with the same call while nobody answers: it is done once."""
        return await ask_workspace(self.ws, tool, self.chat, **args)


@contextmanager
def _raw_terminal(*, active: bool) -> Iterator[None]:
    """Pass on each key as it is pressed."""
    if not active:
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _terminal_size() -> dict[str, int]:
    try:
        size = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return {"cols": 80, "rows": 24}
    return {"cols": size.columns or 80, "rows": size.lines or 24}


async def _standard_input() -> AsyncIterator[bytes]:
    """Read the standard input in a thread, because an event loop cannot wait for a regular file."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue()
    room = threading.Semaphore(4)

    def read() -> None:
        piece = b"-"
        while piece:
            room.acquire()
            try:
                piece = os.read(0, _PIECE)
            except OSError:
                piece = b""
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

    threading.Thread(target=read, daemon=True).start()
    while piece := await pieces.get():
        yield piece
        room.release()


def _exit_status(page: dict[str, Any]) -> int:
    if "exit_code" in page:
        return int(page["exit_code"])
    if "signal" in page:
        name = str(page["signal"]).removeprefix("SIG")
        return _OF_SIGNAL + getattr(signal, f"SIG{name}", signal.SIGKILL)
    note(f"workspaced: the command ended without an exit status ({page.get('reason', 'unknown')})")
    return _LOST


def _row(process: Mapping[str, Any]) -> tuple[str, ...]:
    ended = process.get("exit_code", process.get("signal", process.get("reason", "")))
    status = f"{process['status']} {ended}".strip()
    return process["exec_id"], status, local_time(process["started_at"]), process["command"]
