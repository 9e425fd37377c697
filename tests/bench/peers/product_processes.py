"""The product as it runs on one machine: its PostgreSQL and NATS, workers and a gateway, each a process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from handlers.access.identities import load_identities
from handlers.embedded import embedded_servers
from handlers.embedded.nats_server import nats_server
from statemachine.store.migrator import migrate
from tests.bench.peer import ROOT
from tests.bench.peers.product_wire import ORGANIZATION, POOL
from tests.bench.peers.servers import nats_program
from tests.bench.processes import Server, answers

PRODUCT = [sys.executable, "-m", "handlers"]
TEMPLATE = f"""
name = "plain"
display_name = "Plain"
description = "Nothing but a name"
pool = "{POOL}"
"""
LIMITS = {
    "WORKSPACED_BUILD_TIMEOUT": "86400",
    "WORKSPACED_AGENT_CONNECT_TIMEOUT": "86400",
    "WORKSPACED_STARTUP_SCRIPTS_TIMEOUT": "86400",
    "WORKSPACED_WAITING_CALLS": "10000000",
}
"""As many calls wait for as long as a measure needs."""


class Processes:
    """What runs, and where."""

    def __init__(self, root: Path, stack: AsyncExitStack) -> None:
        self.root, self.directory = root, root / "data"
        self._stack = stack
        self._pids: dict[str, int] = {}
        self.template: dict[str, Any] = {}

    async def start(self, *, sync: str | None = "always", workers: int = 1) -> None:
        """Start all of it; ready when this returns."""
        url = None if sync == "always" else await self._nats_by_default()
        servers = await self._stack.enter_async_context(
            embedded_servers(self.directory, nats_url=url)
        )
        self.nats_url, self.database_url = servers.nats_url, servers.database_url
        await migrate(servers.databases["owner"])
        names = {"PostgreSQL": "postgres", "nats-server": "nats"}
        self._pids |= {names[child.name]: child.pid for child in servers.children}
        for number in range(1, workers + 1):
            await self.role("worker", "" if number == 1 else f"-{number}")
        await self.role("gateway")
        self.template = await self._pushed()

    async def role(self, role: str, suffix: str = "") -> None:
        """Start one process of a role."""
        name = role + suffix
        server = self._server(role, name)
        self._stack.callback(server.stop)
        await server.said(f"{role} is ready")
        self._pids[name] = server.pid

    @asynccontextmanager
    async def one_more_worker(self) -> AsyncIterator[int]:
        """Start a worker beside the others, and yield its pid when it is ready; then stop it."""
        server = self._server("worker", "worker-more")
        try:
            await server.said("worker is ready")
            yield server.pid
        finally:
            server.stop()

    def _server(self, role: str, name: str) -> Server:
        argv = [*PRODUCT, role, "--data-dir", self.directory]
        return Server(argv, self.root / f"{name}.log", LIMITS)

    def pids(self) -> dict[str, int]:
        """Return every process of the product, its servers included."""
        return dict(self._pids)

    def seed(self, role: str) -> Path:
        """Return the file with a role's seed."""
        return self.directory / "credentials" / f"{role}.nk"

    async def _nats_by_default(self) -> str:
        """Start the product's NATS, with JetStream's default sync instead of the product's."""
        self.directory.mkdir(mode=0o700)
        async with nats_server(self.directory, load_identities(self.directory)) as made:
            url = made[0]
        written = self.directory / "nats" / "nats.conf"
        own = written.with_name("bench.conf")
        words = written.read_text()
        assert ", sync_interval: always" in words
        own.write_text(words.replace(", sync_interval: always", ""))
        server = Server([nats_program(), "-c", own], self.root / "nats.log")
        self._stack.callback(server.stop)
        self._pids["nats"] = server.pid
        await answers(int(url.rpartition(":")[2]))
        return url

    async def _pushed(self) -> dict[str, Any]:
        folder = self.root / "template"
        folder.mkdir()
        (folder / "template.toml").write_text(TEMPLATE)
        argv = [*PRODUCT, "template", "push", folder, "--organization", ORGANIZATION]
        process = await asyncio.create_subprocess_exec(
            *argv,
            "--data-dir",
            self.directory,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        out, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError("the template was refused")
        template: dict[str, Any] = json.loads(out)
        return template
