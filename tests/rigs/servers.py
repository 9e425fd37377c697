"""Servers for tests: an empty database on a running PostgreSQL; servers that a test stops, kills and restarts."""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg

from handlers.access.identities import credentials_directory, load_identities
from handlers.embedded import Servers
from handlers.embedded.child import Child, start
from handlers.embedded.database_access import password_file, role_urls
from handlers.embedded.nats_server import nats_server
from handlers.embedded.postgresql import _binaries, _initialize, _is_ready, postgresql
from handlers.embedded.run_as import choose_user
from statemachine.store.migrator import migrate

WITHOUT_SYNC = {"fsync": "off", "full_page_writes": "off"}
"""Settings of a PostgreSQL that tests kill, but whose machine never crashes."""


@asynccontextmanager
async def new_database(servers: Servers, template: str = "template0") -> AsyncIterator[str]:
    """Create a copy of a database, by default of an empty one, and yield its URL; drop it at the end."""
    name = f"test_{uuid4().hex}"
    server = await asyncpg.connect(servers.database_url)
    try:
        await server.execute(f"create database {name} template {template}")
        yield servers.database_url.replace("/workspaced?", f"/{name}?", 1)
        await server.execute(f"drop database {name} with (force)")
    finally:
        await server.close()


def give_database(directory: Path) -> None:
    """Copy a database that was set up and migrated to a data directory that has none.

    Its first start is then as fast as any other. Tests of the first start don't use this.
    """
    if (directory / "postgres").exists():
        return
    made, copy = _migrated_database(), credentials_directory(directory)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy.mkdir(mode=0o700, exist_ok=True)
    if not password_file(copy).exists():
        shutil.copy2(password_file(credentials_directory(made)), copy)
        # `cp` keeps the owner of the files, which PostgreSQL runs as.
        subprocess.run(["cp", "-a", made / "postgres", directory], check=True)


@cache
def _migrated_database() -> Path:
    """Return a data directory with a database that no server uses."""
    directory = Path(tempfile.mkdtemp(prefix="workspaced-database-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)

    async def make() -> None:
        async with postgresql(directory, WITHOUT_SYNC) as (url, _):
            await migrate(role_urls(url)["owner"], granting=True)

    # In a thread, since the test that is the first to need it may run an event loop.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, make()).result()
    return directory


class Nats:
    """A nats-server that keeps its port, and its store unless the test wipes it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True)
        self.directory, self.url, self.websocket = directory, "", ""
        self._running: AbstractAsyncContextManager[tuple[str, str, Child]] | None = None
        self._pid = 0

    async def start(self) -> None:
        self._running = nats_server(self.directory, load_identities(self.directory))
        self.url, self.websocket, child = await self._running.__aenter__()
        self._pid = child.pid

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, with SIGKILL by force."""
        await _end(self._running, self._pid, how)
        self._running = None

    def wipe(self) -> None:
        """Remove the JetStream store; the server must be stopped."""
        shutil.rmtree(self.directory / "nats" / "jetstream")


class Postgres:
    """A PostgreSQL that keeps its socket and its data."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True)
        self.directory, self.url = directory, ""
        self._running: AbstractAsyncContextManager[tuple[str, Child]] | None = None
        self._pid = 0

    async def start(self) -> None:
        give_database(self.directory)
        self._running = postgresql(self.directory, WITHOUT_SYNC)
        self.url, child = await self._running.__aenter__()
        self._pid = child.pid

    async def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it, with SIGKILL by force."""
        await _end(self._running, self._pid, how)
        self._running = None


async def _end(running: AbstractAsyncContextManager[Any] | None, pid: int, how: int) -> None:
    if running is not None:
        if how == signal.SIGKILL:
            with suppress(ProcessLookupError):
                os.kill(pid, how)
        await running.__aexit__(None, None, None)


@asynccontextmanager
async def restartable_servers(home: Path) -> AsyncIterator[tuple[Nats, Postgres]]:
    """Run servers that a test stops, kills and restarts."""
    nats, postgres = Nats(home / "nats"), Postgres(home / "postgres")
    try:
        await asyncio.gather(nats.start(), postgres.start())
        yield nats, postgres
    finally:
        await nats.stop()
        await postgres.stop()


def servers_of(nats: Nats, postgres: Postgres) -> Servers:
    """Return how programs reach both servers."""
    return Servers(
        nats.directory, credentials_directory(nats.directory), nats.url, None, postgres.url
    )


def free_port() -> int:
    """Return a port that is free now.

    The kernel gives no port below 32768 to a client, so no connection of another test takes it.
    """
    while True:
        with (
            suppress(OSError),
            socket.create_server(("127.0.0.1", random.randrange(20_000, 32_768))) as one,
        ):
            return int(one.getsockname()[1])


@asynccontextmanager
async def listening_postgres(home: Path, port: int) -> AsyncIterator[str]:
    """Run a PostgreSQL that listens on TCP, not embedded; yield its administrator's URL."""
    data, binaries = home / "postgres", _binaries()
    identity = choose_user(data, binaries / "postgres")
    if not data.exists():
        await _initialize(data, binaries, identity, "not-used")
        (data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 trust\n")
    settings = (f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=")
    child = await start(
        "PostgreSQL",
        [binaries / "postgres", "-D", data, *(word for s in settings for word in ("-c", s))],
        log=home / "postgres.log",
        stop_signal=signal.SIGINT,
        run_as=identity.options,
    )
    try:
        await child.wait_until_ready(data, lambda: _is_ready(data, child.pid), 30)
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable"
    finally:
        await child.stop()
