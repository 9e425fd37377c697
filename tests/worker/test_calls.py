"""Calls as rows: repeated, canceled, superseded, and several at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handlers.worker import publications
from statemachine.templates import template_id
from tests.rigs.messages import new_id
from tests.unit.driver import ANN, ORG
from tests.unit.facts import uid
from tests.worker.messages import TEMPLATE_ID, TRACE, Job, Senders
from tests.worker.rig import Hand, Rig

SECRET = """
name = "secret"
[[parameter]]
name = "token"
sensitive = true
[build]
start = "true"
"""


async def test_a_repeated_call_gets_an_equal_answer(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await hand.pump()
    await send.create(chat)
    await send.built(rig.job, "failed")
    await hand.pump()
    assert len(rig.results[chat, "c"]) == 1, "it went on waiting"

    await send.create(chat)
    await hand.pump()

    assert len(rig.results[chat, "c"]) == 2
    assert rig.answer(chat)["result"]["build_id"] == rig.job["build_id"]
    assert len(rig.jobs()) == 1
    await rig.check(chat)


async def test_equal_event_ids_of_two_services_are_different_events(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    event_id = new_id()
    for service in ("one", "two"):
        await send.ask(chat, "list_templates", event_id=event_id, service=service)
    await hand.pump()

    assert len(rig.results[chat, "c"]) == 2


@pytest.mark.parametrize("most", [1, 256])
async def test_a_repeated_call_id_with_other_arguments_gets_the_first_answer(
    rig: Rig, hand: Hand, send: Senders, chat: str, most: int
) -> None:
    await send.ask(chat, "list_templates")
    await send.ask(chat, "list_templates", owner=uid("bob"))
    await send.ask(chat, "read_template", template_id=TEMPLATE_ID)
    await send.ask(chat, "list_templates")
    await hand.pump(most)

    answers = rig.results[chat, "c"]
    assert [answer.get("conflict", False) for answer in answers] == [False, False, True, True]
    assert rig.answer(chat)["tool"] == "list_templates"


async def test_a_waiting_call_is_answered_with_the_conflict_that_came_meanwhile(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await hand.pump()
    await send.ask(chat, "stop_workspace")
    await hand.pump()
    assert (chat, "c") not in rig.results

    await send.built(rig.job, agents=())
    await hand.pump()

    answer = rig.answer(chat)
    assert (answer["tool"], answer["conflict"]) == ("create_workspace", True)
    assert len(rig.jobs()) == 1
    await rig.check(chat)


async def test_an_answer_with_a_conflict_that_nats_lost_is_published_again(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.ask(chat, "list_templates", other=1)
    await hand.pump()
    await send.ask(chat, "read_template")
    await hand.pump()
    shown = rig.answer(chat)
    (stored,) = await rig.store.recovery.answers_of([chat])

    assert stored.answer is not None
    again = publications.answered_again(stored.call, stored.answer, await rig.store.now())
    assert json.loads(again.payload)["data"] == shown
    assert (shown["conflict"], shown["ignored"]) == (True, ["other"])
    first = {**shown}
    del first["conflict"]
    before = json.dumps({"data": first}).encode()
    assert not publications.is_answered(again.payload, before), "it lacks the conflict"


async def test_a_request_of_another_owner_is_refused(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await send.create(chat, "other", owner=uid("bob"))
    await hand.pump()

    assert rig.answer(chat, "other")["is_error"] is True
    assert len(rig.jobs()) == 1


@pytest.mark.parametrize("most", [1, 256])
async def test_a_cancellation_that_overtakes_its_request_takes_effect(
    rig: Rig, hand: Hand, send: Senders, chat: str, most: int
) -> None:
    await send.cancel(chat, "c")
    await send.cancel(chat, "c")
    await send.create(chat)
    await hand.pump(most)

    assert rig.answer(chat)["is_error"] is True
    assert rig.jobs() == []
    await rig.check(chat)


async def test_a_cancellation_is_not_remembered_for_longer_than_ten_minutes(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.cancel(chat, "c")
    await hand.pump()
    rig.clock.advance(601)
    await send.create(chat)
    await hand.pump()

    assert len(rig.jobs()) == 1


async def test_a_call_cancelled_while_building_is_answered_and_the_build_goes_on(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await hand.pump()
    await send.cancel(chat, "c")
    await hand.pump()
    assert rig.answer(chat)["result"].keys() == {"error", "build_id", "workspace_id"}

    await send.built(rig.job, agents=())
    await send.cancel(chat, "c")
    await hand.pump()

    assert len(rig.results[chat, "c"]) == 1
    assert rig.state(chat)["state"] == "ready"
    await rig.check(chat)


async def test_a_delete_request_starts_a_delete_build_and_answers_waiting_calls(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat, name="blue")
    await hand.pump()
    await send.delete(chat)
    await hand.pump()

    start, delete = rig.jobs()
    assert (delete["transition"], delete["build_number"]) == ("delete", 2)
    assert delete["build_id"] in rig.answer(chat)["result"]["error"]
    assert rig.answer(chat)["result"]["build_id"] == start["build_id"]
    await send.built(delete)
    await hand.pump()
    assert rig.path(chat) == ["building", "stopping", "none"]
    await rig.check(chat)


async def test_a_name_is_free_again_when_its_workspace_is_deleted(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat, name="blue")
    await hand.pump()
    await send.delete(chat)
    await hand.pump()
    await send.built(rig.job)
    await hand.pump()
    await send.create(new_id(), name="BLUE")
    await hand.pump()

    assert rig.job["workspace_name"] == "BLUE"


async def test_a_delete_request_of_a_chat_without_a_workspace_has_no_effect(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.delete(chat)
    await hand.pump()

    assert rig.jobs() == []
    assert rig.states == {}


async def test_two_concurrent_creates_make_one_workspace(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    for call in ("one", "two"):
        await send.create(chat, call)
    await hand.pump()
    await send.built(rig.job, agents=())
    await hand.pump()

    assert len(rig.jobs()) == 1
    answers = [rig.answer(chat, call)["result"] for call in ("one", "two")]
    assert [answer["created"] for answer in answers] == [True, False]
    assert {answer["build_id"] for answer in answers} == {rig.job["build_id"]}
    assert {answer["agent_status"] for answer in answers} == {"no_agent"}
    await rig.check(chat)


@pytest.mark.parametrize("most", [1, 256])
async def test_workspace_names_are_unique_for_an_owner_across_chats(
    rig: Rig, hand: Hand, send: Senders, most: int
) -> None:
    """In one batch or several; the calls have equal ids, which identify them only within a chat."""
    chats = [new_id() for _ in range(4)]
    for one in chats:
        await send.create(one, "call_1", name="Blue")
    await hand.pump(most)

    jobs = rig.jobs()
    assert len({job["workspace_name"].lower() for job in jobs}) == 4
    for key in ("chat_id", "workspace_id", "build_id"):
        assert len({job[key] for job in jobs}) == 4, key


async def test_a_template_id_that_is_not_a_uuid_fails_only_its_call(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.ask(chat, "create_workspace", template_id="z" * 8 + "-zzzz" * 3 + "-" + "z" * 12)
    await hand.pump()

    assert "UUID" in rig.answer(chat)["result"]["error"]
    assert rig.dead == []


@pytest.mark.parametrize("most", [1, 256])
async def test_a_workspace_made_elsewhere_can_be_stopped(
    rig: Rig, hand: Hand, send: Senders, chat: str, most: int
) -> None:
    """Even if the facts about the build are in the same batch."""
    elsewhere: Job = {
        "chat_id": chat,
        "workspace_id": uid("elsewhere"),
        "build_id": new_id(),
        "build_number": 4,
        "transition": "start",
        "template": {"version_id": uid("version")},
    }
    await send.built(elsewhere, "started", workspace_name="w", template_id=TEMPLATE_ID)
    await send.built(elsewhere, agents=())
    await send.ask(chat, "stop_workspace")
    await hand.pump(most)

    assert (rig.job["transition"], rig.job["build_number"]) == ("stop", 5)
    assert rig.job["workspace_id"] == uid("elsewhere")
    await rig.check(chat)


async def test_no_log_entry_shows_a_sensitive_value_not_even_that_of_a_repeat(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await rig.push(SECRET)
    event_id = new_id()
    for _ in range(2):
        await send.ask(
            chat,
            "create_workspace",
            event_id=event_id,
            template_id=template_id(ORG, "secret"),
            parameters={"token": "hush"},
        )
        await hand.pump()

    log = await rig.store.chats.log(chat)
    assert [entry["outcome"] for entry in log] == ["kept", "moved", "repeat"]
    assert "hush" not in json.dumps(log)
    assert "***" in json.dumps(log[2])
    assert rig.job["parameters"] == {"token": "hush"}


async def test_effects_of_an_event_carry_its_traceparent(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat, trace=TRACE)
    await hand.pump()
    stream = rig.server.streams["WORKSPACED_JOB"]
    job = json.loads(next(iter(stream.messages.values())).data)
    await send.built(rig.job, "failed", trace=TRACE)
    await hand.pump()

    caused: list[dict[str, Any]] = [job, *rig.envelopes]
    assert [e["type"] for e in caused] == [
        "workspaced.build_requested.v1",
        "workspaced.state_changed.v1",
        "workspaced.state_changed.v1",
        "workspaced.tool_resolved.v1",
    ]
    assert {e["traceparent"].split("-")[1] for e in caused} == {TRACE.split("-")[1]}
    log = await rig.store.chats.log(chat)
    assert {entry["event"]["traceparent"] for entry in log} == {TRACE}


async def test_a_replaced_workspace_is_stopped_and_the_new_one_followed(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await hand.pump()
    first = rig.job
    await send.built(first)
    await send.agent(first, "connected", 1)
    await send.agent(first, "disconnected", 2)
    await hand.pump()
    await send.create(chat, "again")
    await hand.pump()

    stop, second = sorted(rig.jobs()[1:], key=lambda job: job["transition"], reverse=True)
    assert (stop["transition"], stop["build_number"]) == ("stop", 2)
    assert stop["workspace_id"] == first["workspace_id"] != second["workspace_id"]
    await send.built(stop, "failed")
    await send.built(second, agents=())
    await hand.pump()
    assert rig.answer(chat, "again")["result"]["build_id"] == second["build_id"]
    assert rig.state(chat)["workspace"]["id"] == second["workspace_id"]
    assert rig.store.names[second["workspace_id"]][0].owner_id == ANN
    await rig.check(chat)
