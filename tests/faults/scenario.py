"""All processes of a run: two servers, several of each role, their links and templates."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from handlers.access.identities import Identities, load_identities
from handlers.embedded.database_access import role_urls
from handlers.embedded.nats_server import nats_server
from handlers.embedded.postgresql import postgresql
from statemachine.store.migrator import migrate
from tests.faults.processes import Program, Server
from tests.rigs.client import role_options
from tests.rigs.messages import new_id
from tests.rigs.processes import ROOT, environment, kill_processes, processes_using
from tests.rigs.proxy import Proxy, proxy
from tests.rigs.world import template_folder

CONTRACT = "contract"
"""Pool of the harness's provisioners; workspaced's own ones have the pools `local` and `annex`."""
LOCAL_POOLS = ("local", "annex")
MACHINES = ("machine-1", "machine-2")
TEMPLATES = {
    "plain": f'name = "plain"\npool = "{CONTRACT}"\n',
    "local": 'name = "local"\npool = "local"\n'
    '[build]\nstart = "true"\nstop = "true"\n[[agent]]\nname = "main"\nstartup_script = "true"\n',
    "annex": 'name = "annex"\npool = "annex"\n'
    '[build]\nstart = "sleep 0.3; echo made > made"\nstop = "true"\ndelete = "true"\n'
    '[[agent]]\nname = "main"\nstartup_script = "sleep 0.2"\nshutdown_script = "true"\n',
}


@dataclass(frozen=True)
class Settings:
    """The time limits of a run."""

    build: float = 75.0
    connect: float = 30.0
    scripts: float = 20.0

    @property
    def environment(self) -> dict[str, str]:
        return {
            "WORKSPACED_BUILD_TIMEOUT": str(self.build),
            "WORKSPACED_AGENT_CONNECT_TIMEOUT": str(self.connect),
            "WORKSPACED_STARTUP_SCRIPTS_TIMEOUT": str(self.scripts),
            # The window is short, so that jobs published late or twice do reach provisioners.
            "WORKSPACED_DUPLICATE_WINDOW": "2",
        }


@dataclass
class FaultScenario:
    """The processes of a run, their directory and how to reach them."""

    directory: Path
    settings: Settings
    rng: Random
    identities: Identities
    nats: Server
    postgresql: Server
    wires: dict[str, Proxy]
    """The proxies to NATS, by kind of program."""
    programs: list[Program]
    templates: dict[str, str]
    organization_id: str

    @property
    def nats_url(self) -> str:
        """The URL of the server itself, without a link."""
        return str(self.nats.place[0])

    def wire_url(self, kind: str) -> str:
        """Return the URL with which programs of a kind reach NATS."""
        return f"nats://127.0.0.1:{self.wires[kind].port}"

    @property
    def database_url(self) -> str:
        return str(self.postgresql.place[0])

    @property
    def nats_store(self) -> Path:
        return self.directory / "nats" / "jetstream"

    @property
    def yard(self) -> Path:
        return self.directory / "yard"

    @property
    def local_workspaces(self) -> list[Path]:
        """The directories of all workspaces that local provisioners made."""
        parent = self.directory / "local" / "provisioner"
        return sorted(parent.glob("*/workspaces/[!.]*"))

    def role_options(self, role: str) -> dict[str, Any]:
        return role_options(self.identities.directory, role)

    def variables(self, role: str, wire: str) -> dict[str, str]:
        return {
            "WORKSPACED_NATS_URL": self.wire_url(wire) if wire else self.nats_url,
            # Database URLs by role, as under `up`; provisioners need none.
            "WORKSPACED_DATABASE_URL": role_urls(self.database_url).get(role, ""),
            "WORKSPACED_CREDENTIALS": str(self.identities.directory / f"{role}.nk"),
            "WORKSPACED_DATA_DIR": str(self.directory / "local"),
            **self.settings.environment,
        }

    async def command(self, *words: str | Path, patience: float = 60) -> tuple[int, str, str]:
        """Run `workspaced …` as operator; return its exit status, stdout and stderr."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "handlers", *map(str, words)),
            cwd=ROOT,
            env=environment(self.variables("operator", "")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(patience):
            out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    def compose(self, workers: int, gateways: int) -> None:
        """Define the processes to run."""
        for number in range(1, workers + 1):
            self._role("worker", f"worker-{number}", "worker")
        for number in range(1, gateways + 1):
            self._role("gateway", f"gateway-{number}", "gateway")
        for pool in LOCAL_POOLS:
            words = ("--name", pool, "--pool", pool)
            self._role("provisioner", f"local-{pool}", "local provisioner", *words)
        for name in ("forge-1", "forge-2"):
            self._own("provisioner", name, pool=CONTRACT, slow=self.settings.build * 1.1)
        for name in MACHINES:
            self._own("machine", name)

    def _role(self, role: str, name: str, kind: str, *words: str) -> None:
        command = (sys.executable, "-m", "handlers", role, *words)
        self._add(kind, name, command, self.variables(role, kind))

    def _own(self, kind: str, name: str, **more: Any) -> None:
        config = {
            "name": name,
            "url": self.wire_url(kind),
            "credentials": str(self.identities.directory),
            "yard": str(self.yard),
            "machines": MACHINES,
            **more,
        }
        command = (sys.executable, "-m", f"tests.faults.{kind}", json.dumps(config))
        self._add(kind, name, command, {})

    def _add(self, kind: str, name: str, command: tuple[str, ...], env: dict[str, str]) -> None:
        logs = self.directory / "logs"
        logs.mkdir(exist_ok=True)
        self.programs.append(Program(kind, name, command, env, logs, self.rng))

    async def push(self, name: str, text: str) -> None:
        """Push a template; workers create the consumer of its pool."""
        folder = template_folder(self.directory / "templates", name, text)
        words = ("template", "push", folder, "--organization", self.organization_id)
        status, out, err = await self.command(*words)
        if status != 0:
            raise RuntimeError(f"the template {name} can't be pushed: {err}")
        self.templates[name] = json.loads(out)["template_id"]


@asynccontextmanager
async def running_scenario(
    directory: Path, settings: Settings, rng: Random
) -> AsyncIterator[FaultScenario]:
    """Start everything; it is running on entry and stopped on exit."""
    keys = load_identities(directory)
    nats = Server("nats-server", lambda: nats_server(directory, keys), rng)
    database = Server("postgresql", lambda: postgresql(directory), rng)
    kinds = ("worker", "gateway", "local provisioner", "provisioner", "machine", "caller")
    place = FaultScenario(directory, settings, rng, keys, nats, database, {}, [], {}, new_id())
    proxies = AsyncExitStack()
    tasks = [asyncio.create_task(server.keep()) for server in (nats, database)]
    try:
        async with asyncio.timeout(60):
            await asyncio.gather(nats.up.wait(), database.up.wait())
        await migrate(place.database_url)
        port = int(place.nats_url.rsplit(":", 1)[1])
        for kind in kinds:
            made = proxy(lambda: asyncio.open_connection("127.0.0.1", port))
            place.wires[kind] = await proxies.enter_async_context(made)
        place.compose(workers=3, gateways=2)
        (directory / "templates").mkdir()
        tasks += [asyncio.create_task(program.keep()) for program in place.programs]
        for name, text in TEMPLATES.items():
            await place.push(name, text)
        yield place
    finally:
        for task in tasks[2:]:
            task.cancel()
        await asyncio.gather(*tasks[2:], return_exceptions=True)
        kill_processes(processes_using(directory, "handlers.agent"))
        for task in tasks[:2]:
            task.cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)
        await proxies.aclose()
