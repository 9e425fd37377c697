"""A provisioner over the in-memory bus."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from bus import Bus
from handlers.provisioner import Provisioner
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_server import MemoryServer
from tests.provisioner.rig import Rig


class Provisioning(Protocol):
    def __call__(self, **options: Any) -> AbstractAsyncContextManager[Provisioner]: ...


@pytest.fixture
async def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
async def rig(server: MemoryServer) -> AsyncIterator[Rig]:
    async with (
        MemoryBus(server) as bus,
        Rig.on(bus, {"seed": "SU", "inbox_prefix": "_INBOX"}) as rig,
    ):
        yield rig


@asynccontextmanager
async def provisioner_on(
    bus: Bus, root: Path, nats_url: str = "", **options: Any
) -> AsyncIterator[Provisioner]:
    provisioner = Provisioner(
        bus, name="here", pool="local", root=root, nats_url=nats_url, environ=os.environ, **options
    )
    running = asyncio.create_task(provisioner.run())
    try:
        yield provisioner
    finally:
        provisioner.stop()
        await running


@pytest.fixture
def provisioning(server: MemoryServer, tmp_path: Path) -> Provisioning:
    """`async with provisioning():` runs a provisioner; a second time, it restarts the same one."""

    @asynccontextmanager
    async def run(**options: Any) -> AsyncIterator[Provisioner]:
        async with (
            MemoryBus(server) as bus,
            provisioner_on(bus, tmp_path / "root", **options) as provisioner,
        ):
            yield provisioner

    return run
