"""`workspaced up`: everything on one machine, in one process and its servers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bus.streams import pool_consumer
from bus.urls import redacted
from handlers.app import Place, database_of, limits, naming, room, tuning
from handlers.embedded import Servers, embedded_servers
from handlers.embedded.ports import Ports
from handlers.gateway.gateway import Gateway
from handlers.health import alive, answers, connected, either, health_server
from handlers.listen import LOOPBACK, Listening, address_of, certificate_of, is_name
from handlers.roles import LOCAL, local_provisioner, lost, stoppable, until_signalled
from handlers.sandbox.confinement import demand
from handlers.settings import Settings
from handlers.supervise import running
from handlers.worker.worker import Worker
from statemachine.store.migrator import migrate


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
                "nats": redacted(self.servers.nats_url),
                "websocket": self.servers.websocket_url,
                "http": self.http_url,
                "database": self.servers.public_database_url,
            }
        )


async def up(
    settings: Settings,
    *,
    nats_host: str | None,
    nats_name: str | None,
    nats_port: int | None,
    websocket_host: str | None,
    websocket_port: int | None,
    http_host: str | None,
    http_port: int | None,
    insecure: bool,
) -> None:
    """Run until SIGINT or SIGTERM.

    Raises InvalidSettings, EmbeddedError, BusError, StoreUnavailableError.
    """
    certificate = certificate_of(settings)
    given = {"nats": nats_host, "websocket": websocket_host, "http": http_host}
    hosts = {
        what: address_of(f"--{what}-host", host, certificate, insecure=insecure)
        for what, host in given.items()
    }
    demand(settings.confinement, os.environ)
    listening = Listening(
        host=hosts["nats"],
        websocket_host=hosts["websocket"],
        http_host=hosts["http"],
        name=nats_name,
        port=nats_port,
        websocket_port=websocket_port,
        http_port=http_port,
        names={hosts[what]: host for what, host in given.items() if host and is_name(host)},
        certificate=certificate,
        origins=tuple(filter(None, (settings.websocket_origins or "").split(","))),
        ca=settings.nats_ca.absolute() if settings.nats_ca and certificate else None,
    )

    async def serve() -> None:
        places = everything(settings, listening)
        async with places as ready:
            sys.stdout.write(ready.announcement() + "\n")
            sys.stdout.flush()
            sys.stderr.write(
                f"workspaced is ready on {settings.data_dir}; stop it with Ctrl-C. "
                "Workspaces and their agents go on without it.\n"
            )
            raise await ready.servers.lost()

    await until_signalled(serve())


@asynccontextmanager
async def everything(
    settings: Settings,
    listening: Listening,
) -> AsyncIterator[Running]:
    """Start servers and roles; ready when entered. A role that fails raises in the block."""
    directory = settings.data_dir
    async with embedded_servers(
        directory,
        listening=listening,
        nats_url=settings.nats_url,
        database_url=database_of(settings),
    ) as servers:
        place = Place(
            servers.nats_url,
            servers.database_url,
            settings.credentials or servers.credentials,
            settings.transaction_timeout,
            servers.databases,
            settings.nats_ca if settings.nats_url else listening.ca,
            servers.stream_room,
        )
        if (owners := servers.databases.get("owner")) is not None:
            with naming(owners):
                await migrate(owners, granting=True)
        async with (
            place.store("worker") as store,
            place.store("gateway") as gateway_store,
            place.bus("worker") as worker_bus,
            place.bus("gateway") as gateway_bus,
            place.bus("provisioner") as provisioner_bus,
        ):
            worker = Worker(
                store, worker_bus, limits(settings), tuning(settings, place), room(settings)
            )
            gateway = Gateway(
                gateway_store,
                gateway_bus,
                orphan_grace=limits(settings).orphan_grace,
                issuer_seed=place.issuer_seed(),
                held_calls=settings.held_calls,
            )
            local = local_provisioner(place, provisioner_bus, servers.directory, settings)
            buses = {"worker": worker_bus, "gateway": gateway_bus, "provisioner": provisioner_bus}
            closed = [lost(bus) for bus in buses.values()]
            async with running(worker.run(), gateway.run(), *closed) as roles:
                await worker.ready.wait()
                await gateway.ready.wait()
                # Before a template names the pool: else the first build would wait for a retry.
                await worker_bus.ensure_consumer(pool_consumer(LOCAL))
                async with running(stoppable(local)) as tasks:
                    http_host = listening.http_host or LOOPBACK
                    port = Ports(servers.directory).kept()["http"]
                    checks = {
                        "nats": either(
                            connected(buses), lambda: servers.wrong() or worker.troubles.of("nats")
                        ),
                        "database": either(answers(store), lambda: worker.troubles.of("database")),
                        "roles": alive([*roles, *tasks]),
                    }
                    async with health_server(http_host, port, checks, listening.certificate):
                        yield Running(servers, place, listening.url("http", http_host, port))
