"""What answers say of the agent (R), of failed builds (F) and of builds that were taken over (U)."""

from __future__ import annotations

import pytest

from tests.rigs.client import Chat, Event, Job, agent_entry
from tests.rigs.world import World
from tests.wire.branches import (
    CREATE,
    START,
    STOP,
    create,
    elsewhere,
    end,
    ended,
    is_failure,
    jobs,
    result,
    running,
    stop_ended,
    stopped,
    stopping,
    told,
    unchoosable,
)

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
async def test_r_readiness_after_the_scripts(world: World, name: str) -> None:
    chat = await world.chat()
    call, job, agent = await world.connecting(chat)
    lifecycles, keys = READINESS[name]

    for lifecycle in lifecycles:
        await agent.report_lifecycle(lifecycle)

    assert await result(chat, call) == {
        "created": True,
        "workspace_name": f"ann/{job.workspace_name}",
        "build_id": job.build_id,
        **keys,
    }
    assert {**await chat.call(START), **keys} == await chat.call(START)


@pytest.mark.parametrize("name", ["R2 no agents", "R3 none can be chosen"])
async def test_r_readiness_after_the_build(world: World, name: str) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    if name.startswith("R2"):
        await world.provisioner.succeed(job)
        keys = {"agent_status": "no_agent"}
    else:
        agents = unchoosable()
        await world.provisioner.succeed(job, *agents)
        keys = {"agent_status": "selection_error"}
    answer = await result(chat, call)

    if name.startswith("R3"):
        told_why = answer.pop("agent_error")
        assert all(agent["name"] in told_why for agent in agents)
    assert answer == {
        "created": True,
        "workspace_name": f"ann/{job.workspace_name}",
        "build_id": job.build_id,
        **keys,
    }


async def test_r5_what_comes_later_counts_for_the_next_call(world: World) -> None:
    chat = await world.chat()
    _, agent = await running(world, chat, "ready")
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


async def test_r1_scripts_that_failed_and_then_end_well(world: World) -> None:
    chat = await world.chat()
    _, agent = await running(world, chat, "scripts_failed")
    assert agent is not None

    await agent.report_lifecycle("ready")
    answer = await chat.call(START)

    assert answer.keys() == {"started", "workspace_name", "no_build"}
    assert chat.path[-2:] == ["failed:startup_scripts_failed", "ready"]


@pytest.mark.parametrize("how", ["failed", "canceled"])
@pytest.mark.parametrize("tool", [CREATE, START, STOP])
async def test_f1_a_build_that_ends_ill(world: World, tool: str, how: str) -> None:
    chat = await world.chat()
    call, job = await asked(world, chat, tool)

    await end(world, job, how)
    answer = await result(chat, call)

    assert is_failure(answer, job.build_id)
    assert how == "canceled" or "no disk left" in answer["error"]


async def asked(world: World, chat: Chat, tool: str) -> tuple[str, Job]:
    """Have the tool ask for a build; return the call and its job."""
    if tool == CREATE:
        return await world.building(chat)
    if tool == START:
        await stopped(world, chat)
        call = await chat.ask(START)
        return call, await world.provisioner.job(chat, "start", 3)
    await ended(world, chat)
    return await stopping(world, chat)


@pytest.mark.parametrize("quota", [None, {"credits_consumed": 4, "budget": 3.5}])
@pytest.mark.parametrize("tool", [CREATE, START])
async def test_f2_a_quota_that_is_used_up(world: World, tool: str, quota: Event | None) -> None:
    chat = await world.chat()
    call, job = await asked(world, chat, tool)
    more = {} if quota is None else {"quota": quota}

    joined = await create(world, chat)
    await world.provisioner.fail(job, "too much", error_code="INSUFFICIENT_QUOTA", **more)
    answers = [await result(chat, call), await result(chat, joined)]

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


async def test_f2_another_error_code_means_nothing_to_the_caller(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    quota = {"credits_consumed": 1, "budget": 1}
    await world.provisioner.fail(job, "full", error_code="DISK_FULL", quota=quota)

    assert is_failure(await result(chat, call), job.build_id)
    assert chat.now["failure"]["error_code"] == "DISK_FULL"


@pytest.mark.parametrize("ending", ["build_succeeded", "build_failed"])
async def test_u1_calls_follow_the_start_build_that_took_over(world: World, ending: str) -> None:
    chat = await world.chat()
    made, job = await world.building(chat)
    joined, started = await create(world, chat), await chat.ask(START)
    theirs = elsewhere(job, 2)

    await told(world, theirs, "build_started")
    await world.provisioner.fail(job, "the older one")
    await told(world, theirs, ending)
    answers = [await result(chat, call) for call in (made, joined, started)]

    assert [answer["build_id"] for answer in answers] == [theirs["build_id"]] * 3
    if ending == "build_succeeded":
        assert [answer.get("created") for answer in answers] == [True, False, None]
        assert {answer["agent_status"] for answer in answers} == {"no_agent"}
    else:
        assert all(is_failure(answer, theirs["build_id"]) for answer in answers)
    assert await jobs(world, chat) == [job]


async def test_u1_who_waited_for_the_agent_follows_too(world: World) -> None:
    chat = await world.chat()
    job, _ = await running(world, chat, "agent_connecting")
    call = await chat.ask(START)
    theirs = elsewhere(job, 2)

    await told(world, theirs, "build_succeeded")

    assert await result(chat, call) == {
        "started": True,
        "workspace_name": job.workspace_name,
        "build_id": theirs["build_id"],
        "agent_status": "no_agent",
    }


@pytest.mark.parametrize("transition", ["stop", "delete"])
@pytest.mark.parametrize("state", ["building", "agent_connecting", "scripts_running"])
async def test_u2_who_is_taken_over_by_a_stop_is_answered_when_it_is_seen(
    world: World, state: str, transition: str
) -> None:
    chat = await world.chat()
    if state == "building":
        made, job = await world.building(chat)
    else:
        job, _ = await running(world, chat, state)
        made = await create(world, chat)
    started = await chat.ask(START)
    theirs = elsewhere(job, 2, transition)

    await told(world, theirs, "build_started")
    answers = [await result(chat, call) for call in (made, started)]

    for answer in answers:
        assert is_failure(answer, job.build_id)
        assert theirs["build_id"] in answer["error"]
    assert chat.now["state"] == "stopping"


async def test_u2_a_request_to_delete_answers_who_waits(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    await chat.publish_event("delete_requested", {})
    delete = await world.provisioner.job(chat, "delete")
    answer = await result(chat, call)
    await world.provisioner.succeed(delete)
    await chat.state("none")

    assert is_failure(answer, job.build_id)
    assert delete.build_id in answer["error"]
    assert delete.build_number == 2


@pytest.mark.parametrize("state", ["building", "scripts_running"])
async def test_u3_a_workspace_that_is_gone_answers_who_waits_for_it(
    world: World, state: str
) -> None:
    chat = await world.chat()
    if state == "building":
        call, job = await world.building(chat)
    else:
        job, _ = await running(world, chat, state)
        call = await create(world, chat)

    await world.provisioner.publish_event("workspace_deleted", job)

    assert is_failure(await result(chat, call), job.build_id)
    assert chat.now["state"] == "none"


@pytest.mark.parametrize("over", ["start", "stop", "delete", "the workspace is gone"])
async def test_u4_a_stop_that_is_taken_over_is_answered_when_that_is_seen(
    world: World, over: str
) -> None:
    chat = await world.chat()
    job = await ended(world, chat)
    call, stop = await stopping(world, chat)
    theirs = elsewhere(job, 3, over)

    if over in ("start", "stop", "delete"):
        await told(world, theirs, "build_started")
    else:
        await world.provisioner.publish_event("workspace_deleted", job)
    answer = await result(chat, call)

    assert is_failure(answer, stop.build_id)
    assert (theirs["build_id"] in answer["error"]) is (over in ("start", "stop", "delete"))


async def test_r2_a_failed_stop_tells_what_the_start_made(world: World) -> None:
    chat = await world.chat()
    await ended(world, chat)
    await stop_ended(world, chat, "failed")

    assert (await chat.call(START))["agent_status"] == "no_agent"


async def test_r1_of_several_agents_the_chosen_one_counts(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    other, chosen = agent_entry("a"), agent_entry("z-coderd-chat")
    child = {**agent_entry("child-coderd-chat"), "parent_id": other["id"]}
    await world.provisioner.succeed(job, other, chosen, child)

    await (await world.agent(job, other["id"])).report_lifecycle("start_error")
    await (await world.agent(job, chosen["id"])).report_lifecycle("ready")
    answer = await result(chat, call)

    assert answer.keys() == {"created", "workspace_name", "build_id"}
    assert chat.now["agent"]["id"] == chosen["id"]
