"""Files that are whole or not there, whatever instant the process dies at."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Put `data` in place of the file at once; `durable` also against a loss of power.

    Raises OSError, which names the file also when its disk is full.
    """
    with _naming(path):
        _write_whole(path, data, mode=mode, durable=durable)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors of calls that know its descriptor only."""
    try:
        yield
    except OSError as no:
        if no.filename is None:
            no.filename = str(path)
        raise


def _write_whole(path: Path, data: bytes, *, mode: int, durable: bool) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    # Never through what somebody left there: in a workspace that may be a link to anywhere.
    written = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
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


def read_regular_file(path: Path, most: int) -> bytes:
    """Read a file that others may have replaced by a link, or by a pipe that nobody writes to.

    Raises OSError also when it is no plain file, or holds more than `most` bytes.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(opened, "rb") as file:  # noqa: PTH123 — opened already
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError(f"{path} is no plain file")
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(f"{path} has more than {most} bytes")
    return data


def ensure_directory(path: Path) -> None:
    """Have a directory there, and not a link that somebody left in its place."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()
    with suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)


@contextmanager
def pinned_directory(directory: Path) -> Iterator[Path]:
    """Give a path that stays this very directory, whatever takes its place meanwhile.

    A link in its place is not followed. The path is good in this process, as long as the context
    lasts. Raises OSError.
    """
    held = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{held}")
    finally:
        os.close(held)


def sync_directory(directory: Path) -> None:
    """Make the names in the directory as durable as their files."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
