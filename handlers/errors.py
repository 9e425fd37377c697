"""What keeps a role from its work for good, in words for the person at the keyboard."""

from __future__ import annotations

from pathlib import Path


class CantServe(Exception):
    """The role can't do its work here; the message says what is wrong, where, and what to do."""


class EmbeddedError(Exception):
    """The embedded servers can't run; the message says what is wrong, where, and what to do."""


class DataDirectoryInUse(EmbeddedError):
    """Another process runs on this data directory; it was not disturbed."""

    def __init__(self, directory: Path, pid: int | None) -> None:
        self.directory, self.pid = directory, pid
        holder = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{directory} is in use by {holder}: stop it, or choose another place with --data-dir"
        )


class PortTaken(EmbeddedError):
    """A port that must be ours is held by another program."""


class ServerFailed(EmbeddedError):
    """A server ended by itself, or did not get ready."""


class NoUnprivilegedUser(EmbeddedError):
    """PostgreSQL refuses to run as root, and no way around that works here."""
