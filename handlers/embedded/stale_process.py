"""Waits for the servers of an owner that was killed: they outlive it by some milliseconds."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from handlers.sandbox.processes import hold_process, wait_for_exit

_PATIENCE: Final = 10.0


def recorded(pid_file: Path, mark: Path) -> tuple[int | None, bool]:
    """Return the pid of a pid file's first line, and whether that process is the server it was.

    `mark` is a path that stands in the server's command line: after a restart of the machine the
    number may be anybody's.
    """
    try:
        pid = int(pid_file.read_text().split(maxsplit=1)[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return None, False
    return pid, os.fsencode(mark) in command.split(b"\0")


async def gone(pid_file: Path, mark: Path) -> None:
    """Return when the server that the pid file names has ended; kill it if it won't."""
    pid, same = recorded(pid_file, mark)
    if pid is None or not same:
        return
    with suppress(ProcessLookupError), hold_process(pid) as process:
        if not recorded(pid_file, mark)[1]:
            return
        try:
            await asyncio.wait_for(wait_for_exit(process), _PATIENCE)
        except TimeoutError:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            await wait_for_exit(process)
