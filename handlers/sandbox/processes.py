"""Processes of this machine, also those of others' making: awaited, found by a mark, ended."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

_FORCED: Final = 5.0
_STARTED: Final = 19
"""Where in `stat`, behind the name, is when a process was started (proc(5), field 22)."""


def machine_identity() -> str:
    """Name this start of this machine or container: after another one nothing of before runs.

    A container starts again on a kernel that goes on, with a first process of another time.
    """
    said = []
    with suppress(OSError):
        said.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        said.append(Path("/proc/self/ns/pid").readlink().name)
    with suppress(OSError, IndexError):
        first = Path("/proc/1/stat").read_bytes()
        said.append(first.rpartition(b")")[2].split()[_STARTED].decode())
    return " ".join(said)


_ENOUGH_DESCRIPTORS: Final = 1 << 20
INHERITED_FILE_LIMIT: Final = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""The soft limit of open files that we were started with: what a template's code gets.

Programs that use select() can't work with descriptors above 1023."""


def raise_file_limit() -> None:
    """Let this process open as many files as it may: builds, agents and connections take some each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _ENOUGH_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextmanager
def hold_process(pid: int) -> Iterator[int]:
    """Hold a process by descriptor, so that its number can't come to mean another one.

    Raises ProcessLookupError when it is gone.
    """
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def wait_for_exit(descriptor: int) -> None:
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


def find_marked(mark: str, *, spare_group: int | None = None) -> list[int]:
    """Return the processes that have `mark` (`NAME=value`) in their environment, or come of one.

    A mark is inherited where a process group is left by `setsid`; who wipes it out is still a child
    of somebody, in the end of the keeper that `confined` leaves behind. We are spared, and those we
    come from; none of another user's processes can be read or ended.
    """
    wanted, parents, found = mark.encode(), dict[int, int](), set[int]()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        with suppress(OSError, ValueError, IndexError):
            # The name may hold anything, but not the last bracket of the line.
            after = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            if after[0] == b"Z":
                continue
            parents[pid] = int(after[1])
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(pid)
    ours = set(_line(os.getpid(), parents))
    for pid in parents.keys() - found - ours:
        line = list[int]()
        for one in _line(pid, parents):
            if one == os.getpid():
                break  # ours to see to
            if one in found:
                found.update(line)
                break
            line.append(one)
    return [pid for pid in found - ours if spare_group is None or _group(pid) != spare_group]


async def end_marked(mark: str, *, grace: float, spare_group: int | None = None) -> None:
    """End every process with `mark`: politely, and after `grace` seconds by force.

    Those that we may not signal are left: a confined agent may not signal what one before it started.
    """
    now = asyncio.get_running_loop().time
    for number, limit in ((signal.SIGTERM, grace), (signal.SIGKILL, _FORCED)):
        deadline = now() + limit
        # Again while there are new ones: a process may have forked while the list was made.
        while pids := _in_reach(mark, spare_group):
            if number is signal.SIGKILL:
                pids = _stopped(pids, mark, spare_group)
            async with _held(pids) as held:
                for descriptor in held:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(descriptor, number)
                try:
                    async with asyncio.timeout_at(deadline):
                        for descriptor in held:
                            await wait_for_exit(descriptor)
                except TimeoutError:
                    break
        else:
            return


def _stopped(pids: list[int], mark: str, spare_group: int | None) -> list[int]:
    """Stop all of them first: who is killed while its child forks leaves a child that none finds."""
    still = set[int]()
    while new := set(pids) - still:
        for pid in new:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        still |= new
        pids = _in_reach(mark, spare_group)
    return list(still)


def _in_reach(mark: str, spare_group: int | None) -> list[int]:
    return [pid for pid in find_marked(mark, spare_group=spare_group) if _may_signal(pid)]


def _may_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass  # it has just ended
    return True


def _line(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    """Yield a process, its parent, and so on; the list may have been made while they changed."""
    seen = set[int]()
    while pid in parents and pid not in seen:
        yield pid
        seen.add(pid)
        pid = parents[pid]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


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
