"""Deletes that are requested again (N2 N3 N4), cancels that are repeated (B4a), and ids in answers (G6)."""

from __future__ import annotations

import json

import pytest

from tests.rigs.client import Chat
from tests.rigs.world import World
from tests.wire import steps
from tests.wire.steps import CREATE, START, STOP


async def test_n2_a_requested_delete_that_fails_is_to_be_requested_again(world: World) -> None:
    chat = await world.chat()
    start = await steps.given_finished_start(world, chat)
    delete = await steps.request_delete(world, chat)

    await world.provisioner.fail(delete)
    failed = await chat.state("failed")

    assert failed["stops_at"] is None
    logged_in(
        world, f"the delete of its workspace {start.workspace_id} has not succeeded (1 so far)"
    )


@pytest.mark.parametrize("what", ["stopped", "running"])
async def test_n3_a_delete_that_is_canceled_before_it_begins_changes_nothing(
    world: World, what: str
) -> None:
    chat = await world.chat()
    start = await steps.given_finished_start(world, chat)
    if what == "stopped":
        await steps.given_finished_stop(world, chat)
    delete = await steps.request_delete(world, chat)

    canceled = await world.service.rpc("cancel_build", chat_id=chat.id)
    await chat.state("failed")
    found = await chat.call(CREATE, {"template_id": world.plain})

    assert canceled == {"canceled": True, "build_id": delete.build_id}
    assert found["status"] == ("stopped" if what == "stopped" else "already_exists")
    assert chat.now["workspace"]["id"] == start.workspace_id
    assert world.deployment.up is not None
    assert f"the delete of its workspace {start.workspace_id}" not in output(world)


async def test_n4_a_delete_of_a_replaced_workspace_that_fails_is_to_be_requested_again(
    world: World,
) -> None:
    chat = await world.chat()
    old = await steps.given_finished_start(world, chat, "failed")
    call = await steps.request_create(world, chat)
    new = await steps.job_of_new_workspace(world, chat, old)
    await world.provisioner.succeed(new)
    await chat.answer(call)
    delete = await world.provisioner.job(chat, "delete", 2)

    await world.provisioner.fail(delete)
    logged_in(world, f"workspace {old.workspace_id} is left though no chat has it")
    log = (await world.service.rpc("read_events", chat_id=chat.id))["events"]

    assert [
        (entry["event"]["type"], entry["outcome"])
        for entry in log
        if entry["event"]["data"].get("build_id") == delete.build_id
    ] == [
        ("workspaced.build_requested.v1", "foreign"),
        ("workspaced.build_failed.v1", "foreign"),
    ]


async def test_b4a_a_second_cancel_moves_nothing_and_is_said_again(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    await world.provisioner.publish_event("build_started", job)
    await chat.states.first(lambda e: e["data"]["build"]["begun_at"] is not None)
    heard = await world.provisioner.hear(f"workspaced.cancel.{world.provisioner.pool}")

    replies = [await world.service.rpc("cancel_build", chat_id=chat.id) for _ in range(2)]
    told = await heard.count(2)
    await chat.call("list_templates")

    assert replies == [{"canceled": True, "build_id": job.build_id}] * 2
    assert [json.loads(m.data)["data"]["build_id"] for m in told] == [job.build_id] * 2
    shown = [e["data"] for e in chat.states.all if e["data"]["build"]["cancel_requested_at"]]
    assert len(shown) == 1
    assert shown[0]["state"] == "building"
    await steps.finish_build(world, job, "canceled")


async def test_g6_answers_about_a_workspace_or_a_build_have_its_id(world: World) -> None:
    chat = await world.chat()
    job = await steps.given_finished_start(world, chat)
    await chat.call(START)
    await chat.call(CREATE, {"template_id": world.plain})
    call, stop = await steps.request_stop(world, chat)
    await world.provisioner.fail(stop)
    await chat.answer(call)
    await chat.call("list_templates")

    assert asked_of(chat) >= {CREATE, START, STOP, "list_templates"}
    assert set(chat.workspace_ids.values()) == {job.workspace_id}
    assert len(chat.workspace_ids) == 4


def asked_of(chat: Chat) -> set[str]:
    return {e["data"]["tool"] for e in chat.results.all}


def logged_in(world: World, text: str) -> None:
    """Wait until the deployment has written this text to its log."""
    assert world.deployment.up is not None
    world.deployment.up.process.wait_for_output(text)


def output(world: World) -> str:
    assert world.deployment.up is not None
    return world.deployment.up.process.output()
