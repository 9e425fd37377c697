"""A shell command that survives the process of its agent, and that the next process of the agent resumes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from handlers.publishing.atomic_files import read_regular_file, write_atomically
from handlers.sandbox import keeper

_NOTIFICATIONS: Final = "news"
_READ_FILE: Final = "read"
"""The file that stores how much of the output was read, for the agent's next process."""
_NOTE_SIZE: Final = 64
_PIECE: Final = 65_536


class DetachedCommand:
    """A command that a keeper runs (`handlers/sandbox/keeper.py`), which shares a folder with this process.

    They communicate by files and FIFOs alone: under bubblewrap, the agent's next process is in another pid
    namespace, and under Landlock it may not signal what this one has started.

    """

    def __init__(self, folder: Path) -> None:
        """Find the command that was started with this folder. Raises OSError if none was."""
        self._folder = folder
        self._keeper: subprocess.Popen[bytes] | None = None
        self._notifications = os.open(
            folder / _NOTIFICATIONS, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        if not stat.S_ISFIFO(os.fstat(self._notifications).st_mode):
            os.close(self._notifications)
            raise FileNotFoundError(f"{folder / _NOTIFICATIONS} is no FIFO")
        self._changed, self._ended_all = asyncio.Event(), False
        self._output: Callable[[bytes], None] | None = None
        self._offset = 0
        with suppress(OSError, ValueError):
            self._offset = int(read_regular_file(folder / _READ_FILE, _NOTE_SIZE))

    @classmethod
    def start(
        cls, folder: Path, command: str, *, cwd: Path, env: Mapping[str, str], limit: int
    ) -> Self:
        """Start a shell command; `limit` bytes of its output are stored. Raises OSError, ValueError."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        for name in (_NOTIFICATIONS, keeper.ORDERS):
            os.mkfifo(folder / name, 0o600)
        # The keeper inherits it, so a reader never finds the FIFO without a writer before it runs.
        notifications = os.open(folder / _NOTIFICATIONS, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        kept = cls(folder)
        try:
            program = [sys.executable, "-I", "-S", keeper.__file__, str(folder), str(limit)]
            kept._keeper = subprocess.Popen(  # noqa: S603 — a command of the template
                [*program, str(notifications), "/bin/sh", "-c", command],
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(notifications,),
                start_new_session=True,
            )
        except BaseException:
            kept.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(notifications)
        return kept

    @property
    def alive(self) -> bool:
        """Whether the command or a descendant of it is still running."""
        self._on_notification()
        return not self._ended_all

    @property
    def ended(self) -> tuple[int, bool] | None:
        """The command's exit status and whether descendants are still running; None if it has not ended."""
        try:
            status, left = read_regular_file(self._folder / keeper.ENDED, _NOTE_SIZE).split()
            return int(status), left == b"1"
        except (OSError, ValueError):
            return None

    @property
    def listening(self) -> bool:
        """Whether `listen` was called."""
        return self._output is not None

    def listen(self, output: Callable[[bytes], None]) -> None:
        """Call `output` with everything that the command and its descendants write, until `close`."""
        self._output = output
        asyncio.get_running_loop().add_reader(self._notifications, self._on_notification)
        self._on_notification()

    async def wait(self) -> int | None:
        """Wait for the command's end and return its exit status; None if the keeper was killed.

        Only after `listen`.

        """
        while (ended := self.ended) is None and not self._ended_all:
            self._changed.clear()
            await self._changed.wait()
        ended = ended or self.ended
        return None if ended is None else ended[0]

    def signal(self, number: signal.Signals) -> None:
        """Signal the command's process group, unless the command has ended."""
        with suppress(OSError):
            orders = os.open(self._folder / keeper.ORDERS, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(orders, bytes([number]))
            finally:
                os.close(orders)

    def close(self) -> None:
        """Stop listening; the command goes on."""
        if self._notifications < 0:
            return
        self._on_notification()
        self._remove_reader()
        os.close(self._notifications)
        self._notifications = -1
        if self._keeper is not None and self._keeper.returncode is None:
            self._keeper.returncode = 0  # it outlives this process, so Popen must not complain

    def _remove_reader(self) -> None:
        if self._output is not None:
            asyncio.get_running_loop().remove_reader(self._notifications)

    def _on_notification(self) -> None:
        if self._ended_all or self._notifications < 0:
            return
        with suppress(BlockingIOError):
            self._ended_all = not os.read(self._notifications, _PIECE)
        # After the notification was read: later output sends another one.
        if self._output is not None:
            self._read()
        if self._ended_all:
            self._remove_reader()
            if self._keeper is not None:
                self._keeper.wait()  # its descriptors are closed a moment before it ends
        self._changed.set()

    def _read(self) -> None:
        assert self._output is not None  # noqa: S101 — for the type checker
        before = self._offset
        with suppress(OSError):
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            output = os.open(self._folder / keeper.OUTPUT, flags)
            try:
                while data := os.pread(output, _PIECE, self._offset):
                    self._offset += len(data)
                    self._output(data)
            finally:
                os.close(output)
            if self._offset != before:
                write_atomically(
                    self._folder / _READ_FILE, str(self._offset).encode(), durable=False
                )
        if self._ended_all:
            self._output(b"")
