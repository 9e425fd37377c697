"""create_workspace (C1 to C4c) and what holds for every tool (G), numbered as in docs/internals/tool-rules.md.

What makes a new workspace is in `test_branches_new`, templates and settings in
`test_branches_templates` and `test_branches_settings`, limits in `test_branches_limits`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.rigs.client import agent_entry, new_id
from tests.rigs.world import World
from tests.wire.branches import (
    CREATE,
    EXISTS,
    START,
    STOP,
    create,
    deleting,
    end,
    ended,
    is_failure,
    jobs,
    new_job,
    result,
    running,
    stopped,
    stopping,
    waits,
)


@pytest.mark.parametrize("tool", ["drop_database", "", "CREATE_WORKSPACE"])
async def test_g1_an_unknown_tool(world: World, tool: str) -> None:
    chat = await world.chat()

    resolved = await chat.answer(await chat.ask(tool))

    assert resolved["is_error"] is True
    assert chat.states.all == []


async def test_g2_arguments_of_the_wrong_shape(world: World) -> None:
    chat = await world.chat()
    plain = {"template_id": world.plain}
    wrong: list[tuple[str, dict[str, Any]]] = [
        (CREATE, {"template_id": 5}),
        (CREATE, {**plain, "parameters": []}),
        (CREATE, {**plain, "parameters": {"a": {"b": 1}}}),
        (CREATE, {**plain, "name": 7}),
        (CREATE, {**plain, "preset_id": []}),
        (START, {"parameters": "none"}),
        ("list_templates", {"page": "2"}),
        ("list_templates", {"page": True}),
        ("list_templates", {"query": ["x"]}),
        ("read_template", {"template_id": {}}),
    ]

    for text in await asyncio.gather(*(chat.call_error(tool, args) for tool, args in wrong)):
        assert text

    assert await jobs(world, chat) == []


async def test_g3_the_first_request_fixes_whose_chat_it_is(world: World) -> None:
    chat = await world.chat()
    await chat.call("list_templates")

    assert await chat.call_error(CREATE, {"template_id": world.plain}, owner_id=new_id())
    assert await chat.call_error(STOP, organization_id=new_id())

    assert await jobs(world, chat) == []


async def test_c1a_c1b_c1c_ids_are_looked_at_before_anything_else(world: World) -> None:
    fresh, other = await world.chat(), await world.chat()
    await stopped(world, other)
    plain = {"template_id": world.plain}
    wrong: list[dict[str, Any]] = [
        *({}, {"template_id": None}, {"template_id": ""}, {"template_id": " \t\n"}),
        *({"template_id": "plain"}, {"template_id": world.plain[:-1]}, {"template_id": "0" * 32}),
        {**plain, "preset_id": "small"},
    ]

    for chat in (fresh, other):
        for text in await asyncio.gather(*(chat.call_error(CREATE, args) for args in wrong)):
            assert text

    assert await jobs(world, fresh) == []


async def test_c2a_what_is_being_built_is_waited_for(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)

    call = await create(world, chat)
    await waits(world, chat, call)
    listed = agent_entry()
    await world.provisioner.succeed(job, listed)
    agent = await world.agent(job, listed["id"])
    await agent.report_lifecycle("start_error")
    answer = await result(chat, call)

    assert answer.pop("message")
    assert answer == {
        "created": False,
        "workspace_name": job.workspace_name,
        "status": "already_exists",
        "build_id": job.build_id,
        "startup_scripts": "startup_scripts_failed",
        "lifecycle_state": "start_error",
    }
    assert await jobs(world, chat) == [job]


@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_c2b_what_is_being_built_and_fails(world: World, how: str) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    call = await create(world, chat)

    await end(world, job, how)

    assert is_failure(await result(chat, call), job.build_id)
    assert await jobs(world, chat) == [job]


async def test_c3a_after_a_stop_it_is_judged_again(world: World) -> None:
    chat = await world.chat()
    start = await ended(world, chat)
    _, stop = await stopping(world, chat)

    call = await create(world, chat)
    await waits(world, chat, call)
    await world.provisioner.succeed(stop)

    assert (await result(chat, call))["status"] == "stopped"
    assert await jobs(world, chat) == [start, stop]


async def test_c3d_what_is_stopped_is_to_be_started(world: World) -> None:
    chat = await world.chat()
    job = await stopped(world, chat)

    answer = await chat.call(CREATE, {"template_id": world.plain})

    assert "start_workspace" in answer.pop("message")
    assert answer == {
        "created": False,
        "workspace_name": job.workspace_name,
        "status": "stopped",
    }


async def test_c3e_after_a_delete_there_is_room_for_a_new_one(world: World) -> None:
    chat = await world.chat()
    old = await ended(world, chat)
    delete = await deleting(world, chat)

    call = await create(world, chat)
    await waits(world, chat, call)
    await world.provisioner.succeed(delete)
    new = await new_job(world, chat, old)
    await world.provisioner.succeed(new)

    assert (await result(chat, call))["build_id"] == new.build_id
    assert (new.build_number, new.transition) == (1, "start")
    assert await jobs(world, chat) == [old, delete, new]


async def test_c3e_a_delete_that_takes_over_the_stop_is_waited_for_too(world: World) -> None:
    chat = await world.chat()
    old = await ended(world, chat)
    _, stop = await stopping(world, chat)
    call = await create(world, chat)

    delete = await deleting(world, chat)
    await world.provisioner.succeed(stop)  # too late to mean anything
    await waits(world, chat, call)
    await world.provisioner.succeed(delete)
    new = await new_job(world, chat, old)
    await world.provisioner.succeed(new)

    assert (await result(chat, call))["created"] is True
    assert await jobs(world, chat) == [old, stop, delete, new]


async def test_c3f_c4i_a_stop_that_fails_leaves_it_running(world: World) -> None:
    chat = await world.chat()
    start, _ = await running(world, chat, "ready")
    _, stop = await stopping(world, chat)

    waiting = await create(world, chat)
    await world.provisioner.fail(stop)
    answers = [await result(chat, waiting), await chat.call(CREATE, {"template_id": world.plain})]

    for answer in answers:
        assert answer.keys() == EXISTS
        assert answer["status"] == "already_exists"
    assert await jobs(world, chat) == [start, stop]


async def test_c3f_c4j_a_stop_that_fails_after_a_failed_start_leaves_nothing(world: World) -> None:
    chat = await world.chat()
    old = await ended(world, chat, "failed")
    _, stop = await stopping(world, chat)

    call = await create(world, chat)
    await end(world, stop, "canceled")
    new = await new_job(world, chat, old)
    await world.provisioner.succeed(new)

    assert (await result(chat, call))["created"] is True
    assert await jobs(world, chat) == [old, stop, new]


@pytest.mark.parametrize("state", ["ready", "scripts_failed"])
async def test_c4a_what_runs_with_its_agent_is_the_one(world: World, state: str) -> None:
    chat = await world.chat()
    job, _ = await running(world, chat, state)
    scripts = {"startup_scripts": "startup_scripts_failed", "lifecycle_state": "start_error"}

    answer = await chat.call(CREATE, {"template_id": world.plain})

    assert answer.pop("message")
    assert answer == {
        "created": False,
        "workspace_name": job.workspace_name,
        "status": "already_exists",
        **(scripts if state == "scripts_failed" else {}),
    }
    assert await jobs(world, chat) == [job]


@pytest.mark.parametrize("state", ["agent_connecting", "scripts_running"])
async def test_c4b_readiness_is_waited_for(world: World, state: str) -> None:
    chat = await world.chat()
    job, agent = await running(world, chat, state)
    assert agent is not None

    call = await create(world, chat)
    await waits(world, chat, call)
    await agent.report_lifecycle("start_timeout")
    answer = await result(chat, call)

    assert answer.keys() == EXISTS | {"startup_scripts", "lifecycle_state"}
    assert answer["lifecycle_state"] == "start_timeout"
    assert await jobs(world, chat) == [job]


async def test_c4c_without_a_choice_of_agent_it_is_the_one(world: World) -> None:
    chat = await world.chat()
    job, _ = await running(world, chat, "selection_error")

    answer = await chat.call(CREATE, {"template_id": world.plain})

    assert answer.keys() == EXISTS | {"agent_status", "agent_error"}
    assert (answer["status"], answer["agent_status"]) == ("already_exists", "selection_error")
    assert await jobs(world, chat) == [job]
