"""Recorded cases of events that other languages write differently, or that have an invalid detail: accepted."""

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


async def test_b04_a_build_result_with_65_agents_is_accepted(world: World) -> None:
    case = await play(world, "B04-65-agents")

    state = await case.chat.state("agent_connecting")

    assert state["agent"]["name"] == "a0"


async def test_b04_a_build_error_is_cut_after_64_kib(world: World) -> None:
    case = await play(world, "B04-build-failed-error-70000")

    state = await case.chat.state("failed:build_failed")

    assert state["failure"]["message"] == "x" * 65_536
    entry = await entry_of(world, case.chat.id, "build_failed")
    assert "data.error" in entry["notice"]
    assert len(entry["event"]["data"]["error"]) == 65_536


async def test_b04_a_failed_build_without_an_error_text_gets_one(world: World) -> None:
    case = await play(world, "B04-error-missing-or-null")

    state = await case.chat.state("failed:build_failed")

    assert state["failure"]["message"] == "the start build failed"


async def test_b04_a_chat_with_a_damaged_fact_still_answers_its_calls(world: World) -> None:
    case = await play(world, "B04-trapped-after-lost-fact")

    for call_id in ("c1", "c2"):
        assert "was made elsewhere" in (await case.answer(call_id))["result"]["error"]
    await case.chat.entered("building", "failed:build_failed")


async def test_b08_an_empty_preset_is_not_found(world: World) -> None:
    case = await play(world, "B08-preset-empty")

    assert "was not found" in (await case.answer("c1"))["result"]["error"]


async def test_b09_null_args_are_accepted(world: World) -> None:
    case = await play(world, "B09-args-null")

    assert "has no workspace" in (await case.answer("c1"))["result"]["error"]


async def test_b09_a_page_number_may_be_a_float(world: World) -> None:
    case = await play(world, "B09-page-float")

    answer = await case.answer("c1")

    assert answer["is_error"] is False
    assert answer["result"]["page"] == 2


async def test_b10_a_repeated_call_id_gets_the_first_answer_and_an_invalid_one_is_refused(
    world: World,
) -> None:
    letters = await world.operator.hear("workspaced.dead.tool")

    case = await play(world, "B10-call-id-used-twice")

    first, second = (await case.chat.results.count(2))[:2]
    assert second["data"] == {**first["data"], "conflict": True}
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
async def test_b28_values_that_other_languages_write_for_absent_keys_are_accepted(
    world: World, name: str, state: str
) -> None:
    """Also floats without a fraction for integers."""
    case = await play(world, name)

    found = await case.chat.state(state)

    assert found["state"] == state
    last = (await world.operator.rpc("read_events", chat_id=case.chat.id))["events"][-1]
    assert "notice" not in last


async def test_b29_a_leap_second_becomes_the_last_microsecond_of_its_minute(world: World) -> None:
    case = await play(world, "B29-leap-second")

    await case.chat.state("failed:build_failed")

    entry = await entry_of(world, case.chat.id, "build_failed")
    assert entry["event"]["time"] == "2016-12-31T23:59:59.999999Z"


async def test_b30_an_event_with_a_byte_order_mark_is_read(world: World) -> None:
    case = await play(world, "B30-bom")

    assert (await case.answer("c1"))["is_error"] is False


async def test_null_args_count_as_absent_on_the_bus_and_by_rpc(world: World) -> None:
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


async def test_an_rpc_body_with_a_byte_order_mark_is_read(world: World) -> None:
    chat = await world.chat()
    body = json.dumps({"chat_id": chat.id, "after": 0.0}).encode()

    assert json.loads(await world.operator.ask("read_events", b"\xef\xbb\xbf" + body)) == {
        "events": []
    }


async def test_long_workspace_and_owner_names_are_cut_after_4_kib(world: World) -> None:
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


async def test_the_event_log_names_the_parts_of_a_fact_that_were_discarded(world: World) -> None:
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


async def test_an_invalid_terminal_fact_puts_a_notice_on_the_chat_until_a_valid_one_arrives(
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


async def test_replay_agrees_with_the_snapshot_after_a_rejected_fact(
    world: World, running: Up
) -> None:
    """Also after the correction, of which a character was replaced."""
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
