"""A command of the command line in a terminal of its own, as a person uses it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rigs.processes import ROOT, environment

_PATIENCE = 30.0


class Terminal:
    """A pseudo-terminal with a running command of `workspaced` in it."""

    def __init__(self, *words: str | Path, cols: int = 80, rows: int = 24) -> None:
        self._master, self._slave = pty.openpty()
        self.before = termios.tcgetattr(self._slave)
        """The settings of the terminal before the command changed them."""
        self.shown = b""
        """All that the terminal has shown."""
        self._resize(cols, rows)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "handlers", *map(str, words)],
            cwd=ROOT,
            env=environment({"TERM": "xterm"}),
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def settings(self) -> list[Any]:
        """Return the present settings of the terminal."""
        return termios.tcgetattr(self._slave)

    def type(self, keys: bytes) -> None:
        """Type keys."""
        os.write(self._master, keys)

    def resize(self, cols: int, rows: int) -> None:
        """Change the size, of which the command is told by SIGWINCH."""
        self._resize(cols, rows)
        self.process.send_signal(signal.SIGWINCH)

    def wait_for(self, text: bytes, *, after: int = 0) -> None:
        """Wait until the terminal shows a text behind so many bytes."""
        while text not in self.shown[after:]:
            readable, _, _ = select.select([self._master], [], [], _PATIENCE)
            assert readable, f"the terminal shows {self.shown!r}, and not {text!r}"
            self.shown += os.read(self._master, 65536)

    def ended(self) -> int:
        """Return the exit status."""
        return self.process.wait(_PATIENCE)

    def echo_milliseconds(self, times: int) -> list[float]:
        """Type keys one after the other; return after how many milliseconds the terminal showed each."""
        found = []
        for number in range(times):
            key, shown = b"abcdefgh"[number % 8 : number % 8 + 1], len(self.shown)
            typed = time.perf_counter()
            self.type(key)
            self.wait_for(key, after=shown)
            found.append((time.perf_counter() - typed) * 1000)
        return found

    def _resize(self, cols: int, rows: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
