"""PostgreSQL's programs for a user without an entry in /etc/passwd.

initdb, and the server in single-user mode, look up the name of their user and give up when there is
none, though they do not use it when they are told another one. Container platforms run programs as
such users, and let them neither change /etc/passwd nor look like another user in a namespace. For them
copies of the programs call getpwent() instead of getpwuid(): the name of any user will do. The server
that listens never asks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from handlers.embedded.run_as import Identity
from handlers.errors import EmbeddedError

_PROGRAMS: Final = ("initdb", "postgres")
_CALLED: Final = b"\0getpwuid\0"
_CALLED_INSTEAD: Final = b"\0getpwent\0"


@contextmanager
def programs_for(identity: Identity, binaries: Path, place: Path) -> Iterator[Path]:
    """Give the directory of the programs that work for an identity.

    Copies are made in the directory `place`, and removed afterwards. Raises EmbeddedError.
    """
    if identity.has_entry:
        yield binaries
        return
    copies = place / "postgres.programs"
    try:
        try:
            programs = _copied(binaries, copies)
        except OSError as error:
            raise EmbeddedError(f"{copies} can't be created: {error}") from error
        yield programs
    finally:
        shutil.rmtree(copies, ignore_errors=True)


def _copied(binaries: Path, place: Path) -> Path:
    """Copy the programs into a tree of links like the installed one, as they search beside themselves."""
    shutil.rmtree(place, ignore_errors=True)
    package = binaries.parents[1]
    copies = place / binaries.relative_to(package.parent)
    copies.mkdir(parents=True)
    for path in package.parent.glob(f"{package.name}.*"):
        (place / path.name).symlink_to(path)
    for path in binaries.parent.iterdir():
        if path != binaries:
            (copies.parent / path.name).symlink_to(path)
    for name in _PROGRAMS:
        program = (binaries / name).read_bytes()
        if program.count(_CALLED) != 1:
            raise EmbeddedError(
                f"PostgreSQL's {name} needs an entry in /etc/passwd for the user of this process: "
                f"add one, or run workspaced as a user who has one"
            )
        (copies / name).write_bytes(program.replace(_CALLED, _CALLED_INSTEAD))
        (copies / name).chmod(0o700)
    return copies
