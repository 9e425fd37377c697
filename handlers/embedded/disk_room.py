"""How the disk of a data directory is shared out: to the streams of NATS, to PostgreSQL, and what is left.

nats-server reserves what a stream may take at most when the stream is made, so that streams of a fixed
size could not be made on a small disk.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bus.streams import BOUNDED, LEAST
from handlers.errors import EmbeddedError

_log = logging.getLogger(__name__)

_MIB: Final = 1024 * 1024
_DATABASE: Final = 128 * _MIB
"""What a new database and its write-ahead log take."""
_SMALLEST_LOG, _USUAL_LOG, _LARGEST_LOG = 64 * _MIB, 80 * _MIB, 1024 * _MIB
"""Of PostgreSQL's write-ahead log; the last two are its own defaults."""


@dataclass(frozen=True, slots=True)
class Room:
    """What there is on the disk for the servers of a data directory, in bytes."""

    available: int
    """Free, or taken by these servers already."""

    @property
    def streams(self) -> int:
        """What all bounded streams together may take: half of what the database leaves at first."""
        return min(BOUNDED, (self.available - _DATABASE) // 2)

    @property
    def store(self) -> int:
        """What nats-server may store in all; the rest is the database's."""
        return self.available * 3 // 4

    def database_settings(self) -> dict[str, str]:
        """Return settings of PostgreSQL that keep its write-ahead log to a fair part."""
        most = max(_SMALLEST_LOG, min(_LARGEST_LOG, self.available // 8))
        least = max(_SMALLEST_LOG // 2, min(_USUAL_LOG, most // 2))
        return {"max_wal_size": f"{most // _MIB}MB", "min_wal_size": f"{least // _MIB}MB"}


def room_of(directory: Path) -> Room:
    """Look at the disk of a data directory. Raises EmbeddedError when there is too little room."""
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    room = Room(free + sum(_taken(directory / name) for name in ("nats", "postgres")))
    needed = 2 * LEAST + _DATABASE
    if room.available < needed:
        missing = needed - room.available
        raise EmbeddedError(
            f"{directory} has {free // _MIB} MiB free, and workspaced needs "
            f"{-(-(free + missing) // _MIB)} MiB there for its database and its streams: make room, "
            "or choose a larger disk with --data-dir"
        )
    if room.streams < BOUNDED:
        _log.warning(
            "%s has %d MiB free: streams that are made now take %d MiB at most, %d MiB on a disk "
            "with more room",
            directory,
            free // _MIB,
            room.streams // _MIB,
            BOUNDED // _MIB,
        )
    return room


def _taken(directory: Path) -> int:
    """Return how many bytes of disk the files below a directory take."""
    taken = 0
    for place, _, names in os.walk(directory):
        for name in names:
            try:
                taken += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118 — fast
            except OSError:
                continue  # removed meanwhile
    return taken
