"""Calls beyond the limit of waiting calls are refused at once, on the bus and by rpc; waiting calls stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from handlers.embedded import Servers
from tests.rigs.client import ServiceError
from tests.rigs.fleet import fleet_on
from tests.rigs.messages import agent_entry
from tests.rigs.world import World, connected_world


@pytest.fixture
async def world(own_nats: Servers, database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    env = {"WORKSPACED_WAITING_CALLS_PER_CHAT": "1"}
    async with fleet_on(own_nats, database_url, tmp_path, env) as fleet:
        await asyncio.gather(fleet.start("worker"), fleet.start("gateway"))
        async with connected_world(await fleet.deployment()) as world:
            yield world


async def test_a_call_beyond_the_limit_is_refused_and_waiting_calls_are_answered(
    world: World,
) -> None:
    chat = await world.chat()
    args = {"template_id": world.plain}
    body = {"chat_id": chat.id, **chat.identity, "args": args}
    call, job = await world.building(chat)

    words = await chat.call_error("create_workspace", args)
    with pytest.raises(ServiceError) as fault:
        await world.service.rpc("create_workspace", **body)
    listed = await chat.call("list_templates")
    await chat.ask("create_workspace", args, call_id=call)
    await world.provisioner.succeed(job, agent := agent_entry())
    its_agent = await world.agent(job, agent["id"])
    await its_agent.report_connected()
    await its_agent.report_lifecycle("ready")

    assert words.startswith("too busy: ")
    assert "try again later" in words
    assert fault.value.code == 429
    assert fault.value.text.startswith("too busy: ")
    assert listed["count"] == 1
    assert (await chat.answer(call))["result"]["created"]
    assert (await chat.call("create_workspace", args))["created"] is False
    assert [one for one in world.provisioner.jobs.all if one.chat_id == chat.id] == [job]
