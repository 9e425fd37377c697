"""Files that are written completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the file's content in one step, for its owner only; `durable` also makes it survive a loss of power.

    Raises OSError; the error names the file even if the disk is full.
    """
    try:
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        written = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(written, "wb") as file:  # noqa: PTH123 — opened already
            file.write(data)
            file.flush()
            if durable:
                os.fsync(written)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _sync(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
