"""The processes that `execute` started in this workspace, also by an earlier process of the agent.

Each has a folder below `.workspaced/exec`, named by its `exec_id`, and a keeper (`process_keeper`), which
outlives this process. `note` is written before the command is started; the keeper writes the rest.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import itertools
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bus import Backoff
from handlers.agent import process_keeper
from handlers.agent.kept_output import OutputReader, Piece
from handlers.publishing.atomic_files import read_regular_file, write_atomically
from handlers.runtime.supervise import cancel_and_wait
from statemachine.exec_tools import Reason

MOST_RUNNING: Final = 64
"""Processes of a workspace that may run at the same time."""
MOST_ENDED: Final = 1_000
REMEMBERED_FOR: Final = 24 * 3600.0
"""Seconds that a process is remembered after it has ended; beyond MOST_ENDED the oldest are forgotten."""
_MARKS: Final = ("WORKSPACED_AGENT_ID", "WORKSPACED_WORKSPACE_ID", "WORKSPACED_BUILD_ID")
_NOTE: Final = "note"
_NOTE_SIZE: Final = 1024 * 1024
_GONE: Final = Piece(0, 0, b"", 0, 0)
_END_TIMEOUT: Final = process_keeper.KILL_AFTER + 1.0

_log = logging.getLogger(__name__)


class CannotStart(Exception):
    """The command can't be started, for the reason that the text gives."""


class KeeperGone(Exception):
    """The process has no keeper any more, so nobody takes orders for it."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of a process before it is started; its texts are masked."""

    exec_id: str
    call_id: str
    agent_id: str
    command: str
    cwd: str
    started_at: float
    terminal: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process has ended; `size` counts the bytes that were written until then."""

    ended_at: float
    size: int
    exit_code: int | None = None
    signal: str | None = None
    reason: Reason | None = None


class Process:
    """A process of `execute`, as this agent sees it."""

    def __init__(self, folder: Path, note: Note) -> None:
        self.folder, self.note = folder, note
        self.ended: Ended | None = None
        self.finished = False
        """Whether nothing can be written any more, also not by what the command left running."""
        self.size = 0
        self.input_open = False
        self._output: OutputReader | None = None
        self._changed = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)

    @property
    def exec_id(self) -> str:
        """The id of the process."""
        return self.note.exec_id

    def read(self, after: int, limit: int) -> Piece:
        """Return a piece of the output."""
        with suppress(OSError):
            return self._opened().read(after, limit)
        return _GONE

    async def wait_until(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait until the condition holds, but at most so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._changed.wait()

    async def order(self, order: str, **details: object) -> dict[str, Any]:
        """Give the keeper an order and return its answer. Raises KeeperGone."""
        if self._writer is None:
            raise KeeperGone
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "order": order, **details}
        try:
            self._writer.write(json.dumps(message).encode() + b"\n")
            answered: dict[str, Any] = await answer
        finally:
            del self._answers[number]
        return answered

    async def follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take what the keeper reports, until it ends."""
        self._writer = writer
        self.wake()
        try:
            with suppress(OSError):
                async for line in reader:
                    self._take(json.loads(line))
        finally:
            self._writer = None
            writer.close()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(KeeperGone())
        # The keeper has ended: it is waited for until it has released its lock.
        with suppress(OSError):
            await asyncio.to_thread(self._wait_for_lock)
        self.conclude("lost")

    def conclude(self, reason: Reason) -> None:
        """Note that no keeper is left; without one that has noted the end, it ended for this reason."""
        self.ended = self.ended or self._stored_end()
        with suppress(OSError):
            self.size = self._opened().size()
        if self.ended is None:
            self.ended = Ended(time.time(), self.size, reason=reason)
            with suppress(OSError):
                write_atomically(
                    self.folder / process_keeper.ENDED,
                    json.dumps(asdict(self.ended)).encode(),
                    durable=False,
                )
        self.finished, self.input_open = True, False
        self.wake()

    def abandon(self) -> None:
        """Note that it was never started."""
        self.finished = True
        self.wake()

    @property
    def has_keeper(self) -> bool:
        """Whether a keeper takes orders for it now."""
        return self._writer is not None

    def close(self) -> None:
        """Close the file of the output."""
        if self._output is not None:
            self._output.close()
            self._output = None

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Yield whether no keeper holds the lock; then none can start inside the context."""
        held = os.open(
            self.folder / process_keeper.LOCK,
            os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
        )
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(held)

    def _opened(self) -> OutputReader:
        if self._output is None:
            self._output = OutputReader.open(self.folder / process_keeper.OUTPUT)
        return self._output

    def _wait_for_lock(self) -> None:
        held = os.open(self.folder / process_keeper.LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
        finally:
            os.close(held)

    def _take(self, message: Mapping[str, Any]) -> None:
        number = message.get("id")
        if number is not None:
            answer = self._answers.get(number)
            if answer is not None and not answer.done():
                answer.set_result(dict(message))
            return
        self.size, self.input_open = message["size"], message["input"]
        if message["ended"] is not None:
            self.ended = Ended(**message["ended"])
        self.wake()

    def _stored_end(self) -> Ended | None:
        try:
            stored = read_regular_file(self.folder / process_keeper.ENDED, _NOTE_SIZE)
            return Ended(**json.loads(stored))
        except (OSError, ValueError, TypeError):
            return None

    def wake(self) -> None:
        """Let those who wait look at their conditions."""
        self._changed.set()
        self._changed = asyncio.Event()


class KeeperProgram:
    """The program that forks keepers (`process_keeper`), started when the first one is needed."""

    def __init__(self, env: Mapping[str, str], secrets: tuple[str, ...]) -> None:
        """Of the environment `env` of commands, the program gets the marks by which a stop finds processes.

        Other variables of a template could break this Python.
        """
        marks = {name: value for name, value in env.items() if name in _MARKS}
        self._env, self._secrets = marks, secrets
        self._program: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def fork(self) -> socket.socket:
        """Return a connection to a new keeper. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            try:
                self._send(theirs)
            except (BrokenPipeError, ConnectionResetError):  # somebody has killed it
                self.close()
                self._send(theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours

    def close(self) -> None:
        """End the program; its keepers go on."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._program is not None:
            self._program.kill()
            self._program.wait()
            self._program = None

    def _send(self, connection: socket.socket) -> None:
        if self._control is None:
            self._control = self._start()
        socket.send_fds(self._control, [b"k"], [connection.fileno()])

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # In memory: not on a disk, and not in a pipe, which might not take all of it.
        secrets = os.memfd_create("secrets")
        try:
            os.write(secrets, json.dumps(self._secrets).encode())
            os.lseek(secrets, 0, os.SEEK_SET)
            self._program = subprocess.Popen(  # noqa: S603 — our own program
                [sys.executable, "-I", process_keeper.__file__, str(theirs.fileno())],
                env=self._env,
                stdin=secrets,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(secrets)
        ours.setblocking(False)
        return ours


class Processes:
    """All processes of this workspace that are remembered."""

    def __init__(
        self,
        root: Path,
        agent_id: str,
        program: KeeperProgram,
        *,
        may_run: Callable[[str], bool],
        added: Callable[[Process], None],
        during: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Take the folder `root`.

        `may_run`: whether another agent of this id may be running. `added` is called with each process that runs
        or of which something may still have to be published. While a process runs, `during` is entered.
        """
        self._root, self._agent_id, self._program = root, agent_id, program
        self._may_run, self._added, self._during = may_run, added, during
        self._known: dict[str, Process] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Process]:
        return iter(sorted(self._known.values(), key=lambda process: process.note.started_at))

    def get(self, exec_id: str) -> Process | None:
        """Return the process with this id, if it is remembered."""
        return self._known.get(exec_id)

    @property
    def running(self) -> list[Process]:
        """The processes that have not exited."""
        return [process for process in self._known.values() if process.ended is None]

    def load(self) -> None:
        """Find the processes that were started before."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in self._root.iterdir():
            try:
                note = Note(**json.loads(read_regular_file(folder / _NOTE, _NOTE_SIZE)))
            except (OSError, ValueError, TypeError):
                continue
            process = Process(folder, note)
            if note.agent_id == self._agent_id:
                self._known[note.exec_id] = process
                self._added(process)
                self._spawn(self._find(process))
            elif not self._may_run(note.agent_id):
                # The stop before this start has ended it, if it had not ended before.
                self._known[note.exec_id] = process
                process.conclude("stopped")
        self._forget()

    async def start(
        self, note: Note, request: Mapping[str, Any], *, stdin: bytes | None
    ) -> Process:
        """Start a command. Raises CannotStart."""
        folder = self._root / note.exec_id
        process = Process(folder, note)
        self._known[note.exec_id] = process
        try:
            reader, writer = await self._start(folder, note, request, stdin)
        except BaseException as error:
            del self._known[note.exec_id]
            process.abandon()
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise CannotStart(f"no process can be started: {error}") from error
            raise
        self._added(process)
        self._spawn(self._follow(process, reader, writer))
        return process

    async def stop(self) -> None:
        """End all processes with everything that they left running."""

        async def end(process: Process) -> None:
            # One that is just being started has no keeper yet.
            await process.wait_until(lambda: process.has_keeper or process.finished, _END_TIMEOUT)
            with suppress(KeeperGone):
                await process.order("stop")
            await process.wait_until(lambda: process.finished, _END_TIMEOUT)

        await asyncio.gather(*(end(process) for process in self if not process.finished))

    async def close(self) -> None:
        """Stop following the processes; they go on."""
        await cancel_and_wait(*self._tasks)
        for process in self._known.values():
            process.close()

    async def _start(
        self, folder: Path, note: Note, request: Mapping[str, Any], stdin: bytes | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        folder.mkdir(mode=0o700)  # noqa: ASYNC240 — as fast as a file is written
        write_atomically(folder / _NOTE, json.dumps(asdict(note)).encode(), durable=False)
        given = None if stdin is None else base64.b64encode(stdin).decode()
        body = json.dumps({**request, "folder": str(folder), "stdin": given}).encode()
        reader, writer = await asyncio.open_connection(sock=self._program.fork())
        try:
            writer.write(process_keeper.LENGTH.pack(len(body)) + body)
            answer = await reader.readline()
            told = json.loads(answer) if answer else {"error": "no process can be started now"}
            if "error" in told:
                raise CannotStart(told["error"])
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def _find(self, process: Process) -> None:
        """Connect to the keeper of a process that an earlier process of this agent started."""
        backoff = Backoff(first=0.005, limit=0.5)
        while True:
            try:
                with process.locked() as gone:
                    if gone:
                        process.conclude("lost")
            except OSError:
                process.conclude("lost")
            if process.finished:
                return
            with suppress(OSError):
                reader, writer = await _connect(process.folder)
                await self._follow(process, reader, writer)
                return
            await backoff.wait()  # it has the lock, but does not listen yet

    async def _follow(
        self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        following = asyncio.create_task(process.follow(reader, writer))
        try:
            with self._during():
                await process.wait_until(lambda: process.ended is not None)
            await following
        finally:
            await cancel_and_wait(following)
        self._forget()

    def _forget(self) -> None:
        """Forget what ended long ago."""
        over = [process for process in self if process.ended is not None and process.finished]
        over.sort(key=_ended_at, reverse=True)
        oldest = time.time() - REMEMBERED_FOR
        for number, process in enumerate(over):
            if number >= MOST_ENDED or _ended_at(process) < oldest:
                del self._known[process.exec_id]
                process.close()
                shutil.rmtree(process.folder, ignore_errors=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _connect(folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the keeper of a process. Raises OSError."""
    # By a descriptor: the folder's path may be longer than the address of a socket can be.
    held = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{held}/{process_keeper.SOCKET}")
    finally:
        os.close(held)


def _ended_at(process: Process) -> float:
    return 0.0 if process.ended is None else process.ended.ended_at
