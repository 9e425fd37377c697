"""A nats-server whose disk was full: it stores nothing more until it is started again, and that is done here.

nats-server goes on to accept connections then, and leaves every publish without an answer. What it says of this
stands in its log only.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from bus.backoff import Backoff
from handlers.embedded.inotify import changes

log = logging.getLogger(__name__)

ROOM: Final = 64 * 1024 * 1024
"""Bytes that have to be free before the server is started again."""
_STOPPED: Final = re.compile(
    rb"critical write error|failed to store a msg|out of resources|no space left on device|"
    rb"JetStream.{0,40}DISABLED",
    re.IGNORECASE,
)
_OF_A_CLIENT: Final = re.compile(rb"\[\d+\] \S+ \S+ \[\w+\] \S+ - [a-z]+id:\d")
"""How a line about a connection begins; what follows may be the client's own words."""


class StoreWatch:
    """Follows the server's log from where it is now."""

    def __init__(self, log_file: Path, store: Path) -> None:
        self._log, self._store = log_file, store
        self._read = log_file.stat().st_size
        self._wrong: str | None = None

    def wrong(self) -> str | None:
        """Return what is wrong with the server's store, or None."""
        return self._wrong

    async def run(self, restart: Callable[[], Awaitable[None]]) -> None:
        """Start the server again whenever it has stopped to store and there is room, until cancelled."""
        with changes(self._log.parent) as changed:
            while True:
                await changed.wait()
                changed.clear()
                if (line := self._news()) is not None:
                    await self._mend(line, restart)

    def _news(self) -> str | None:
        """Return the first new line of the log that says that the server stopped to store."""
        try:
            with self._log.open("rb") as file:
                if file.seek(0, 2) < self._read:
                    self._read = 0  # another file stands there
                file.seek(self._read)
                new = file.read()
        except OSError:
            return None
        whole, _, _ = new.rpartition(b"\n")
        self._read += len(whole)
        return next(
            (
                line.decode(errors="replace")
                for line in whole.splitlines()
                if _STOPPED.search(line) and not _OF_A_CLIENT.match(line)
            ),
            None,
        )

    async def _mend(self, line: str, restart: Callable[[], Awaitable[None]]) -> None:
        self._wrong = f"nats-server can't store messages: {line.partition('] ')[2] or line}"
        log.error(
            "%s; it is started again once %d MiB are free on the disk of %s",
            self._wrong,
            ROOM // (1024 * 1024),
            self._store,
        )
        backoff = Backoff(first=0.1, limit=1.0)
        while shutil.disk_usage(self._store).free < ROOM:
            await backoff.wait()
        await restart()
        self._news()  # what it said until then is over
        self._wrong = None
        log.warning("nats-server was started again: there is room on its disk")
