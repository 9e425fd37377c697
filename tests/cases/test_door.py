"""Events with another language's conventions, or with an unusable detail, are accepted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.cases.playing import play
from tests.rigs import shapes
from tests.rigs.client import ServiceError
from tests.rigs.messages import new_id
from tests.rigs.processes import Up
from tests.rigs.world import World


async def entry_of(world: World, chat: str, event_type: str) -> dict[str, Any]:
    """Return the last entry of that type in the event log."""
    page = await world.operator.rpc("read_events", chat_id=chat)
    for entry in page["events"]:
        shapes.log_entry(entry)
    found = [e for e in page["events"] if e["event"]["type"] == f"workspaced.{event_type}.v1"]
    return dict(found[-1])


async def test_b04_65_agents(world: World) -> None:
    case = await play(world, "B04-65-agents")

    state = await case.chat.state("agent_connecting")

    assert state["agent"]["name"] == "a0"


async def test_b04_build_failed_error_70000(world: World) -> None:
    case = await play(world, "B04-build-failed-error-70000")

    state = await case.chat.state("failed:build_failed")

    assert state["failure"]["message"] == "x" * 65_536
    entry = await entry_of(world, case.chat.id, "build_failed")
    assert "data.error" in entry["notice"]
    assert len(entry["event"]["data"]["error"]) == 65_536


async def test_b04_error_missing_or_null(world: World) -> None:
    case = await play(world, "B04-error-missing-or-null")

    state = await case.chat.state("failed:build_failed")

    assert state["failure"]["message"] == "the start build failed"


async def test_b04_trapped_after_lost_fact(world: World) -> None:
    case = await play(world, "B04-trapped-after-lost-fact")

    for call_id in ("c1", "c2"):
        assert "was made elsewhere" in (await case.answer(call_id))["result"]["error"]
    assert case.chat.path == ["building", "failed:build_failed"]


async def test_b08_preset_empty(world: World) -> None:
    case = await play(world, "B08-preset-empty")

    assert "was not found" in (await case.answer("c1"))["result"]["error"]


async def test_b09_args_null(world: World) -> None:
    case = await play(world, "B09-args-null")

    assert "has no workspace" in (await case.answer("c1"))["result"]["error"]


async def test_b09_page_float(world: World) -> None:
    case = await play(world, "B09-page-float")

    answer = await case.answer("c1")

    assert answer["is_error"] is False
    assert answer["result"]["page"] == 2


async def test_b10_call_id_used_twice(world: World) -> None:
    letters = await world.operator.hear("workspaced.dead.tool")

    case = await play(world, "B10-call-id-used-twice")

    first, second = (await case.chat.results.count(2))[:2]
    assert first["data"] == second["data"]
    assert first["data"]["tool"] == "list_templates"
    letter = await letters.first(lambda found: case.chat.id in found.headers["Workspaced-Subject"])
    assert letter.headers["Workspaced-Reason"] == "bad_data"
    assert "data.call_id must be 1 to 128 of" in letter.headers["Workspaced-Detail"]
    with pytest.raises(ServiceError, match=r"body\.call_id must be 1 to 128 of") as refused:
        await world.service.rpc(
            "stop_workspace", chat_id=case.chat.id, call_id="functions.x:0", **case.chat.identity
        )
    assert refused.value.code == 400


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("B28-build-number-2.0", "stopped"),
        ("B28-deleted-build-id-empty", "none"),
        ("B28-parent-id-empty", "agent_connecting"),
        ("B28-stop-agents-null", "stopped"),
        ("B28-stop-version-empty", "stopped"),
    ],
)
async def test_b28_what_other_languages_write_for_absent(
    world: World, name: str, state: str
) -> None:
    """The cases B28: values that other languages write for an absent key, or for an integer."""
    case = await play(world, name)

    found = await case.chat.state(state)

    assert found["state"] == state
    last = (await world.operator.rpc("read_events", chat_id=case.chat.id))["events"][-1]
    assert "notice" not in last


async def test_b29_leap_second(world: World) -> None:
    case = await play(world, "B29-leap-second")

    await case.chat.state("failed:build_failed")

    entry = await entry_of(world, case.chat.id, "build_failed")
    assert entry["event"]["time"] == "2016-12-31T23:59:59.999999Z"


async def test_b30_bom(world: World) -> None:
    case = await play(world, "B30-bom")

    assert (await case.answer("c1"))["is_error"] is False


async def test_null_and_absent_args_are_alike_on_the_bus_and_by_rpc(world: World) -> None:
    chat = await world.chat()
    body = {"chat_id": chat.id, **chat.identity}

    for more in ({}, {"args": None}, {"args": {}}, {"args": {}, "call_id": ""}):
        answer = await world.service.rpc("list_templates", **body, **more)
        assert answer["is_error"] is False
        told = {k: v for k, v in {**chat.identity, **more}.items() if k != "call_id"}
        call_id = f"c-{new_id()}"
        await chat.publish_event(
            "tool_requested", {**told, "call_id": call_id, "tool": "list_templates"}
        )
        assert (await chat.answer(call_id))["result"] == answer["result"]


async def test_a_body_with_a_byte_order_mark_is_read(world: World) -> None:
    chat = await world.chat()
    body = json.dumps({"chat_id": chat.id, "after": 0.0}).encode()

    assert json.loads(await world.operator.ask("read_events", b"\xef\xbb\xbf" + body)) == {
        "events": []
    }


async def test_names_of_any_length_are_kept_up_to_4_kib(world: World) -> None:
    """The database indexes names, and an index takes no long text that does not compress."""
    chat = await world.chat()
    await chat.call("list_templates")
    name = "".join(new_id() for _ in range(200))
    build = {"workspace_id": new_id(), "build_id": new_id(), "build_number": 1}
    build |= {"transition": "start", "chat_id": chat.id}

    names = {"workspace_name": name, "owner_name": name}
    await world.provisioner.publish_event("build_started", build, **names)

    state = await chat.state("building")
    assert state["workspace"]["name"] == name[:4096]
    assert state["workspace"]["owner_name"] == name[:4096]


async def test_what_is_left_out_of_a_fact_stands_in_its_entry_s_notice(world: World) -> None:
    chat = await world.chat()
    _, job = await world.building(chat)
    good = {"id": new_id(), "name": "main"}

    await world.provisioner.publish_event(
        "build_succeeded",
        job,
        template_version_id="latest",
        agents=[{"id": "x", "name": "y"}, good, {**good, "name": "again"}],
        nul="a\0b",
    )
    await job.ack()

    assert (await chat.state("agent_connecting"))["agent"]["id"] == good["id"]
    entry = await entry_of(world, chat.id, "build_succeeded")
    for words in ("data.template_version_id", "data.agents[0].id", "data.agents[2]", "data.nul"):
        assert words in entry["notice"]
    assert [agent["id"] for agent in entry["event"]["data"]["agents"]] == [good["id"]]


async def test_an_end_that_can_not_be_read_is_noted_on_the_chat_and_its_correction_counts(
    world: World,
) -> None:
    chat = await world.chat()
    call, job = await world.building(chat)
    letters = await world.operator.hear("workspaced.dead.provisioner")

    await world.provisioner.publish_event("build_failed", {**job.data, "build_number": "1"})
    letter = await letters.first(lambda found: chat.id in found.headers["Workspaced-Subject"])
    assert letter.headers["Workspaced-Reason"] == "bad_data"

    shown = await world.service.rpc("get_chat", chat_id=chat.id)
    page = await world.service.rpc("list_chats", owner_id=chat.owner_id)
    (listed,) = [found for found in page["chats"] if found["chat_id"] == chat.id]
    for found in (shown, listed):
        assert "build_failed of build 1" in found["notice"]
        assert "data.build_number is not an integer" in found["notice"]
    assert "dead letter" in (await entry_of(world, chat.id, "fact_rejected"))["notice"]

    await world.provisioner.fail(job)
    assert "error" in (await chat.answer(call))["result"]
    assert "notice" not in await world.service.rpc("get_chat", chat_id=chat.id)


async def test_snapshots_are_what_the_logs_of_all_of_this_fold_to(
    world: World, running: Up
) -> None:
    """The event logs hold accepted, repaired and rejected events of the tests before this one."""
    chat = await world.chat()
    _, job = await world.building(chat)
    letters = await world.operator.hear("workspaced.dead.provisioner")
    await world.provisioner.publish_event(
        "build_failed", job, build_number=None, error="x" * 70_000
    )
    await letters.first(lambda found: chat.id in found.headers["Workspaced-Subject"])
    shown = await world.service.rpc("get_chat", chat_id=chat.id)

    replayed = await asyncio.to_thread(running.run, "replay", "--chat", chat.id)

    assert "data.build_number is required" in shown["notice"]
    assert replayed.returncode == 0, replayed.stderr
    await world.provisioner.publish_event("build_failed", job, error="x\0y")
    await chat.state("failed:build_failed")
    again = await asyncio.to_thread(running.run, "replay", "--chat", chat.id)
    assert again.returncode == 0, again.stderr
