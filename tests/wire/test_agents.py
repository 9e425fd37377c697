"""Agents: which one is chosen, early reports, failed scripts, disconnects and reconnects."""

from __future__ import annotations

import json

import pytest

from tests.rigs import shapes
from tests.rigs.messages import agent_entry, new_id
from tests.rigs.world import World


@pytest.mark.parametrize(
    "agents",
    [
        [agent_entry("a-coderd-chat"), agent_entry("b-coderd-chat")],
        [agent_entry("child", parent_id=new_id())],
    ],
    ids=["several that want to be it", "no root agent"],
)
async def test_no_agent_is_chosen_if_several_match(
    world: World, agents: list[shapes.Event]
) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    await world.provisioner.succeed(job, *agents)
    result = (await chat.answer(call))["result"]

    await chat.entered("building", "failed:selection_error")
    assert result["created"] is True
    assert result["agent_status"] == "selection_error"
    assert result["agent_error"]
    again = await chat.call("create_workspace", {"template_id": world.plain})
    assert (again["created"], again["status"]) == (False, "already_exists")
    assert again["agent_status"] == "selection_error"


async def test_the_agent_with_the_designated_name_is_chosen(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)

    wanted = agent_entry("X-CODERD-chat", display_order=9)
    await world.provisioner.succeed(job, agent_entry("a", display_order=-1), wanted)

    assert (await chat.state("agent_connecting"))["agent"]["id"] == wanted["id"]


@pytest.mark.parametrize("lifecycle", ["start_error", "start_timeout", "off"])
async def test_failed_startup_scripts_are_reported(world: World, lifecycle: str) -> None:
    chat = await world.chat()
    call, _, agent = await world.connecting(chat)

    await agent.report_connected()
    await agent.report_lifecycle(lifecycle)
    result = (await chat.answer(call))["result"]

    await chat.entered_last("scripts_running", "failed:startup_scripts_failed")
    assert result["startup_scripts"] == "startup_scripts_failed"
    assert result["lifecycle_state"] == lifecycle
    assert result["created"] is True
    await agent.report_lifecycle("ready")
    await chat.state("ready")


async def test_an_agent_may_report_its_scripts_before_its_connection(world: World) -> None:
    chat = await world.chat()
    call, _, agent = await world.connecting(chat)

    await agent.report_lifecycle("created")
    await agent.report_lifecycle("ready")
    await chat.answer(call)

    await chat.entered("building", "agent_connecting", "scripts_running", "ready")


async def test_an_agent_that_reconnects_changes_no_state(world: World) -> None:
    chat = await world.chat()
    _, agent = await world.ready(chat)

    left = await agent.report_disconnected()
    away = await chat.states.first(lambda e: e["data"]["cause"]["id"] == left["id"])
    await agent.publish_event("agent_connected", sequence=1)  # older than the newest sequence
    await agent.report_connected()
    await chat.states.first(
        lambda e: (
            e["data"]["version"] > away["data"]["version"]
            and e["data"]["agent"]["status"] == "connected"
        )
    )

    assert away["data"]["state"] == "ready"
    assert away["data"]["agent"]["status"] == "disconnected"
    assert chat.now["version"] == away["data"]["version"] + 1


async def test_a_repeated_agent_fact_has_no_effect(world: World) -> None:
    chat = await world.chat()
    _, agent = await world.ready(chat)
    before = chat.now["version"]

    fact = await agent.report_disconnected()
    subject = f"workspaced.in.agent.{chat.id}.{agent.id}"
    assert await agent.publish(subject, fact)  # NATS drops it: its message id is a repeat
    await agent.publish(
        subject, json.dumps(fact).encode()
    )  # NATS delivers it: it has no message id
    await agent.report_connected()
    await chat.states.first(lambda e: e["data"]["version"] == before + 2)

    assert chat.now["agent"]["status"] == "connected"
