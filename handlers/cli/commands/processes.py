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

from workspaced import Exit, Workspaced
from workspaced import WorkspacedError as ClientError

from bus import Backoff
from handlers.app import locate
from handlers.cli.client import connected
from handlers.cli.command_table.processes import Execute, KillProcess, ListProcesses
from handlers.cli.output import local_time, note, write_entries
from handlers.cli.workspace_calls import CallRefused, ask_workspace
from handlers.errors import InvalidSettings
from handlers.runtime.supervise import cancel_and_wait
from handlers.settings import Settings

_PIECE: Final = 64 * 1024
"""Bytes of input in one request."""
_LEAVING: Final = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end this command and leave the other one running."""
_LOST: Final = 1
_OF_SIGNAL: Final = 128
_REASONS: Final = {
    "stopped": "the command was ended because the workspace was stopped or deleted",
    "timeout": "the command was ended because it ran longer than it was allowed to",
    "lost": "nobody knows how the command ended, because its keeper was killed or the machine restarted",
}
_TITLES: Final = ("PROCESS", "STATUS", "STARTED", "COMMAND")


async def run(command: Execute, settings: Settings) -> int:
    """Run a command in the workspace, or follow one; return its exit status."""
    if bool(command.words) == bool(command.attach):
        raise InvalidSettings("exec: name either a command after --, or a process with --attach")
    async with connected(locate(settings), "chat-service") as ws:
        session = _Session(ws, command.chat, command.attach or "")
        if command.words:
            await session.start(command.words, terminal=command.terminal)
        with _raw_terminal(active=command.terminal and sys.stdin.isatty()):
            status = await session.follow(terminal=command.terminal)
    if session.detached:
        note(
            "detached; the command goes on. To come back: "
            f"workspaced exec {command.chat} {'-t ' if command.terminal else ''}--attach {session.exec_id}"
        )
    return status


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
        self._interrupted = False
        self._detach: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The signal after which this command leaves the other one running."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self, words: list[str], *, terminal: bool) -> None:
        """Start the command; a repeated request starts it only once."""
        text = words[0] if len(words) == 1 else shlex.join(words)
        mode = {"pty": _terminal_size()} if terminal else {"open_stdin": True}
        result = await self._ask("execute", command=text, timeout_seconds=0, wait_seconds=0, **mode)
        self.exec_id = result["exec_id"]

    @property
    def detached(self) -> bool:
        """Whether the command goes on without this one."""
        return self._detach.done()

    async def follow(self, *, terminal: bool) -> int:
        """Print the output until the process has exited or the user detaches."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        for number in _LEAVING:  # without a handler, the terminal would stay raw
            loop.add_signal_handler(number, self._leave, number)
        if terminal:
            loop.add_signal_handler(signal.SIGWINCH, self._resize)
            self._resize()  # the process may have been started in a terminal of another size
        output = loop.create_task(self._print_output())
        reading = loop.create_task(self._send_input())
        try:
            await asyncio.wait((output, self._detach), return_when=asyncio.FIRST_COMPLETED)
            return output.result() if output.done() else _OF_SIGNAL + self._detach.result()
        finally:
            for number in (signal.SIGINT, signal.SIGWINCH, *_LEAVING):
                loop.remove_signal_handler(number)
            await cancel_and_wait(output, reading, *self._tasks)

    async def _print_output(self) -> int:
        process, seen = self.ws.chat(self.chat).process(self.exec_id), 0
        async for piece in process.pieces():
            if piece.offset > seen:
                note(f"{piece.offset - seen} bytes of the output are no longer kept")
            sys.stdout.write(piece.output)
            sys.stdout.flush()
            seen = piece.next
        return _exit_status(await process.wait())

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
        if self._interrupted:
            self._leave(signal.SIGINT)
            return
        self._interrupted = True
        note("sent INT; press Ctrl-C again to detach")
        self._spawn("process_signal", exec_id=self.exec_id, signal="INT")

    def _leave(self, number: int) -> None:
        if not self._detach.done():
            self._detach.set_result(number)

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


def _exit_status(ended: Exit) -> int:
    if ended.reason in _REASONS:
        note(f"workspaced: {_REASONS[ended.reason]}")
    if ended.exit_code is not None:
        return ended.exit_code
    if ended.signal is not None:
        name = ended.signal.removeprefix("SIG")
        return _OF_SIGNAL + getattr(signal, f"SIG{name}", signal.SIGKILL)
    return _LOST


def _row(process: Mapping[str, Any]) -> tuple[str, ...]:
    ended = process.get("exit_code", process.get("signal", process.get("reason", "")))
    status = f"{process['status']} {ended}".strip()
    return process["exec_id"], status, local_time(process["started_at"]), process["command"]
