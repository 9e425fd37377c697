"""A state's limit passes, and facts arrive after it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from tests.rigs.messages import Event, agent_entry
from tests.rigs.world import Deployment, World, deployment_with_timeouts

LIMIT = 0.6
"""The limit in seconds. It is short, because the tests wait until it passes."""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment_with_timeouts(tmp_path_factory.mktemp("limits"), LIMIT) as deployment:
        yield deployment


def deadline_of(state: Event) -> datetime:
    return datetime.fromisoformat(state["data"]["deadline"])


def state_time(state: Event) -> datetime:
    return datetime.fromisoformat(state["time"])


async def test_a_build_timeout_fails_the_chat(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    result = (await chat.answer(call))["result"]

    await chat.entered("building", "failed:build_timeout")
    assert result.keys() == {"error", "build_id"}
    assert result["build_id"] == job.build_id
    assert chat.now["cause"]["source"] == "/workspaced"
    assert chat.now["cause"]["type"] == "workspaced.deadline_passed.v1"
    assert state_time(chat.states.all[1]) >= deadline_of(chat.states.all[0])
    await job.ack()


async def test_a_build_that_succeeds_after_its_timeout_still_counts(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    await chat.answer(call)

    await world.provisioner.succeed(job)
    await chat.state("ready")

    await chat.entered("building", "failed:build_timeout", "ready")
    found = await chat.call("start_workspace")
    assert (found["no_build"], found["agent_status"]) == (True, "no_agent")


async def test_a_call_after_the_timeout_waits_for_the_same_build(world: World) -> None:
    chat = await world.chat()
    first, job = await world.building(chat)
    await chat.answer(first)

    second = await chat.ask("create_workspace", {"template_id": world.plain})
    again = await chat.state("building", above=2)
    await world.provisioner.succeed(job)
    result = (await chat.answer(second))["result"]

    assert again["build"]["id"] == job.build_id
    assert again["deadline"] > chat.states.all[0]["data"]["deadline"]
    assert (result["created"], result["build_id"]) == (False, job.build_id)
    assert [j for j in world.provisioner.jobs.all if j.chat_id == chat.id] == [job]
    await chat.entered("building", "failed:build_timeout", "building", "ready")


async def test_an_agent_that_does_not_connect_in_time_fails_the_chat(world: World) -> None:
    chat = await world.chat()
    call, job, agent = await world.connecting(chat)

    result = (await chat.answer(call))["result"]
    failed = chat.now
    await agent.report_connected()
    await chat.state("scripts_running")
    await agent.report_lifecycle("ready")
    await chat.state("ready")

    assert result.keys() == {
        "created",
        "workspace_name",
        "build_id",
        "agent_status",
        "agent_error",
    }
    assert (result["created"], result["build_id"]) == (True, job.build_id)
    assert result["agent_status"] == "not_ready"
    assert failed["failure"]["reason"] == "agent_not_ready"
    assert failed["agent"]["status"] == "timeout"


async def test_a_workspace_whose_agent_never_connected_is_replaced(world: World) -> None:
    chat = await world.chat()
    call, old, _ = await world.connecting(chat)
    await chat.answer(call)

    call = await chat.ask("create_workspace", {"template_id": world.plain})
    stop = await world.provisioner.job(chat, "stop")
    new = await world.provisioner.jobs.first(
        lambda j: j.chat_id == chat.id and j.workspace_id != old.workspace_id
    )
    await world.provisioner.succeed(new)
    await stop.ack()

    assert (await chat.answer(call))["result"]["created"] is True
    assert stop.workspace_id == old.workspace_id


async def test_startup_scripts_have_a_timeout(world: World) -> None:
    chat = await world.chat()
    call, _, agent = await world.connecting(chat)
    await agent.report_connected()
    await agent.report_lifecycle("starting")

    result = (await chat.answer(call))["result"]
    failed = chat.now
    await agent.report_lifecycle("ready")
    await chat.state("ready")

    assert result["startup_scripts"] == "startup_scripts_timeout"
    assert "lifecycle_state" not in result
    assert failed["failure"]["reason"] == "startup_scripts_timeout"
    assert failed["agent"]["lifecycle"] == "starting"


async def test_a_stop_has_a_timeout(world: World) -> None:
    chat = await world.chat()
    job, _ = await world.ready(chat)
    stopping = await chat.ask("stop_workspace")
    stop = await world.provisioner.job(chat, "stop")
    waiting = await chat.ask("start_workspace")

    results = [(await chat.answer(call))["result"] for call in (stopping, waiting)]
    await chat.entered_last("stopping", "failed:build_timeout")
    assert chat.now["build"]["transition"] == "stop"
    before = chat.now["version"]
    again = await chat.ask("stop_workspace")
    await chat.state("stopping", above=before)
    await world.provisioner.succeed(stop)
    resolved = (await chat.answer(again))["result"]

    for result in results:
        assert result.keys() == {"error", "build_id"}
        assert result["build_id"] == stop.build_id
    assert resolved["stopped"] is True
    assert resolved["workspace_name"] == job.workspace_name
    assert chat.now["state"] == "stopped"


@pytest.mark.parametrize("transition", ["start", "stop"])
async def test_b2c_b3_a_canceled_build_that_nobody_confirms_ends_after_a_timeout(
    world: World, transition: str
) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    if transition == "stop":
        await world.provisioner.succeed(job)
        await chat.answer(call)
        call = await chat.ask("stop_workspace")
        job = await world.provisioner.job(chat, "stop")
    await world.provisioner.publish_event("build_started", job)
    await chat.states.first(
        lambda e: e["data"]["build"]["begun_at"] and e["data"]["build"]["id"] == job.build_id
    )
    heard = await world.provisioner.hear(f"workspaced.cancel.{world.provisioner.pool}")

    await world.service.rpc("cancel_build", chat_id=chat.id)
    failed = await chat.state("failed")
    again = await world.service.rpc("cancel_build", chat_id=chat.id)

    assert failed["failure"]["reason"] == "build_canceled"
    assert failed["cause"]["type"] == "workspaced.deadline_passed.v1"
    assert failed["build"]["cancel_requested_at"] is not None
    assert again == {"canceled": False}
    result = (await chat.answer(call))["result"]
    assert (result.keys(), result["build_id"]) == ({"error", "build_id"}, job.build_id)
    # It is requested once more when the time is over, for a provisioner that missed the first request.
    of_job = [m for m in (await heard.count(2)) if job.build_id.encode() in m.data]
    assert len(of_job) == 2

    # Whoever has it may still end it, and its end counts.
    await world.provisioner.succeed(job)
    await chat.state("ready" if transition == "start" else "stopped")


async def test_b1c_a_build_that_exceeded_its_limit_is_canceled_at_once(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    await world.provisioner.publish_event("build_started", job)
    await chat.answer(call)
    await chat.entered("building", "failed:build_timeout")

    reply = await world.service.rpc("cancel_build", chat_id=chat.id)
    failed = await chat.state("failed:build_canceled")

    assert reply == {"canceled": True, "build_id": job.build_id}
    assert failed["cause"]["type"] == "workspaced.build_cancel_requested.v1"
    new = await chat.ask("create_workspace", {"template_id": world.plain})
    second = await world.provisioner.jobs.first(
        lambda j: j.chat_id == chat.id and j.workspace_id != job.workspace_id
    )
    await world.provisioner.succeed(second)
    assert (await chat.answer(new))["result"]["created"] is True


async def test_a_timeout_counts_from_entering_the_state(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    joined = await chat.ask("create_workspace", {"template_id": world.plain})

    await chat.answer(joined)
    await job.ack()

    await chat.entered("building", "failed:build_timeout")
    building, _ = chat.states.all  # the second call did not extend the deadline
    entered = datetime.fromisoformat(building["data"]["build"]["started_at"])
    assert deadline_of(building) == entered + timedelta(seconds=LIMIT)


async def test_a_lost_agent_does_not_change_the_timeout_of_another_state(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    listed = agent_entry()
    await world.provisioner.succeed(job, listed)

    first = await chat.state("agent_connecting")
    second = await chat.state("failed:agent_not_ready")

    assert first["deadline"] is not None
    assert second["deadline"] is None
    await chat.entered("building", "agent_connecting", "failed:agent_not_ready")
