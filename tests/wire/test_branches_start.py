"""start_workspace (S), numbered as in docs/internals/tool-rules.md; limits in `test_branches_limits`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rigs.client import Chat, Job
from tests.rigs.messages import Event, agent_entry, new_id
from tests.rigs.world import ORGANIZATION, World, template_folder
from tests.wire import steps
from tests.wire.steps import CREATE, START


async def assert_start_builds(
    world: World, chat: Chat, number: int, **args: object
) -> tuple[Event, Job]:
    """Make a call that starts the workspace, and build it; return the answer and the job."""
    call = await chat.ask(START, args)
    job = await world.provisioner.job(chat, "start", number)
    await world.provisioner.succeed(job)
    return await steps.successful_result(chat, call), job


@pytest.mark.parametrize("tool", [START, "stop_workspace"])
async def test_s1_p1_without_a_workspace_start_and_stop_point_to_create_workspace(
    world: World, tool: str
) -> None:
    fresh, deleted = await world.chat(), await world.chat()
    await steps.given_deleted_workspace(world, deleted)

    for chat in (fresh, deleted):
        assert CREATE in await chat.call_error(tool)

    assert await steps.all_jobs(world, fresh) == []


@pytest.mark.parametrize("lifecycle", ["ready", "off"])
async def test_s2a_start_waits_for_a_build_in_progress(world: World, lifecycle: str) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    keys = {"startup_scripts": "startup_scripts_failed", "lifecycle_state": "off"}

    call = await chat.ask(START)
    await steps.assert_calls_wait(world, chat, call)
    listed = agent_entry()
    await world.provisioner.succeed(job, listed)
    await (await world.agent(job, listed["id"])).report_lifecycle(lifecycle)

    assert await steps.successful_result(chat, call) == {
        "started": True,
        "workspace_name": job.workspace_name,
        "build_id": job.build_id,
        **({} if lifecycle == "ready" else keys),
    }
    assert await steps.all_jobs(world, chat) == [job]


@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_s2b_start_returns_the_failure_of_a_build_in_progress(world: World, how: str) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    call = await chat.ask(START)

    await steps.finish_build(world, job, how)

    assert steps.is_build_failure(await steps.successful_result(chat, call), job.build_id)
    assert await steps.all_jobs(world, chat) == [job]


async def test_s3a_start_waits_for_a_stop_and_then_starts_the_workspace(world: World) -> None:
    chat = await world.chat()
    first = await steps.given_finished_start(world, chat)
    _, stop = await steps.request_stop(world, chat)

    call = await chat.ask(START)
    await steps.assert_calls_wait(world, chat, call)
    await world.provisioner.succeed(stop)
    job = await world.provisioner.job(chat, "start", 3)
    await world.provisioner.succeed(job)

    assert (await steps.successful_result(chat, call))["build_id"] == job.build_id
    assert (job.workspace_id, job.build_number) == (first.workspace_id, 3)
    assert await steps.all_jobs(world, chat) == [first, stop, job]


async def test_s3a_start_waits_for_an_external_start_build_that_follows_the_stop(
    world: World,
) -> None:
    chat = await world.chat()
    first = await steps.given_finished_start(world, chat)
    _, stop = await steps.request_stop(world, chat)
    call = await chat.ask(START)
    theirs = steps.external_build(first, 3)

    await steps.report_external_build(world, theirs, "build_started")
    await world.provisioner.succeed(stop)
    await steps.assert_calls_wait(world, chat, call)
    await steps.report_external_build(world, theirs, "build_succeeded")

    assert (await steps.successful_result(chat, call))["build_id"] == theirs["build_id"]
    assert await steps.all_jobs(world, chat) == [first, stop]


async def test_s3c_start_after_a_delete_points_to_create_workspace(world: World) -> None:
    chat = await world.chat()
    first = await steps.given_finished_start(world, chat)
    delete = await steps.request_delete(world, chat)

    call = await chat.ask(START)
    await steps.assert_calls_wait(world, chat, call)
    await world.provisioner.succeed(delete)
    resolved = await chat.answer(call)

    assert resolved["is_error"] is True
    assert CREATE in resolved["result"]["error"]
    assert await steps.all_jobs(world, chat) == [first, delete]


SCRIPTS = {"startup_scripts": "startup_scripts_failed", "lifecycle_state": "start_error"}


@pytest.mark.parametrize(
    ("state", "keys"),
    [
        ("ready", {}),
        ("lost", {}),
        ("scripts_failed", SCRIPTS),
        ("bare", {"agent_status": "no_agent"}),
    ],
)
async def test_s4a_start_of_a_running_workspace_makes_no_build(
    world: World, state: str, keys: Event
) -> None:
    chat = await world.chat()
    job, _ = await steps.given_running_workspace(world, chat, state)

    answer = await chat.call(START)

    assert answer == {
        "started": True,
        "workspace_name": job.workspace_name,
        "no_build": True,
        **keys,
    }
    assert await steps.all_jobs(world, chat) == [job]


async def test_s4a_start_after_a_selection_error_makes_no_build(world: World) -> None:
    chat = await world.chat()
    job, _ = await steps.given_running_workspace(world, chat, "selection_error")

    answer = await chat.call(START)

    assert answer.pop("agent_error")
    assert answer == {
        "started": True,
        "workspace_name": job.workspace_name,
        "no_build": True,
        "agent_status": "selection_error",
    }


@pytest.mark.parametrize("state", ["agent_connecting", "scripts_running"])
async def test_s4b_start_waits_for_readiness(world: World, state: str) -> None:
    chat = await world.chat()
    job, agent = await steps.given_running_workspace(world, chat, state)
    assert agent is not None

    call = await chat.ask(START)
    await steps.assert_calls_wait(world, chat, call)
    await agent.report_lifecycle("ready")

    assert await steps.successful_result(chat, call) == {
        "started": True,
        "workspace_name": job.workspace_name,
        "no_build": True,
    }
    assert await steps.all_jobs(world, chat) == [job]


@pytest.mark.parametrize("how", ["succeeded", "failed", "canceled"])
async def test_s5a_s5b_start_builds_a_stopped_or_failed_workspace_with_the_next_number(
    world: World, how: str
) -> None:
    chat = await world.chat()
    first = await (
        steps.given_stopped_workspace(world, chat)
        if how == "succeeded"
        else steps.given_finished_start(world, chat, how)
    )
    number = chat.now["build"]["number"] + 1

    call = await chat.ask(START)
    job = await world.provisioner.job(chat, "start", number)
    listed = agent_entry()
    await world.provisioner.succeed(job, listed)
    await (await world.agent(job, listed["id"])).report_lifecycle("ready")

    assert await steps.successful_result(chat, call) == {
        "started": True,
        "workspace_name": first.workspace_name,
        "build_id": job.build_id,
    }
    assert (job.workspace_id, job.build_number) == (first.workspace_id, number)


async def test_s5c_after_a_failed_stop_the_last_start_determines_the_answer(world: World) -> None:
    well, ill = await world.chat(), await world.chat()
    first = await steps.given_finished_start(world, well)
    await steps.given_finished_start(world, ill, "failed")
    for chat in (well, ill):
        await steps.given_finished_stop(world, chat, "failed")

    assert await well.call(START) == {
        "started": True,
        "workspace_name": first.workspace_name,
        "no_build": True,
        "agent_status": "no_agent",
    }
    answer, job = await assert_start_builds(world, ill, 3)
    assert (answer["build_id"], job.build_number) == (job.build_id, 3)


@pytest.mark.parametrize("demanded", [True, False])
async def test_s6a_s6b_start_uses_the_active_version_only_if_the_template_requires_it(
    world: World, tmp_path: Path, demanded: bool
) -> None:
    assert world.deployment.up is not None
    name = f"version-{str(demanded).lower()}"
    text = f'name = "{name}"\npool = "wire"\nrequire_active_version = {str(demanded).lower()}\n'
    folder = template_folder(tmp_path, name, text)
    push = ("template", "push", folder, "--organization", new_id())
    old = world.deployment.up.data(*push)
    chat = await world.chat()
    chat.organization_id = push[-1]
    call = await steps.request_create(world, chat, template_id=old["template_id"])
    await world.provisioner.succeed(await world.provisioner.job(chat))
    await steps.successful_result(chat, call)
    await steps.given_finished_stop(world, chat)

    same, _ = await assert_start_builds(world, chat, 3)
    await steps.given_finished_stop(world, chat)
    (folder / "more.txt").write_text("more")
    new = world.deployment.up.data(*push)
    answer, job = await assert_start_builds(world, chat, 5)

    more = {"updated_to_active_version", "update_reason", "message"}
    assert new["version_id"] != old["version_id"]
    assert same.keys() & more == set()
    if demanded:
        assert job.template["version_id"] == new["version_id"]
        assert answer["updated_to_active_version"] is True
        assert answer["update_reason"]
        assert answer["message"]
    else:
        assert job.template["version_id"] == old["version_id"]
        assert answer.keys() & more == set()


async def given_stopped_rich_workspace(world: World, chat: Chat, **parameters: object) -> Job:
    """Create a stopped workspace with parameters."""
    call = await steps.request_create(world, chat, template_id=world.rich, parameters=parameters)
    job = await world.provisioner.job(chat)
    await world.provisioner.succeed(job)
    await steps.successful_result(chat, call)
    await steps.given_finished_stop(world, chat)
    return job


async def test_s7a_values_of_the_call_precede_those_of_the_last_build_and_the_defaults(
    world: World,
) -> None:
    chat = await world.chat()
    await given_stopped_rich_workspace(world, chat, word="hello", size=5, secret="s3cret")

    same = {
        "branch": "next",
        "size": 5,
    }  # an immutable parameter may be given with its present value
    _, job = await assert_start_builds(world, chat, 3, parameters=same)

    assert job.parameters == {
        "branch": "next",
        "size": "5",
        "word": "hello",
        "secret": "s3cret",
    }


async def test_s7b_invalid_and_immutable_parameters_are_named_with_the_template(
    world: World,
) -> None:
    chat = await world.chat()
    first = await given_stopped_rich_workspace(world, chat, word="hello")
    before = await steps.all_jobs(world, chat)
    wrong = {"branch": "other", "size": 6, "word": "UPPER", "colour": "red"}

    answer = await chat.call(START, {"parameters": wrong})

    assert answer.keys() - {"detail"} == {"error", "validations", "template_id"}
    assert answer["template_id"] == world.rich
    assert {fault["field"] for fault in answer["validations"]} == wrong.keys()
    assert all(fault.keys() == {"field", "detail"} for fault in answer["validations"])
    assert chat.now["state"] == "stopped"
    assert await steps.all_jobs(world, chat) == before
    assert first.organization_id == ORGANIZATION
