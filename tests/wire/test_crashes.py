"""Several processes of each role, which are killed or paused at the worst moment."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from handlers.embedded import Servers
from tests.rigs.fleet import Fleet, fleet_on
from tests.rigs.messages import agent_entry
from tests.rigs.world import World, connected_world


@pytest.fixture
async def fleet(own_nats: Servers, database_url: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on(own_nats, database_url, tmp_path) as fleet:
        yield fleet


async def world_of(fleet: Fleet, stack: AsyncExitStack) -> World:
    return await stack.enter_async_context(connected_world(await fleet.deployment()))


async def test_a_call_is_answered_after_its_worker_was_killed(fleet: Fleet) -> None:
    gateway, worker = await asyncio.gather(fleet.start("gateway"), fleet.start("worker"))
    async with AsyncExitStack() as stack:
        world = await world_of(fleet, stack)
        chat = await world.chat()
        call, job = await world.building(chat)
        listed = agent_entry()
        agent = await world.agent(job, listed["id"])

        await fleet.end(worker, signal.SIGKILL)
        await world.provisioner.succeed(job, listed)
        await agent.report_connected()
        await fleet.start("worker")
        await agent.report_lifecycle("ready")
        result = (await chat.answer(call))["result"]

        assert (result["created"], result["build_id"]) == (True, job.build_id)
        await chat.entered("building", "agent_connecting", "scripts_running", "ready")
        assert [j for j in world.provisioner.jobs.all if j.chat_id == chat.id] == [job]
    assert await fleet.end(gateway, signal.SIGTERM) == 0


async def test_a_timeout_fires_after_the_worker_that_set_it_was_killed(fleet: Fleet) -> None:
    fleet.env["WORKSPACED_BUILD_TIMEOUT"] = "0.5"
    worker = await fleet.start("worker")
    async with AsyncExitStack() as stack:
        world = await world_of(fleet, stack)
        chat = await world.chat()
        call, job = await world.building(chat)

        await fleet.end(worker, signal.SIGKILL)
        await asyncio.gather(fleet.start("worker"), fleet.start("worker"))
        result = (await chat.answer(call))["result"]

        await chat.entered("building", "failed:build_timeout")
        assert result["build_id"] == job.build_id


async def test_a_paused_worker_does_no_harm_when_it_resumes(fleet: Fleet) -> None:
    _, one, _ = await asyncio.gather(
        fleet.start("gateway"), fleet.start("worker"), fleet.start("worker")
    )
    async with AsyncExitStack() as stack:
        world = await world_of(fleet, stack)
        chat = await world.chat()
        call, job = await world.building(chat)

        one.send(signal.SIGSTOP)
        listed = agent_entry()
        await world.provisioner.succeed(job, listed)
        agent = await world.agent(job, listed["id"])
        await agent.report_connected()
        await agent.report_lifecycle("ready")
        result = (await chat.answer(call))["result"]
        one.send(signal.SIGCONT)
        await chat.call("list_templates")
        await chat.call("start_workspace")

        assert (result["created"], result["build_id"]) == (True, job.build_id)
        await chat.entered("building", "agent_connecting", "scripts_running", "ready")


async def test_concurrent_calls_on_several_workers_make_one_workspace(fleet: Fleet) -> None:
    roles = ("gateway", "worker", "gateway", "worker")
    await asyncio.gather(*map(fleet.start, roles))
    async with AsyncExitStack() as stack:
        world = await world_of(fleet, stack)
        chat = await world.chat()
        args, listed = {"template_id": world.plain}, agent_entry()
        body = {"chat_id": chat.id, **chat.identity, "args": args}

        calls = asyncio.gather(*(chat.ask("create_workspace", args) for _ in range(30)))
        rpcs = asyncio.gather(*(world.service.rpc("create_workspace", **body) for _ in range(30)))
        job = await world.provisioner.job(chat)
        await calls
        await world.provisioner.succeed(job, listed)
        await chat.state("agent_connecting")
        agent = await world.agent(job, listed["id"])
        await agent.report_connected()
        await agent.report_lifecycle("ready")
        results = [(await chat.answer(call))["result"] for call in await calls]
        results += [resolved["result"] for resolved in await rpcs]

        jobs = [j for j in world.provisioner.jobs.all if j.chat_id == chat.id]
        assert jobs == [job]
        assert len(results) == 60
        assert [r["build_id"] for r in results if r["created"]] == [job.build_id]
        assert {r["status"] for r in results if not r["created"]} == {"already_exists"}
