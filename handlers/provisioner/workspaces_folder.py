"""The folder of all workspaces, with a marker that tells it from the empty mount point of a disk that is not mounted."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from handlers.publishing.atomic_files import write_atomically

MARKER: Final = ".workspaces"
"""The name of the marker, a file in the folder."""
_TEXT: Final = (
    b"The local provisioner of workspaced keeps its workspaces in this folder. Without this file it takes the folder\n"
    b"for the mount point of a disk that is not mounted, and does not begin.\n"
)


def is_there(folder: Path) -> bool:
    """Return whether the folder holds the workspaces, as far as they still exist."""
    return (folder / MARKER).is_file()


def mark(folder: Path) -> None:
    """Create the folder, if it is not there, and its marker. Raises OSError."""
    if not is_there(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(folder / MARKER, _TEXT)


def missing(folder: Path) -> str:
    """Return the text that says what is wrong with a folder without its marker."""
    return f"{folder} does not hold the workspaces (its file {MARKER} is missing): perhaps its disk is not mounted"
