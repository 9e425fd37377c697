"""stop_workspace (P), numbered as in docs/internals/tool-rules.md; limits in `test_branches_limits`.

P1 stands in `test_branches_start`, and S8 stands here: they are the same for both tools.
"""

from __future__ import annotations

import pytest

from tests.rigs.messages import agent_entry
from tests.rigs.world import World
from tests.wire import steps
from tests.wire.steps import START, STOP


async def test_p2a_stop_waits_for_the_build_but_not_for_the_agent(world: World) -> None:
    chat = await world.chat()
    create, start = await world.building(chat)

    call = await chat.ask(STOP)
    await steps.assert_calls_wait(world, chat, create, call)
    await world.provisioner.succeed(start, agent_entry())
    stop = await world.provisioner.job(chat, "stop")
    gave_way = await steps.successful_result(chat, create)
    await world.provisioner.succeed(stop)

    assert await steps.successful_result(chat, call) == {
        "stopped": True,
        "workspace_name": start.workspace_name,
        "build_id": stop.build_id,
    }
    assert (stop.workspace_id, stop.build_number) == (start.workspace_id, 2)
    assert steps.is_build_failure(gave_way, start.build_id)
    assert stop.build_id in gave_way["error"]
    await chat.entered("building", "agent_connecting", "stopping", "stopped")
    assert await steps.all_jobs(world, chat) == [start, stop]


@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_p2a_stop_also_stops_a_workspace_whose_build_failed(world: World, how: str) -> None:
    chat = await world.chat()
    create, start = await world.building(chat)
    call = await chat.ask(STOP)

    await steps.finish_build(world, start, how)
    stop = await world.provisioner.job(chat, "stop", 2)
    await world.provisioner.succeed(stop)

    assert steps.is_build_failure(await steps.successful_result(chat, create), start.build_id)
    assert (await steps.successful_result(chat, call))["build_id"] == stop.build_id


async def test_p2b_stop_waits_for_a_stop_in_progress(world: World) -> None:
    chat = await world.chat()
    start = await steps.given_finished_start(world, chat)
    first, stop = await steps.request_stop(world, chat)

    second = await chat.ask(STOP)
    await steps.assert_calls_wait(world, chat, first, second)
    await world.provisioner.succeed(stop)

    assert (await steps.successful_result(chat, first))["build_id"] == stop.build_id
    assert await steps.successful_result(chat, second) == {
        "stopped": True,
        "workspace_name": start.workspace_name,
        "no_build": True,
    }
    assert await steps.all_jobs(world, chat) == [start, stop]


async def test_p2b_stop_retries_after_a_stop_in_progress_failed(world: World) -> None:
    chat = await world.chat()
    await steps.given_finished_start(world, chat)
    first, stop = await steps.request_stop(world, chat)
    second = await chat.ask(STOP)

    await world.provisioner.fail(stop)
    again = await world.provisioner.job(chat, "stop", 3)
    await world.provisioner.succeed(again)

    assert steps.is_build_failure(await steps.successful_result(chat, first), stop.build_id)
    assert (await steps.successful_result(chat, second))["build_id"] == again.build_id


async def test_p2b_stop_after_a_delete_points_to_create_workspace(world: World) -> None:
    chat = await world.chat()
    await steps.given_finished_start(world, chat)
    delete = await steps.request_delete(world, chat)

    call = await chat.ask(STOP)
    await world.provisioner.succeed(delete)

    assert (await chat.answer(call))["is_error"] is True


async def test_p3_stop_of_a_stopped_workspace_makes_no_build(world: World) -> None:
    chat = await world.chat()
    start = await steps.given_stopped_workspace(world, chat)
    before = await steps.all_jobs(world, chat)

    assert await chat.call(STOP) == {
        "stopped": True,
        "workspace_name": start.workspace_name,
        "no_build": True,
    }
    assert await steps.all_jobs(world, chat) == before


RUNNING = [
    "agent_connecting",
    "scripts_running",
    "ready",
    "lost",
    "bare",
    "selection_error",
    "scripts_failed",
]


@pytest.mark.parametrize("state", [*RUNNING, "failed", "canceled", "stop failed", "stop canceled"])
async def test_p4a_stop_builds_a_stop_in_every_other_state(world: World, state: str) -> None:
    chat = await world.chat()
    if state in RUNNING:
        start, _ = await steps.given_running_workspace(world, chat, state)
    elif state.startswith("stop "):
        start = await steps.given_finished_start(world, chat)
        await steps.given_finished_stop(world, chat, state.removeprefix("stop "))
    else:
        start = await steps.given_finished_start(world, chat, state)
    number = chat.now["build"]["number"] + 1

    call, stop = await steps.request_stop(world, chat)
    await world.provisioner.succeed(stop)

    assert (stop.workspace_id, stop.build_number) == (start.workspace_id, number)
    assert stop.template == start.template
    assert await steps.successful_result(chat, call) == {
        "stopped": True,
        "workspace_name": start.workspace_name,
        "build_id": stop.build_id,
    }
    await chat.entered_last("stopping", "stopped")


@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_p4b_a_failed_or_canceled_stop_is_a_build_failure(world: World, how: str) -> None:
    chat = await world.chat()
    await steps.given_finished_start(world, chat)
    call, stop = await steps.request_stop(world, chat)

    await steps.finish_build(world, stop, how)

    assert steps.is_build_failure(await steps.successful_result(chat, call), stop.build_id)
    await chat.entered_last("stopping", f"failed:build_{how}")
    assert chat.now["build"]["transition"] == "stop"


@pytest.mark.parametrize("tool", [START, STOP])
async def test_s8_p5_a_workspace_of_an_unknown_template_can_be_neither_started_nor_stopped(
    world: World, tool: str
) -> None:
    chat = await world.chat()
    await steps.report_external_build(world, steps.external_build(chat), "build_failed")
    await chat.state("failed:build_failed")

    assert await chat.call_error(tool)

    assert await steps.all_jobs(world, chat) == []
