"""Shell commands of templates: whether one can be executed, and running one that ends with this process."""

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

_GUARDED: Final = (
    "exec 3<&0 </dev/null; "
    "( (trap '' HUP INT TERM; read -r nothing; kill -KILL 0) <&3 3<&- >/dev/null 2>&1 & ); "
    'exec "$@" 3<&-'
)
"""Starts a guard in the new process group, then executes the command.

The guard reads from a pipe that this process never writes to. When this process ends, even by SIGKILL,
the pipe is closed, and the guard kills the whole group; a parent-death signal would reach only the
first process. The guard is an orphan, so a command that waits for all its children does not wait for it.
"""


class Shell:
    """A running `/bin/sh -c` with an empty standard input.

    It leads a new session without a controlling terminal, so neither it nor its children can read from the
    terminal of this process, type into it, or be stopped by it. The first process is reaped last, so the id
    of its process group is not reused while this object exists.

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
        """Start the command. `prefix` is a command that executes the words that follow it.

        `output` is called with each piece of output, and with `b""` at the end. Raises OSError or ValueError
        if the command can't be started.

        """
        self._output = output
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 — a command of the template
                ["/bin/sh", "-c", _GUARDED, "sh", *prefix, "/bin/sh", "-c", command],
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
        """Return the exit status when the command ends; processes that it started may still write output."""
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
        """Send a signal to the whole process group."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def end(self) -> None:
        """Kill the command and its process group at once."""
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
        """Read as much as the pipe can hold: all that the command wrote before it ended."""
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
    """Return the status of a child that has ended, without reaping it."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None  # noqa: S101 — for the type checker
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def describe_status(status: int) -> str:
    """Describe an exit status; negative numbers are signals."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


_RESERVED: Final = 192 * 1024
"""Bytes of the kernel's limit for arguments and variables that are reserved for the command line."""
_MAX_ENVIRONMENT: Final = 6 * 1024 * 1024
_MIN_ENVIRONMENT: Final = 64 * 1024
"""Bounds of the space for variables; in between, the limit of the stack decides."""
_POINTER: Final = 8


def environment_faults(env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each variable that no program can be started with, and the reason."""
    room = max(min(os.sysconf("SC_ARG_MAX"), _MAX_ENVIRONMENT) - _RESERVED, _MIN_ENVIRONMENT)
    together = 0
    for name, value in env.items():
        fault = variable_fault(name, value)
        size = 0 if fault else variable_size(name, value) + _POINTER
        if not fault and together + size > room:
            fault = f"all variables together exceed {room:,} bytes"
        if fault:
            yield name, f"{_origin(name)} can't be passed to a program: {fault}"
        else:
            together += size


def command_fault(command: str) -> str:
    """Return why a shell can't take this command as one argument, or "" if it can."""
    if "\0" in command:
        return "the command contains a NUL character"
    try:
        size = len(os.fsencode(command))
    except UnicodeEncodeError:
        return "the command contains a lone surrogate, which is not a character"
    if size >= LONGEST_VARIABLE:
        return (
            f"the command has {size:,} bytes, and the limit is {LONGEST_VARIABLE - 1:,}: put it into a "
            "file of the template and run that file"
        )
    return ""


def _origin(name: str) -> str:
    if name.startswith(PARAMETER):
        return f"the value of parameter {name.removeprefix(PARAMETER).lower()!r}"
    return f"the variable {name!r}"
