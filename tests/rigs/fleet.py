"""Worker, gateway and provisioner processes on one NATS and one PostgreSQL, some behind proxies."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tests.rigs.messages import Event
from tests.rigs.processes import TIMEOUT, Process, run
from tests.rigs.proxy import Proxy, database_url_through, proxy, to_database
from tests.rigs.world import ORGANIZATION, TEMPLATES, Deployment, template_folder

READY_TIMEOUT = 60.0
"""Seconds within which a role must be ready: a new cluster may leave some requests of 5 s unanswered."""
RECONNECTED = "connected to NATS again"
"""The log line of a process whose subscriptions are restored."""


LIMIT = 0.5
"""Seconds of a short ack wait and transaction timeout: a killed worker delays others only briefly."""
WINDOW = 0.3
"""Seconds of a short duplicate window of NATS."""
PATIENT = {
    "WORKSPACED_ACK_WAIT": str(LIMIT),
    "WORKSPACED_TRANSACTION_TIMEOUT": str(LIMIT),
}
SHORT = PATIENT | {"WORKSPACED_DUPLICATE_WINDOW": str(WINDOW)}


class Nats(Protocol):
    """How to reach NATS: embedded servers or a cluster."""

    @property
    def nats_url(self) -> str: ...
    @property
    def credentials(self) -> Path: ...


@dataclass(frozen=True)
class Proxies:
    """The proxies through which one process reaches NATS and PostgreSQL."""

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
async def proxies_to(servers: Nats, database_url: str) -> AsyncIterator[Proxies]:
    """Start proxies in front of NATS and of a PostgreSQL that listens on a Unix socket."""
    nats = urlsplit(servers.nats_url)
    async with (
        proxy(lambda: asyncio.open_connection(nats.hostname, nats.port)) as to_nats,
        proxy(to_database(database_url)) as database,
    ):
        yield Proxies(to_nats, database)


@asynccontextmanager
async def logs_once_more(
    words: str, processes: Sequence[Process], timeout: float = TIMEOUT
) -> AsyncIterator[None]:
    """At the end, wait until each process has logged `words` once more than at the beginning."""
    times = {process: process.output().count(words) + 1 for process in processes}
    yield
    waits = (
        asyncio.to_thread(process.wait_for_output, words, n, timeout=timeout)
        for process, n in times.items()
    )
    await asyncio.gather(*waits)


@dataclass
class Fleet:
    """Role processes and the servers that they use; `fleet_on` makes one."""

    servers: Nats
    database_url: str
    home: Path
    env: dict[str, str] = field(default_factory=dict)
    running: list[Process] = field(default_factory=list)

    @property
    def nats_url(self) -> str:
        return self.servers.nats_url

    @property
    def credentials(self) -> Path:
        return self.servers.credentials

    def urls(self, proxies: Proxies | None = None) -> dict[str, str]:
        """Return the variables with which a process finds the servers, directly or by proxies."""
        nats, database = self.nats_url, self.database_url
        if proxies is not None:
            nats = f"nats://127.0.0.1:{proxies.nats.port}"
            database = database_url_through(proxies.database, database)
        return {"WORKSPACED_NATS_URL": nats, "WORKSPACED_DATABASE_URL": database}

    async def start(self, role: str, *flags: str | Path, **options: Any) -> Process:
        """Start a role as `begin` does, and wait until it is ready."""
        process = self.begin(role, *flags, **options)
        await asyncio.to_thread(process.wait_for_output, f"{role} is ready", timeout=READY_TIMEOUT)
        return process

    def begin(
        self,
        role: str,
        *flags: str | Path,
        proxies: Proxies | None = None,
        env: Mapping[str, str] | None = None,
        program: Path | None = None,
    ) -> Process:
        """Start a role without waiting for it. `program` runs in place of `-m handlers`."""
        process = Process(
            role,
            *("--credentials", self.credentials / f"{role}.nk"),
            *("--data-dir", self.home / "roles"),
            *flags,
            env=self.urls(proxies) | self.env | dict(env or {}),
            program=program,
        )
        self.running.append(process)
        return process

    @asynccontextmanager
    async def reconnected(self) -> AsyncIterator[None]:
        """At the end, wait until every process has reconnected to NATS, which the test interrupts."""
        async with logs_once_more(RECONNECTED, self.running):
            yield

    async def end(self, process: Process, how: signal.Signals = signal.SIGKILL) -> int:
        """End a process; return its exit status."""
        self.running.remove(process)
        return await asyncio.to_thread(process.stop, how)

    async def deployment(self, *templates: str) -> Deployment:
        """Push templates of the tests, and return how participants reach this deployment."""
        pushed = {name: await self.push(name) for name in templates or ("plain",)}
        return Deployment(self.nats_url, self.credentials, pushed)

    async def push(self, name: str) -> Event:
        """Push a template of the tests; return the command's answer."""
        folder = template_folder(self.home, name, TEMPLATES[name])
        operator = ("--credentials", self.credentials / "operator.nk")
        words = ("template", "push", folder, "--organization", ORGANIZATION, *operator)
        done = await asyncio.to_thread(run, *words, env=self.urls())
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@asynccontextmanager
async def fleet_on(
    servers: Nats, database_url: str, home: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[Fleet]:
    """Yield a fleet without processes; kill those that run at the end."""
    fleet = Fleet(servers, database_url, home, dict(env or {}))
    try:
        yield fleet
    finally:
        for process in list(fleet.running):
            process.kill()
