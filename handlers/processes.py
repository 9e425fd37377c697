"""Processes of this machine, also those of others' making: awaited, found by a mark, ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

_FORCED: Final = 5.0


@contextmanager
def watching(pid: int) -> Iterator[int]:
    """Hold a process by descriptor, so that its number can't come to mean another one.

    Raises ProcessLookupError when it is gone.
    """
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def exited(descriptor: int) -> None:
    """Wait until the process behind the descriptor has ended, whoever started it."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    # A descriptor of our own: two may wait for one process, the loop knows one reader of each.
    own = os.dup(descriptor)
    loop.add_reader(own, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(own)
        os.close(own)


def marked(mark: str, *, spare_group: int | None = None) -> list[int]:
    """Return the processes that have `mark` (`NAME=value`) in their environment, not ourselves.

    A mark is inherited where a process group is left by `setsid`, and none of another user's
    processes can be read or ended.
    """
    wanted, found = mark.encode(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or (pid := int(entry.name)) == os.getpid():
            continue
        with suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0") and (
                spare_group is None or os.getpgid(pid) != spare_group
            ):
                found.append(pid)
    return found


async def end_marked(mark: str, *, grace: float, spare_group: int | None = None) -> None:
    """End every process with `mark`: politely, and after `grace` seconds by force."""
    now = asyncio.get_running_loop().time
    for number, limit in ((signal.SIGTERM, grace), (signal.SIGKILL, _FORCED)):
        deadline = now() + limit
        # Again while there are new ones: a process may have forked while the list was made.
        while pids := marked(mark, spare_group=spare_group):
            async with _held(pids) as held:
                for descriptor in held:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(descriptor, number)
                try:
                    async with asyncio.timeout_at(deadline):
                        for descriptor in held:
                            await exited(descriptor)
                except TimeoutError:
                    break
        else:
            return


@asynccontextmanager
async def _held(pids: list[int]) -> AsyncIterator[list[int]]:
    descriptors: list[int] = []
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                descriptors.append(os.pidfd_open(pid))
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
