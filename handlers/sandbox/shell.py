"""One shell command in a session of its own that can't outlive the process that runs it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from handlers.sandbox.processes import hold_process, wait_for_exit
from statemachine.local_template import LONGEST_VARIABLE, PARAMETER, variable_fault, variable_size

_BEGIN: Final = (
    "exec 3<&0 </dev/null; "
    "( (trap '' HUP INT TERM; read -r nothing; kill -KILL 0) <&3 3<&- >/dev/null 2>&1 & ); "
    'exec "$@" 3<&-'
)
"""Starts a guard in the new process group, then becomes the command.

The guard reads a pipe of ours that never carries anything. When the pipe ends, which a SIGKILL of us
brings about as well, the guard kills the whole group; a parent-death signal would reach the first
process alone. The guard is an orphan, so that a command that waits for all its children does not
wait for it.
"""


class Shell:
    """A running `/bin/sh -c`.

    It leads a session without a controlling terminal: neither it nor what it starts can read from the
    terminal of whoever runs us, type into it, or stop us by it. Its input is empty. The first process
    is reaped last, so that the number of its group stays ours for as long as we use it.
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
        """Start it; `prefix` is a command that becomes the one that follows it.

        Raises OSError or ValueError when it can't be started.
        """
        self._output = output
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 — what the template says
                ["/bin/sh", "-c", _BEGIN, "sh", *prefix, "/bin/sh", "-c", command],
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._reading: int | None = reading
        os.set_blocking(reading, False)
        asyncio.get_running_loop().add_reader(reading, self._read)

    async def wait(self) -> int:
        """Return the exit status when the command ends; what it left running may still write."""
        pid = self._process.pid
        if self._process.returncode is None:
            with hold_process(pid) as descriptor:
                await wait_for_exit(descriptor)
            status = _status_left(pid)
        else:
            status = self._process.returncode
        self._read_what_is_there()
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def end(self) -> None:
        """End the command and all that it started in its group, now."""
        self.signal(signal.SIGKILL)
        assert self._process.stdin is not None  # noqa: S101 — for the type checker
        self._process.stdin.close()
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


def _status_left(pid: int) -> int:
    """Return the status of a child that has ended, and leave it to be reaped."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None  # noqa: S101 — for the type checker
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def status_words(status: int) -> str:
    """Say how a command ended, as people say it."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


_ROOM: Final = 192 * 1024
"""Bytes of what the kernel takes together that are left for the command itself."""
_MOST: Final = 6 * 1024 * 1024
_LEAST: Final = 64 * 1024
"""Bounds of what is left for variables, whatever the limit of the stack is, which decides that."""
_POINTER: Final = 8


def environment_faults(env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the variables that no program can be started with, and why."""
    room = max(min(os.sysconf("SC_ARG_MAX"), _MOST) - _ROOM, _LEAST)
    together = 0
    for name, value in env.items():
        fault = variable_fault(name, value)
        size = 0 if fault else variable_size(name, value) + _POINTER
        if not fault and together + size > room:
            fault = f"all variables together have more than {room:,} bytes"
        if fault:
            yield name, f"{_origin(name)} can't be passed to a program: {fault}"
        else:
            together += size


def command_fault(command: str) -> str:
    """Say why a shell can't be given this command as one argument, if it can't."""
    if "\0" in command:
        return "the command holds a NUL"
    try:
        size = len(os.fsencode(command))
    except UnicodeEncodeError:
        return "the command holds half a character (a lone surrogate)"
    if size >= LONGEST_VARIABLE:
        return (
            f"the command has {size:,} bytes, and {LONGEST_VARIABLE - 1:,} is the most: put it into a file of "
            "the template, and run that"
        )
    return ""


def _origin(name: str) -> str:
    if name.startswith(PARAMETER):
        return f"the value of parameter {name.removeprefix(PARAMETER).lower()!r}"
    return f"the variable {name!r}"
