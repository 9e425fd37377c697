"""A provisioner and its agents as processes over a real nats-server."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from bus import Bus
from bus.jetstream import connect
from handlers.access.identities import seed_file
from handlers.embedded import Servers, embedded_servers
from handlers.publishing import agent_files
from tests.provisioner.conftest import provisioner_on
from tests.provisioner.rig import Rig, folder

TEMPLATES = Path(__file__).parents[2] / "deploy" / "templates"


class World:
    """A nats-server that tests restart, a rig that records messages, and a provisioner."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.root = directory, directory / "root"
        self._server = AsyncExitStack()
        self.servers: Servers
        self.rig: Rig

    async def start_nats(self) -> None:
        self.servers = await self._server.enter_async_context(
            embedded_servers(self.directory / "data", database_url="postgresql://not-used")
        )

    async def stop_nats(self) -> None:
        await self._server.aclose()
        self._server = AsyncExitStack()

    def seed(self, role: str) -> str:
        return seed_file(self.servers.credentials, role).read_text().strip()

    async def connect(self, role: str, prefix: str = "_INBOX") -> Bus:
        return await connect(self.servers.nats_url, seed=self.seed(role), inbox_prefix=prefix)

    @asynccontextmanager
    async def provisioner(self, **options: Any) -> AsyncIterator[None]:
        bus = await self.connect("provisioner", "_INBOX_provisioner")
        async with provisioner_on(bus, self.root, self.servers.nats_url, **options):
            yield
        await bus.close()

    def homes(self) -> list[Path]:
        return list((self.root / "workspaces").glob("*/.workspaced/agents/*"))

    def agent(self) -> int:
        """Return the process id of the only agent."""
        (pid,) = filter(None, map(agent_files.running_agent, self.homes()))
        return pid

    def template(self, name: str, **parameters: str) -> dict[str, Any]:
        manifest = tomllib.loads((TEMPLATES / name / "template.toml").read_text())
        return {
            "version": self.rig.version(folder(TEMPLATES / name)),
            "build": manifest["build"],
            "agent": manifest["agent"],
            "parameters": {
                **{p["name"]: str(p["default"]) for p in manifest["parameter"]},
                **parameters,
            },
        }


async def started(world: World, template: dict[str, Any], number: int = 1) -> dict[str, Any]:
    return await world.rig.ended(await world.rig.ask(world.rig.job(number, **template)))
