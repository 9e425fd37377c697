"""Where PostgreSQL's socket lies: a short private directory, as a socket's path ends at 107 bytes."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from handlers.embedded.errors import EmbeddedError
from handlers.embedded.unprivileged import Identity

SOCKET: Final = ".s.PGSQL.5432"
"""What PostgreSQL calls it."""
PREFIX: Final = "workspaced-"
"""How the name of each such directory begins."""

_LONGEST: Final = 107
_PRIVATE: Final = 0o700


def socket_directory(data: Path, identity: Identity) -> Path:
    """Return the directory for the database in `data`, made if need be: 0700 and `identity`'s.

    Raises EmbeddedError when something that is not ours stands in its place.
    """
    mark = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    name = f"{PREFIX}{identity.uid}-{mark}"
    directory = _runtime(name, identity) / name
    try:
        directory.mkdir(mode=_PRIVATE)
        if os.geteuid() != identity.uid:
            os.chown(directory, identity.uid, identity.gid)
    except FileExistsError:
        pass
    except OSError as error:
        raise EmbeddedError(f"can't make {directory} for PostgreSQL's socket: {error}") from error
    about = directory.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != identity.uid:
        raise EmbeddedError(
            f"{directory}, the place of PostgreSQL's socket, belongs to somebody else: "
            f"remove it, or set XDG_RUNTIME_DIR to a private directory"
        )
    if stat.S_IMODE(about.st_mode) != _PRIVATE:
        directory.chmod(_PRIVATE)
    return directory


def _runtime(name: str, identity: Identity) -> Path:
    """Prefer the user's own runtime directory; it is no good for another user or a long path."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")  # noqa: S108 — checked above
    fits = len(os.fsencode(runtime / name / SOCKET)) <= _LONGEST
    if runtime.is_absolute() and fits and identity.uid == os.geteuid() and _writable(runtime):
        return runtime
    return Path("/tmp")  # noqa: S108 — its content is checked for its owner


def _writable(directory: Path) -> bool:
    return directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)
