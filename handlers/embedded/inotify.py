"""Waits for changes and removals of files by inotify, so that nothing has to poll for them.

The library asyncinotify is not used: it runs `ldconfig` or a compiler when it is imported.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from handlers.errors import EmbeddedError

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_MODIFIED, _CLOSED, _MOVED_HERE, _CREATED = 0x2, 0x8, 0x80, 0x100
_ANY_CHANGE: Final = _MODIFIED | _CLOSED | _MOVED_HERE | _CREATED
_MOVED_AWAY, _REMOVED, _SELF_REMOVED, _SELF_MOVED = 0x40, 0x200, 0x400, 0x800
_ENTRY_LOST: Final = _MOVED_AWAY | _REMOVED
_SELF_LOST: Final = _SELF_REMOVED | _SELF_MOVED
_ADD: Final = 0x2000_0000
"""IN_MASK_ADD: extend an existing watch of the same directory instead of replacing it."""


@contextmanager
def changes(directory: Path) -> Iterator[asyncio.Event]:
    """Yield an event that is set whenever a file in the directory changes; the caller clears it."""
    with _watched({directory: _ANY_CHANGE}, optional=()) as changed:
        yield changed


async def wait_until_removed(paths: Sequence[Path]) -> Path:
    """Wait until one of the paths has been removed, moved or replaced, and return it.

    inotify reports the removal of a directory that is in use only to watches of its parent, and a move only
    to watches of the directory that was moved. So the paths, their parents and all ancestors are watched.
    """
    known = {path: _identity(path) for path in paths}
    masks = dict.fromkeys(paths, _SELF_LOST | _ENTRY_LOST)
    above = {ancestor for path in paths for ancestor in path.parents}
    for path in above:
        masks[path] = masks.get(path, 0) | _SELF_LOST
    for path in paths:
        masks[path.parent] |= _ENTRY_LOST
    with _watched(masks, optional=tuple(above)) as changed:
        while True:
            for path, identity in known.items():
                if identity is None or _identity(path) != identity:
                    return path
            await changed.wait()
            changed.clear()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


@contextmanager
def _watched(masks: Mapping[Path, int], optional: Sequence[Path]) -> Iterator[asyncio.Event]:
    """Yield an event that is set when an event of its mask happens to one of the paths.

    A path in `optional` may be missing or inaccessible.
    """
    first = next(iter(masks))
    descriptor = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise _watch_error(first)
    try:
        for path, mask in masks.items():
            added = _LIBC.inotify_add_watch(descriptor, os.fsencode(path), mask | _ADD)
            if added < 0 and path not in optional and ctypes.get_errno() != errno.ENOENT:
                raise _watch_error(path)
        changed, loop = asyncio.Event(), asyncio.get_running_loop()

        def on_change() -> None:
            os.read(descriptor, 65_536)
            changed.set()

        loop.add_reader(descriptor, on_change)
        try:
            yield changed
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


def _watch_error(directory: Path) -> EmbeddedError:
    code = ctypes.get_errno()
    advice = (
        ": this user has reached the limit of watches; close programs that watch files, or raise the sysctls "
        "fs.inotify.max_user_instances and fs.inotify.max_user_watches"
        if code in (errno.EMFILE, errno.ENOSPC)
        else ""
    )
    return EmbeddedError(f"can't watch {directory} for changes ({os.strerror(code)}){advice}")
