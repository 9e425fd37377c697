"""The disk of a data directory: how the servers share it, and what happens when it is full.

nats-server reserves the maximum size of a stream when the stream is created, so streams of a fixed size could not
be created on a small disk. `check_disk` therefore divides the space between the streams and PostgreSQL.

After its disk was full, nats-server accepts connections but stores no messages until it is restarted, and it reports
this only in its log. `FullDiskMonitor` follows the log and restarts the server once there is space again.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bus import Backoff
from bus.streams import BOUNDED, LEAST
from handlers.embedded.inotify import changes
from handlers.errors import EmbeddedError

log = logging.getLogger(__name__)

_MIB: Final = 1024 * 1024
_DATABASE: Final = 128 * _MIB
"""The size of a new database with its write-ahead log."""
_SMALLEST_LOG, _USUAL_LOG, _LARGEST_LOG = 64 * _MIB, 80 * _MIB, 1024 * _MIB
"""Sizes of PostgreSQL's write-ahead log; the last two are its defaults."""


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The disk space for the servers of a data directory, in bytes."""

    available: int
    """Free, or already used by these servers."""

    @property
    def streams(self) -> int:
        """The limit of all bounded streams together: half of what a new database leaves."""
        return min(BOUNDED, (self.available - _DATABASE) // 2)

    @property
    def store(self) -> int:
        """The limit of nats-server's storage; the rest is for the database."""
        return self.available * 3 // 4

    def database_settings(self) -> dict[str, str]:
        """Return PostgreSQL settings that limit its write-ahead log to a fair share."""
        largest = max(_SMALLEST_LOG, min(_LARGEST_LOG, self.available // 8))
        smallest = max(_SMALLEST_LOG // 2, min(_USUAL_LOG, largest // 2))
        return {"max_wal_size": f"{largest // _MIB}MB", "min_wal_size": f"{smallest // _MIB}MB"}


def check_disk(directory: Path) -> DiskSpace:
    """Return the disk space of a data directory. Raises EmbeddedError if there is too little."""
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    space = DiskSpace(free + sum(_used(directory / name) for name in ("nats", "postgres")))
    needed = 2 * LEAST + _DATABASE
    if space.available < needed:
        missing = needed - space.available
        raise EmbeddedError(
            f"{directory} has {free // _MIB} MiB free, and workspaced needs "
            f"{-(-(free + missing) // _MIB)} MiB there for its database and its streams: free some, "
            "or choose a larger disk with --data-dir"
        )
    if space.streams < BOUNDED:
        log.warning(
            "%s has %d MiB free: new streams are limited to %d MiB together, instead of %d MiB on a "
            "larger disk",
            directory,
            free // _MIB,
            space.streams // _MIB,
            BOUNDED // _MIB,
        )
    return space


def _used(directory: Path) -> int:
    """Return how many bytes of disk the files below a directory use."""
    used = 0
    for place, _, names in os.walk(directory):
        for name in names:
            try:
                used += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118 — fast
            except OSError:
                continue  # removed in the meantime
    return used


RESTART_SPACE: Final = 64 * 1024 * 1024
"""Bytes that have to be free before the server is restarted."""
_STOPPED: Final = re.compile(
    rb"critical write error|failed to store a msg|out of resources|no space left on device|"
    rb"JetStream.{0,40}DISABLED",
    re.IGNORECASE,
)
_OF_A_CLIENT: Final = re.compile(rb"\[\d+\] \S+ \S+ \[\w+\] \S+ - [a-z]+id:\d")
"""The beginning of log lines about a connection, whose text a client may have chosen."""


class FullDiskMonitor:
    """Follows the log of nats-server from its current end."""

    def __init__(self, log_file: Path, store: Path) -> None:
        self._log, self._store = log_file, store
        self._read = log_file.stat().st_size
        self._problem: str | None = None

    def problem(self) -> str | None:
        """Return why the server can't store messages, or None."""
        return self._problem

    async def run(self, restart: Callable[[], Awaitable[None]]) -> None:
        """Restart the server whenever it has stopped storing and there is space again, until cancelled."""
        with changes(self._log.parent) as changed:
            while True:
                await changed.wait()
                changed.clear()
                if (line := self._first_failure()) is not None:
                    await self._recover(line, restart)

    def _first_failure(self) -> str | None:
        """Read the new lines of the log; return the first that reports a failure to store, or None."""
        try:
            with self._log.open("rb") as file:
                if file.seek(0, 2) < self._read:
                    self._read = 0  # the log was replaced by a new file
                file.seek(self._read)
                new = file.read()
        except OSError:
            return None
        whole, _, _ = new.rpartition(b"\n")
        self._read += len(whole)
        return next(
            (
                line.decode(errors="replace")
                for line in whole.splitlines()
                if _STOPPED.search(line) and not _OF_A_CLIENT.match(line)
            ),
            None,
        )

    async def _recover(self, line: str, restart: Callable[[], Awaitable[None]]) -> None:
        self._problem = f"nats-server can't store messages: {line.partition('] ')[2] or line}"
        log.error(
            "%s; the server is restarted once %d MiB are free on the disk of %s",
            self._problem,
            RESTART_SPACE // _MIB,
            self._store,
        )
        backoff = Backoff(first=0.1, limit=1.0)
        while shutil.disk_usage(self._store).free < RESTART_SPACE:
            await backoff.wait()
        await restart()
        self._first_failure()  # skip what it logged before the restart
        self._problem = None
        log.warning("nats-server was restarted: there is space on its disk")
