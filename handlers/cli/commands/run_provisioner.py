"""`workspaced provisioner`: runs a local provisioner until it is signalled to stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bus.connect import anonymous
from handlers.app import Endpoints, locate
from handlers.cli.command_table.servers import RunProvisioner
from handlers.cli.commands.roles import health, raise_when_closed, run_until_signal
from handlers.embedded.database_access import credentials_folder, password_file
from handlers.provisioner import Provisioner, QuotaLimits
from handlers.runtime.health import nats_check, started_check
from handlers.sandbox.policy import (
    Confinement,
    ResourceLimits,
    choose_confinement,
    require_confinement,
)
from handlers.settings import Settings

LOCAL: Final = "local"
"""Name and pool of the provisioner that `up` runs."""


async def provisioner(command: RunProvisioner, settings: Settings) -> None:
    """Run a local provisioner."""
    require_confinement(settings.confinement, os.environ)
    endpoints, ready = locate(settings), asyncio.Event()
    checks = {"provisioner": started_check(ready)}
    async with (
        health(command, settings, checks),
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
