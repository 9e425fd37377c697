"""`workspaced up`: PostgreSQL, NATS and all roles on one machine, the roles in one process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bus.connect import redacted
from bus.streams import pool_consumer
from handlers.app import (
    Endpoints,
    database_url,
    errors_name_database,
)
from handlers.cli.command_table.servers import Up
from handlers.cli.commands.roles import raise_when_closed, run_until_signal
from handlers.cli.commands.run_gateway import new_gateway
from handlers.cli.commands.run_provisioner import LOCAL, local_provisioner, run_provisioner
from handlers.cli.commands.run_worker import new_worker
from handlers.embedded import Servers, embedded_servers
from handlers.embedded.ports import Ports
from handlers.gateway.tokens import (
    OPERATOR_FILE,
    issue_code,
    keep_operator_token,
    page_link,
    renew_operator_token,
)
from handlers.runtime.health import (
    database_check,
    first_problem,
    http_server,
    nats_check,
    tasks_check,
)
from handlers.runtime.listeners import (
    LOOPBACK,
    Listeners,
    is_host_name,
    listen_address,
    server_certificate,
)
from handlers.runtime.supervise import running
from handlers.sandbox.policy import require_confinement
from handlers.settings import Settings
from handlers.worker.status import StatusAnswers
from statemachine.store.migrator import migrate


@dataclass(frozen=True, slots=True)
class Running:
    """The servers and endpoints of a running `up`."""

    servers: Servers
    endpoints: Endpoints
    http_url: str
    page: str
    """A link to the page that signs a browser in once."""

    def announcement(self) -> str:
        """Return the line of JSON that `up` prints on stdout when it is ready."""
        return json.dumps(
            {
                "ready": True,
                "nats": redacted(self.servers.nats_url),
                "websocket": self.servers.websocket_url,
                "http": self.http_url,
                "page": self.page,
                "database": self.servers.public_database_url,
            }
        )


async def up(command: Up, settings: Settings) -> None:
    """Run until SIGINT or SIGTERM.

    Raises InvalidSettings, EmbeddedError, BusError, StoreUnavailableError.
    """
    certificate = server_certificate(settings)
    given = {
        "nats": command.nats_host,
        "websocket": command.websocket_host,
        "http": command.http_host,
    }
    hosts = {
        name: listen_address(f"--{name}-host", host, certificate, insecure=command.insecure)
        for name, host in given.items()
    }
    require_confinement(settings.confinement, os.environ)
    listeners = Listeners(
        host=hosts["nats"],
        websocket_host=hosts["websocket"],
        http_host=hosts["http"],
        name=command.nats_name,
        port=command.nats_port,
        websocket_port=command.websocket_port,
        http_port=command.http_port,
        names={hosts[name]: host for name, host in given.items() if host and is_host_name(host)},
        certificate=certificate,
        origins=tuple(filter(None, (settings.websocket_origins or "").split(","))),
        ca=settings.nats_ca.absolute() if settings.nats_ca and certificate else None,
    )

    async def serve() -> None:
        async with everything(settings, listeners) as up:
            sys.stdout.write(up.announcement() + "\n")
            sys.stdout.flush()
            sys.stderr.write(
                f"workspaced is ready on {settings.data_dir}; stop it with Ctrl-C. "
                "Workspaces and their agents keep running without it.\n"
                f"The page, for the next five minutes (then: workspaced page): {up.page}\n"
            )
            raise await up.servers.failed()

    await run_until_signal(serve())


@asynccontextmanager
async def everything(
    settings: Settings,
    listeners: Listeners,
) -> AsyncIterator[Running]:
    """Run servers and roles while the block runs; they are ready when it is entered.

    The exception of a role that fails is raised in the block.
    """
    directory = settings.data_dir
    async with embedded_servers(
        directory,
        listeners=listeners,
        nats_url=settings.nats_url,
        database_url=database_url(settings),
    ) as servers:
        endpoints = Endpoints(
            servers.nats_url,
            servers.database_url,
            settings.credentials or servers.credentials,
            settings.transaction_timeout,
            servers.databases,
            settings.nats_ca if settings.nats_url else listeners.ca,
            servers.stream_room,
        )
        if (owners := servers.databases.get("owner")) is not None:
            with errors_name_database(owners):
                await migrate(owners, granting=True)
        async with (
            endpoints.store("worker") as store,
            endpoints.store("gateway") as gateway_store,
            endpoints.bus("worker") as worker_bus,
            endpoints.bus("gateway") as gateway_bus,
            endpoints.bus("provisioner") as provisioner_bus,
        ):
            worker = new_worker(store, worker_bus, settings, endpoints, asyncio.Event())
            status = StatusAnswers(store, worker_bus, worker.waiting_limits).run()
            http_host = listeners.http_host or LOOPBACK
            port = Ports(servers.directory).kept()["http"]
            url = listeners.url("http", http_host, port)
            gateway = new_gateway(
                gateway_store, gateway_bus, settings, endpoints, asyncio.Event(), url
            )
            local = local_provisioner(endpoints, provisioner_bus, servers.directory, settings)
            buses = {"worker": worker_bus, "gateway": gateway_bus, "provisioner": provisioner_bus}
            closed = [raise_when_closed(bus) for bus in buses.values()]
            folder = endpoints.credentials
            token_file = (folder if folder.is_dir() else folder.parent) / OPERATOR_FILE
            await renew_operator_token(gateway_store, token_file)
            token = keep_operator_token(gateway_store, token_file)
            async with running(worker.run(), status, gateway.run(), token, *closed) as roles:
                await worker.ready.wait()
                await gateway.ready.wait()
                # Create it before a template names the pool: the first build would otherwise wait for a retry.
                await worker_bus.ensure_consumer(pool_consumer(LOCAL))
                async with running(run_provisioner(local)) as tasks:
                    checks = {
                        "nats": first_problem(
                            nats_check(buses),
                            lambda: servers.problem() or worker.problems.of("nats"),
                        ),
                        "database": first_problem(
                            database_check(store), lambda: worker.problems.of("database")
                        ),
                        "roles": tasks_check([*roles, *tasks]),
                    }
                    async with (
                        http_server(
                            http_host, port, checks, listeners.certificate, for_clients=True
                        ) as http,
                        gateway.http() as http.api,
                    ):
                        code, _ = await issue_code(gateway_store)
                        yield Running(servers, endpoints, url, page_link(url, code))
