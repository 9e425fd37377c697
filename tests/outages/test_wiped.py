"""NATS loses its store while chats are in every phase and calls wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from tests.rigs.client import Chat, Job
from tests.rigs.fleet import PATIENT, Fleet, fleet_on, logs_once_more
from tests.rigs.messages import Event
from tests.rigs.processes import Process
from tests.rigs.servers import Nats, restartable_servers, servers_of
from tests.rigs.world import Deployment, World, connected_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

STATES = (
    *("none", "building", "agent_connecting", "scripts_running"),
    *("ready", "failed", "stopping", "stopped"),
)
AGAIN = "published again from the database"
"""Part of the line that a worker logs when it has published everything again."""
SCRIPTS_WITHIN = 4.0
"""Seconds that startup scripts may take."""


@dataclass
class Stage:
    nats: Nats
    fleet: Fleet
    place: Deployment
    workers: list[Process]

    async def wiped(self) -> None:
        """Restart the server with an empty store; return when a worker has restored it."""
        async with logs_once_more(AGAIN, self.workers), self.fleet.reconnected():
            await self.nats.stop()
            self.nats.wipe()
            await self.nats.start()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    home = tmp_path_factory.mktemp("wiped")
    async with AsyncExitStack() as stack:
        nats_server, postgres = await stack.enter_async_context(restartable_servers(home))
        env = PATIENT | {"WORKSPACED_STARTUP_SCRIPTS_TIMEOUT": str(SCRIPTS_WITHIN)}
        servers = servers_of(nats_server, postgres)
        fleet = await stack.enter_async_context(fleet_on(servers, postgres.url, home, env))
        _, *workers = await asyncio.gather(*map(fleet.start, ("gateway", "worker")))
        yield Stage(nats_server, fleet, await fleet.deployment("plain"), workers)


async def known(world: World, chat: Chat) -> Event:
    """Return the chat as `get_chat` reads it from the database."""
    found = await world.service.rpc("get_chat", chat_id=chat.id)
    return {key: found[key] for key in found.keys() - {"open_calls", "notice"}}


async def resumed(world: World, before: Chat) -> Chat:
    """Return the chat as its chat service sees it after a reconnect."""
    chat = await world.service.chat(before.id)
    chat.organization_id, chat.owner_id = before.organization_id, before.owner_id
    return chat


@dataclass
class Phases:
    """One chat per state, by the state's name, with its calls, answers, jobs and states."""

    chats: dict[str, Chat]
    calls: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Event] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    states: dict[str, Event] = field(default_factory=dict)
    agent: str = ""
    """Id of the agent that has not connected yet."""


async def in_every_phase(world: World) -> Phases:
    chats = {name: await world.chat() for name in STATES}
    phases = Phases(chats)
    calls, jobs = phases.calls, phases.jobs
    calls["none"] = await chats["none"].ask("list_templates")
    await world.ready(chats["ready"])
    calls["failed"], job = await world.building(chats["failed"])
    await world.provisioner.fail(job)
    for name in ("none", "failed"):
        phases.answers[name] = await chats[name].answer(calls[name])
    await world.stopped(chats["stopped"])
    await world.ready(chats["stopping"])
    calls["stopping"] = await chats["stopping"].ask("stop_workspace")
    jobs["stopping"] = await world.provisioner.job(chats["stopping"], "stop")
    calls["building"], jobs["building"] = await world.building(chats["building"])
    calls["agent_connecting"], jobs["agent_connecting"], agent = await world.connecting(
        chats["agent_connecting"]
    )
    phases.agent = agent.id
    calls["scripts_running"], _, slow = await world.connecting(chats["scripts_running"])
    await slow.report_connected()
    await chats["scripts_running"].state("scripts_running")
    phases.states = {name: await known(world, chat) for name, chat in chats.items()}
    assert [state["state"] for state in phases.states.values()] == list(STATES)
    return phases


async def test_nothing_that_was_applied_is_lost_when_nats_loses_its_store(stage: Stage) -> None:
    async with connected_world(stage.place) as world:
        phases = await in_every_phase(world)
    await stage.wiped()

    async with connected_world(stage.place) as world:
        chats = {name: await resumed(world, chat) for name, chat in phases.chats.items()}
        calls = phases.calls
        # The last states are published again.
        for name in STATES[1:]:
            assert await world.service.last_state(chats[name].id) == phases.states[name]
        # Jobs of open builds are published again, and the calls that wait for them are answered.
        for name, transition in (("building", "start"), ("stopping", "stop")):
            job = await world.provisioner.job(chats[name], transition)
            assert job.data == phases.jobs[name].data
            await world.provisioner.succeed(job)
            answer = await chats[name].answer(calls[name])
            assert answer["result"]["build_id"] == job.build_id
        # Agents continue, and deadlines still pass.
        agent = await world.agent(phases.jobs["agent_connecting"], phases.agent)
        await agent.report_connected()
        await agent.report_lifecycle("ready")
        ready = await chats["agent_connecting"].answer(calls["agent_connecting"])
        late = await chats["scripts_running"].answer(calls["scripts_running"])
        assert ready["result"]["created"] is True
        assert late["result"]["startup_scripts"] == "startup_scripts_timeout"
        # Earlier answers can be read, and are published again when the call is repeated.
        for name, answer in phases.answers.items():
            subject = f"workspaced.result.{chats[name].id}.{calls[name]}"
            read = await world.service.last("WORKSPACED_RESULT", subject)
            assert read is not None
            assert read[0]["data"] == phases.chats[name].complete(answer)
        args = {"template_id": world.plain}
        await chats["failed"].ask("create_workspace", args, call_id=calls["failed"])
        assert await chats["failed"].answer(calls["failed"]) == phases.answers["failed"]
        # The system continues, and every published state is the one in the database.
        assert (await chats["ready"].call("start_workspace"))["no_build"] is True
        for name in STATES[1:]:
            last = await world.service.last_state(chats[name].id)
            assert last == await known(world, chats[name])


async def test_a_request_lost_before_it_was_applied_is_answered_when_repeated(stage: Stage) -> None:
    """Only events that no worker had applied are lost; a repeated call is answered."""
    async with connected_world(stage.place) as world:
        chat = await world.chat()
        for worker in stage.workers:
            await stage.fleet.end(worker)
        call = await chat.ask("list_templates")
    stage.workers = []
    await stage.wiped()
    stage.workers = [await stage.fleet.start("worker")]

    async with connected_world(stage.place) as world:
        chat = await resumed(world, chat)
        await chat.ask("list_templates", call_id=call)

        assert (await chat.answer(call))["result"]["count"] == 1
