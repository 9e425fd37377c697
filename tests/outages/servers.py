"""A NATS and a PostgreSQL of a test's own, which it stops, kills and starts again."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

from handlers.access.identities import credentials_of, identities
from handlers.embedded import Servers
from handlers.embedded.child import Child
from handlers.embedded.nats_server import nats_server
from handlers.embedded.postgresql import postgresql


class Nats:
    """A nats-server that keeps its port, and its store unless that is wiped."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True)
        self.directory, self.url = directory, ""
        self._running: AbstractAsyncContextManager[tuple[str, str, Child]] | None = None
        self._pid = 0

    async def start(self) -> None:
        self._running = nats_server(self.directory, identities(self.directory))
        self.url, _, child = await self._running.__aenter__()
        self._pid = child.pid

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, by force with SIGKILL."""
        await _end(self._running, self._pid, how)
        self._running = None

    def wipe(self) -> None:
        """Remove its store."""
        shutil.rmtree(self.directory / "nats" / "jetstream")


class Postgres:
    """A PostgreSQL that keeps its place and its data."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True)
        self.directory, self.url = directory, ""
        self._running: AbstractAsyncContextManager[tuple[str, Child]] | None = None
        self._pid = 0

    async def start(self) -> None:
        self._running = postgresql(self.directory)
        self.url, child = await self._running.__aenter__()
        self._pid = child.pid

    async def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it, by force with SIGKILL."""
        await _end(self._running, self._pid, how)
        self._running = None


async def _end(running: AbstractAsyncContextManager[Any] | None, pid: int, how: int) -> None:
    if running is not None:
        if how == signal.SIGKILL:
            with suppress(ProcessLookupError):
                os.kill(pid, how)
        await running.__aexit__(None, None, None)


def known_as(nats: Nats, postgres: Postgres) -> Servers:
    """Both, as those know them who connect to them."""
    return Servers(nats.directory, credentials_of(nats.directory), nats.url, None, postgres.url)
