"""`workspaced up`: everything on one machine, in one process and its servers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from bus import Bus
from bus.streams import pool_consumer
from handlers.app import Place, limits
from handlers.embedded import Servers, embedded_servers
from handlers.embedded.ports import HOST, Ports
from handlers.gateway.gateway import Gateway
from handlers.health import health_server
from handlers.roles import LOCAL, local_provisioner, lost, stoppable, until_signalled
from handlers.settings import Settings
from handlers.worker.worker import Worker
from statemachine.store import Store, StoreUnavailableError


@dataclass(frozen=True, slots=True)
class Running:
    """What `up` tells when it is ready."""

    servers: Servers
    place: Place
    http_url: str

    def announcement(self) -> str:
        """Return the one line of stdout."""
        return json.dumps(
            {
                "ready": True,
                "nats": self.servers.nats_url,
                "websocket": self.servers.websocket_url,
                "http": self.http_url,
                "database": self.servers.database_url,
            }
        )


async def up(settings: Settings, *, nats_port: int | None, http_port: int | None) -> None:
    """Run until SIGINT or SIGTERM. Raises EmbeddedError, BusError, StoreUnavailableError."""

    async def serve() -> None:
        async with everything(settings, nats_port=nats_port, http_port=http_port) as running:
            sys.stdout.write(running.announcement() + "\n")
            sys.stdout.flush()
            sys.stderr.write(
                f"workspaced is ready on {settings.data_dir}; stop it with Ctrl-C. "
                "Workspaces and their agents go on without it.\n"
            )
            raise await running.servers.lost()

    await until_signalled(serve())


@asynccontextmanager
async def everything(
    settings: Settings, *, nats_port: int | None = None, http_port: int | None = None
) -> AsyncIterator[Running]:
    """Start servers and roles; ready when entered. A role that fails raises in the block."""
    directory = settings.data_dir
    async with embedded_servers(
        directory,
        nats_port=nats_port,
        nats_url=settings.nats_url,
        database_url=settings.database_url,
    ) as servers:
        place = Place(
            servers.nats_url,
            servers.database_url,
            settings.credentials or servers.credentials,
        )
        async with (
            place.store() as store,
            place.bus("worker") as worker_bus,
            place.bus("gateway") as gateway_bus,
            place.bus("provisioner") as provisioner_bus,
        ):
            worker = Worker(store, worker_bus, limits(settings))
            gateway = Gateway(
                store,
                gateway_bus,
                orphan_grace=limits(settings).orphan_grace,
                issuer_seed=place.issuer_seed(),
            )
            local = local_provisioner(place, provisioner_bus, servers.directory, settings)
            buses = {"worker": worker_bus, "gateway": gateway_bus, "provisioner": provisioner_bus}
            closed = [lost(bus) for bus in buses.values()]
            async with _beside(worker.run(), gateway.run(), *closed) as roles:
                for role, ready in zip(roles, (worker.ready, gateway.ready), strict=False):
                    await _ready(role, ready)
                # Before a template names the pool: else the first build would wait for a retry.
                await worker_bus.ensure_consumer(pool_consumer(LOCAL))
                async with _beside(stoppable(local)) as tasks:
                    port = Ports(servers.directory).take(
                        "http", asked=http_port, flag="--http-port"
                    )
                    checks = {
                        "nats": lambda: _connected(buses),
                        "database": lambda: _answers(store),
                        "roles": lambda: _alive([*roles, *tasks]),
                    }
                    async with health_server(HOST, port, checks):
                        yield Running(servers, place, f"http://{HOST}:{port}")


@asynccontextmanager
async def _beside(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run `jobs` beside the block and end them with it; the first that fails ends the block."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
            yield tasks
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _ready(task: asyncio.Task[None], ready: asyncio.Event) -> None:
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        waiting.cancel()
        task.result()


async def _connected(buses: Mapping[str, Bus]) -> str | None:
    without = [role for role, bus in buses.items() if not bus.connected]
    return f"not connected: {', '.join(without)}" if without else None


async def _answers(store: Store) -> str | None:
    try:
        await store.settings()
    except StoreUnavailableError as bad:
        return str(bad)
    return None


async def _alive(tasks: list[asyncio.Task[None]]) -> str | None:
    ended = sum(task.done() for task in tasks)
    return f"{ended} of {len(tasks)} roles have ended" if ended else None
