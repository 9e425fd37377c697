"""Processes of this machine: wait for them, find them by a variable in their environment, end them.

These functions also work for processes that this process did not start.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from handlers.sandbox import confined_exec

_KILL_TIMEOUT: Final = 5.0
_KEEPER_TIMEOUT: Final = 3.0
"""Seconds that a keeper may take to kill what it keeps."""
_START_TIME: Final = 19
"""Index of the start time among the fields of /proc/<pid>/stat that follow the name (proc(5), field 22)."""
_FILE_LIMIT: Final = 1 << 20
_OWNER_BITS: Final = 0o700

INHERITED_FILE_LIMIT: Final = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""The soft limit of open files that this process was started with. A template's code gets the same.

Programs that use select() can't work with descriptors above 1023.
"""


def machine_identity() -> str:
    """Return a text that changes when the machine or container is restarted, and all processes with it.

    A container can restart while the kernel runs on; then its first process has another start time.
    """
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(Path("/proc/self/ns/pid").readlink().name)
    with suppress(OSError, IndexError):
        first = Path("/proc/1/stat").read_bytes()
        parts.append(first.rpartition(b")")[2].split()[_START_TIME].decode())
    return " ".join(parts)


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one: each build, agent and connection needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _FILE_LIMIT if hard == resource.RLIM_INFINITY else min(hard, _FILE_LIMIT)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def umask_fault() -> str | None:
    """Return why this process can't work with its umask, or None if it can.

    The umask is read from /proc, because the system call that returns it also changes it.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == "Umask" and (umask := int(value, 8)) & _OWNER_BITS:
                return (
                    f"the umask is {umask:04o}: it takes the owner's rights from every new file, so "
                    "this process could not read what it writes; start it with a umask such as 0022"
                )
    return None


@contextmanager
def hold_process(pid: int) -> Iterator[int]:
    """Yield a pidfd of the process, so that a reused pid can't be mistaken for it.

    Raises ProcessLookupError if the process has ended.
    """
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def wait_for_exit(descriptor: int) -> None:
    """Wait until the process of this pidfd has ended; it need not be a child."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    # A duplicate: two tasks may wait for one process, and the loop takes one reader per descriptor.
    own = os.dup(descriptor)
    loop.add_reader(own, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(own)
        os.close(own)


@dataclass(frozen=True, slots=True)
class RunningProcesses:
    """The processes of this machine at one time."""

    parents: Mapping[int, int]
    """Process id -> that of its parent."""
    environments: Mapping[int, bytes]
    """Process id -> its variables, each between two NUL bytes. Those of other users can't be read."""

    @classmethod
    def read(cls) -> RunningProcesses:
        """Read all processes that have not ended. psutil would take four times as long."""
        parents, environments = dict[int, int](), dict[int, bytes]()
        for name in os.listdir("/proc"):  # noqa: PTH208 — as above
            if not name.isdigit():
                continue
            with suppress(OSError):
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 — as above
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    parents[int(name)] = int(parent)
                    with open(f"/proc/{name}/environ", "rb") as file:  # noqa: PTH123 — as above
                        environments[int(name)] = b"\0" + file.read()
        return cls(parents, environments)

    def marked(self, mark: str, *, spare_group: int | None = None) -> list[int]:
        """Return what `find_marked` returns."""
        wanted = os.fsencode(f"\0{mark}\0")
        found = {pid for pid, variables in self.environments.items() if wanted in variables}
        own = set(_with_ancestors(os.getpid(), self.parents))
        for pid in self.parents.keys() - found - own:
            lineage = list[int]()
            for one in _with_ancestors(pid, self.parents):
                if one == os.getpid():
                    break
                if one in found:
                    found.update(lineage)
                    break
                lineage.append(one)
        return [pid for pid in found - own if spare_group is None or _group_of(pid) != spare_group]


def find_marked(mark: str, *, spare_group: int | None = None) -> list[int]:
    """Return the pids of processes with `mark` (`NAME=value`) in their environment, and their descendants.

    A descendant that has cleared its environment is found through its parents; one whose parents have
    ended is a child of the keeper that `confined_exec` leaves behind. This process and its ancestors
    are never returned, nor are unmarked descendants of this process or processes in `spare_group`.
    Other users' processes can't be read.
    """
    return RunningProcesses.read().marked(mark, spare_group=spare_group)


class _SharedReading:
    """Reads all processes in a thread. Those who ask at the same time share one reading.

    Otherwise many builds that end at the same time would read all processes once each, again and again,
    and the event loop would do nothing else.
    """

    def __init__(self) -> None:
        self._running: asyncio.Task[RunningProcesses] | None = None
        self._next: asyncio.Task[RunningProcesses] | None = None

    async def get(self) -> RunningProcesses:
        """Return the result of a reading that begins after this call."""
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._read())
        return await asyncio.shield(self._next)

    async def _read(self) -> RunningProcesses:
        if self._running is not None:
            await asyncio.wait((self._running,))
        self._running, self._next = self._next, None
        try:
            return await asyncio.to_thread(RunningProcesses.read)
        finally:
            self._running = None


_readings: Final = WeakKeyDictionary[asyncio.AbstractEventLoop, _SharedReading]()


async def _find_signalable(mark: str, spare_group: int | None) -> list[int]:
    reading = _readings.setdefault(asyncio.get_running_loop(), _SharedReading())
    found = (await reading.get()).marked(mark, spare_group=spare_group)
    return [pid for pid in found if _may_signal(pid)]


async def end_marked(mark: str, *, grace: float, spare_group: int | None = None) -> None:
    """End every process that `find_marked` returns: SIGTERM, and after `grace` seconds SIGKILL.

    Keepers of `confined_exec` kill what they keep, which is more reliable than a search: a process that
    forks and exits all the time may never be found. Processes that this process may not signal are left
    alone: a confined agent may not signal what its predecessor started.
    """
    now = asyncio.get_running_loop().time
    for number, limit in (
        *([(signal.SIGTERM, grace)] if grace else []),
        (confined_exec.END, _KEEPER_TIMEOUT),
        (signal.SIGKILL, _KILL_TIMEOUT),
    ):
        deadline = now() + limit
        # Repeated while there are new ones: a process may have forked during the search.
        while pids := await _find_signalable(mark, spare_group):
            if number is signal.SIGKILL:
                pids = _stop_all(pids, mark, spare_group)
            elif number is confined_exec.END and not (pids := list(filter(_is_keeper, pids))):
                break
            async with _hold_processes(pids) as held:
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


def _is_keeper(pid: int) -> bool:
    """Return whether the process is a keeper of `confined_exec`, or poses as one."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    program = os.fsencode(Path(confined_exec.__file__).name)
    keeps = confined_exec.KEEP.encode()
    return any(one.endswith(program) and two == keeps for one, two in pairwise(words))


def _stop_all(pids: list[int], mark: str, spare_group: int | None) -> list[int]:
    """Stop the processes before they are killed, so that none can fork a child that is not found."""
    stopped = set[int]()
    while new := set(pids) - stopped:
        for pid in new:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= new
        found = find_marked(mark, spare_group=spare_group)
        pids = [pid for pid in found if _may_signal(pid)]
    return list(stopped)


def _may_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass  # it has just ended
    return True


def _with_ancestors(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    """Yield a process, its parent, and so on. `parents` may be inconsistent: processes came and went."""
    seen = set[int]()
    while pid in parents and pid not in seen:
        yield pid
        seen.add(pid)
        pid = parents[pid]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@asynccontextmanager
async def _hold_processes(pids: list[int]) -> AsyncIterator[list[int]]:
    descriptors: list[int] = []
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                descriptors.append(os.pidfd_open(pid))
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
