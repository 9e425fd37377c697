"""create_workspace where it makes a new workspace (C4d to C4k, C5h, C6, C8)."""

from __future__ import annotations

import asyncio

import pytest

from tests.rigs.client import Chat, Job
from tests.rigs.messages import agent_entry, new_id
from tests.rigs.world import World
from tests.wire import steps
from tests.wire.steps import CREATE


async def assert_create_replaces(
    world: World, chat: Chat, old: Job, number: int
) -> tuple[Job, Job]:
    """Check that a create makes a new workspace, and that the old one gets a stop job with that build number."""
    before = await steps.all_jobs(world, chat)
    call = await steps.request_create(world, chat)
    new = await steps.job_of_new_workspace(world, chat, old)
    stop = await world.provisioner.job(chat, "stop", number)
    await world.provisioner.succeed(new)
    answer = await steps.successful_result(chat, call)

    assert (stop.workspace_id, stop.build_number) == (old.workspace_id, number)
    assert stop.template == old.template
    assert (new.transition, new.build_number) == ("start", 1)
    assert new.workspace_name != old.workspace_name
    assert (answer["created"], answer["build_id"]) == (True, new.build_id)
    assert chat.now["workspace"]["id"] == new.workspace_id
    assert len(await steps.all_jobs(world, chat)) == len(before) + 2
    return stop, new


@pytest.mark.parametrize("how", ["succeeded", "failed"])
async def test_c4d_create_replaces_and_stops_a_workspace_that_lost_its_agent(
    world: World, how: str
) -> None:
    chat = await world.chat()
    old, _ = await steps.given_running_workspace(world, chat, "lost")

    stop, _ = await assert_create_replaces(world, chat, old, 2)
    path, version = chat.path, chat.now["version"]
    await steps.finish_build(world, stop, how)
    await chat.call("list_templates")

    # The end of that stop does not move the chat. If it fails, operators see an orphan.
    assert (chat.path, chat.now["version"]) == (path, version)
    if how == "failed":
        assert world.deployment.up is not None
        world.deployment.up.process.wait_for_output(old.workspace_id)


async def test_c4f_create_finds_a_workspace_without_agents(world: World) -> None:
    chat = await world.chat()
    job, _ = await steps.given_running_workspace(world, chat, "bare")

    call = await steps.request_create(world, chat)
    answer = await steps.successful_result(chat, call)

    assert answer.keys() == steps.EXISTS | {"agent_status"}
    assert (answer["created"], answer["status"]) == (False, "already_exists")
    assert answer["agent_status"] == "no_agent"
    assert chat.workspace_ids[call] == job.workspace_id
    assert await steps.all_jobs(world, chat) == [job]


async def test_c4d_the_stop_job_has_the_next_build_number_of_its_own_workspace(
    world: World,
) -> None:
    chat = await world.chat()
    old, _ = await steps.given_running_workspace(world, chat, "lost")

    stop, second = await assert_create_replaces(world, chat, old, 2)
    await world.provisioner.succeed(stop)

    # The builds of the new workspace are numbered from 1.
    await chat.ask("stop_workspace")
    own = await world.provisioner.jobs.first(
        lambda job: job.workspace_id == second.workspace_id and job.transition == "stop"
    )
    await world.provisioner.succeed(own)
    assert own.build_number == 2


@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_c4g_c4n_after_a_failed_build_create_makes_a_new_workspace_and_deletes_the_old_one(
    world: World, how: str
) -> None:
    """Nobody has worked in it, because no start build of it has succeeded."""
    chat = await world.chat()
    old = await steps.given_finished_start(world, chat, how)

    call = await steps.request_create(world, chat)
    new = await steps.job_of_new_workspace(world, chat, old)
    await world.provisioner.succeed(new)

    assert (await steps.successful_result(chat, call))["created"] is True
    assert new.build_number == 1
    delete = await world.provisioner.job(chat, "delete", 2)
    assert delete.workspace_id == old.workspace_id


@pytest.mark.parametrize("way", ["a fact", "a delete build"])
async def test_c4h_create_makes_a_new_workspace_after_a_delete(world: World, way: str) -> None:
    chat = await world.chat()
    if way == "a fact":
        old = await steps.given_deleted_workspace(world, chat)
    else:
        old = await steps.given_finished_start(world, chat)
        await world.provisioner.succeed(await steps.request_delete(world, chat))
        await chat.state("none")
    before = await steps.all_jobs(world, chat)

    call = await steps.request_create(world, chat)
    new = await steps.job_of_new_workspace(world, chat, old)
    await world.provisioner.succeed(new)

    assert (await steps.successful_result(chat, call))["created"] is True
    assert await steps.all_jobs(world, chat) == [*before, new]


async def test_c4i_create_replaces_a_workspace_that_lost_its_agent_and_whose_stop_failed(
    world: World,
) -> None:
    chat = await world.chat()
    old, _ = await steps.given_running_workspace(world, chat, "lost")
    await steps.given_finished_stop(world, chat, "canceled")

    stop, _ = await assert_create_replaces(world, chat, old, 3)
    await world.provisioner.succeed(stop)


async def test_c4j_c4n_after_a_failed_start_and_a_failed_stop_the_old_workspace_is_deleted(
    world: World,
) -> None:
    chat = await world.chat()
    old = await steps.given_finished_start(world, chat, "failed")
    stop = await steps.given_finished_stop(world, chat, "failed")

    call = await steps.request_create(world, chat)
    new = await steps.job_of_new_workspace(world, chat, old)
    await world.provisioner.succeed(new)

    assert (await steps.successful_result(chat, call))["created"] is True
    delete = await world.provisioner.job(chat, "delete", stop.build_number + 1)
    assert delete.workspace_id == old.workspace_id


async def test_c4k_there_is_no_stop_job_for_a_workspace_of_an_unknown_template(
    world: World,
) -> None:
    chat = await world.chat()
    theirs = steps.external_build(chat)
    listed = agent_entry()
    await steps.report_external_build(world, theirs, "build_succeeded", listed)
    await chat.state("agent_connecting")
    agent = await world.agent(theirs, listed["id"])
    await agent.report_connected()
    await agent.report_lifecycle("ready")
    await chat.state("ready")
    await agent.report_disconnected()
    await chat.states.first(lambda e: (e["data"]["agent"] or {}).get("status") == "disconnected")

    call = await steps.request_create(world, chat)
    new = await steps.job_of_new_workspace(world, chat, theirs)
    await world.provisioner.succeed(new)

    assert (await steps.successful_result(chat, call))["created"] is True
    assert await steps.all_jobs(world, chat) == [new]


async def test_c5h_an_existing_workspace_is_returned_before_the_template_is_validated(
    world: World,
) -> None:
    chat = await world.chat()
    job, _ = await steps.given_running_workspace(world, chat, "ready")
    nonsense = {"template_id": new_id(), "preset_id": new_id(), "parameters": {"no": "such"}}

    answer = await chat.call(CREATE, nonsense)

    assert answer["status"] == "already_exists"
    assert await steps.all_jobs(world, chat) == [job]


async def test_c6a_c6b_the_new_workspace_is_published_before_the_call_waits(world: World) -> None:
    chat = await world.chat()
    call = await steps.request_create(world, chat, name=" My-Box ")
    job = await world.provisioner.job(chat)
    building = await chat.state("building")
    snapshot = await world.service.last_state(chat.id)
    found = await world.service.rpc("get_chat", chat_id=chat.id)

    assert building["workspace"] == {
        "id": job.workspace_id,
        "name": "My-Box",
        "owner_name": "ann",
        "template_id": world.plain,
    }
    assert building["build"]["id"] == job.build_id
    assert building["cause"]["type"] == "workspaced.tool_requested.v1"
    assert snapshot == building
    assert [waiting["call_id"] for waiting in found["open_calls"]] == [call]
    assert chat.results.all == []

    listed = agent_entry()
    await world.provisioner.succeed(job, listed)
    agent = await world.agent(job, listed["id"])
    await agent.report_connected()
    await chat.state("scripts_running")
    assert chat.results.all == []
    await agent.report_lifecycle("ready")

    assert await steps.successful_result(chat, call) == {
        "created": True,
        "workspace_name": "ann/My-Box",
        "build_id": job.build_id,
    }
    await chat.entered("building", "agent_connecting", "scripts_running", "ready")


@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_c6c_the_workspace_stays_bound_to_the_chat_when_its_build_fails(
    world: World, how: str
) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    await steps.finish_build(world, job, how)

    assert steps.is_build_failure(await steps.successful_result(chat, call), job.build_id)
    assert chat.now["workspace"]["id"] == job.workspace_id
    assert chat.now["build"]["id"] == job.build_id
    assert (await world.service.rpc("get_chat", chat_id=chat.id))["state"] == "failed"


async def test_c6d_a_name_in_use_gets_one_suffix(world: World) -> None:
    chats = [await world.chat() for _ in range(3)]
    chats[1].owner_id = chats[0].owner_id
    names = []
    for chat, name in zip(chats, ("Box", "bOX", "box"), strict=True):
        await steps.request_create(world, chat, name=name)
        names.append((await world.provisioner.job(chat)).workspace_name)

    assert names[0] == "Box"
    assert names[1].startswith("bOX-")
    assert len(names[1]) == 8
    assert names[2] == "box"  # the workspace of another owner


async def test_c6d_the_name_of_a_deleted_workspace_can_be_used_again(world: World) -> None:
    chat, other = await world.chat(), await world.chat()
    other.owner_id = chat.owner_id
    call = await steps.request_create(world, chat, name="free")
    await world.provisioner.succeed(await world.provisioner.job(chat))
    await steps.successful_result(chat, call)
    await world.provisioner.succeed(await steps.request_delete(world, chat))
    await chat.state("none")

    await steps.request_create(world, other, name="free")

    assert (await world.provisioner.job(other)).workspace_name == "free"


async def test_c8_two_concurrent_creates_make_one_workspace(world: World) -> None:
    chat = await world.chat()

    calls = await asyncio.gather(
        steps.request_create(world, chat, name="one"), steps.request_create(world, chat, name="two")
    )
    job = await world.provisioner.job(chat)
    await world.provisioner.succeed(job)
    answers = [await steps.successful_result(chat, call) for call in calls]

    assert sorted(answer["created"] for answer in answers) == [False, True]
    assert [answer["build_id"] for answer in answers] == [job.build_id] * 2
    (second,) = [answer for answer in answers if not answer["created"]]
    assert second["status"] == "already_exists"
    assert second["workspace_name"] == job.workspace_name
    assert await steps.all_jobs(world, chat) == [job]
