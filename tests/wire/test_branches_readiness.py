"""Answers about the agent (R), about failed builds (F) and about superseded builds (U)."""

from __future__ import annotations

import pytest

from tests.rigs.client import Chat, Job
from tests.rigs.messages import Event, agent_entry
from tests.rigs.world import World
from tests.wire import steps
from tests.wire.steps import CREATE, START, STOP

FAILED = {"startup_scripts": "startup_scripts_failed"}
READINESS: dict[str, tuple[list[str], Event]] = {
    "R1 ready": (["starting", "ready"], {}),
    "R5 start_timeout": (["start_timeout"], {**FAILED, "lifecycle_state": "start_timeout"}),
    "R5 start_error": (["created", "start_error"], {**FAILED, "lifecycle_state": "start_error"}),
    "R5 shutting_down": (["shutting_down"], {**FAILED, "lifecycle_state": "shutting_down"}),
    "R5 shutdown_error": (["shutdown_error"], {**FAILED, "lifecycle_state": "shutdown_error"}),
    "R5 off": (["off"], {**FAILED, "lifecycle_state": "off"}),
}


@pytest.mark.parametrize("name", READINESS)
async def test_r_readiness_keys_after_the_startup_scripts(world: World, name: str) -> None:
    chat = await world.chat()
    call, job, agent = await world.connecting(chat)
    lifecycles, keys = READINESS[name]

    for lifecycle in lifecycles:
        await agent.report_lifecycle(lifecycle)

    assert await steps.successful_result(chat, call) == {
        "created": True,
        "workspace_name": f"ann/{job.workspace_name}",
        "build_id": job.build_id,
        **keys,
    }
    assert {**await chat.call(START), **keys} == await chat.call(START)


@pytest.mark.parametrize("name", ["R2 no agents", "R3 none can be chosen"])
async def test_r_readiness_keys_after_the_build(world: World, name: str) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    if name.startswith("R2"):
        await world.provisioner.succeed(job)
        keys = {"agent_status": "no_agent"}
    else:
        agents = steps.ambiguous_agents()
        await world.provisioner.succeed(job, *agents)
        keys = {"agent_status": "selection_error"}
    answer = await steps.successful_result(chat, call)

    if name.startswith("R3"):
        told_why = answer.pop("agent_error")
        assert all(agent["name"] in told_why for agent in agents)
    assert answer == {
        "created": True,
        "workspace_name": f"ann/{job.workspace_name}",
        "build_id": job.build_id,
        **keys,
    }


async def test_r5_later_agent_facts_count_for_the_next_call(world: World) -> None:
    chat = await world.chat()
    _, agent = await steps.given_running_workspace(world, chat, "ready")
    assert agent is not None
    plain = {"template_id": world.plain}

    await agent.report_lifecycle("starting")
    again = await chat.call(CREATE, plain)
    await agent.report_lifecycle("shutting_down")
    down = await chat.call(CREATE, plain)
    await agent.report_lifecycle("ready")
    ready = await chat.call(CREATE, plain)

    assert "startup_scripts" not in again.keys() | ready.keys()
    assert down["lifecycle_state"] == "shutting_down"
    assert chat.now["state"] == "ready"


async def test_r1_scripts_that_failed_and_then_succeed_count_as_ready(world: World) -> None:
    chat = await world.chat()
    _, agent = await steps.given_running_workspace(world, chat, "scripts_failed")
    assert agent is not None

    await agent.report_lifecycle("ready")
    answer = await chat.call(START)

    assert answer.keys() == {"started", "workspace_name", "no_build"}
    await chat.entered_last("failed:startup_scripts_failed", "ready")


@pytest.mark.parametrize("how", ["failed", "canceled"])
@pytest.mark.parametrize("tool", [CREATE, START, STOP])
async def test_f1_a_failed_or_canceled_build_is_a_build_failure(
    world: World, tool: str, how: str
) -> None:
    chat = await world.chat()
    call, job = await asked(world, chat, tool)

    await steps.finish_build(world, job, how)
    answer = await steps.successful_result(chat, call)

    assert steps.is_build_failure(answer, job.build_id)
    assert how == "canceled" or "no disk left" in answer["error"]


async def asked(world: World, chat: Chat, tool: str) -> tuple[str, Job]:
    """Make a call that requests a build; return the call and its job."""
    if tool == CREATE:
        return await world.building(chat)
    if tool == START:
        await steps.given_stopped_workspace(world, chat)
        call = await chat.ask(START)
        return call, await world.provisioner.job(chat, "start", 3)
    await steps.given_finished_start(world, chat)
    return await steps.request_stop(world, chat)


@pytest.mark.parametrize("quota", [None, {"credits_consumed": 4, "budget": 3.5}])
@pytest.mark.parametrize("tool", [CREATE, START])
async def test_f2_an_exhausted_quota_is_named_in_the_failure(
    world: World, tool: str, quota: Event | None
) -> None:
    chat = await world.chat()
    call, job = await asked(world, chat, tool)
    more = {} if quota is None else {"quota": quota}

    joined = await steps.request_create(world, chat)
    await world.provisioner.fail(job, "too much", error_code="INSUFFICIENT_QUOTA", **more)
    answers = [
        await steps.successful_result(chat, call),
        await steps.successful_result(chat, joined),
    ]

    for answer in answers:
        assert "too much" in answer["error"]
        assert answer["message"]
        assert {key: answer[key] for key in answer.keys() - {"error", "message"}} == {
            "error_code": "INSUFFICIENT_QUOTA",
            "title": "Workspace quota reached",
            "build_id": job.build_id,
            **more,
        }
    assert f"not {tool.removesuffix('_workspace')}" in answers[0]["message"]
    assert chat.now["failure"]["error_code"] == "INSUFFICIENT_QUOTA"


async def test_f2_an_unknown_error_code_is_omitted_from_the_answer(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    quota = {"credits_consumed": 1, "budget": 1}
    await world.provisioner.fail(job, "full", error_code="DISK_FULL", quota=quota)

    assert steps.is_build_failure(await steps.successful_result(chat, call), job.build_id)
    assert chat.now["failure"]["error_code"] == "DISK_FULL"


@pytest.mark.parametrize("ending", ["build_succeeded", "build_failed"])
async def test_u1_waiting_calls_follow_a_start_build_that_supersedes_theirs(
    world: World, ending: str
) -> None:
    chat = await world.chat()
    made, job = await world.building(chat)
    joined, started = await steps.request_create(world, chat), await chat.ask(START)
    theirs = steps.external_build(job, 2)

    await steps.report_external_build(world, theirs, "build_started")
    await world.provisioner.fail(job, "the older one")
    await steps.report_external_build(world, theirs, ending)
    answers = [await steps.successful_result(chat, call) for call in (made, joined, started)]

    assert [answer["build_id"] for answer in answers] == [theirs["build_id"]] * 3
    if ending == "build_succeeded":
        assert [answer.get("created") for answer in answers] == [True, False, None]
        assert {answer["agent_status"] for answer in answers} == {"no_agent"}
    else:
        assert all(steps.is_build_failure(answer, theirs["build_id"]) for answer in answers)
    assert await steps.all_jobs(world, chat) == [job]


async def test_u1_calls_that_wait_for_the_agent_follow_the_superseding_build_as_well(
    world: World,
) -> None:
    chat = await world.chat()
    job, _ = await steps.given_running_workspace(world, chat, "agent_connecting")
    call = await chat.ask(START)
    theirs = steps.external_build(job, 2)

    await steps.report_external_build(world, theirs, "build_succeeded")

    assert await steps.successful_result(chat, call) == {
        "started": True,
        "workspace_name": job.workspace_name,
        "build_id": theirs["build_id"],
        "agent_status": "no_agent",
    }


@pytest.mark.parametrize("transition", ["stop", "delete"])
@pytest.mark.parametrize("state", ["building", "agent_connecting", "scripts_running"])
async def test_u2_a_stop_that_supersedes_the_build_answers_waiting_calls_at_once(
    world: World, state: str, transition: str
) -> None:
    chat = await world.chat()
    if state == "building":
        made, job = await world.building(chat)
    else:
        job, _ = await steps.given_running_workspace(world, chat, state)
        made = await steps.request_create(world, chat)
    started = await chat.ask(START)
    theirs = steps.external_build(job, 2, transition)

    await steps.report_external_build(world, theirs, "build_started")
    answers = [await steps.successful_result(chat, call) for call in (made, started)]

    for answer in answers:
        assert steps.is_build_failure(answer, job.build_id)
        assert theirs["build_id"] in answer["error"]
    assert chat.now["state"] == "stopping"


async def test_u2_a_delete_request_answers_waiting_calls(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    await chat.publish_event("delete_requested", {})
    delete = await world.provisioner.job(chat, "delete")
    answer = await steps.successful_result(chat, call)
    await world.provisioner.succeed(delete)
    await chat.state("none")

    assert steps.is_build_failure(answer, job.build_id)
    assert delete.build_id in answer["error"]
    assert delete.build_number == 2


@pytest.mark.parametrize("state", ["building", "scripts_running"])
async def test_u3_a_deleted_workspace_answers_the_calls_that_wait_for_it(
    world: World, state: str
) -> None:
    chat = await world.chat()
    if state == "building":
        call, job = await world.building(chat)
    else:
        job, _ = await steps.given_running_workspace(world, chat, state)
        call = await steps.request_create(world, chat)

    await world.provisioner.publish_event("workspace_deleted", job)

    assert steps.is_build_failure(await steps.successful_result(chat, call), job.build_id)
    assert chat.now["state"] == "none"


@pytest.mark.parametrize("over", ["start", "stop", "delete", "the workspace is gone"])
async def test_u4_a_superseded_stop_is_answered_at_once(world: World, over: str) -> None:
    chat = await world.chat()
    job = await steps.given_finished_start(world, chat)
    call, stop = await steps.request_stop(world, chat)
    theirs = steps.external_build(job, 3, over)

    if over in ("start", "stop", "delete"):
        await steps.report_external_build(world, theirs, "build_started")
    else:
        await world.provisioner.publish_event("workspace_deleted", job)
    answer = await steps.successful_result(chat, call)

    assert steps.is_build_failure(answer, stop.build_id)
    assert (theirs["build_id"] in answer["error"]) is (over in ("start", "stop", "delete"))


async def test_r2_after_a_failed_stop_readiness_describes_the_last_start(world: World) -> None:
    chat = await world.chat()
    await steps.given_finished_start(world, chat)
    await steps.given_finished_stop(world, chat, "failed")

    assert (await chat.call(START))["agent_status"] == "no_agent"


async def test_r1_of_several_agents_the_chosen_one_determines_readiness(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    other, chosen = agent_entry("a"), agent_entry("z-coderd-chat")
    child = {**agent_entry("child-coderd-chat"), "parent_id": other["id"]}
    await world.provisioner.succeed(job, other, chosen, child)

    await (await world.agent(job, other["id"])).report_lifecycle("start_error")
    await (await world.agent(job, chosen["id"])).report_lifecycle("ready")
    answer = await steps.successful_result(chat, call)

    assert answer.keys() == {"created", "workspace_name", "build_id"}
    assert chat.now["agent"]["id"] == chosen["id"]
