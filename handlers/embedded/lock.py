"""One owner per data directory: two servers on one store would both accept writes, and lose them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from handlers.errors import DataDirectoryInUse, EmbeddedError

LOCK: Final = "lock"
"""The file in a data directory that its owner holds."""


@contextmanager
def owning(directory: Path) -> Iterator[None]:
    """Hold the directory until the context ends, or the process does, however it ends."""
    held = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirectoryInUse(directory, _holder(held)) from None
        os.ftruncate(held, 0)
        os.pwrite(held, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(held)


def owner_of(directory: Path) -> int | None:
    """Return the process that owns the directory now, 0 when it can't be told, None for nobody.

    Raises EmbeddedError.
    """
    try:
        looked = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as no:
        raise EmbeddedError(
            f"{directory} can't be the data directory ({no.strerror}): choose another with --data-dir"
        ) from no
    try:
        fcntl.flock(looked, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(looked) or 0
    else:
        return None
    finally:
        os.close(looked)


def _holder(lock: int) -> int | None:
    written = os.pread(lock, 32, 0)
    return int(written) if written.isdigit() else None
