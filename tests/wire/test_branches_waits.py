"""Calls that are canceled (X), and several that wait (W2); limits (W1) in `test_branches_limits`."""

from __future__ import annotations

import asyncio

import pytest

from tests.rigs.client import Chat
from tests.rigs.messages import Event, agent_entry
from tests.rigs.world import World
from tests.wire import steps
from tests.wire.steps import CREATE, EXISTS, START, STOP


async def cancel_waiting_call(
    world: World, chat: Chat, call: str, *, by_rpc: bool = False
) -> Event:
    """Cancel a waiting call; return its result."""
    await steps.assert_calls_wait(world, chat, call)
    if by_rpc:
        answer = await world.service.rpc("cancel", chat_id=chat.id, call_id=call)
        assert answer == {"canceled": True}
    else:
        await chat.cancel(call)
    return await steps.successful_result(chat, call)


async def request_tool(world: World, chat: Chat, tool: str) -> str:
    return await (steps.request_create(world, chat) if tool == CREATE else chat.ask(tool))


@pytest.mark.parametrize("tool", [CREATE, START, STOP])
@pytest.mark.parametrize("state", ["building", "stopping"])
async def test_x1_a_call_canceled_during_a_build_gets_a_build_failure(
    world: World, state: str, tool: str
) -> None:
    chat = await world.chat()
    if state == "building":
        first, job = await world.building(chat)
    else:
        await steps.given_finished_start(world, chat)
        first, job = await steps.request_stop(world, chat)
    call, stays = await request_tool(world, chat, tool), await request_tool(world, chat, tool)

    answers = [
        await cancel_waiting_call(world, chat, call),
        await cancel_waiting_call(world, chat, first, by_rpc=True),
    ]

    assert all(steps.is_build_failure(answer, job.build_id) for answer in answers)
    assert chat.now["state"] == state  # the build continues, and the other call still waits
    await steps.assert_calls_wait(world, chat, stays)
    assert (await steps.all_jobs(world, chat))[-1] == job


async def test_x2_a_call_canceled_while_the_agent_connects_is_answered(world: World) -> None:
    chat = await world.chat()
    made, job, _ = await world.connecting(chat)
    joined, running_ = await steps.request_create(world, chat), await chat.ask(START)

    answers = [await cancel_waiting_call(world, chat, call) for call in (made, joined, running_)]

    assert answers[0] == {
        "created": True,
        "workspace_name": f"ann/{job.workspace_name}",
        "build_id": job.build_id,
        "agent_status": "not_ready",
    }
    assert answers[1].keys() == EXISTS | {"agent_status"}
    assert answers[1]["status"] == "already_exists"
    assert answers[2] == {
        "started": True,
        "workspace_name": job.workspace_name,
        "no_build": True,
        "agent_status": "not_ready",
    }
    assert chat.now["state"] == "agent_connecting"


async def test_x2_x3_the_answer_to_a_canceled_start_names_its_build(world: World) -> None:
    chats = [await world.chat(), await world.chat()]
    answers = []
    for chat, connects in zip(chats, (False, True), strict=True):
        first = await steps.given_stopped_workspace(world, chat)
        call = await chat.ask(START)
        job = await world.provisioner.job(chat, "start", 3)
        listed = agent_entry()
        await world.provisioner.succeed(job, listed)
        await chat.state("agent_connecting")
        if connects:
            await (await world.agent(job, listed["id"])).report_connected()
            await chat.state("scripts_running")
        answer = await cancel_waiting_call(world, chat, call, by_rpc=connects)
        assert answer.pop("build_id") == job.build_id
        assert answer.pop("workspace_name") == first.workspace_name
        answers.append(answer)

    assert answers == [
        {"started": True, "agent_status": "not_ready"},
        {"started": True, "startup_scripts": "startup_scripts_unknown"},
    ]


async def test_x3_a_call_canceled_while_scripts_run_is_answered(world: World) -> None:
    chat = await world.chat()
    made, job, agent = await world.connecting(chat)
    await agent.report_connected()
    await chat.state("scripts_running")
    joined = await steps.request_create(world, chat)

    answers = [await cancel_waiting_call(world, chat, call) for call in (made, joined)]

    assert answers[0] == {
        "created": True,
        "workspace_name": f"ann/{job.workspace_name}",
        "build_id": job.build_id,
        "startup_scripts": "startup_scripts_unknown",
    }
    assert answers[1].keys() == EXISTS | {"startup_scripts"}
    await agent.report_lifecycle("ready")
    await chat.state("ready")
    assert len(chat.results.all) == 2 + 2  # two of them from `waits`


@pytest.mark.parametrize("tool", [CREATE, START, STOP])
async def test_x4_a_cancel_that_arrives_first_cancels_the_call(world: World, tool: str) -> None:
    chat = await world.chat()
    if tool != CREATE:
        await steps.given_finished_start(world, chat)
    before, version = await steps.all_jobs(world, chat), chat.states.all[-1:]

    await chat.cancel("early")
    await chat.call("list_templates")  # when it is answered, the cancel has been applied
    args = {"template_id": world.plain} if tool == CREATE else {}
    resolved = await chat.answer(await chat.ask(tool, args, call_id="early"))

    assert resolved["result"].keys() == {"error"}
    assert await steps.all_jobs(world, chat) == before
    assert chat.states.all[-1:] == version


async def test_w2_a_start_and_creates_that_waited_for_a_stop_are_evaluated_in_order(
    world: World,
) -> None:
    chat = await world.chat()
    await steps.given_finished_start(world, chat)
    _, stop = await steps.request_stop(world, chat)
    first = await chat.ask(START)
    second = await steps.request_create(world, chat)
    third = await chat.ask(START)

    await world.provisioner.succeed(stop)
    job = await world.provisioner.job(chat, "start", 3)
    await steps.assert_calls_wait(world, chat, first, second, third)
    await world.provisioner.succeed(job)
    answers = [await steps.successful_result(chat, call) for call in (first, second, third)]

    assert [answer["build_id"] for answer in answers] == [job.build_id] * 3
    assert (answers[1]["created"], answers[1]["status"]) == (False, "already_exists")
    assert len(await steps.all_jobs(world, chat)) == 3


async def test_w2_a_create_that_arrived_before_the_start_is_answered_stopped(world: World) -> None:
    chat = await world.chat()
    await steps.given_finished_start(world, chat)
    _, stop = await steps.request_stop(world, chat)
    first = await steps.request_create(world, chat)
    second = await chat.ask(START)

    await world.provisioner.succeed(stop)
    job = await world.provisioner.job(chat, "start", 3)
    await world.provisioner.succeed(job)

    assert (await steps.successful_result(chat, first))["status"] == "stopped"
    assert (await steps.successful_result(chat, second))["build_id"] == job.build_id


async def test_w2_stops_that_wait_for_one_build_make_one_stop_build(world: World) -> None:
    chat = await world.chat()
    _, start = await world.building(chat)
    calls = [await chat.ask(STOP) for _ in range(3)]

    await world.provisioner.succeed(start)
    stop = await world.provisioner.job(chat, "stop")
    await world.provisioner.succeed(stop)
    answers = [await steps.successful_result(chat, call) for call in calls]

    assert [answer.get("build_id") for answer in answers] == [stop.build_id, None, None]
    assert [answer.get("no_build") for answer in answers] == [None, True, True]
    assert await steps.all_jobs(world, chat) == [start, stop]


async def test_w2_readiness_answers_all_waiting_calls_at_once(world: World) -> None:
    chat = await world.chat()
    job, agent = await steps.given_running_workspace(world, chat, "agent_connecting")
    assert agent is not None
    calls = [await chat.ask(tool, {"template_id": world.plain}) for tool in (CREATE, START) * 3]
    await steps.assert_calls_wait(world, chat, *calls)

    await agent.report_lifecycle("ready")
    answers = await asyncio.gather(*(steps.successful_result(chat, call) for call in calls))

    assert all("build_id" not in answer for answer in answers)
    assert {answer["workspace_name"] for answer in answers} == {job.workspace_name}
    assert await steps.all_jobs(world, chat) == [job]
