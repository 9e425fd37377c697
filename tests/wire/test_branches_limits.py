"""The branches in which a limit of a state passes: C2c C3b C3c C4e, S2c S3b, P2c P2d P4a P4b, R4 R6, F1, W1, E4.

Each waits for a limit, so the tests do it for several chats at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.rigs.client import Agent, Chat, Job
from tests.rigs.world import Deployment, World, deployment_with_timeouts
from tests.wire import steps
from tests.wire.steps import CREATE, EXISTS, START, STOP

LIMIT = 1.5
"""The limit in seconds. It is short, because the tests wait until it passes; steps before it take less time."""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment_with_timeouts(tmp_path_factory.mktemp("branches"), LIMIT) as deployment:
        yield deployment


async def request_tool(world: World, chat: Chat, tool: str) -> str:
    return await (steps.request_create(world, chat) if tool == CREATE else chat.ask(tool))


async def given_build_timeout(world: World, chat: Chat) -> Job:
    """Create a start build that exceeds its limit."""
    call, job = await world.building(chat)
    assert steps.is_build_failure(await steps.successful_result(chat, call), job.build_id)
    assert chat.now["failure"]["reason"] == "build_timeout"
    return job


async def given_stop_timeout(world: World, chat: Chat) -> Job:
    """Create a stop build that exceeds its limit."""
    await steps.given_finished_start(world, chat)
    call, job = await steps.request_stop(world, chat)
    assert steps.is_build_failure(await steps.successful_result(chat, call), job.build_id)
    assert chat.now["failure"]["reason"] == "build_timeout"
    return job


async def given_agent_timeout(world: World, chat: Chat) -> tuple[Job, Agent]:
    """Create a workspace whose agent does not connect in time."""
    call, job, agent = await world.connecting(chat)
    answer = await steps.successful_result(chat, call)
    assert answer["agent_status"] == "not_ready"
    return job, agent


async def given_scripts_timeout(world: World, chat: Chat) -> tuple[Job, Agent]:
    """Create a workspace whose startup scripts do not end in time."""
    call, job, agent = await world.connecting(chat)
    await agent.report_connected()
    await agent.report_lifecycle("starting")
    answer = await steps.successful_result(chat, call)
    assert answer["startup_scripts"] == "startup_scripts_timeout"
    return job, agent


async def test_c2c_s2c_p2c_calls_wait_again_for_a_start_build_after_its_timeout(
    world: World,
) -> None:
    async def one(tool: str) -> None:
        chat = await world.chat()
        job = await given_build_timeout(world, chat)
        before = chat.now["version"]

        call = await request_tool(world, chat, tool)
        again = await chat.state("building", above=before)
        await world.provisioner.succeed(job)
        if tool == STOP:
            stop = await world.provisioner.job(chat, "stop")
            await world.provisioner.succeed(stop)
        answer = await steps.successful_result(chat, call)

        assert again["build"]["id"] == job.build_id
        assert again["deadline"] > chat.states.all[0]["data"]["deadline"]
        found = [j for j in await steps.all_jobs(world, chat) if j.transition == "start"]
        assert found == [job]
        if tool == STOP:
            assert answer["build_id"] == stop.build_id
        else:
            assert (answer["build_id"], answer["agent_status"]) == (job.build_id, "no_agent")

    await asyncio.gather(*map(one, (CREATE, START, STOP)))


async def test_c3c_s3a_p2c_calls_wait_again_for_a_stop_build_after_its_timeout(
    world: World,
) -> None:
    async def one(tool: str) -> None:
        chat = await world.chat()
        stop = await given_stop_timeout(world, chat)
        before = chat.now["version"]

        call = await request_tool(world, chat, tool)
        again = await chat.state("stopping", above=before)
        await world.provisioner.succeed(stop)
        if tool == START:
            await world.provisioner.succeed(await world.provisioner.job(chat, "start", 3))
        answer = await steps.successful_result(chat, call)

        assert again["build"]["id"] == stop.build_id
        assert [j for j in await steps.all_jobs(world, chat) if j.transition == "stop"] == [stop]
        if tool == CREATE:
            assert answer["status"] == "stopped"
        elif tool == STOP:
            assert answer["no_build"] is True
        else:
            assert answer["agent_status"] == "no_agent"

    await asyncio.gather(*map(one, (CREATE, START, STOP)))


async def test_c3b_s3b_p2d_p4b_w1_the_timeout_of_a_stop_answers_waiting_calls(world: World) -> None:
    chat = await world.chat()
    await steps.given_finished_start(world, chat)
    first, stop = await steps.request_stop(world, chat)
    calls = [first, *[await request_tool(world, chat, tool) for tool in (CREATE, START, STOP)]]

    answers = [await steps.successful_result(chat, call) for call in calls]

    assert all(steps.is_build_failure(answer, stop.build_id) for answer in answers)
    await chat.entered_last("stopping", "failed:build_timeout")
    assert [job.transition for job in await steps.all_jobs(world, chat)] == ["start", "stop"]


async def test_f1_p2d_w1_the_timeout_of_a_build_answers_waiting_calls(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    calls = [call, *[await request_tool(world, chat, tool) for tool in (CREATE, START, STOP)]]

    answers = [await steps.successful_result(chat, call) for call in calls]

    assert all(steps.is_build_failure(answer, job.build_id) for answer in answers)
    await chat.entered("building", "failed:build_timeout")
    assert await steps.all_jobs(world, chat) == [job]


async def test_w1_the_second_wait_for_a_build_has_a_timeout_as_well(world: World) -> None:
    async def one(unended: str) -> None:
        chat = await world.chat()
        job = await (given_build_timeout if unended == "build" else given_stop_timeout)(world, chat)

        call = await steps.request_create(world, chat)

        assert steps.is_build_failure(await steps.successful_result(chat, call), job.build_id)
        assert chat.path[-3] == chat.path[-1] == "failed:build_timeout"

    await asyncio.gather(one("build"), one("stop"))


async def test_a_build_that_ends_after_its_timeout_still_changes_the_state(world: World) -> None:
    """Late facts also count when no call waits: C4f, S4a, C4g, C3d."""

    async def built() -> None:
        chat = await world.chat()
        await world.provisioner.succeed(await given_build_timeout(world, chat))
        await chat.state("ready")
        assert (await chat.call(START))["agent_status"] == "no_agent"

    async def failed() -> None:
        chat = await world.chat()
        job = await given_build_timeout(world, chat)
        await world.provisioner.fail(job)
        await chat.state("failed:build_failed")
        call = await steps.request_create(world, chat)
        await world.provisioner.succeed(await steps.job_of_new_workspace(world, chat, job))
        assert (await steps.successful_result(chat, call))["created"] is True

    async def stopped() -> None:
        chat = await world.chat()
        await world.provisioner.succeed(await given_stop_timeout(world, chat))
        await chat.state("stopped")
        answer = await chat.call(CREATE, {"template_id": world.plain})
        assert answer["status"] == "stopped"

    await asyncio.gather(built(), failed(), stopped())


async def test_c4e_p4a_r4_create_replaces_a_workspace_whose_agent_did_not_connect_in_time(
    world: World,
) -> None:
    async def answered() -> None:
        chat = await world.chat()
        job, _ = await given_agent_timeout(world, chat)
        answer = await chat.call(START)
        assert answer.pop("agent_error")
        assert answer == {
            "started": True,
            "workspace_name": job.workspace_name,
            "no_build": True,
            "agent_status": "not_ready",
        }
        assert chat.now["agent"]["status"] == "timeout"

    async def replaced() -> None:
        chat = await world.chat()
        old, _ = await given_agent_timeout(world, chat)
        call = await steps.request_create(world, chat)
        new = await steps.job_of_new_workspace(world, chat, old)
        stop = await world.provisioner.job(chat, "stop", 2)
        await world.provisioner.succeed(new)
        assert (stop.workspace_id, stop.build_number) == (old.workspace_id, 2)
        assert (await steps.successful_result(chat, call))["build_id"] == new.build_id

    async def stopped() -> None:
        chat = await world.chat()
        await given_agent_timeout(world, chat)
        call, stop = await steps.request_stop(world, chat)
        await world.provisioner.succeed(stop)
        assert (await steps.successful_result(chat, call))["build_id"] == stop.build_id

    async def came_after_all() -> None:
        chat = await world.chat()
        job, agent = await given_agent_timeout(world, chat)
        await agent.report_connected()
        await agent.report_lifecycle("ready")
        await chat.state("ready")
        answer = await chat.call(CREATE, {"template_id": world.plain})
        assert answer.keys() == EXISTS
        assert await steps.all_jobs(world, chat) == [job]

    await asyncio.gather(answered(), replaced(), stopped(), came_after_all())


async def test_e4_an_agent_that_did_not_connect_in_time_shows_by_its_lifecycle_that_it_runs(
    world: World,
) -> None:
    chat = await world.chat()
    _, agent = await given_agent_timeout(world, chat)

    await agent.report_lifecycle("starting")
    running = await chat.state("scripts_running")
    await agent.report_lifecycle("ready")
    await chat.state("ready")

    assert running["agent"]["status"] == "connected"


async def test_c4a_p4a_r6_a_timeout_of_startup_scripts_leaves_the_workspace_in_use(
    world: World,
) -> None:
    scripts = {"startup_scripts": "startup_scripts_timeout"}

    async def answered() -> None:
        chat = await world.chat()
        job, agent = await given_scripts_timeout(world, chat)
        found = await chat.call(CREATE, {"template_id": world.plain})
        assert found.keys() == EXISTS | scripts.keys()
        assert {**found, **scripts} == found
        await agent.report_lifecycle("start_error")
        late = await chat.call(START)
        assert late["lifecycle_state"] == "start_error"
        await agent.report_lifecycle("ready")
        await chat.state("ready")
        assert (await chat.call(START)).keys() == {"started", "workspace_name", "no_build"}
        assert await steps.all_jobs(world, chat) == [job]

    async def stopped() -> None:
        chat = await world.chat()
        await given_scripts_timeout(world, chat)
        call, stop = await steps.request_stop(world, chat)
        await world.provisioner.succeed(stop)
        assert (await steps.successful_result(chat, call))["build_id"] == stop.build_id

    await asyncio.gather(answered(), stopped())


async def test_c4b_s4b_w1_a_call_that_joins_while_the_agent_connects_waits_for_the_remaining_time(
    world: World,
) -> None:
    chat = await world.chat()
    made, job, _ = await world.connecting(chat)
    calls = [made, await steps.request_create(world, chat), await chat.ask(START)]

    answers = [await steps.successful_result(chat, call) for call in calls]

    assert {answer["agent_status"] for answer in answers} == {"not_ready"}
    await chat.entered("building", "agent_connecting", "failed:agent_not_ready")
    assert await steps.all_jobs(world, chat) == [job]
