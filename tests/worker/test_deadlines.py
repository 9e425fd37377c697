"""Limits count by the database's clock, whenever their timers fire."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from bus import CLOUDEVENT, Unavailable, subjects
from bus.streams import WORKER_ALARM
from tests.worker.messages import Senders
from tests.worker.rig import Hand, Rig

TEN_MINUTES = 600.0


async def test_a_passed_limit_moves_the_chat_and_answers_its_calls(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await hand.pump()
    rig.clock.advance(TEN_MINUTES - 1)
    assert await hand.pump() == 0

    await hand.let_time_pass(1)

    state = rig.state(chat)
    assert (state["state"], state["failure"]["reason"]) == ("failed", "build_timeout")
    assert state["cause"]["type"] == "workspaced.deadline_passed.v1"
    assert state["cause"]["source"] == "/workspaced"
    assert set(rig.answer(chat)["result"]) == {"error", "build_id", "workspace_id"}
    await rig.check(chat)


@pytest.mark.parametrize("later", [0.000_4, 0.1, 0.249])
async def test_a_limit_passes_up_to_a_quarter_of_a_second_later_and_never_earlier(
    rig: Rig, hand: Hand, send: Senders, chat: str, later: float
) -> None:
    rig.clock.advance(later)
    await send.create(chat)
    await hand.pump()

    rig.clock.advance(TEN_MINUTES - 0.000_2)
    assert await hand.pump() == 0
    rig.clock.advance(0.25)

    assert await hand.pump() == 1
    assert rig.state(chat)["state"] == "failed"


async def test_a_timer_that_fires_early_is_armed_again_for_a_later_time(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await hand.pump()
    rig.skew = timedelta(seconds=30)

    rig.clock.advance(TEN_MINUTES)
    assert await hand.pump() == 1
    assert rig.state(chat)["state"] == "building"
    rig.clock.advance(29)
    assert await hand.pump() == 0
    rig.clock.advance(1)
    assert await hand.pump() == 1

    assert rig.state(chat)["state"] == "failed"
    await rig.check(chat)


async def test_effects_of_a_timer_are_published_when_its_redelivery_is_in_time(
    rig: Rig, hand: Hand, send: Senders, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alarm rang early; when it is redelivered, its time has come."""

    async def died(rows: Any, **_more: Any) -> None:
        raise Unavailable(f"died with {rows}")

    await send.create(chat)
    await hand.pump()
    rig.skew = timedelta(seconds=3)
    rig.clock.advance(TEN_MINUTES)
    with monkeypatch.context() as patch:
        patch.setattr(hand.relay, "publish", died)
        await hand.pump()
    assert rig.state(chat)["state"] == "building"

    rig.clock.advance(WORKER_ALARM.ack_wait)
    await rig.hand().pump()

    assert rig.state(chat)["state"] == "failed"
    assert rig.store.alarms == {}
    await rig.check(chat)


async def test_an_outdated_timer_has_no_effect_but_arms_the_valid_one(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await hand.pump()
    await send.built(rig.job)
    await hand.pump()
    assert rig.state(chat)["state"] == "agent_connecting"
    timers = rig.server.streams["WORKSPACED_TIMER"]
    for sequence, message in list(timers.messages.items()):
        if message.subject.endswith(".2"):
            timers.remove(sequence)  # as if NATS had lost it

    await hand.let_time_pass(TEN_MINUTES)
    await hand.let_time_pass(0)

    assert rig.path(chat) == ["building", "agent_connecting", "failed"]
    assert rig.state(chat)["failure"]["reason"] == "agent_not_ready"
    await rig.check(chat)


async def test_a_timer_that_fires_after_the_chat_settled_has_no_effect(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await hand.pump()
    await send.built(rig.job, "failed")
    await hand.pump()

    await hand.let_time_pass(TEN_MINUTES)

    assert rig.state(chat)["version"] == 2
    assert await rig.outcomes(chat) == ["kept", "moved", "moved"]


@pytest.mark.parametrize("failing", ["publish", "ack"])
async def test_effects_of_a_timer_are_published_after_a_worker_crashed(
    rig: Rig, send: Senders, chat: str, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker receives the timer again: the move is committed, its effects unpublished."""
    dying = rig.hand()
    await send.create(chat)
    await dying.pump()
    rig.clock.advance(TEN_MINUTES)

    async def died(rows: Any, **_more: object) -> None:
        raise Unavailable(f"died with {rows}")

    with monkeypatch.context() as patch:
        if failing == "publish":
            patch.setattr(dying.relay, "publish", died)
        await dying.pump()
    rig.clock.advance(WORKER_ALARM.ack_wait)
    await rig.hand().pump()

    assert rig.state(chat)["state"] == "failed"
    assert rig.answer(chat)["result"]["build_id"] == rig.job["build_id"]
    assert rig.store.alarms == {}
    await rig.check(chat)


async def test_a_call_after_the_limit_begins_a_new_wait(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)
    await hand.pump()
    await hand.let_time_pass(TEN_MINUTES)

    await send.create(chat, "second")
    await hand.pump()
    assert rig.state(chat)["state"] == "building"
    assert len(rig.jobs()) == 1
    await hand.let_time_pass(TEN_MINUTES)

    assert "build_id" in rig.answer(chat, "second")["result"]
    assert len(rig.results[chat, "c"]) == 1
    await rig.check(chat)


async def test_an_invalid_timer_message_becomes_a_dead_letter(
    rig: Rig, hand: Hand, chat: str
) -> None:
    await rig.bus.publish(subjects.ALARM_RANG, b"[]", headers=CLOUDEVENT)

    await hand.pump()

    assert [letter.headers["Workspaced-Reason"] for letter in rig.dead] == ["bad_data"]


async def test_a_starting_worker_arms_open_deadlines_and_creates_consumers_of_pools(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """After NATS lost its timers, the limits still hold."""
    await send.create(chat)
    await hand.pump()
    rig.server.stop(lose=True)
    rig.server.start()

    started = rig.hand()
    await started.prepare()

    assert "pool-local" in rig.server.streams["WORKSPACED_JOB"].consumers
    rig.clock.advance(TEN_MINUTES)
    await started.pump()
    assert rig.state(chat)["failure"]["reason"] == "build_timeout"
