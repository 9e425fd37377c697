"""Running one role until it is told to stop."""

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

from bus import Bus, Unavailable
from bus.urls import anonymous
from handlers.app import Place, limits, locate, room, tuning
from handlers.embedded.database_password import folder_of, password_file
from handlers.gateway.gateway import Gateway
from handlers.health import Check, answers, begun, connected, either, health_server
from handlers.listen import address_of, certificate_of
from handlers.provisioner import Allowance, Provisioner
from handlers.publishing.backoff import Backoff
from handlers.sandbox.confinement import Bounds, Confinement, choose, demand
from handlers.settings import Settings
from handlers.supervise import run_until_one_ends
from handlers.worker.worker import Worker

log = logging.getLogger(__name__)
LOCAL: Final = "local"
"""Name and pool of the provisioner that `up` runs."""


async def until_signalled(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run `jobs` until SIGINT or SIGTERM arrives, or one of them ends; raises the error of that one."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await run_until_one_ends(*jobs, stop.wait())


async def lost(bus: Bus) -> None:
    """Wait until the bus is closed for good. Raises Unavailable then: who runs us starts us anew."""
    raise Unavailable(f"NATS closed the connection for good: {await bus.closed()}")


async def beginning_again(run: Callable[[], Awaitable[None]]) -> None:
    """Run a role; when it loses NATS while it begins, say so and begin again."""
    backoff = Backoff()
    while True:
        try:
            await run()
        except Unavailable as gone:
            log.warning("lost NATS while beginning, beginning again: %s", gone)
        else:
            return
        await backoff.wait()


async def worker(
    settings: Settings, *, http_host: str | None, http_port: int | None, insecure: bool
) -> None:
    """Run a worker."""
    place, ready = locate(settings), asyncio.Event()
    checks = {"worker": begun(ready)}
    async with (
        _health(settings, http_host, http_port, checks, insecure=insecure),
        place.store("worker", wait=True) as store,
        place.bus("worker", wait=True) as bus,
    ):
        working = Worker(
            store, bus, limits(settings), tuning(settings, place), room(settings), ready
        )
        troubles = working.troubles
        checks |= {
            "nats": either(connected({"worker": bus}), lambda: troubles.of("nats")),
            "database": either(answers(store), lambda: troubles.of("database")),
        }
        await until_signalled(working.run(), lost(bus))


async def gateway(
    settings: Settings, *, http_host: str | None, http_port: int | None, insecure: bool
) -> None:
    """Run a gateway."""
    place, ready = locate(settings), asyncio.Event()
    checks = {"gateway": begun(ready)}
    async with (
        _health(settings, http_host, http_port, checks, insecure=insecure),
        place.store("gateway", wait=True) as store,
        place.bus("gateway", wait=True) as bus,
    ):
        checks |= {"nats": connected({"gateway": bus}), "database": answers(store)}
        serving = Gateway(
            store,
            bus,
            orphan_grace=limits(settings).orphan_grace,
            issuer_seed=place.issuer_seed(),
            held_calls=settings.held_calls,
            ready=ready,
        )
        await until_signalled(beginning_again(serving.run), lost(bus))


async def provisioner(
    settings: Settings,
    *,
    name: str,
    pool: str,
    http_host: str | None,
    http_port: int | None,
    insecure: bool,
) -> None:
    """Run a local provisioner."""
    demand(settings.confinement, os.environ)
    place, ready = locate(settings), asyncio.Event()
    checks = {"provisioner": begun(ready)}
    async with (
        _health(settings, http_host, http_port, checks, insecure=insecure),
        place.bus("provisioner", wait=True) as bus,
    ):
        checks |= {"nats": connected({"provisioner": bus})}
        root = settings.data_dir
        local = local_provisioner(place, bus, root, settings, name=name, pool=pool, ready=ready)
        await until_signalled(stoppable(local), lost(bus))


def _health(
    settings: Settings,
    host: str | None,
    port: int | None,
    checks: dict[str, Check],
    *,
    insecure: bool,
) -> AbstractAsyncContextManager[None]:
    """Serve the health of a role where it was told to. Raises InvalidSettings."""
    certificate = certificate_of(settings)
    address = address_of("--http-host", host, certificate, insecure=insecure)
    return health_server(address, port, checks, certificate)


def local_provisioner(
    place: Place,
    bus: Any,
    data_dir: Path,
    settings: Settings,
    *,
    name: str = LOCAL,
    pool: str = LOCAL,
    ready: asyncio.Event | None = None,
) -> Provisioner:
    """Compose the provisioner that builds under `data_dir`."""
    environ = dict(os.environ)
    return Provisioner(
        bus,
        name=name,
        pool=pool,
        root=data_dir / "provisioner" / name,
        nats_url=anonymous(place.nats_url),
        nats_ca=None if place.nats_ca is None else place.nats_ca.absolute(),
        environ=environ,
        allowance=Allowance(settings.workspaces_per_owner, settings.disk_per_owner_mib),
        confinement=replace(
            confinement(settings, environ, (data_dir, *secrets_of(place.credentials))),
            readable=() if place.nats_ca is None else (place.nats_ca.resolve(),),
        ),
        presence_ttl=settings.presence_ttl,
        ready=ready,
    )


def secrets_of(credentials: Path) -> list[Path]:
    """Return what a template's code must not read: also what lies beside a seed file that was named."""
    folder = folder_of(credentials)
    return [folder if password_file(folder).exists() else credentials]


def confinement(
    settings: Settings, environ: Mapping[str, str], private: Sequence[Path]
) -> Confinement:
    """Choose how builds and agents of this machine are confined."""
    bounds = Bounds(
        settings.step_cpu_seconds,
        settings.process_memory_mib,
        settings.process_files,
        settings.user_processes,
        settings.file_size_mib,
    )
    return choose(
        settings.confinement, bounds, private=private, environ=environ, writable=settings.writable
    )


async def stoppable(provisioner: Provisioner) -> None:
    """Run a provisioner; when cancelled, let it end its steps in order."""
    running = asyncio.create_task(provisioner.run())
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        provisioner.stop()
        await running
        raise
