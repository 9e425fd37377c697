"""Wakes when a file of a directory changes: how a server's readiness is seen without polling."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from handlers.embedded.errors import EmbeddedError

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_MODIFIED, _CLOSED, _MOVED_HERE, _CREATED = 0x2, 0x8, 0x80, 0x100
_ANY_CHANGE: Final = _MODIFIED | _CLOSED | _MOVED_HERE | _CREATED


@contextmanager
def changes(directory: Path) -> Iterator[asyncio.Event]:
    """Give an event that is set at each change of a file in the directory; the reader clears it."""
    descriptor = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise _refused(directory)
    try:
        if _LIBC.inotify_add_watch(descriptor, os.fsencode(directory), _ANY_CHANGE) < 0:
            raise _refused(directory)
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


def _refused(directory: Path) -> EmbeddedError:
    code = ctypes.get_errno()
    advice = (
        ": this user has no inotify instance left; close programs that watch files, "
        "or raise the sysctl fs.inotify.max_user_instances"
        if code == errno.EMFILE
        else ""
    )
    return EmbeddedError(f"can't watch {directory} for changes ({os.strerror(code)}){advice}")
