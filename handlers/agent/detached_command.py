"""A command of the agent that goes on when the agent's process ends, and is found again by the next one."""

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

_NEWS: Final = "news"
_READ: Final = "read"
"""How much of the output was read, for the process of the agent that comes next."""
_NOTE_SIZE: Final = 64
_PIECE: Final = 65_536


class DetachedCommand:
    """A command in the care of a keeper (`handlers/sandbox/keeper.py`), which shares a folder with us.

    It is found by files and FIFOs alone: under bubblewrap, the next process of the agent is in
    another process namespace, and under Landlock it may not signal what this one started.
    """

    def __init__(self, folder: Path) -> None:
        """Find the command that was started with this folder. Raises OSError if none was."""
        self._folder = folder
        self._keeper: subprocess.Popen[bytes] | None = None
        self._news = os.open(
            folder / _NEWS, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        if not stat.S_ISFIFO(os.fstat(self._news).st_mode):
            os.close(self._news)
            raise FileNotFoundError(f"{folder / _NEWS} is no FIFO")
        self._heard, self._over = asyncio.Event(), False
        self._output: Callable[[bytes], None] | None = None
        self._offset = 0
        with suppress(OSError, ValueError):
            self._offset = int(read_regular_file(folder / _READ, _NOTE_SIZE))

    @classmethod
    def start(
        cls, folder: Path, command: str, *, cwd: Path, env: Mapping[str, str], limit: int
    ) -> Self:
        """Start a shell command; of its output `limit` bytes are kept. Raises OSError, ValueError."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        for name in (_NEWS, keeper.ORDERS):
            os.mkfifo(folder / name, 0o600)
        # The keeper has it before it runs, and so before anybody could take it for gone.
        news = os.open(folder / _NEWS, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        kept = cls(folder)
        try:
            program = [sys.executable, "-I", "-S", keeper.__file__, str(folder), str(limit)]
            kept._keeper = subprocess.Popen(  # noqa: S603 — what the template says
                [*program, str(news), "/bin/sh", "-c", command],
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(news,),
                start_new_session=True,
            )
        except BaseException:
            kept.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(news)
        return kept

    @property
    def alive(self) -> bool:
        """Whether a process that descends from the command is left."""
        self._hear()
        return not self._over

    @property
    def ended(self) -> tuple[int, bool] | None:
        """The command's exit status, and whether it left something running; None: it has not ended."""
        try:
            status, left = read_regular_file(self._folder / keeper.ENDED, _NOTE_SIZE).split()
            return int(status), left == b"1"
        except (OSError, ValueError):
            return None

    @property
    def listening(self) -> bool:
        """Whether somebody was told what it writes."""
        return self._output is not None

    def listen(self, output: Callable[[bytes], None]) -> None:
        """Call `output` with what the command and what it left running write, until `close`."""
        self._output = output
        asyncio.get_running_loop().add_reader(self._news, self._hear)
        self._hear()

    async def wait(self) -> int | None:
        """Wait for the command's end and return its exit status; None if nobody saw that.

        Only while listening.
        """
        while (ended := self.ended) is None and not self._over:
            self._heard.clear()
            await self._heard.wait()
        ended = ended or self.ended
        return None if ended is None else ended[0]

    def signal(self, number: signal.Signals) -> None:
        """Signal the command's process group, as long as the command itself has not ended."""
        with suppress(OSError):
            orders = os.open(self._folder / keeper.ORDERS, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(orders, bytes([number]))
            finally:
                os.close(orders)

    def close(self) -> None:
        """Listen no more; the command goes on."""
        if self._news < 0:
            return
        self._hear()
        self._ignore()
        os.close(self._news)
        self._news = -1
        if self._keeper is not None and self._keeper.returncode is None:
            self._keeper.returncode = 0  # it outlives us: nobody here waits for it

    def _ignore(self) -> None:
        if self._output is not None:
            asyncio.get_running_loop().remove_reader(self._news)

    def _hear(self) -> None:
        if self._over or self._news < 0:
            return
        with suppress(BlockingIOError):
            self._over = not os.read(self._news, _PIECE)
        # After the news was taken: what comes later is news again.
        if self._output is not None:
            self._read()
        if self._over:
            self._ignore()
            if self._keeper is not None:
                self._keeper.wait()  # its descriptors close a moment before it is gone
        self._heard.set()

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
                write_atomically(self._folder / _READ, str(self._offset).encode(), durable=False)
        if self._over:
            self._output(b"")
