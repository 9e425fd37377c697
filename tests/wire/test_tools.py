"""The answer of each tool in each situation that other programs can cause."""

from __future__ import annotations

import pytest

from tests.rigs.messages import agent_entry, new_id
from tests.rigs.world import World

TOOLS = ["create_workspace", "start_workspace", "stop_workspace"]


async def test_a_second_create_returns_the_existing_workspace(world: World) -> None:
    chat = await world.chat()
    job, _ = await world.ready(chat)

    result = await chat.call("create_workspace", {"template_id": world.plain})

    assert result.keys() == {"created", "workspace_name", "status", "message"}
    assert (result["created"], result["status"]) == (False, "already_exists")
    assert result["workspace_name"] == job.workspace_name


async def test_a_workspace_can_be_stopped_and_started_again(world: World) -> None:
    chat = await world.chat()
    first, agent = await world.ready(chat)

    call = await chat.ask("stop_workspace")
    stop = await world.provisioner.job(chat, "stop")
    await chat.state("stopping")
    await agent.report_disconnected()
    await world.provisioner.succeed(stop)
    stopped = (await chat.answer(call))["result"]
    assert stopped == {
        "stopped": True,
        "workspace_name": first.workspace_name,
        "build_id": stop.build_id,
    }
    assert (stop.workspace_id, stop.build_number) == (first.workspace_id, 2)
    assert await chat.call("stop_workspace") == {
        "stopped": True,
        "workspace_name": first.workspace_name,
        "no_build": True,
    }
    found = await chat.call("create_workspace", {"template_id": world.plain})
    assert found.keys() == {"created", "workspace_name", "status", "message"}
    assert (found["created"], found["status"]) == (False, "stopped")
    assert "start_workspace" in found["message"]

    call = await chat.ask("start_workspace")
    start = await world.provisioner.job(chat, "start", number=3)
    await world.provisioner.succeed(start)
    assert (await chat.answer(call))["result"] == {
        "started": True,
        "workspace_name": first.workspace_name,
        "build_id": start.build_id,
        "agent_status": "no_agent",
    }
    assert await chat.call("start_workspace") == {
        "started": True,
        "workspace_name": first.workspace_name,
        "no_build": True,
        "agent_status": "no_agent",
    }
    await chat.entered_last("stopping", "stopped", "building", "ready")


async def test_calls_during_a_stop_wait_for_its_end(world: World) -> None:
    chat = await world.chat()
    await world.ready(chat)
    stop = await chat.ask("stop_workspace")
    job = await world.provisioner.job(chat, "stop")

    create = await chat.ask("create_workspace", {"template_id": world.plain})
    start = await chat.ask("start_workspace")
    again = await chat.ask("stop_workspace")
    waiting = {stop, create, start, again}
    open_calls = (await world.service.rpc("get_chat", chat_id=chat.id))["open_calls"]
    await world.provisioner.succeed(job)
    started = await world.provisioner.job(chat, "start", number=3)
    await world.provisioner.succeed(started)

    assert {call["call_id"] for call in open_calls} <= waiting
    assert (await chat.answer(create))["result"]["status"] == "stopped"
    assert (await chat.answer(start))["result"]["build_id"] == started.build_id
    assert (await chat.answer(stop))["result"]["build_id"] == job.build_id
    # The stop arrived after the call that starts the workspace: it waits for that build, then requests a stop.
    last = await world.provisioner.job(chat, "stop", number=4)
    await world.provisioner.succeed(last)
    assert (await chat.answer(again))["result"]["build_id"] == last.build_id


async def test_a_stop_during_a_build_waits_for_the_build_but_not_for_the_agent(
    world: World,
) -> None:
    chat = await world.chat()
    create, job = await world.building(chat)
    stop = await chat.ask("stop_workspace")

    await world.provisioner.succeed(job, agent_entry())
    ending = await world.provisioner.job(chat, "stop")
    superseded = (await chat.answer(create))["result"]
    await world.provisioner.succeed(ending)

    assert (await chat.answer(stop))["result"]["build_id"] == ending.build_id
    assert superseded.keys() == {"error", "build_id"}
    assert superseded["build_id"] == job.build_id
    assert ending.build_id in superseded["error"]


async def test_a_failed_build_is_a_build_failure(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    joined = await chat.ask("create_workspace", {"template_id": world.plain})

    await world.provisioner.fail(job, "no disk left", error_code="DISK_FULL")
    resolved = await chat.answer(call)

    assert resolved["is_error"] is False
    assert resolved["result"].keys() == {"error", "build_id"}
    assert "no disk left" in resolved["result"]["error"]
    assert resolved["result"]["build_id"] == job.build_id
    assert (await chat.answer(joined))["result"]["build_id"] == job.build_id
    assert chat.now["failure"]["error_code"] == "DISK_FULL"
    assert "no disk left" in chat.now["failure"]["message"]
    # Nobody has worked in it: the next create makes a new workspace, and the old one is deleted.
    again, _ = await world.building(chat)
    new = await world.provisioner.jobs.first(
        lambda j: j.chat_id == chat.id and j.workspace_id != job.workspace_id
    )
    await world.provisioner.succeed(new)
    assert (await chat.answer(again))["result"]["build_id"] == new.build_id
    assert new.build_number == 1
    assert [j.transition for j in world.provisioner.jobs.all if j.chat_id == chat.id] == [
        "start",
        "start",
        "delete",
    ]


@pytest.mark.parametrize("quota", [None, {"credits_consumed": 4, "budget": 3.5}])
async def test_an_exhausted_quota_is_named_in_the_failure(world: World, quota: object) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    more = {} if quota is None else {"quota": quota}
    await world.provisioner.fail(job, "too much", error_code="INSUFFICIENT_QUOTA", **more)
    result = (await chat.answer(call))["result"]

    assert result.keys() == {"error_code", "error", "title", "message", "build_id", *more}
    assert result["error_code"] == "INSUFFICIENT_QUOTA"
    assert result["title"] == "Workspace quota reached"
    assert "create" in result["message"]
    assert result.get("quota") == quota


async def test_a_canceled_build_is_a_build_failure(world: World) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)

    await world.provisioner.publish_event("build_canceled", job)
    await job.ack()
    result = (await chat.answer(call))["result"]

    await chat.entered("building", "failed:build_canceled")
    assert result.keys() == {"error", "build_id"}


async def test_a_workspace_that_lost_its_agent_is_replaced_and_stopped(world: World) -> None:
    chat = await world.chat()
    old, agent = await world.ready(chat)
    await agent.report_disconnected()

    call = await chat.ask("create_workspace", {"template_id": world.plain})
    new = await world.provisioner.jobs.first(
        lambda job: job.chat_id == chat.id and job.workspace_id != old.workspace_id
    )
    stop = await world.provisioner.job(chat, "stop")
    await world.provisioner.succeed(new)
    result = (await chat.answer(call))["result"]
    await world.provisioner.succeed(stop)

    assert (stop.workspace_id, stop.build_number) == (old.workspace_id, 2)
    assert (new.build_number, new.transition) == (1, "start")
    assert result["created"] is True
    assert result["workspace_name"] == f"ann/{new.workspace_name}"
    assert new.workspace_name != old.workspace_name


async def test_a_failed_stop_leaves_the_workspace_running(world: World) -> None:
    chat = await world.chat()
    job, _ = await world.ready(chat)
    call = await chat.ask("stop_workspace")
    stop = await world.provisioner.job(chat, "stop")

    await world.provisioner.fail(stop, "stuck")
    result = (await chat.answer(call))["result"]

    await chat.entered_last("stopping", "failed:build_failed")
    assert chat.now["build"]["transition"] == "stop"
    assert result.keys() == {"error", "build_id"}
    found = await chat.call("start_workspace")
    assert found["no_build"] is True
    assert found["workspace_name"] == job.workspace_name


@pytest.mark.parametrize("tool", ["start_workspace", "stop_workspace"])
async def test_without_a_workspace_start_and_stop_point_to_create_workspace(
    world: World, tool: str
) -> None:
    chat = await world.chat()

    assert "create_workspace" in await chat.call_error(tool)


@pytest.mark.parametrize(
    ("tool", "args"),
    [
        ("create_workspace", {}),
        ("create_workspace", {"template_id": " "}),
        ("create_workspace", {"template_id": "plain"}),
        ("create_workspace", {"template_id": 7}),
        ("create_workspace", {"template_id": new_id()}),
        ("create_workspace", {"template_id": new_id(), "preset_id": "small"}),
        ("read_template", {}),
        ("read_template", {"template_id": new_id()}),
        ("list_templates", {"page": "first"}),
        ("start_workspace", {"parameters": ["a"]}),
        ("make_coffee", {}),
    ],
)
async def test_an_unknown_tool_is_an_error(world: World, tool: str, args: object) -> None:
    chat = await world.chat()

    assert await chat.call_error(tool, args)  # type: ignore[arg-type]
    assert chat.states.all == []


async def test_arguments_are_validated_first(world: World) -> None:
    chat = await world.chat()
    await world.ready(chat)

    assert await chat.call_error("create_workspace", {"template_id": "plain"})
    found = await chat.call("create_workspace", {"template_id": new_id()})
    assert found["status"] == "already_exists"


async def test_a_workspace_name_is_used_or_derived(world: World) -> None:
    chat, other, third = await world.chat(), await world.chat(), await world.chat()
    other.owner_id = chat.owner_id

    await chat.ask("create_workspace", {"template_id": world.plain, "name": " My-Work "})
    first = await world.provisioner.job(chat)
    await other.ask("create_workspace", {"template_id": world.plain, "name": "my-work"})
    second = await world.provisioner.job(other)
    await third.ask("create_workspace", {"template_id": world.plain, "name": "Hello World!@here"})
    generated = await world.provisioner.job(third)
    for job in (first, second, generated):
        await world.provisioner.fail(job)

    assert first.workspace_name == "My-Work"
    assert second.workspace_name.startswith("my-work-")
    assert len(second.workspace_name) == len("my-work-") + 4
    assert generated.workspace_name.startswith("helloworld-")


async def test_a_repeated_call_gets_the_same_answer_again(world: World) -> None:
    chat = await world.chat()
    args = {"template_id": world.plain}
    call, job = await world.building(chat)

    await chat.ask("create_workspace", args, call_id=call)  # sent again while it waits
    await world.provisioner.succeed(job)
    first = await chat.answer(call)
    await chat.ask(
        "stop_workspace", {}, call_id=call
    )  # other content with the same id: gets the first call's answer
    second = (await chat.results.count(2))[1]["data"]
    del second["result"]["workspace_id"]

    assert second == {**first, "conflict": True}
    assert [j for j in world.provisioner.jobs.all if j.chat_id == chat.id] == [job]
    assert chat.now["state"] == "ready"


async def test_the_first_request_fixes_the_organization_and_the_owner_of_a_chat(
    world: World,
) -> None:
    chat = await world.chat()
    await chat.call("list_templates")

    assert await chat.call_error("list_templates", owner_id=new_id())
    assert await chat.call_error("list_templates", organization_id=new_id())
    await chat.call("list_templates", owner_name="renamed")
