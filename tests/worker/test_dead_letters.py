"""A message that can't be accepted becomes a dead letter with a reason and affects no other one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bus import CLOUDEVENT, Unavailable, subjects
from bus.messages import write_headers
from bus.streams import WORKER_IN
from handlers.worker import batch
from statemachine.machine import decide
from statemachine.store import StoreUnavailableError
from statemachine.views import notice
from tests.rigs.messages import build_fact, cloud_event, new_id
from tests.worker.messages import Senders
from tests.worker.rig import Hand, Rig


def make_event_fail(monkeypatch: pytest.MonkeyPatch, event_id: str) -> None:
    """Make the decision about one event raise, as a bug would."""

    def fails(workspace: Any, event: Any, *more: Any) -> Any:
        if event.id == event_id:
            raise KeyError("a bug")
        return decide(workspace, event, *more)

    monkeypatch.setattr("statemachine.step.decide", fails)


async def test_a_dead_letter_keeps_its_body_and_has_a_reason(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    subject = subjects.inbound("provisioner", chat, "p")
    headers = {"Nats-Rollup-x": "sub", "X": "ä", **CLOUDEVENT}
    await rig.bus.publish(subject, b"{not json", headers=headers)

    await hand.pump()

    (letter,) = rig.dead
    assert (letter.subject, letter.data) == ("workspaced.dead.provisioner", b"{not json")
    assert set(letter.headers) == {
        "Workspaced-Subject",
        "Workspaced-Reason",
        "Workspaced-Detail",
        "Workspaced-Headers",
    }
    assert letter.headers["Workspaced-Subject"] == subject
    assert letter.headers["Workspaced-Reason"] == "not_json"
    assert letter.headers["Workspaced-Detail"]
    assert json.loads(letter.headers["Workspaced-Headers"]) == headers
    assert hand.worker.dead_letters == 1
    assert await rig.store.chats.get(chat) is None


async def test_every_message_of_the_stream_fits_as_a_dead_letter_even_with_large_headers(
    rig: Rig, hand: Hand, chat: str
) -> None:
    subject = subjects.inbound("tool", chat, "s")
    headers = {f"X-{n}": '"\\' * 100_000 for n in range(2)} | {"Y": "short"}
    await rig.bus.publish(subject, b"x" * 500_000, headers=headers)

    await hand.pump()

    (letter,) = rig.dead
    assert len(letter.data) + len(write_headers(letter.headers)) < 1024 * 1024
    assert letter.headers["Workspaced-Reason"] == "too_large"
    assert json.loads(letter.headers["Workspaced-Headers"])["Y"] == "short"


async def test_other_events_of_the_batch_are_applied(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    others = [new_id() for _ in range(3)]
    await send.create(others[0])
    await send.send("tool", chat, "service", b"[]")
    await send.create(others[1])
    await send.ask(chat, "list_templates")

    await hand.pump()

    assert {job["chat_id"] for job in rig.jobs()} == {others[0], others[1]}
    assert rig.answer(chat)["is_error"] is False
    assert [letter.headers["Workspaced-Reason"] for letter in rig.dead] == ["not_cloudevents"]


@pytest.mark.parametrize("neighbours", [0, 1, 6])
async def test_an_event_that_fails_alone_becomes_a_dead_letter_and_other_events_are_applied(
    rig: Rig, hand: Hand, send: Senders, monkeypatch: pytest.MonkeyPatch, neighbours: int
) -> None:
    bad, chat, others = new_id(), new_id(), [new_id() for _ in range(neighbours)]
    make_event_fail(monkeypatch, bad)
    for n, other in enumerate((*others, chat)):
        await send.create(other)
        if n == neighbours // 2:
            await send.create(chat, "bad", event_id=bad)

    await hand.pump()

    assert {job["chat_id"] for job in rig.jobs()} == {chat, *others}
    (letter,) = rig.dead
    assert letter.headers["Workspaced-Reason"] == "internal"
    assert letter.headers["Workspaced-Detail"] == "internal error: KeyError"
    assert json.loads(letter.data)["id"] == bad
    assert rig.answer(chat, "bad")["is_error"] is True
    assert (await rig.bus.consumer_state(WORKER_IN)).backlog == 0
    await rig.check(chat)


async def test_a_request_that_becomes_a_dead_letter_is_answered(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    data = {"call_id": "c", "tool": "list_templates", "args": [], "organization_id": 7}
    await send.send("tool", chat, "service", cloud_event("tool_requested", "/chat/x", chat, data))

    await hand.pump()

    assert rig.answer(chat)["is_error"] is True
    assert rig.answer(chat)["tool"] == "list_templates"
    assert "not accepted" in rig.answer(chat)["result"]["error"]


async def test_an_invalid_repeat_does_not_answer_an_accepted_call(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """Whether the bad repeat is in the same batch or in a later one."""
    bad = cloud_event("tool_requested", "/chat/service", chat, {"call_id": "c"})
    await send.publish(bad)
    await send.create(chat)
    await hand.pump()
    await send.publish(bad)
    await hand.pump()

    assert (chat, "c") not in rig.results
    assert len(rig.dead) == 2


async def test_the_refusal_of_a_request_never_replaces_the_answer_to_its_correction(
    rig: Rig, send: Senders, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies before it publishes the refusal, and the refusal is not published later."""
    bad = cloud_event("tool_requested", "/chat/service", chat, {"call_id": "c"})
    await send.publish(bad)
    dying = rig.hand()
    with monkeypatch.context() as patch:
        patch.setattr(dying.relay, "publish", die_before_publishing)
        await dying.pump()
    event_id = new_id()
    await send.ask(chat, "list_templates", event_id=event_id)
    await rig.hand().pump()
    await send.ask(chat, "list_templates", event_id=event_id)
    rig.clock.advance(WORKER_IN.ack_wait)
    await rig.hand().pump()

    assert rig.answer(chat)["is_error"] is False


async def die_before_publishing(rows: object, **_more: object) -> None:
    raise Unavailable(f"died with {rows}")


@pytest.mark.parametrize("chat", ["x", "zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz"])
async def test_a_request_with_an_invalid_chat_id_becomes_a_dead_letter_without_an_answer(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)

    await hand.pump()

    assert [letter.headers["Workspaced-Reason"] for letter in rig.dead] == ["bad_data"]
    assert rig.results == {}


async def test_a_repaired_fact_is_applied_and_its_log_entry_has_a_notice(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await hand.pump()
    listed = [{"id": new_id(), "name": "main"}, {"name": "nobody"}]
    data = {"agents": listed, "template_version_id": "latest"}
    await send.publish(build_fact("build_succeeded", "local", rig.job, data))
    await hand.pump()

    assert rig.state(chat)["state"] == "agent_connecting"
    *_, entry = await rig.store.chats.log(chat)
    assert "data.template_version_id must be a lower-case UUID" in entry["notice"]
    assert "data.agents[1]" in entry["notice"]
    assert entry["event"]["data"]["agents"] == [
        {**listed[0], "parent_id": None, "display_order": 0}
    ]
    assert "notice" not in entry["event"]
    assert rig.dead == []
    await rig.check(chat)


async def test_a_rejected_fact_is_recorded_on_its_chat_once(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await hand.pump()
    version = rig.state(chat)["version"]
    await send.built(rig.job, "failed", build_number="one")
    await hand.pump()
    again = rig.dead[0]
    await send.send("provisioner", chat, "local", again.data)
    await hand.pump()

    kept = await rig.store.chats.get(chat)
    assert kept is not None
    words = notice(kept)
    assert words is not None
    assert "data.build_number is not an integer" in words
    assert rig.state(chat)["version"] == version
    entries = [
        entry
        for entry in await rig.store.chats.log(chat)
        if entry["event"]["type"] == "workspaced.fact_rejected.v1"
    ]
    assert [entry["outcome"] for entry in entries] == ["kept"]
    assert "dead letter" in entries[0]["notice"]
    assert len(rig.dead) == 2
    await rig.check(chat)


async def test_after_the_limit_no_call_waits_for_a_rejected_end(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await hand.pump()
    first = rig.job
    await send.built(first, "failed", build_number=None)
    await hand.pump()
    await hand.let_time_pass(rig.limits.build.total_seconds() + 1)
    assert rig.answer(chat)["result"]["build_id"] == first["build_id"]

    await send.ask(chat, "start_workspace", "again")
    await hand.pump()

    assert (rig.job["build_number"], rig.job["workspace_id"]) == (2, first["workspace_id"])
    assert rig.state(chat)["state"] == "building"
    await rig.check(chat)


async def test_a_rejected_fact_of_an_unknown_chat_creates_no_chat(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.publish(cloud_event("build_failed", "/provisioner/p", chat, {"build_id": new_id()}))
    await hand.pump()

    assert len(rig.dead) == 1
    assert await rig.store.chats.get(chat) is None


async def test_a_fact_that_fails_by_a_bug_is_recorded_on_its_chat_too(
    rig: Rig, hand: Hand, send: Senders, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = new_id()
    await send.create(chat)
    await hand.pump()
    make_event_fail(monkeypatch, bad)
    await send.built(rig.job, "failed", event_id=bad)
    await hand.pump()

    kept = await rig.store.chats.get(chat)
    assert kept is not None
    words = notice(kept)
    assert words is not None
    assert "internal" in words


async def test_while_the_database_is_away_nothing_becomes_a_dead_letter(
    rig: Rig, hand: Hand, send: Senders, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([True, True, False])
    apply = batch.apply

    async def away(*args: Any, **more: Any) -> Any:
        if next(times):
            raise StoreUnavailableError("away")
        return await apply(*args, **more)

    monkeypatch.setattr("handlers.worker.worker.apply", away)
    monkeypatch.setattr("handlers.worker.worker.Backoff", Immediate)
    await send.create(chat)

    await hand.pump()

    assert len(rig.jobs()) == 1
    assert rig.dead == []


class Immediate:
    async def wait(self) -> None:
        """Return without waiting."""
