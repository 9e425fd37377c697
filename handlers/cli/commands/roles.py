"""`workspaced worker`, `gateway` and `provisioner`: runs one role until it is signalled to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bus import Backoff, Bus, Unavailable
from bus.connect import anonymous
from handlers.app import Endpoints, limits, locate, tuning, waiting_limits
from handlers.cli.command_table.servers import RunGateway, RunProvisioner, RunWorker, ServerCommand
from handlers.embedded.database_access import credentials_folder, password_file
from handlers.gateway.gateway import Gateway
from handlers.provisioner import Provisioner, QuotaLimits
from handlers.runtime.health import (
    Check,
    HttpServer,
    database_check,
    first_problem,
    http_server,
    nats_check,
    started_check,
)
from handlers.runtime.listeners import listen_address, server_certificate
from handlers.runtime.site import site
from handlers.runtime.supervise import run_until_one_ends
from handlers.sandbox.policy import (
    Confinement,
    ResourceLimits,
    choose_confinement,
    require_confinement,
)
from handlers.settings import Settings
from handlers.worker.worker import Worker
from statemachine.store import Store

log = logging.getLogger(__name__)
LOCAL: Final = "local"
"""Name and pool of the provisioner that `up` runs."""


async def run_until_signal(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run `jobs` until SIGINT or SIGTERM, or until one of them ends; raises its exception."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await run_until_one_ends(*jobs, stop.wait())


async def raise_when_closed(bus: Bus) -> None:
    """Wait until the connection is closed for good, then raise Unavailable.

    The process then ends, so that its supervisor starts it again.
    """
    raise Unavailable(f"NATS closed the connection for good: {await bus.wait_closed()}")


async def restart_on_disconnect(run: Callable[[], Awaitable[None]]) -> None:
    """Run a role; if it loses NATS while it starts, log that and start it again."""
    backoff = Backoff()
    while True:
        try:
            await run()
        except Unavailable as error:
            log.warning("lost NATS while starting, starting again: %s", error)
        else:
            return
        await backoff.wait()


async def worker(command: RunWorker, settings: Settings) -> None:
    """Run a worker."""
    endpoints, ready = locate(settings), asyncio.Event()
    checks = {"worker": started_check(ready)}
    async with (
        _health(command, settings, checks),
        endpoints.store("worker", wait=True) as store,
        endpoints.bus("worker", wait=True) as bus,
    ):
        working = new_worker(store, bus, settings, endpoints, ready)
        problems = working.problems
        checks |= {
            "nats": first_problem(nats_check({"worker": bus}), lambda: problems.of("nats")),
            "database": first_problem(database_check(store), lambda: problems.of("database")),
        }
        await run_until_signal(working.run(), raise_when_closed(bus))


async def gateway(command: RunGateway, settings: Settings) -> None:
    """Run a gateway."""
    endpoints, ready = locate(settings), asyncio.Event()
    checks = {"gateway": started_check(ready)}
    async with (
        _health(command, settings, checks) as http,
        endpoints.store("gateway", wait=True) as store,
        endpoints.bus("gateway", wait=True) as bus,
    ):
        checks |= {"nats": nats_check({"gateway": bus}), "database": database_check(store)}
        serving = new_gateway(store, bus, settings, endpoints, ready)
        async with serving.http() as http.api:
            await run_until_signal(restart_on_disconnect(serving.run), raise_when_closed(bus))


async def provisioner(command: RunProvisioner, settings: Settings) -> None:
    """Run a local provisioner."""
    require_confinement(settings.confinement, os.environ)
    endpoints, ready = locate(settings), asyncio.Event()
    checks = {"provisioner": started_check(ready)}
    async with (
        _health(command, settings, checks),
        endpoints.bus("provisioner", wait=True) as bus,
    ):
        checks |= {"nats": nats_check({"provisioner": bus})}
        local = local_provisioner(
            endpoints,
            bus,
            settings.data_dir,
            settings,
            name=command.provisioner,
            pool=command.pool,
            ready=ready,
        )
        await run_until_signal(run_provisioner(local), raise_when_closed(bus))


def _health(
    command: ServerCommand, settings: Settings, checks: dict[str, Check]
) -> AbstractAsyncContextManager[HttpServer]:
    """Serve a role's health on the address that its flags name. Raises InvalidSettings."""
    certificate = server_certificate(settings)
    address = listen_address(
        "--http-host", command.http_host, certificate, insecure=command.insecure
    )
    return http_server(address, command.http_port, checks, certificate)


def new_worker(
    store: Store, bus: Bus, settings: Settings, endpoints: Endpoints, ready: asyncio.Event
) -> Worker:
    """Return a worker that sets `ready` when it has started."""
    return Worker(
        store,
        bus,
        limits(settings),
        tuning(settings, endpoints),
        waiting_limits(settings),
        ready,
    )


def new_gateway(
    store: Store, bus: Bus, settings: Settings, endpoints: Endpoints, ready: asyncio.Event
) -> Gateway:
    """Return a gateway that sets `ready` when it has started."""
    return Gateway(
        store,
        bus,
        issuer_seed=endpoints.issuer_seed(),
        held_calls=settings.held_calls,
        ready=ready,
        site=site(settings.http_hosts, settings.http_origins),
    )


def local_provisioner(
    endpoints: Endpoints,
    bus: Any,
    data_dir: Path,
    settings: Settings,
    *,
    name: str = LOCAL,
    pool: str = LOCAL,
    ready: asyncio.Event | None = None,
) -> Provisioner:
    """Return the provisioner that builds workspaces below `data_dir`."""
    environ = dict(os.environ)
    return Provisioner(
        bus,
        name=name,
        pool=pool,
        root=data_dir / "provisioner" / name,
        nats_url=anonymous(endpoints.nats_url),
        nats_ca=None if endpoints.nats_ca is None else endpoints.nats_ca.absolute(),
        environ=environ,
        quota_limits=QuotaLimits(settings.workspaces_per_owner, settings.disk_per_owner_mib),
        confinement=replace(
            confinement(settings, environ, (data_dir, *secret_paths(endpoints.credentials))),
            readable=() if endpoints.nats_ca is None else (endpoints.nats_ca.resolve(),),
        ),
        presence_ttl=settings.presence_ttl,
        ready=ready,
    )


def secret_paths(credentials: Path) -> list[Path]:
    """Return the paths that a template's code must not read.

    If the folder of a seed file also holds the database password, that is the whole folder.
    """
    folder = credentials_folder(credentials)
    return [folder if password_file(folder).exists() else credentials]


def confinement(
    settings: Settings, environ: Mapping[str, str], private: Sequence[Path]
) -> Confinement:
    """Return how builds and agents on this machine are confined."""
    bounds = ResourceLimits(
        settings.step_cpu_seconds,
        settings.process_memory_mib,
        settings.process_files,
        settings.user_processes,
        settings.file_size_mib,
    )
    return choose_confinement(
        settings.confinement, bounds, private=private, environ=environ, writable=settings.writable
    )


async def run_provisioner(provisioner: Provisioner) -> None:
    """Run a provisioner; when cancelled, wait until it has ended its running steps."""
    run = asyncio.create_task(provisioner.run())
    try:
        await asyncio.shield(run)
    except asyncio.CancelledError:
        provisioner.stop()
        await run
        raise
