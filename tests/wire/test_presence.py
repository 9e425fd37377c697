"""Workers notice an agent that stops renewing its presence message, and only such an agent."""

from __future__ import annotations

import asyncio
import json
import time

from tests.rigs.client import Agent
from tests.rigs.world import World

RENEWED = 5.0
"""Seconds between two presence messages: three of them fit into the 20 s after which one expires."""


async def publish_presence(agent: Agent) -> None:
    """Publish a presence message that expires after 20 seconds."""
    await agent.js.publish(
        f"workspaced.presence.{agent.build['chat_id']}.{agent.id}",
        json.dumps({"agent_id": agent.id}).encode(),
        headers={"Nats-TTL": "20s"},
    )


async def test_an_agent_without_presence_is_lost_until_its_next_fact(
    world: World,
) -> None:
    silent_chat, steady_chat = await world.chat(), await world.chat()
    _, silent = await world.ready(silent_chat)
    _, steady = await world.ready(steady_chat)

    async def keep_showing() -> None:
        while True:
            await publish_presence(steady)
            await asyncio.sleep(RENEWED)  # the test plays an agent that renews its presence message

    renewing = asyncio.create_task(keep_showing())
    await publish_presence(silent)
    began, version = time.monotonic(), silent_chat.now["version"]
    lost = await silent_chat.states.first(lambda e: e["data"]["version"] > version, 31)
    silence = time.monotonic() - began
    renewing.cancel()

    assert silence < 30
    assert lost["data"]["state"] == "ready"
    assert lost["data"]["agent"]["status"] == "disconnected"
    assert lost["data"]["cause"]["source"] == "/workspaced"
    assert lost["data"]["cause"]["type"] == "workspaced.agent_disconnected.v1"
    assert steady_chat.now["agent"]["status"] == "connected"

    await silent.report_connected()
    back = await silent_chat.states.first(lambda e: e["data"]["version"] == version + 2)
    assert back["data"]["agent"]["status"] == "connected"
