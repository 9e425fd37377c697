"""create_workspace (C1 to C4c) and what holds for every tool (G), numbered as in docs/internals/tool-rules.md.

What makes a new workspace is in `test_branches_new`, templates and settings in
`test_branches_templates` and `test_branches_settings`, limits in `test_branches_limits`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.rigs.messages import Event, agent_entry, new_id
from tests.rigs.world import World
from tests.wire import steps
from tests.wire.steps import CREATE, EXISTS, START, STOP


@pytest.mark.parametrize("tool", ["drop_database", "", "CREATE_WORKSPACE"])
async def test_g1_an_unknown_tool_is_an_error(world: World, tool: str) -> None:
    chat = await world.chat()

    resolved = await chat.answer(await chat.ask(tool))

    assert resolved["is_error"] is True
    assert chat.states.all == []


async def test_g2_arguments_of_the_wrong_shape_are_an_error(world: World) -> None:
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

    assert await steps.all_jobs(world, chat) == []


async def test_g3_the_first_request_fixes_the_organization_and_the_owner_of_a_chat(
    world: World,
) -> None:
    chat = await world.chat()
    await chat.call("list_templates")

    assert await chat.call_error(CREATE, {"template_id": world.plain}, owner_id=new_id())
    assert await chat.call_error(STOP, organization_id=new_id())

    assert await steps.all_jobs(world, chat) == []


async def test_c1a_c1b_c1c_ids_are_validated_before_anything_else(world: World) -> None:
    fresh, other = await world.chat(), await world.chat()
    await steps.given_stopped_workspace(world, other)
    plain = {"template_id": world.plain}
    wrong: list[dict[str, Any]] = [
        *({}, {"template_id": None}, {"template_id": ""}, {"template_id": " \t\n"}),
        *({"template_id": "plain"}, {"template_id": world.plain[:-1]}, {"template_id": "0" * 32}),
        {**plain, "preset_id": "small"},
    ]

    for chat in (fresh, other):
        for text in await asyncio.gather(*(chat.call_error(CREATE, args) for args in wrong)):
            assert text

    assert await steps.all_jobs(world, fresh) == []


async def test_c2a_create_waits_for_a_build_in_progress(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)

    call = await steps.request_create(world, chat)
    await steps.assert_calls_wait(world, chat, call)
    listed = agent_entry()
    await world.provisioner.succeed(job, listed)
    agent = await world.agent(job, listed["id"])
    await agent.report_lifecycle("start_error")
    answer = await steps.successful_result(chat, call)

    assert answer.pop("message")
    assert answer == {
        "created": False,
        "workspace_name": job.workspace_name,
        "status": "already_exists",
        "build_id": job.build_id,
        "startup_scripts": "startup_scripts_failed",
        "lifecycle_state": "start_error",
    }
    assert await steps.all_jobs(world, chat) == [job]


@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_c2b_create_returns_the_failure_of_a_build_in_progress(
    world: World, how: str
) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    call = await steps.request_create(world, chat)

    await steps.finish_build(world, job, how)

    assert steps.is_build_failure(await steps.successful_result(chat, call), job.build_id)
    assert await steps.all_jobs(world, chat) == [job]


async def test_c3a_create_waits_for_a_stop_and_then_returns_stopped(world: World) -> None:
    chat = await world.chat()
    start = await steps.given_finished_start(world, chat)
    _, stop = await steps.request_stop(world, chat)

    call = await steps.request_create(world, chat)
    await steps.assert_calls_wait(world, chat, call)
    await world.provisioner.succeed(stop)

    assert (await steps.successful_result(chat, call))["status"] == "stopped"
    assert await steps.all_jobs(world, chat) == [start, stop]


async def test_c3d_create_points_to_start_workspace_if_the_workspace_is_stopped(
    world: World,
) -> None:
    chat = await world.chat()
    job = await steps.given_stopped_workspace(world, chat)

    answer = await chat.call(CREATE, {"template_id": world.plain})

    assert "start_workspace" in answer.pop("message")
    assert answer == {
        "created": False,
        "workspace_name": job.workspace_name,
        "status": "stopped",
    }


async def test_c3e_create_waits_for_a_delete_and_then_makes_a_new_workspace(world: World) -> None:
    chat = await world.chat()
    old = await steps.given_finished_start(world, chat)
    delete = await steps.request_delete(world, chat)

    call = await steps.request_create(world, chat)
    await steps.assert_calls_wait(world, chat, call)
    await world.provisioner.succeed(delete)
    new = await steps.job_of_new_workspace(world, chat, old)
    await world.provisioner.succeed(new)

    assert (await steps.successful_result(chat, call))["build_id"] == new.build_id
    assert (new.build_number, new.transition) == (1, "start")
    assert await steps.all_jobs(world, chat) == [old, delete, new]


async def test_c3e_create_waits_for_a_delete_that_supersedes_the_stop(world: World) -> None:
    chat = await world.chat()
    old = await steps.given_finished_start(world, chat)
    _, stop = await steps.request_stop(world, chat)
    call = await steps.request_create(world, chat)

    delete = await steps.request_delete(world, chat)
    await world.provisioner.succeed(stop)  # too late to have an effect
    await steps.assert_calls_wait(world, chat, call)
    await world.provisioner.succeed(delete)
    new = await steps.job_of_new_workspace(world, chat, old)
    await world.provisioner.succeed(new)

    assert (await steps.successful_result(chat, call))["created"] is True
    assert await steps.all_jobs(world, chat) == [old, stop, delete, new]


async def test_c3f_c4i_after_a_failed_stop_the_workspace_counts_as_running(world: World) -> None:
    chat = await world.chat()
    start, _ = await steps.given_running_workspace(world, chat, "ready")
    _, stop = await steps.request_stop(world, chat)

    waiting = await steps.request_create(world, chat)
    await world.provisioner.fail(stop)
    answers = [
        await steps.successful_result(chat, waiting),
        await chat.call(CREATE, {"template_id": world.plain}),
    ]

    for answer in answers:
        assert answer.keys() == EXISTS
        assert answer["status"] == "already_exists"
    assert await steps.all_jobs(world, chat) == [start, stop]


async def test_c3f_c4j_after_a_failed_start_and_a_failed_stop_create_makes_a_new_workspace(
    world: World,
) -> None:
    chat = await world.chat()
    old = await steps.given_finished_start(world, chat, "failed")
    _, stop = await steps.request_stop(world, chat)

    call = await steps.request_create(world, chat)
    await steps.finish_build(world, stop, "canceled")
    new = await steps.job_of_new_workspace(world, chat, old)
    await world.provisioner.succeed(new)

    assert (await steps.successful_result(chat, call))["created"] is True
    *jobs, last = await steps.all_jobs(world, chat)
    assert jobs == [old, stop, new]
    # Nobody has worked in the old workspace.
    assert (last.workspace_id, last.transition) == (old.workspace_id, "delete")


@pytest.mark.parametrize("state", ["ready", "scripts_failed"])
async def test_c4a_create_returns_the_running_workspace_whose_agent_is_connected(
    world: World, state: str
) -> None:
    chat = await world.chat()
    job, _ = await steps.given_running_workspace(world, chat, state)
    scripts = {"startup_scripts": "startup_scripts_failed", "lifecycle_state": "start_error"}

    answer = await chat.call(CREATE, {"template_id": world.plain})

    assert answer.pop("message")
    assert answer == {
        "created": False,
        "workspace_name": job.workspace_name,
        "status": "already_exists",
        **(scripts if state == "scripts_failed" else {}),
    }
    assert await steps.all_jobs(world, chat) == [job]


@pytest.mark.parametrize("state", ["agent_connecting", "scripts_running"])
async def test_c4b_create_waits_for_readiness(world: World, state: str) -> None:
    chat = await world.chat()
    job, agent = await steps.given_running_workspace(world, chat, state)
    assert agent is not None

    call = await steps.request_create(world, chat)
    await steps.assert_calls_wait(world, chat, call)
    await agent.report_lifecycle("start_timeout")
    answer = await steps.successful_result(chat, call)

    assert answer.keys() == EXISTS | {"startup_scripts", "lifecycle_state"}
    assert answer["lifecycle_state"] == "start_timeout"
    assert await steps.all_jobs(world, chat) == [job]


async def test_c4c_create_returns_the_running_workspace_after_a_selection_error(
    world: World,
) -> None:
    chat = await world.chat()
    job, _ = await steps.given_running_workspace(world, chat, "selection_error")

    answer = await chat.call(CREATE, {"template_id": world.plain})

    assert answer.keys() == EXISTS | {"agent_status", "agent_error"}
    assert (answer["status"], answer["agent_status"]) == ("already_exists", "selection_error")
    assert await steps.all_jobs(world, chat) == [job]


@pytest.mark.parametrize(
    "extra",
    [{"template": " rich ", "preset": " next "}, {"template": "no", "preset": "no"}],
    ids=["C5j names alone", "C5k names beside ids"],
)
async def test_names_stand_for_ids_that_are_not_given(world: World, extra: Event) -> None:
    chat = await world.chat()
    rich = world.deployment.templates["rich"]["template_id"]
    read = await chat.call("read_template", {"template_id": rich})
    (preset,) = read["presets"]
    ids = {"template_id": rich, "preset_id": preset["id"]}

    call = await chat.ask(CREATE, extra if extra["preset"] == " next " else {**ids, **extra})
    job = await world.provisioner.job(chat)
    await world.provisioner.succeed(job)

    assert (await steps.successful_result(chat, call))["created"] is True
    assert chat.workspace_ids[call] == job.workspace_id
    assert job.template["id"] == rich
    assert job.data["preset_id"] == preset["id"]
    assert (job.data["parameters"]["branch"], job.data["parameters"]["word"]) == ("next", "preset")


async def test_c1a_c5j_c5k_names_that_nothing_has_are_errors(world: World) -> None:
    chat = await world.chat()

    for wrong in (
        {"template_id": " ", "template": " "},
        {"template": "unknown"},
        {"template_id": "rich", "template": "rich"},
        {"template": "rich", "preset": "unknown"},
    ):
        await chat.call_error(CREATE, wrong)
    assert await steps.all_jobs(world, chat) == []


async def test_c9_s9_parameters_that_request_no_build_are_named(world: World) -> None:
    chat = await world.chat()
    await steps.given_running_workspace(world, chat, "bare")
    given = {"parameters": {"branch": "next", "word": None, "other": 3}}

    created = await chat.call(CREATE, {"template_id": world.plain, **given})
    started = await chat.call(START, given)
    plain = await chat.call(START, {"parameters": {"word": None}})
    await steps.given_finished_stop(world, chat)
    stopped = await chat.call(CREATE, {"template_id": world.plain, **given})

    for answer in (created, started, stopped):
        assert answer["parameters_ignored"] == ["branch", "other"]
    assert "parameters_ignored" not in plain


async def test_g4_another_request_with_the_same_call_id_marks_the_answer(world: World) -> None:
    chat = await world.chat()
    call = await chat.ask("list_templates", {"page": 1})
    first = await chat.answer(call)

    await chat.ask("list_templates", {"page": 1.0, "query": "", "other": 1}, call_id=call)
    same = (await chat.results.count(2))[1]["data"]
    await chat.ask("list_templates", {"page": 2}, call_id=call)
    marked = (await chat.results.count(3))[2]["data"]
    await chat.ask("list_templates", {"page": 1}, call_id=call)
    again = (await chat.results.count(4))[3]["data"]

    assert same == first
    assert marked == again == {**first, "conflict": True}


async def test_g5_unknown_arguments_are_named(world: World) -> None:
    chat = await world.chat()

    done = await chat.answer(
        await chat.ask("list_templates", {"paje": 2, "query": None, "x": None})
    )
    wrong = await chat.answer(await chat.ask("read_template", {"template": "rich"}))

    assert done["ignored"] == ["paje"]
    assert (wrong["is_error"], wrong["ignored"]) == (True, ["template"])
