"""What can't be accepted is buried with its reason, and nobody else notices."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bus import CLOUDEVENT, Unavailable, subjects
from bus.headers import write_block
from bus.streams import WORKER_IN
from handlers.worker import batch
from statemachine.machine import decide
from statemachine.store import StoreUnavailableError
from tests.worker.messages import Senders, envelope, new_id
from tests.worker.rig import Hand, Rig


def poisoned(monkeypatch: pytest.MonkeyPatch, event_id: str) -> None:
    """Plant a bug: one event can't be decided."""

    def fails(workspace: Any, event: Any, *more: Any) -> Any:
        if event.id == event_id:
            raise KeyError("a bug")
        return decide(workspace, event, *more)

    monkeypatch.setattr("handlers.worker.chat.decide", fails)


async def test_a_dead_letter_keeps_its_body_and_says_why(
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
    assert await rig.store.chat(chat) is None


async def test_what_the_stream_took_fits_as_a_dead_letter_whatever_its_headers(
    rig: Rig, hand: Hand, chat: str
) -> None:
    subject = subjects.inbound("tool", chat, "s")
    headers = {f"X-{n}": '"\\' * 100_000 for n in range(2)} | {"Y": "short"}
    await rig.bus.publish(subject, b"x" * 500_000, headers=headers)

    await hand.pump()

    (letter,) = rig.dead
    assert len(letter.data) + len(write_block(letter.headers)) < 1024 * 1024
    assert letter.headers["Workspaced-Reason"] == "too_large"
    assert json.loads(letter.headers["Workspaced-Headers"])["Y"] == "short"


async def test_its_neighbours_in_the_batch_go_through(
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
async def test_an_event_that_fails_alone_is_buried_and_its_neighbours_go_through(
    rig: Rig, hand: Hand, send: Senders, monkeypatch: pytest.MonkeyPatch, neighbours: int
) -> None:
    bad, chat, others = new_id(), new_id(), [new_id() for _ in range(neighbours)]
    poisoned(monkeypatch, bad)
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
    assert rig.server.streams["WORKSPACED_IN"].messages == {}
    await rig.check(chat)


async def test_a_request_that_is_buried_is_answered(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    data = {"call_id": "c", "tool": "list_templates", "args": [], "organization_id": 7}
    await send.send("tool", chat, "service", envelope("tool_requested", "/chat/x", chat, data))

    await hand.pump()

    assert rig.answer(chat)["is_error"] is True
    assert rig.answer(chat)["tool"] == "list_templates"
    assert "not accepted" in rig.answer(chat)["result"]["error"]


async def test_a_call_that_was_accepted_is_not_answered_by_a_bad_repeat(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """In the same batch or a later one."""
    bad = envelope("tool_requested", "/chat/service", chat, {"call_id": "c"})
    await send.send("tool", chat, "service", bad)
    await send.create(chat)
    await hand.pump()
    await send.send("tool", chat, "service", bad)
    await hand.pump()

    assert (chat, "c") not in rig.results
    assert len(rig.dead) == 2


async def test_a_refusal_never_stands_over_the_answer_to_the_corrected_request(
    rig: Rig, send: Senders, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died after it had refused, and what it left is not brought up later."""
    bad = envelope("tool_requested", "/chat/service", chat, {"call_id": "c"})
    await send.send("tool", chat, "service", bad)
    dying = rig.hand()
    with monkeypatch.context() as patch:
        patch.setattr(dying.relay, "publish", unpublished)
        await dying.pump()
    event_id = new_id()
    await send.ask(chat, "list_templates", event_id=event_id)
    await rig.hand().pump()
    await send.ask(chat, "list_templates", event_id=event_id)
    rig.clock.advance(WORKER_IN.ack_wait)
    await rig.hand().pump()

    assert rig.answer(chat)["is_error"] is False


async def unpublished(rows: object, **_more: object) -> None:
    raise Unavailable(f"died with {rows}")


@pytest.mark.parametrize("chat", ["x", "zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz"])
async def test_a_chat_that_is_none_is_buried_without_an_answer(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)

    await hand.pump()

    assert [letter.headers["Workspaced-Reason"] for letter in rig.dead] == ["bad_data"]
    assert rig.results == {}


async def test_while_the_database_is_away_nothing_is_buried(
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
        """Try again at once."""
