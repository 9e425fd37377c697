"""stop_workspace (P), numbered as in docs/internals/tool-rules.md; limits in `test_branches_limits`.

P1 stands in `test_branches_start`, and S8 stands here: they are the same for both tools.
"""

from __future__ import annotations

import pytest

from tests.rigs.client import agent_entry
from tests.rigs.world import World
from tests.wire.branches import (
    START,
    STOP,
    deleting,
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
    waits,
)


async def test_p2a_a_build_is_waited_for_and_its_agent_is_not(world: World) -> None:
    chat = await world.chat()
    create, start = await world.building(chat)

    call = await chat.ask(STOP)
    await waits(world, chat, create, call)
    await world.provisioner.succeed(start, agent_entry())
    stop = await world.provisioner.job(chat, "stop")
    gave_way = await result(chat, create)
    await world.provisioner.succeed(stop)

    assert await result(chat, call) == {
        "stopped": True,
        "workspace_name": start.workspace_name,
        "build_id": stop.build_id,
    }
    assert (stop.workspace_id, stop.build_number) == (start.workspace_id, 2)
    assert is_failure(gave_way, start.build_id)
    assert stop.build_id in gave_way["error"]
    assert chat.path == ["building", "agent_connecting", "stopping", "stopped"]
    assert await jobs(world, chat) == [start, stop]


@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_p2a_a_build_that_ends_ill_is_stopped_too(world: World, how: str) -> None:
    chat = await world.chat()
    create, start = await world.building(chat)
    call = await chat.ask(STOP)

    await end(world, start, how)
    stop = await world.provisioner.job(chat, "stop", 2)
    await world.provisioner.succeed(stop)

    assert is_failure(await result(chat, create), start.build_id)
    assert (await result(chat, call))["build_id"] == stop.build_id


async def test_p2b_a_stop_under_way_is_waited_for(world: World) -> None:
    chat = await world.chat()
    start = await ended(world, chat)
    first, stop = await stopping(world, chat)

    second = await chat.ask(STOP)
    await waits(world, chat, first, second)
    await world.provisioner.succeed(stop)

    assert (await result(chat, first))["build_id"] == stop.build_id
    assert await result(chat, second) == {
        "stopped": True,
        "workspace_name": start.workspace_name,
        "no_build": True,
    }
    assert await jobs(world, chat) == [start, stop]


async def test_p2b_a_stop_under_way_that_fails_is_tried_again(world: World) -> None:
    chat = await world.chat()
    await ended(world, chat)
    first, stop = await stopping(world, chat)
    second = await chat.ask(STOP)

    await world.provisioner.fail(stop)
    again = await world.provisioner.job(chat, "stop", 3)
    await world.provisioner.succeed(again)

    assert is_failure(await result(chat, first), stop.build_id)
    assert (await result(chat, second))["build_id"] == again.build_id


async def test_p2b_after_a_delete_there_is_nothing_to_stop(world: World) -> None:
    chat = await world.chat()
    await ended(world, chat)
    delete = await deleting(world, chat)

    call = await chat.ask(STOP)
    await world.provisioner.succeed(delete)

    assert (await chat.answer(call))["is_error"] is True


async def test_p3_what_is_stopped_needs_no_build(world: World) -> None:
    chat = await world.chat()
    start = await stopped(world, chat)
    before = await jobs(world, chat)

    assert await chat.call(STOP) == {
        "stopped": True,
        "workspace_name": start.workspace_name,
        "no_build": True,
    }
    assert await jobs(world, chat) == before


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
async def test_p4a_everything_else_is_stopped(world: World, state: str) -> None:
    chat = await world.chat()
    if state in RUNNING:
        start, _ = await running(world, chat, state)
    elif state.startswith("stop "):
        start = await ended(world, chat)
        await stop_ended(world, chat, state.removeprefix("stop "))
    else:
        start = await ended(world, chat, state)
    number = chat.now["build"]["number"] + 1

    call, stop = await stopping(world, chat)
    await world.provisioner.succeed(stop)

    assert (stop.workspace_id, stop.build_number) == (start.workspace_id, number)
    assert stop.template == start.template
    assert await result(chat, call) == {
        "stopped": True,
        "workspace_name": start.workspace_name,
        "build_id": stop.build_id,
    }
    assert chat.path[-2:] == ["stopping", "stopped"]


@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_p4b_a_stop_that_ends_ill_is_a_build_failure(world: World, how: str) -> None:
    chat = await world.chat()
    await ended(world, chat)
    call, stop = await stopping(world, chat)

    await end(world, stop, how)

    assert is_failure(await result(chat, call), stop.build_id)
    assert chat.path[-2:] == ["stopping", f"failed:build_{how}"]
    assert chat.now["build"]["transition"] == "stop"


@pytest.mark.parametrize("tool", [START, STOP])
async def test_s8_p5_what_was_made_of_an_unknown_template_is_not_ours(
    world: World, tool: str
) -> None:
    chat = await world.chat()
    await told(world, elsewhere(chat), "build_failed")
    await chat.state("failed:build_failed")

    assert await chat.call_error(tool)

    assert await jobs(world, chat) == []
