"""One shell command in a process group of its own that can't outlive the process that runs it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from handlers.processes import exited, watching

_GUARD: Final = "trap '' HUP INT TERM; read -r released || kill -KILL 0"
"""Waits for its pipe: a line lets the group be; the end of the pipe, which a SIGKILL of us brings
about as well, ends the whole group. A parent-death signal would reach the first process alone."""


class Shell:
    """A running `/bin/sh -c`.

    The guard leads the process group. It is reaped last, so the group's number is ours while we
    use it, and it is no child of the command, which may well wait for all of its own.
    """

    def __init__(
        self,
        command: str,
        *,
        cwd: Path,
        env: Mapping[str, str],
        output: Callable[[bytes], None],
        prefix: Sequence[str] = (),
    ) -> None:
        """`prefix`: a command that becomes the one that follows it."""
        self._output = output
        self._guard = subprocess.Popen(  # noqa: S603 — our own words
            ["/bin/sh", "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath},
            process_group=0,
        )
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 — what the template says
                [*prefix, "/bin/sh", "-c", command],
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                process_group=self._guard.pid,
            )
        except BaseException:
            os.close(reading)
            self.end()
            raise
        finally:
            os.close(writing)
        self._reading: int | None = reading
        os.set_blocking(reading, False)
        asyncio.get_running_loop().add_reader(reading, self._read)

    async def wait(self) -> int:
        """Return the exit status when the command ends; what it left running may still write."""
        with suppress(ProcessLookupError), watching(self._process.pid) as descriptor:
            await exited(descriptor)
        status = self._process.wait()
        self._read_what_is_there()
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self._guard.pid, number)

    def release(self) -> None:
        """Let what the command left running go on, also when we end."""
        assert self._guard.stdin is not None  # noqa: S101 — for the type checker
        with suppress(BrokenPipeError):
            self._guard.stdin.write(b"\n")
            self._guard.stdin.flush()
        self._guard.stdin.close()
        self._guard.send_signal(signal.SIGCONT)  # a command may have stopped its group
        self._guard.wait()

    def end(self) -> None:
        """End the command and all that it started in its group, now."""
        if self._guard.returncode is None:
            self.signal(signal.SIGKILL)
            assert self._guard.stdin is not None  # noqa: S101 — for the type checker
            self._guard.stdin.close()
            self._guard.wait()
        if hasattr(self, "_process"):
            self._process.wait()
            self._read_what_is_there()
            self._stop_reading()

    def _read(self) -> None:
        assert self._reading is not None  # noqa: S101 — for the type checker
        try:
            chunk = os.read(self._reading, 65_536)
        except BlockingIOError:
            return
        self._output(chunk)
        if not chunk:
            self._stop_reading(ended=True)

    def _read_what_is_there(self) -> None:
        """Read what the pipe can hold: all that the command wrote before it ended."""
        for _ in range(16):
            if self._reading is None:
                return
            self._read()

    def _stop_reading(self, *, ended: bool = False) -> None:
        if self._reading is None:
            return
        reading, self._reading = self._reading, None
        asyncio.get_running_loop().remove_reader(reading)
        os.close(reading)
        if not ended:
            self._output(b"")


def status_words(status: int) -> str:
    """Say how a command ended, as people say it."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
