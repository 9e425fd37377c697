"""Canceling builds, and the end of agents, on real servers."""

from __future__ import annotations

import json

from tests.rigs.messages import new_id
from tests.rigs.world import World


async def test_a_build_that_has_not_begun_is_canceled_at_once(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    reply = await world.service.rpc("cancel_build", chat_id=chat.id, reason="too slow")
    failed = await chat.state("failed")
    resolved = await chat.answer(call)

    assert reply == {"canceled": True, "build_id": job.build_id}
    assert failed["failure"]["reason"] == "build_canceled"
    assert failed["build"]["cancel_requested_at"] is not None
    assert failed["build"]["begun_at"] is None
    assert resolved["result"]["build_id"] == job.build_id
    assert await world.service.rpc("cancel_build", chat_id=chat.id) == {"canceled": False}


async def test_the_provisioners_of_the_pool_learn_of_a_canceled_build(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    heard = await world.provisioner.hear(f"workspaced.cancel.{world.provisioner.pool}")
    await world.provisioner.publish_event("build_started", job)
    await chat.state("building", above=1)

    other = await world.service.rpc("cancel_build", chat_id=chat.id, build_id=new_id())
    await chat.publish_event("build_cancel_requested", {"build_id": job.build_id})
    message = await heard.first(lambda m: json.loads(m.data)["data"]["build_id"] == job.build_id)
    event = json.loads(message.data)
    await world.provisioner.publish_event("build_canceled", job)
    failed = await chat.state("failed")

    assert other == {"canceled": False}
    assert (event["type"], event["source"]) == ("workspaced.build_cancel.v1", "/workspaced")
    assert event["data"].keys() == {"chat_id", "workspace_id", "build_id"}
    assert failed["failure"]["reason"] == "build_canceled"
    assert failed["build"]["pool"] == world.provisioner.pool


async def test_the_end_of_an_agent_that_never_connected_is_told_at_once(world: World) -> None:
    chat = await world.chat()
    call, job, agent = await world.connecting(chat)

    await world.provisioner.publish_event(
        "agent_exited", job, agent_id=agent.id, exit_code=127, output="no such file"
    )
    failed = await chat.state("failed")
    result = (await chat.answer(call))["result"]

    assert failed["failure"]["reason"] == "agent_not_ready"
    assert failed["agent"]["status"] == "disconnected"
    assert "127" in failed["agent"]["reason"]
    assert result["agent_status"] == "not_ready"
    assert result["agent_error"] == failed["failure"]["message"]
