"""Canceling builds, and the end of agents, on real servers."""

from __future__ import annotations

import json
from pathlib import Path

import nats.js.errors
import pytest

from tests.rigs.client import Chat, Job, Participant, ServiceError
from tests.rigs.messages import Event, agent_entry, new_id
from tests.rigs.world import World, template_folder
from tests.wire import steps

TRANSITIONS = pytest.mark.parametrize("transition", ["start", "stop", "delete"])


async def request_build(world: World, chat: Chat, transition: str) -> tuple[str | None, Job]:
    """Request a build of the chat's workspace; return the call that waits for it, and the job."""
    if transition == "start":
        return await world.building(chat)
    await steps.given_finished_start(world, chat)
    if transition == "delete":
        return None, await steps.request_delete(world, chat)
    return await steps.request_stop(world, chat)


async def cancel(world: World, chat: Chat, **more: str) -> Event:
    return dict(await world.service.rpc("cancel_build", chat_id=chat.id, **more))


async def is_queued(participant: Participant, sequence: int) -> bool:
    """Return whether the message of WORKSPACED_JOB is still there."""
    try:
        await participant.js.get_msg("WORKSPACED_JOB", sequence)
    except nats.js.errors.NotFoundError:
        return False
    return True


async def last_batch_published(chat: Chat) -> None:
    """Wait until the worker has done all that follows from the chat's earlier events."""
    await chat.call("list_templates")


async def test_b1a_a_build_that_has_not_begun_is_canceled_at_once(world: World) -> None:
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


@TRANSITIONS
async def test_b1a_b1b_the_job_of_a_canceled_build_that_has_not_begun_leaves_the_queue(
    world: World, transition: str
) -> None:
    """Although the provisioner has it, and has not acked it."""
    chat = await world.chat()
    call, job = await request_build(world, chat, transition)
    sequence = job.message.metadata.sequence.stream
    assert await is_queued(world.operator, sequence)

    reply = await cancel(world, chat)
    failed = await chat.state("failed:build_canceled")
    await last_batch_published(chat)

    assert reply == {"canceled": True, "build_id": job.build_id}
    assert failed["build"]["transition"] == transition
    assert failed["build"]["cancel_requested_at"] is not None
    assert failed["cause"]["type"] == "workspaced.build_cancel_requested.v1"
    assert not await is_queued(world.operator, sequence)
    if call is not None:
        answer = await steps.successful_result(chat, call)
        assert steps.is_build_failure(answer, job.build_id)


async def test_a_canceled_job_that_nobody_has_taken_leaves_the_queue(
    world: World, tmp_path: Path
) -> None:
    text = 'name = "unserved"\npool = "unserved"\n'
    assert world.deployment.up is not None
    folder = template_folder(tmp_path, "unserved", text)
    chat = await world.chat()
    chat.organization_id = new_id()  # other tests list the templates of the tests' organization
    words = ("template", "push", folder, "--organization", chat.organization_id)
    pushed = world.deployment.up.data(*words)
    call = await steps.request_create(world, chat, template_id=pushed["template_id"])
    building = await chat.state("building")
    await last_batch_published(chat)
    (sequence,) = await sequences_of_jobs(world, "unserved")

    reply = await cancel(world, chat)
    answer = await steps.successful_result(chat, call)
    await last_batch_published(chat)

    assert building["build"]["pool"] == "unserved"
    assert reply == {"canceled": True, "build_id": building["build"]["id"]}
    assert steps.is_build_failure(answer, building["build"]["id"])
    assert not await is_queued(world.operator, sequence)


async def sequences_of_jobs(world: World, pool: str) -> list[int]:
    """Return the sequence of the pool's newest job, if it has any."""
    try:
        found = await world.operator.js.get_last_msg("WORKSPACED_JOB", f"workspaced.job.{pool}")
    except nats.js.errors.NotFoundError:
        return []
    assert found.seq is not None
    return [found.seq]


@TRANSITIONS
async def test_b2a_a_build_that_has_begun_is_canceled_when_its_provisioner_confirms_it(
    world: World, transition: str
) -> None:
    chat = await world.chat()
    call, job = await request_build(world, chat, transition)
    begun = await world.provisioner.publish_event("build_started", job)
    state = "building" if transition == "start" else "stopping"
    before = await chat.state(state, cause=_cause(begun))

    reply = await cancel(world, chat, build_id=job.build_id, reason="not needed")
    asked = await chat.state(state, above=before["version"])
    again = await cancel(world, chat)
    await last_batch_published(chat)
    unchanged = chat.now["version"]
    ended = await world.provisioner.publish_event("build_canceled", job)
    await job.ack()
    failed = await chat.state("failed:build_canceled")

    assert reply == again == {"canceled": True, "build_id": job.build_id}
    assert unchanged == asked["version"]
    assert asked["build"]["cancel_requested_at"] is not None
    assert asked["deadline"] < before["deadline"]
    assert failed["cause"] == _cause(ended)
    assert await cancel(world, chat) == {"canceled": False}
    if call is not None:
        assert steps.is_build_failure(await steps.successful_result(chat, call), job.build_id)


def _cause(event: Event) -> Event:
    return {key: event[key] for key in ("source", "id", "type")}


async def test_b2b_a_build_that_succeeds_although_it_was_canceled_counts(world: World) -> None:
    chat, unbegun = await world.chat(), await world.chat()
    call, job = await world.building(chat)
    await world.provisioner.publish_event("build_started", job)
    await chat.states.first(lambda e: e["data"]["build"]["begun_at"])
    await cancel(world, chat)
    await world.provisioner.succeed(job)
    created = await steps.successful_result(chat, call)
    _, late = await world.building(unbegun)
    await cancel(world, unbegun)
    await unbegun.state("failed:build_canceled")
    await world.provisioner.succeed(late, agent_entry())
    await unbegun.state("agent_connecting")

    assert (created["created"], chat.now["state"]) == (True, "ready")
    await unbegun.entered("building", "failed:build_canceled", "agent_connecting")
    for one in (chat, unbegun):
        assert await cancel(world, one) == {"canceled": False}


async def test_b5_every_report_of_the_start_of_a_canceled_build_is_answered_with_the_request(
    world: World,
) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    await cancel(world, chat)
    await chat.state("failed:build_canceled")
    await last_batch_published(chat)  # the request that the cancel itself causes follows its state
    heard = await world.provisioner.hear(f"workspaced.cancel.{world.provisioner.pool}")

    def of_job() -> list[Event]:
        requests = [json.loads(message.data)["data"] for message in heard.all]
        return [data for data in requests if data["build_id"] == job.build_id]

    fact = await world.provisioner.publish_event("build_started", job)
    await heard.first(lambda _: len(of_job()) >= 1)
    await world.provisioner.publish(
        f"workspaced.in.provisioner.{chat.id}.forge", fact, {"Nats-Msg-Id": new_id()}
    )
    await heard.first(lambda _: len(of_job()) >= 2)
    await world.provisioner.publish_event("build_canceled", job)
    await world.provisioner.publish(
        f"workspaced.in.provisioner.{chat.id}.forge", fact, {"Nats-Msg-Id": new_id()}
    )
    await last_batch_published(chat)
    await world.provisioner.flush()

    assert len(of_job()) == 2
    await chat.entered("building", "failed:build_canceled")


@pytest.mark.parametrize("known", [True, False])
async def test_b4c_a_cancel_of_a_chat_without_a_build_in_flight_does_nothing(
    world: World, known: bool
) -> None:
    chat = await world.chat()
    if known:
        await world.ready(chat)

    assert await cancel(world, chat) == {"canceled": False}
    assert await cancel(world, chat, build_id=new_id()) == {"canceled": False}
    with pytest.raises(ServiceError, match="400"):
        await cancel(world, chat, build_id="x")
    assert await world.service.rpc("keep", chat_id=chat.id, seconds=60) == {"stops_at": None}
    assert chat.path == (["building", "agent_connecting", "scripts_running", "ready"] * known)


async def test_b4b_the_provisioners_of_the_pool_learn_of_a_canceled_build(world: World) -> None:
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


async def test_e1_the_end_of_an_agent_that_never_connected_is_told_at_once(world: World) -> None:
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


async def test_e3_the_end_of_an_agent_that_had_connected_is_the_reason_while_it_is_away(
    world: World,
) -> None:
    chat = await world.chat()
    job, agent = await world.ready(chat)
    publish = world.provisioner.publish_event

    await publish("agent_exited", job, agent_id=agent.id, signal="KILL", output="no memory")
    await last_batch_published(chat)
    before = chat.now
    gone = await agent.report_disconnected()
    away = await chat.state("ready", cause=_cause(gone))
    back = await agent.report_connected()
    here = await chat.state("ready", cause=_cause(back))

    assert (before["agent"]["status"], before["agent"]["reason"]) == ("connected", None)
    assert away["agent"]["status"] == "disconnected"
    assert "KILL" in away["agent"]["reason"]
    assert "no memory" in away["agent"]["reason"]
    assert (here["agent"]["status"], here["agent"]["reason"]) == ("connected", None)


async def test_e2_an_agent_that_connects_after_its_end_was_reported_undoes_it(world: World) -> None:
    chat = await world.chat()
    call, job, agent = await world.connecting(chat)
    await world.provisioner.publish_event("agent_exited", job, agent_id=agent.id, exit_code=1)
    await chat.state("failed:agent_not_ready")
    assert (await chat.answer(call))["result"]["agent_status"] == "not_ready"

    await agent.report_connected()
    await agent.report_lifecycle("ready")
    ready = await chat.state("ready")

    assert (ready["agent"]["status"], ready["agent"]["reason"]) == ("connected", None)
