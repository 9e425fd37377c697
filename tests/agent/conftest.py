"""An agent in this process, over the in-memory bus."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus import Bus
from handlers.agent.agent import Agent
from handlers.publishing import agent_files
from handlers.publishing.agent_files import AgentConfig, AgentCredential
from handlers.sandbox.processes import end_marked
from tests.agent.world import World
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_server import MemoryServer
from tests.provisioner.rig import Rig
from tests.rigs.messages import new_id

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
    """`async with living(startup_script=…):` runs the agent; a second time, it restarts it."""
    agent_id = new_id()
    home = agent_files.agent_home(tmp_path, agent_id)

    async def dial(url: str, credential: AgentCredential) -> Bus:
        return MemoryBus(server)

    @asynccontextmanager
    async def live(
        connect: Any = dial, refusal_limit: float = 60, **options: Any
    ) -> AsyncIterator[Agent]:
        env = {"PATH": os.environ["PATH"], "WORKSPACED_AGENT_ID": agent_id}
        options = {"directory": tmp_path, "log_limit": 1_000_000, **options}
        options["env"] = {**env, **options.get("env", {})}
        config = AgentConfig(
            chat_id=rig.chat,
            workspace_id=rig.workspace,
            build_id=new_id(),
            agent_id=agent_id,
            name="main",
            nats_url="nats://here",
            **options,
        )
        agent_files.write_config(home, config)
        agent_files.write_credential(home, AgentCredential(seed="SU", inbox_prefix="_INBOX"))
        agent = Agent(home, connect, refusal_limit=refusal_limit)
        running = agent.running = asyncio.create_task(agent.run())
        try:
            yield agent
        finally:
            agent.stop()
            await running

    return live


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.start_nats()
    try:
        operator = await world.connect("operator")
        gateway = await world.connect("gateway", "_INBOX_gateway")
        credential = {"seed": world.seed("operator"), "inbox_prefix": "_INBOX"}
        async with Rig.on(operator, credential, gateway) as world.rig:
            yield world
        for bus in (operator, gateway):
            await bus.close()
    finally:
        for home in world.homes():
            await end_marked(f"WORKSPACED_AGENT_ID={home.name}", grace=0.5)
        await world.stop_nats()
