"""Running one role until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from bus import Bus, Unavailable
from handlers.app import Place, limits, locate
from handlers.gateway.gateway import Gateway
from handlers.provisioner import Allowance, Provisioner
from handlers.settings import Settings
from handlers.worker.worker import Worker

LOCAL: Final = "local"
"""Name and pool of the provisioner that `up` runs."""


async def until_signalled(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run `jobs` until SIGINT or SIGTERM, or until one of them ends by an error, which is raised."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(job) for job in jobs]
    waiting = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait((*tasks, waiting), return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            task.result()
    finally:
        for task in (*tasks, waiting):
            task.cancel()
        await asyncio.gather(*tasks, waiting, return_exceptions=True)


async def lost(bus: Bus) -> None:
    """Wait until the bus is closed for good. Raises Unavailable then: who runs us starts us anew."""
    raise Unavailable(f"NATS closed the connection for good: {await bus.closed()}")


async def worker(settings: Settings) -> None:
    """Run a worker."""
    place = locate(settings)
    async with place.store() as store, place.bus("worker", wait=True) as bus:
        await until_signalled(Worker(store, bus, limits(settings)).run(), lost(bus))


async def gateway(settings: Settings) -> None:
    """Run a gateway."""
    place = locate(settings)
    async with place.store() as store, place.bus("gateway", wait=True) as bus:
        grace = limits(settings).orphan_grace
        serving = Gateway(store, bus, orphan_grace=grace, issuer_seed=place.issuer_seed())
        await until_signalled(serving.run(), lost(bus))


async def provisioner(settings: Settings, *, name: str, pool: str) -> None:
    """Run a local provisioner."""
    place = locate(settings)
    async with place.bus("provisioner", wait=True) as bus:
        local = local_provisioner(place, bus, settings.data_dir, settings, name=name, pool=pool)
        await until_signalled(stoppable(local), lost(bus))


def local_provisioner(
    place: Place,
    bus: Any,
    data_dir: Path,
    settings: Settings,
    *,
    name: str = LOCAL,
    pool: str = LOCAL,
) -> Provisioner:
    """Compose the provisioner that builds under `data_dir`."""
    return Provisioner(
        bus,
        name=name,
        pool=pool,
        root=data_dir / "provisioner" / name,
        nats_url=place.nats_url,
        environ=dict(os.environ),
        allowance=Allowance(settings.workspaces_per_owner, settings.disk_per_owner_mib),
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
