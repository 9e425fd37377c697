"""start_workspace (S), numbered as in docs/internals/tool-rules.md; limits in `test_branches_limits`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rigs.client import Chat, Event, Job, agent_entry, new_id
from tests.rigs.world import ORGANIZATION, World, template_folder
from tests.wire.branches import (
    CREATE,
    START,
    create,
    deleting,
    elsewhere,
    end,
    ended,
    gone,
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


async def started(world: World, chat: Chat, number: int, **args: object) -> tuple[Event, Job]:
    """See a call start the workspace; return its answer and the job."""
    call = await chat.ask(START, args)
    job = await world.provisioner.job(chat, "start", number)
    await world.provisioner.succeed(job)
    return await result(chat, call), job


@pytest.mark.parametrize("tool", [START, "stop_workspace"])
async def test_s1_p1_without_a_workspace_there_is_nothing_to_do(world: World, tool: str) -> None:
    fresh, deleted = await world.chat(), await world.chat()
    await gone(world, deleted)

    for chat in (fresh, deleted):
        assert CREATE in await chat.call_error(tool)

    assert await jobs(world, fresh) == []


@pytest.mark.parametrize("lifecycle", ["ready", "off"])
async def test_s2a_what_is_being_built_is_waited_for(world: World, lifecycle: str) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    keys = {"startup_scripts": "startup_scripts_failed", "lifecycle_state": "off"}

    call = await chat.ask(START)
    await waits(world, chat, call)
    listed = agent_entry()
    await world.provisioner.succeed(job, listed)
    await (await world.agent(job, listed["id"])).report_lifecycle(lifecycle)

    assert await result(chat, call) == {
        "started": True,
        "workspace_name": job.workspace_name,
        "build_id": job.build_id,
        **({} if lifecycle == "ready" else keys),
    }
    assert await jobs(world, chat) == [job]


@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_s2b_what_is_being_built_and_fails(world: World, how: str) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    call = await chat.ask(START)

    await end(world, job, how)

    assert is_failure(await result(chat, call), job.build_id)
    assert await jobs(world, chat) == [job]


async def test_s3a_after_a_stop_the_waiting_call_starts(world: World) -> None:
    chat = await world.chat()
    first = await ended(world, chat)
    _, stop = await stopping(world, chat)

    call = await chat.ask(START)
    await waits(world, chat, call)
    await world.provisioner.succeed(stop)
    job = await world.provisioner.job(chat, "start", 3)
    await world.provisioner.succeed(job)

    assert (await result(chat, call))["build_id"] == job.build_id
    assert (job.workspace_id, job.build_number) == (first.workspace_id, 3)
    assert await jobs(world, chat) == [first, stop, job]


async def test_s3a_a_start_made_elsewhere_after_the_stop_is_joined(world: World) -> None:
    chat = await world.chat()
    first = await ended(world, chat)
    _, stop = await stopping(world, chat)
    call = await chat.ask(START)
    theirs = elsewhere(first, 3)

    await told(world, theirs, "build_started")
    await world.provisioner.succeed(stop)
    await waits(world, chat, call)
    await told(world, theirs, "build_succeeded")

    assert (await result(chat, call))["build_id"] == theirs["build_id"]
    assert await jobs(world, chat) == [first, stop]


async def test_s3c_after_a_delete_there_is_nothing_to_start(world: World) -> None:
    chat = await world.chat()
    first = await ended(world, chat)
    delete = await deleting(world, chat)

    call = await chat.ask(START)
    await waits(world, chat, call)
    await world.provisioner.succeed(delete)
    resolved = await chat.answer(call)

    assert resolved["is_error"] is True
    assert CREATE in resolved["result"]["error"]
    assert await jobs(world, chat) == [first, delete]


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
async def test_s4a_what_runs_needs_no_build(world: World, state: str, keys: Event) -> None:
    chat = await world.chat()
    job, _ = await running(world, chat, state)

    answer = await chat.call(START)

    assert answer == {
        "started": True,
        "workspace_name": job.workspace_name,
        "no_build": True,
        **keys,
    }
    assert await jobs(world, chat) == [job]


async def test_s4a_nor_does_one_without_a_choice_of_agent(world: World) -> None:
    chat = await world.chat()
    job, _ = await running(world, chat, "selection_error")

    answer = await chat.call(START)

    assert answer.pop("agent_error")
    assert answer == {
        "started": True,
        "workspace_name": job.workspace_name,
        "no_build": True,
        "agent_status": "selection_error",
    }


@pytest.mark.parametrize("state", ["agent_connecting", "scripts_running"])
async def test_s4b_readiness_is_waited_for(world: World, state: str) -> None:
    chat = await world.chat()
    job, agent = await running(world, chat, state)
    assert agent is not None

    call = await chat.ask(START)
    await waits(world, chat, call)
    await agent.report_lifecycle("ready")

    assert await result(chat, call) == {
        "started": True,
        "workspace_name": job.workspace_name,
        "no_build": True,
    }
    assert await jobs(world, chat) == [job]


@pytest.mark.parametrize("how", ["succeeded", "failed", "canceled"])
async def test_s5a_s5b_what_does_not_run_is_started(world: World, how: str) -> None:
    chat = await world.chat()
    first = await (stopped(world, chat) if how == "succeeded" else ended(world, chat, how))
    number = chat.now["build"]["number"] + 1

    call = await chat.ask(START)
    job = await world.provisioner.job(chat, "start", number)
    listed = agent_entry()
    await world.provisioner.succeed(job, listed)
    await (await world.agent(job, listed["id"])).report_lifecycle("ready")

    assert await result(chat, call) == {
        "started": True,
        "workspace_name": first.workspace_name,
        "build_id": job.build_id,
    }
    assert (job.workspace_id, job.build_number) == (first.workspace_id, number)


async def test_s5c_a_failed_stop_is_what_the_last_start_made(world: World) -> None:
    well, ill = await world.chat(), await world.chat()
    first = await ended(world, well)
    await ended(world, ill, "failed")
    for chat in (well, ill):
        await stop_ended(world, chat, "failed")

    assert await well.call(START) == {
        "started": True,
        "workspace_name": first.workspace_name,
        "no_build": True,
        "agent_status": "no_agent",
    }
    answer, job = await started(world, ill, 3)
    assert (answer["build_id"], job.build_number) == (job.build_id, 3)


@pytest.mark.parametrize("demanded", [True, False])
async def test_s6a_s6b_the_active_version_if_the_template_demands_it(
    world: World, tmp_path: Path, demanded: bool
) -> None:
    assert world.place.up is not None
    name = f"version-{str(demanded).lower()}"
    text = f'name = "{name}"\npool = "wire"\nrequire_active_version = {str(demanded).lower()}\n'
    folder = template_folder(tmp_path, name, text)
    push = ("template", "push", folder, "--organization", new_id())
    old = world.place.up.data(*push)
    chat = await world.chat()
    chat.organization_id = push[-1]
    call = await create(world, chat, template_id=old["template_id"])
    await world.provisioner.succeed(await world.provisioner.job(chat))
    await result(chat, call)
    await stop_ended(world, chat)

    same, _ = await started(world, chat, 3)
    await stop_ended(world, chat)
    (folder / "more.txt").write_text("more")
    new = world.place.up.data(*push)
    answer, job = await started(world, chat, 5)

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


async def rich(world: World, chat: Chat, **parameters: object) -> Job:
    """Have a workspace with parameters, that is stopped."""
    call = await create(world, chat, template_id=world.rich, parameters=parameters)
    job = await world.provisioner.job(chat)
    await world.provisioner.succeed(job)
    await result(chat, call)
    await stop_ended(world, chat)
    return job


async def test_s7a_the_calls_value_over_the_last_builds_over_the_default(world: World) -> None:
    chat = await world.chat()
    await rich(world, chat, word="hello", size=5, secret="s3cret")

    same = {"branch": "next", "size": 5}  # a fixed one may be named with its value
    _, job = await started(world, chat, 3, parameters=same)

    assert job.parameters == {
        "branch": "next",
        "size": "5",
        "word": "hello",
        "secret": "s3cret",
    }


async def test_s7b_wrong_and_fixed_parameters_are_named_with_the_template(world: World) -> None:
    chat = await world.chat()
    first = await rich(world, chat, word="hello")
    before = await jobs(world, chat)
    wrong = {"branch": "other", "size": 6, "word": "UPPER", "colour": "red"}

    answer = await chat.call(START, {"parameters": wrong})

    assert answer.keys() - {"detail"} == {"error", "validations", "template_id"}
    assert answer["template_id"] == world.rich
    assert {fault["field"] for fault in answer["validations"]} == wrong.keys()
    assert all(fault.keys() == {"field", "detail"} for fault in answer["validations"])
    assert chat.now["state"] == "stopped"
    assert await jobs(world, chat) == before
    assert first.organization_id == ORGANIZATION
