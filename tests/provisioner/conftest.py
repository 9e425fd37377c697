"""A provisioner over the bus of this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from bus import Bus
from bus.memory import MemoryBus
from bus.memory_server import MemoryServer
from handlers.provisioner import Provisioner
from tests.provisioner.rig import Rig

Provisioning = Callable[[], AbstractAsyncContextManager[Provisioner]]


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
async def provisioner_on(bus: Bus, root: Path, nats_url: str = "") -> AsyncIterator[Provisioner]:
    provisioner = Provisioner(
        bus, name="here", pool="local", root=root, nats_url=nats_url, environ=os.environ
    )
    running = asyncio.create_task(provisioner.run())
    try:
        yield provisioner
    finally:
        provisioner.stop()
        await running


@pytest.fixture
def provisioning(server: MemoryServer, tmp_path: Path) -> Provisioning:
    """`async with provisioning():` runs a provisioner; again: the same one, restarted."""

    @asynccontextmanager
    async def run() -> AsyncIterator[Provisioner]:
        async with (
            MemoryBus(server) as bus,
            provisioner_on(bus, tmp_path / "root") as provisioner,
        ):
            yield provisioner

    return run
