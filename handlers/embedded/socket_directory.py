"""Where PostgreSQL's socket is: in a short private directory, since its path has at most 107 bytes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from handlers.errors import EmbeddedError

SOCKET: Final = ".s.PGSQL.5432"
"""PostgreSQL's name for it."""
PREFIX: Final = "workspaced-"
"""How the name of each such directory begins."""

_LONGEST: Final = 107
_PRIVATE: Final = 0o700
_SHARED: Final = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 — a directory there is checked for its owner


def socket_directory(data: Path) -> Path:
    """Return the directory for the database in `data`; it exists, has mode 0700 and is ours.

    It is ours also when PostgreSQL runs as another user, who can enter it all the same; no other
    process of that user can. Raises EmbeddedError.
    """
    mark = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    name = f"{PREFIX}{os.geteuid()}-{mark}"
    refusals = []
    for place in _places(data):
        directory = place / name
        if len(os.fsencode(directory / SOCKET)) > _LONGEST:
            refusals.append(f"{directory}: the path is too long")
        elif (refusal := _refusal(directory)) is not None:
            refusals.append(f"{directory}: {refusal}")
        else:
            return directory
    raise EmbeddedError(
        f"there is no place for PostgreSQL's socket ({'; '.join(refusals)}): set XDG_RUNTIME_DIR to "
        f"a directory with a short path that belongs to you"
    )


def _places(data: Path) -> Iterator[Path]:
    """Yield the user's own runtime directory, those that all users share, and the data directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and _is_ours(Path(runtime)):  # root may have another user's
        yield Path(runtime)
    yield from map(Path, _SHARED)
    yield data.parent


def _is_ours(directory: Path) -> bool:
    try:
        about = directory.stat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return about.st_uid == os.geteuid() and not about.st_mode & others


def _refusal(directory: Path) -> str | None:
    """Create the directory unless it exists; return why it can't be used."""
    try:
        directory.mkdir(mode=_PRIVATE, exist_ok=True)
        about = directory.lstat()
        if not stat.S_ISDIR(about.st_mode):
            return "something else is in its place"
        if about.st_uid != os.geteuid():
            return f"it belongs to the user with uid {about.st_uid}"
        if stat.S_IMODE(about.st_mode) != _PRIVATE:
            directory.chmod(_PRIVATE)
    except OSError as error:
        return error.strerror or str(error)
    return None
