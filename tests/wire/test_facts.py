"""Facts that no call caused: builds made elsewhere, superseded builds, deleted workspaces."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rigs.client import Chat
from tests.rigs.messages import Event, agent_entry, new_id
from tests.rigs.world import World


def external_build(chat: Chat, number: int = 1, transition: str = "start", **more: Any) -> Event:
    """A build that was made outside workspaced."""
    return {
        "chat_id": chat.id,
        "workspace_id": new_id(),
        "build_id": new_id(),
        "build_number": number,
        "transition": transition,
        **more,
    }


async def outcomes_by_event(world: World, chat: Chat) -> dict[str, str]:
    """Return the outcome of each event of the chat, by the id of the event."""
    page = await world.service.rpc("read_events", chat_id=chat.id)
    return {entry["event"]["id"]: entry["outcome"] for entry in page["events"]}


async def test_an_external_build_binds_its_workspace_to_the_chat(world: World) -> None:
    chat = await world.chat()
    build = external_build(chat)
    more = {"workspace_name": "theirs", "owner_name": "bob", "template_id": new_id()}

    await world.provisioner.publish_event("build_started", build, **more)
    building = await chat.state("building")
    listed = agent_entry()
    await world.provisioner.publish_event(
        "build_succeeded", build, template_version_id=new_id(), agents=[listed]
    )
    await chat.state("agent_connecting")
    agent = await world.agent(build, listed["id"])
    await agent.report_connected()
    await agent.report_lifecycle("ready")
    await chat.state("ready")

    assert building["workspace"] == {
        "id": build["workspace_id"],
        "name": "theirs",
        "owner_name": "bob",
        "template_id": more["template_id"],
    }
    assert building["cause"]["type"] == "workspaced.build_started.v1"
    found = await chat.call("create_workspace", {"template_id": world.plain})
    assert (found["status"], found["workspace_name"]) == ("already_exists", "theirs")


async def test_a_build_with_a_higher_number_supersedes_the_current_one(world: World) -> None:
    chat = await world.chat()
    job, agent = await world.ready(chat)
    theirs = {**job.data, "build_id": new_id(), "build_number": 2}

    await world.provisioner.publish_event("build_started", theirs)
    building = await chat.state("building", above=3)
    old = await agent.report_lifecycle("off")
    listed = agent_entry()
    await world.provisioner.publish_event(
        "build_succeeded", theirs, template_version_id=job.template["version_id"], agents=[listed]
    )
    connecting = await chat.state("agent_connecting", above=building["version"])

    assert building["build"]["id"] == theirs["build_id"]
    assert connecting["agent"]["id"] == listed["id"]
    assert (await outcomes_by_event(world, chat))[old["id"]] == "stale"


async def test_a_call_whose_build_is_superseded_waits_for_the_new_build(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    theirs = {**job.data, "build_id": new_id(), "build_number": 2}

    await world.provisioner.publish_event("build_started", theirs)
    await world.provisioner.fail(job, "the older one")
    await world.provisioner.publish_event("build_failed", theirs, error="the newer one")
    result = (await chat.answer(call))["result"]

    assert result["build_id"] == theirs["build_id"]
    assert "the newer one" in result["error"]
    await chat.entered("building", "failed:build_failed")


async def test_a_call_whose_build_is_superseded_by_a_stop_is_answered(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    theirs = {**job.data, "build_id": new_id(), "build_number": 2, "transition": "stop"}

    await world.provisioner.publish_event("build_started", theirs)
    result = (await chat.answer(call))["result"]

    assert result["build_id"] == job.build_id
    assert theirs["build_id"] in result["error"]
    assert chat.now["state"] == "stopping"


async def test_the_first_terminal_fact_of_a_build_counts(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    await world.provisioner.fail(job)
    await chat.answer(call)
    version = job.template["version_id"]
    late = await world.provisioner.publish_event(
        "build_succeeded", job, template_version_id=version, agents=[]
    )
    again = await chat.ask("create_workspace", {"template_id": world.plain})
    new = await world.provisioner.jobs.first(
        lambda j: j.chat_id == chat.id and j.build_id != job.build_id
    )
    await world.provisioner.succeed(new)
    await chat.answer(again)

    await chat.entered("building", "failed:build_failed", "building", "ready")
    assert (await outcomes_by_event(world, chat))[late["id"]] in {"ignored", "stale", "kept"}


async def test_facts_about_another_workspace_have_no_effect(world: World) -> None:
    chat = await world.chat()
    await world.ready(chat)
    version = chat.now["version"]
    foreign = external_build(chat, 9)

    told = await world.provisioner.publish_event("build_started", foreign)
    await chat.call("list_templates")

    assert chat.now["version"] == version
    assert (await outcomes_by_event(world, chat))[told["id"]] == "foreign"


@pytest.mark.parametrize("known", [True, False], ids=["with its build", "without a build"])
async def test_an_external_delete_unbinds_the_workspace(world: World, known: bool) -> None:
    chat = await world.chat()
    job, agent = await world.ready(chat)
    gone = dict(job.data)
    if not known:
        gone |= {"build_id": None, "build_number": None}

    await world.provisioner.publish_event("workspace_deleted", gone)
    none = await chat.state("none")
    await agent.report_disconnected()
    await world.provisioner.publish_event(
        "build_started", {**job.data, "build_id": new_id(), "build_number": 7}
    )
    assert "create_workspace" in await chat.call_error("start_workspace")

    assert none["cause"]["type"] == "workspaced.workspace_deleted.v1"
    assert chat.now["state"] == "none"
    call = await chat.ask("create_workspace", {"template_id": world.plain})
    new = await world.provisioner.jobs.first(
        lambda j: j.chat_id == chat.id and j.workspace_id != job.workspace_id
    )
    await world.provisioner.succeed(new)
    assert (await chat.answer(call))["result"]["created"] is True


async def test_an_external_delete_answers_waiting_calls(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    await world.provisioner.publish_event("workspace_deleted", job)
    await job.ack()
    resolved = await chat.answer(call)

    assert resolved["result"]["error"]
    assert chat.now["state"] == "none"


async def test_a_delete_request_of_the_chat_service_deletes_the_workspace(world: World) -> None:
    chat = await world.chat()
    job, _ = await world.ready(chat)

    await chat.publish_event("delete_requested", {"reason": "the chat is gone"})
    await chat.publish_event("delete_requested", {})
    delete = await world.provisioner.job(chat, "delete")
    await chat.state("stopping")
    await world.provisioner.succeed(delete)
    none = await chat.state("none")

    assert (delete.workspace_id, delete.build_number) == (job.workspace_id, 2)
    assert [j.transition for j in world.provisioner.jobs.all if j.chat_id == chat.id] == [
        "start",
        "delete",
    ]
    assert none["cause"]["type"] == "workspaced.build_succeeded.v1"
    assert "create_workspace" in await chat.call_error("stop_workspace")


async def test_a_delete_request_during_a_build_answers_waiting_calls(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    await chat.publish_event("delete_requested", {})
    delete = await world.provisioner.job(chat, "delete")
    resolved = await chat.answer(call)
    await world.provisioner.publish_event("build_canceled", job)
    await world.provisioner.succeed(delete)
    await chat.state("none")

    assert resolved["result"]["build_id"] == job.build_id
    assert delete.build_id in resolved["result"]["error"]
    await chat.entered("building", "stopping", "none")


async def test_a_delete_request_without_a_workspace_has_no_effect(world: World) -> None:
    chat = await world.chat()

    await chat.publish_event("delete_requested", {})
    await chat.call("list_templates")

    assert chat.states.all == []


async def test_the_end_of_a_build_may_arrive_before_its_start(world: World) -> None:
    chat = await world.chat()
    build = external_build(chat)

    await world.provisioner.publish_event(
        "build_succeeded", build, template_version_id=new_id(), agents=[]
    )
    await chat.state("ready")
    await world.provisioner.publish_event("build_started", build, workspace_name="late")
    await chat.call("list_templates")

    await chat.entered("building", "ready")
