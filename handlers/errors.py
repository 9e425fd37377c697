"""Errors that end a command or a role.

`workspaced` prints the text of a WorkspacedError as one line and exits with its status. `bus` and
`statemachine` import nothing from here and know no exit status: `handlers.cli.dispatch` treats their errors
that a user can act on in the same way. Any other exception is a bug and ends in a traceback.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class WorkspacedError(Exception):
    """Ends a command or a role; the text says what is wrong, where, and what to do."""

    exit_status: ClassVar[int] = 1


class InvalidSettings(WorkspacedError, ValueError):
    """A flag or variable has a value that cannot be used; the text names each."""

    exit_status = 2


class NotFoundError(WorkspacedError):
    """Something that a command needs does not exist."""


class CannotServe(WorkspacedError):
    """A role cannot do its work on this machine or with these servers."""


class EmbeddedError(WorkspacedError):
    """The embedded servers cannot run."""


class DataDirectoryInUse(EmbeddedError):
    """Another process uses the data directory; it was not disturbed."""

    def __init__(self, directory: Path, pid: int | None) -> None:
        self.directory, self.pid = directory, pid
        holder = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{directory} is in use by {holder}: stop it, or choose another directory with --data-dir"
        )


class PortTaken(EmbeddedError):
    """Another program holds a port that an embedded server needs."""


class ServerFailed(EmbeddedError):
    """An embedded server ended by itself, or did not become ready."""


class NoUnprivilegedUser(EmbeddedError):
    """PostgreSQL refuses to run as root, and no way to run it as another user works here."""
