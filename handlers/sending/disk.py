"""Files that are whole or not there, whatever instant the process dies at."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Put `data` in place of the file at once; `durable` also against a loss of power."""
    beside = path.with_name(f".{path.name}.new")
    written = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(written, mode)
        with memoryview(data) as rest:
            done = 0
            while done < len(rest):
                done += os.write(written, rest[done:])
        if durable:
            os.fsync(written)
    finally:
        os.close(written)
    beside.replace(path)
    if durable:
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in the directory as durable as their files."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
