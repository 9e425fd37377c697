"""What a template's folder may hold: checked with the same words when it is pushed and when it is unpacked."""

from __future__ import annotations

from enum import Enum, auto
from pathlib import PurePosixPath
from typing import Final

from handlers.publishing.agent_files import OURS

MOST_PACKED: Final = 16 * 1024 * 1024
"""Bytes of a packed folder."""
MOST_ENTRIES: Final = 20_000
"""Files and folders in it."""
MOST_BYTES: Final = 512 * 1024 * 1024
"""Bytes of all its files."""
MOST_NAME: Final = 255
"""Bytes of one name, as Linux has it."""
MOST_PATH: Final = 2_048
"""Bytes of a path in the folder: half of what Linux takes, for the workspace's own path comes before it."""
_SHOWN: Final = 200


class Entry(Enum):
    """What a path in the folder is."""

    FILE = auto()
    FOLDER = auto()
    LINK = auto()
    OTHER = auto()
    """A device, a pipe or a socket."""


class FolderRules:
    """Looks at one folder's entries, one after the other."""

    def __init__(self) -> None:
        self._entries = self._bytes = 0

    def fault(self, name: str, entry: Entry, size: int = 0) -> str | None:
        """Say why the folder can't have this entry after those before it, or None if it can."""
        self._entries += 1
        self._bytes += size if entry is Entry.FILE else 0
        if self._entries > MOST_ENTRIES:
            return f"it holds more than {MOST_ENTRIES:,} files and folders"
        if size < 0 or self._bytes > MOST_BYTES:
            return f"its files have more than {MOST_BYTES >> 20} MiB together, unpacked"
        problem = _of_name(name) or _of_kind(entry)
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
        return f"{shown!r} {problem}" if problem else None

    @property
    def exhausted(self) -> bool:
        """Whether the folder is too large, so that more entries tell nothing new."""
        return self._entries > MOST_ENTRIES or self._bytes > MOST_BYTES


def _of_name(name: str) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return "leads out of the folder"
    if path.parts and path.parts[0] == OURS:
        return f"can't be in a template: the folder {OURS} belongs to workspaced"
    if "\0" in name:
        return "has a NUL character in its name"
    try:
        lengths = [len(part.encode()) for part in path.parts]
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    if max(lengths, default=0) > MOST_NAME:
        return f"has a name longer than {MOST_NAME} bytes"
    if len(str(path).encode()) > MOST_PATH:
        return f"has a path longer than {MOST_PATH:,} bytes"
    return None


def _of_kind(entry: Entry) -> str | None:
    if entry is Entry.LINK:
        return "is a link; a template holds only files and folders"
    if entry is Entry.OTHER:
        return "is a device, a pipe or a socket; a template holds only files and folders"
    return None
