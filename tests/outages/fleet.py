"""Roles as processes of their own around one NATS and one PostgreSQL, some behind proxies."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from handlers.embedded import Servers
from tests.rigs.client import Event
from tests.rigs.processes import Process, run
from tests.rigs.proxy import Proxy, proxy
from tests.rigs.world import ORGANIZATION, TEMPLATES, Deployment, template_folder

LIMIT = 0.5
"""Seconds of an ack's wait and of a transaction: what a worker that is gone may hold others up."""
WINDOW = 0.3
"""Seconds for which NATS knows a message by its id."""
PATIENT = {
    "WORKSPACED_ACK_WAIT": str(LIMIT),
    "WORKSPACED_TRANSACTION_TIMEOUT": str(LIMIT),
}
SHORT = PATIENT | {"WORKSPACED_DUPLICATE_WINDOW": str(WINDOW)}

AGAIN = "connected to NATS again"
"""What a process says when its subscriptions are there once more."""


@asynccontextmanager
async def heard_again(words: str, processes: Sequence[Process]) -> AsyncIterator[None]:
    """End when each of the processes has said it once more than before."""
    times = {process: process.output().count(words) + 1 for process in processes}
    yield
    heard = (asyncio.to_thread(process.wait_for_output, words, n) for process, n in times.items())
    await asyncio.gather(*heard)


@dataclass(frozen=True)
class Way:
    """How one process reaches the servers: through proxies of its own."""

    nats: Proxy
    database: Proxy

    def cut(self) -> None:
        self.nats.cut()
        self.database.cut()

    def mend(self) -> None:
        self.nats.mend()
        self.database.mend()

    def release(self) -> None:
        self.nats.release()
        self.database.release()


@asynccontextmanager
async def way_to(servers: Servers, database_url: str) -> AsyncIterator[Way]:
    """Put proxies before both servers."""
    nats = urlsplit(servers.nats_url)
    socket = f"{parse_qs(urlsplit(database_url).query)['host'][0]}/.s.PGSQL.5432"
    async with (
        proxy(lambda: asyncio.open_connection(nats.hostname, nats.port)) as to_nats,
        proxy(lambda: asyncio.open_unix_connection(socket)) as to_database,
    ):
        yield Way(to_nats, to_database)


@dataclass
class Fleet:
    """Workers, gateways and provisioners; none is left behind."""

    servers: Servers
    database_url: str
    home: Path
    env: dict[str, str] = field(default_factory=dict)
    running: list[Process] = field(default_factory=list)

    def urls(self, way: Way | None = None) -> dict[str, str]:
        nats, database = self.servers.nats_url, self.database_url
        if way is not None:
            name = urlsplit(database).path
            nats = f"nats://127.0.0.1:{way.nats.port}"
            user = urlsplit(database).netloc.partition("@")[0]
            database = f"postgresql://{user}@127.0.0.1:{way.database.port}{name}?sslmode=disable"
        return {"WORKSPACED_NATS_URL": nats, "WORKSPACED_DATABASE_URL": database}

    async def start(
        self,
        role: str,
        *more: str | Path,
        way: Way | None = None,
        env: Mapping[str, str] | None = None,
        program: Path | None = None,
    ) -> Process:
        """Start a role; return when it works. `program` runs in place of `-m handlers`."""
        process = self.begin(role, *more, way=way, env=env, program=program)
        await asyncio.to_thread(process.wait_for_output, f"{role} is ready")
        return process

    def begin(
        self,
        role: str,
        *more: str | Path,
        way: Way | None = None,
        env: Mapping[str, str] | None = None,
        program: Path | None = None,
    ) -> Process:
        """Start a role, without waiting for it."""
        process = Process(
            role,
            *("--credentials", self.servers.credentials / f"{role}.nk"),
            *("--data-dir", self.home / "roles"),
            *more,
            env=self.urls(way) | self.env | dict(env or {}),
            program=program,
        )
        self.running.append(process)
        return process

    @asynccontextmanager
    async def reconnected(self) -> AsyncIterator[None]:
        """Within it NATS goes and comes back; it ends when every process is connected again."""
        async with heard_again(AGAIN, self.running):
            yield

    async def end(self, process: Process, how: signal.Signals = signal.SIGKILL) -> int:
        """End a process; return its status."""
        self.running.remove(process)
        return await asyncio.to_thread(process.stop, how)

    async def place(self, *templates: str) -> Deployment:
        """Push templates of the tests."""
        pushed = {name: await self.push(TEMPLATES[name], name) for name in templates}
        return Deployment(self.servers.nats_url, self.servers.credentials, pushed)

    async def push(self, text: str, name: str) -> Event:
        """Push a template."""
        folder = template_folder(self.home, name, text)
        operator = ("--credentials", self.servers.credentials / "operator.nk")
        pushed = ("template", "push", folder, "--organization", ORGANIZATION, *operator)
        done = await asyncio.to_thread(run, *pushed, env=self.urls())
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@asynccontextmanager
async def fleet_on(
    servers: Servers, database_url: str, home: Path, env: Mapping[str, str] = SHORT
) -> AsyncIterator[Fleet]:
    """A fleet, empty; what runs at the end is ended by force."""
    fleet = Fleet(servers, database_url, home, dict(env))
    try:
        yield fleet
    finally:
        for process in list(fleet.running):
            process.kill()
