"""An agent in this process, over the bus of this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus import Bus
from bus.memory import MemoryBus
from bus.memory_server import MemoryServer
from handlers import agent_files
from handlers.agent.agent import Agent
from handlers.agent_files import AgentConfig, Credential
from tests.provisioner.rig import Rig, identity

Living = Callable[..., AbstractAsyncContextManager[Agent]]


@pytest.fixture
async def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
async def rig(server: MemoryServer) -> AsyncIterator[Rig]:
    async with MemoryBus(server) as bus, Rig.on(bus, {}) as rig:
        yield rig


@pytest.fixture
def living(server: MemoryServer, rig: Rig, tmp_path: Path) -> Living:
    """`async with living(startup_script=…):` runs the agent; again: the same one, restarted."""
    agent_id = identity()
    home = agent_files.home_of(tmp_path, agent_id)

    async def dial(url: str, credential: Credential) -> Bus:
        return MemoryBus(server)

    @asynccontextmanager
    async def live(
        connect: Any = dial, patience: float = 60, **scripts: Any
    ) -> AsyncIterator[Agent]:
        config = AgentConfig(
            chat_id=rig.chat,
            workspace_id=rig.workspace,
            build_id=identity(),
            agent_id=agent_id,
            name="main",
            nats_url="nats://here",
            directory=tmp_path,
            env={"PATH": os.environ["PATH"], "WORKSPACED_AGENT_ID": agent_id},
            log_limit=1_000_000,
            **scripts,
        )
        agent_files.write_config(home, config)
        agent_files.write_credential(home, Credential(seed="SU", inbox_prefix="_INBOX"))
        agent = Agent(home, connect, patience=patience)
        running = agent.running = asyncio.create_task(agent.run())
        try:
            yield agent
        finally:
            agent.stop()
            await running

    return live
