"""Calls after a failed delete (C3g C4l C4m, S3d S5d S5e, P4c P4d), numbered as in docs/internals/tool-rules.md."""

from __future__ import annotations

import pytest

from tests.rigs.client import Chat, Job
from tests.rigs.world import World
from tests.wire import steps
from tests.wire.steps import CREATE, START, STOP

LEFT = ["stopped", "running", "failed build"]


async def given_failed_delete(world: World, chat: Chat, what: str, how: str) -> tuple[Job, Job]:
    """Create a workspace whose delete ends as `how`; return its first job and the delete job."""
    start = await steps.given_finished_start(
        world, chat, "failed" if what == "failed build" else "succeeded"
    )
    if what == "stopped":
        await steps.given_finished_stop(world, chat)
    delete = await steps.request_delete(world, chat)
    if how == "canceled after it began":
        await world.provisioner.publish_event("build_started", delete)
    await steps.finish_build(world, delete, how.split(maxsplit=1)[0])
    await chat.state("failed")
    return start, delete


@pytest.mark.parametrize("how", ["failed", "canceled after it began"])
@pytest.mark.parametrize("what", LEFT)
async def test_c4l_after_a_failed_delete_create_deletes_the_old_workspace_and_makes_a_new_one(
    world: World, what: str, how: str
) -> None:
    chat = await world.chat()
    start, delete = await given_failed_delete(world, chat, what, how)

    call = await steps.request_create(world, chat)
    new = await steps.job_of_new_workspace(world, chat, start)
    again = await world.provisioner.job(chat, "delete", delete.build_number + 1)
    await world.provisioner.succeed(again)
    await world.provisioner.succeed(new)

    assert again.workspace_id == start.workspace_id
    assert (new.transition, new.build_number) == ("start", 1)
    assert (await steps.successful_result(chat, call))["created"] is True


@pytest.mark.parametrize("what", LEFT)
async def test_s5d_p4c_after_a_failed_delete_the_workspace_can_be_stopped_but_not_started(
    world: World, what: str
) -> None:
    chat = await world.chat()
    start, delete = await given_failed_delete(world, chat, what, "failed")

    assert CREATE in await chat.call_error(START)

    call, stop = await steps.request_stop(world, chat)
    assert (stop.workspace_id, stop.build_number) == (start.workspace_id, delete.build_number + 1)
    await world.provisioner.succeed(stop)
    assert (await steps.successful_result(chat, call))["build_id"] == stop.build_id
    assert (await chat.call(STOP))["no_build"] is True


async def test_c3g_s3d_calls_that_wait_for_a_delete_are_evaluated_when_it_fails(
    world: World,
) -> None:
    starting, creating = await world.chat(), await world.chat()
    olds = {chat.id: await steps.given_finished_start(world, chat) for chat in (starting, creating)}
    deletes = {chat.id: await steps.request_delete(world, chat) for chat in (starting, creating)}
    start, call = await starting.ask(START), await steps.request_create(world, creating)
    await steps.assert_calls_wait(world, starting, start)
    await steps.assert_calls_wait(world, creating, call)

    for delete in deletes.values():
        await world.provisioner.fail(delete)

    refused = await starting.answer(start)
    assert refused["is_error"] is True
    assert CREATE in refused["result"]["error"]
    new = await steps.job_of_new_workspace(world, creating, olds[creating.id])
    await world.provisioner.succeed(new)
    assert (await steps.successful_result(creating, call))["build_id"] == new.build_id


async def test_c4m_s5e_p4d_a_delete_that_never_began_leaves_the_workspace_stopped(
    world: World,
) -> None:
    chat = await world.chat()
    start, delete = await given_failed_delete(world, chat, "stopped", "canceled")

    assert (await chat.call(CREATE, {"template_id": world.plain}))["status"] == "stopped"
    assert (await chat.call(STOP))["no_build"] is True
    call = await chat.ask(START)
    job = await world.provisioner.job(chat, "start", delete.build_number + 1)
    await world.provisioner.succeed(job)

    assert job.workspace_id == start.workspace_id
    assert (await steps.successful_result(chat, call))["build_id"] == job.build_id


async def test_c4m_s5e_p4d_a_delete_that_never_began_leaves_the_workspace_running(
    world: World,
) -> None:
    chat = await world.chat()
    start, delete = await given_failed_delete(world, chat, "running", "canceled")

    assert (await chat.call(START))["no_build"] is True
    call, stop = await steps.request_stop(world, chat)
    await world.provisioner.succeed(stop)

    assert (stop.workspace_id, stop.build_number) == (start.workspace_id, delete.build_number + 1)
    assert (await steps.successful_result(chat, call))["stopped"] is True
