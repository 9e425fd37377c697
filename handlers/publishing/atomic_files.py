"""Files that are written completely or not at all, and access to folders that other programs write to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the file's content in one step, for its owner only; `durable` also makes it survive a loss of power.

    Raises OSError; the error names the file even if the disk is full.

    """
    with _with_filename(path):
        _write_whole(path, data, durable=durable)


@contextmanager
def _with_filename(path: Path) -> Iterator[None]:
    """Add the file name to errors of calls that know only its descriptor."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _write_whole(path: Path, data: bytes, *, durable: bool) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    # O_EXCL: in a workspace, another program may have left a link here.
    written = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(written, 0o600)
        with memoryview(data) as rest:
            done = 0
            while done < len(rest):
                done += os.write(written, rest[done:])
        if durable:
            os.fsync(written)
    finally:
        os.close(written)
    temporary.replace(path)
    if durable:
        sync_directory(path.parent)


def read_regular_file(path: Path, limit: int) -> bytes:
    """Read a file that another program may have replaced by a link or by a FIFO without a writer.

    Raises OSError, also if it is not a regular file or has more than `limit` bytes.

    """
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(opened, "rb") as file:  # noqa: PTH123 — opened already
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError(f"{path} is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(f"{path} has more than {limit} bytes")
    return data


def ensure_directory(path: Path) -> None:
    """Create the directory; a link or file in its place is deleted."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()
    with suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)


@contextmanager
def pinned_directory(directory: Path) -> Iterator[Path]:
    """Yield a path that stays this directory, even if another program puts something else in its place.

    A link is not followed. The path is valid in this process and inside the context. Raises OSError.

    """
    held = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{held}")
    finally:
        os.close(held)


def rotate(log: Path, limit: int) -> None:
    """Rename a log of more than `limit` bytes, replacing the one that was renamed before."""
    with suppress(FileNotFoundError):
        if log.lstat().st_size > limit:
            log.replace(log.with_name(f"{log.name}.1"))


def sync_directory(directory: Path) -> None:
    """Make the names in the directory as durable as its files."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
