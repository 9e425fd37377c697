"""Workers record the loss of an agent once, and never while the agent is present."""

from __future__ import annotations

from typing import Any

import pytest

from bus import Unavailable
from bus.streams import PRESENCE, WORKER_IN, WORKER_PRESENCE
from bus.subjects import presence
from tests.rigs.messages import new_id
from tests.worker.messages import Job, Senders, agent_of
from tests.worker.rig import Hand, Rig

SILENCE = 30.0


@pytest.fixture
async def job(rig: Rig, hand: Hand, send: Senders, chat: str) -> Job:
    """Return the job of a chat that is ready, with an agent that has published its presence."""
    await send.create(chat)
    await hand.pump()
    job = rig.job
    await send.built(job)
    await send.agent(job, "connected", 1)
    await send.agent(job, "ready", 2)
    await send.show(job)
    await hand.pump()
    return job


async def losses(rig: Rig, chat: str) -> list[dict[str, Any]]:
    return [
        entry["event"]
        for entry in await rig.store.chats.log(chat)
        if entry["event"]["type"] == "workspaced.agent_disconnected.v1"
    ]


async def test_an_agent_whose_presence_expires_is_lost(
    rig: Rig, hand: Hand, job: Job, chat: str
) -> None:
    assert rig.state(chat)["agent"]["status"] == "connected"

    await hand.let_time_pass(SILENCE)

    assert rig.state(chat)["agent"]["status"] == "disconnected"
    assert rig.state(chat)["state"] == "ready"
    (loss,) = await losses(rig, chat)
    assert loss["source"] == "/workspaced"
    assert loss["data"].get("sequence") is None
    await rig.check(chat)


async def test_a_loss_is_noticed_once(
    rig: Rig, hand: Hand, job: Job, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.clock.advance(SILENCE)
    first = hand.take()
    rig.clock.advance(WORKER_PRESENCE.ack_wait)
    await rig.hand().pump()
    await hand.work(first)

    assert len(await losses(rig, chat)) == 1
    await rig.check(chat)


async def test_a_loss_is_published_after_the_worker_that_noticed_it_crashed(
    rig: Rig, job: Job, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def died(rows: Any, **_more: object) -> None:
        raise Unavailable(f"died with {rows}")

    dying = rig.hand()
    rig.clock.advance(SILENCE)
    with monkeypatch.context() as patch:
        patch.setattr(dying.relay, "publish", died)
        await dying.pump()
    rig.clock.advance(WORKER_PRESENCE.ack_wait)
    await rig.hand().pump()

    assert rig.state(chat)["agent"]["status"] == "disconnected"
    assert len(await losses(rig, chat)) == 1
    await rig.check(chat)


@pytest.mark.parametrize("word", ["connected", "starting"])
async def test_effects_of_a_loss_are_published_although_the_agent_is_back(
    rig: Rig, send: Senders, job: Job, chat: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delete marker is not redelivered: a new presence message of the agent replaced it."""

    async def died(rows: Any, **_more: Any) -> None:
        raise Unavailable(f"died with {rows}")

    dying = rig.hand()
    rig.clock.advance(SILENCE)
    with monkeypatch.context() as patch:
        patch.setattr(dying.relay, "publish", died)
        await dying.pump()
    assert rig.state(chat)["agent"]["status"] == "connected", "the loss is not published"
    await send.show(job)
    rig.clock.advance(WORKER_PRESENCE.ack_wait)

    await send.agent(job, word, 3)
    await rig.hand().pump()

    assert rig.state(chat)["agent"]["status"] == "connected"
    kept = await rig.store.chats.get(chat)
    assert kept is not None
    assert rig.state(chat)["version"] == kept.version


async def test_an_agent_that_is_back_before_its_marker_is_applied_is_not_lost(
    rig: Rig, hand: Hand, send: Senders, job: Job, chat: str
) -> None:
    rig.clock.advance(SILENCE)
    taken = hand.take()
    assert [delivery.is_delete_marker for delivery in taken] == [True]
    await send.show(job)

    await hand.work(taken)

    assert await losses(rig, chat) == []
    assert rig.state(chat)["agent"]["status"] == "connected"


async def test_an_agent_that_comes_back_while_its_loss_is_recorded_ends_connected(
    rig: Rig, hand: Hand, send: Senders, job: Job, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's report after the worker found no presence message undoes the loss."""
    rig.clock.advance(SILENCE)
    silent = hand.relay.is_absent

    async def slow(chat_id: str, agent_id: str) -> bool:
        found = await silent(chat_id, agent_id)
        await send.show(job)
        await send.agent(job, "connected", 3)
        return found

    monkeypatch.setattr(hand.relay, "is_absent", slow)
    await hand.work(hand.take())
    assert rig.state(chat)["agent"]["status"] == "disconnected"
    await rig.hand().pump()

    assert rig.state(chat)["agent"]["status"] == "connected"
    await rig.check(chat)


async def test_an_agent_that_reports_between_the_check_and_the_commit_is_not_lost(
    rig: Rig, hand: Hand, send: Senders, job: Job, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.clock.advance(SILENCE)
    silent = hand.relay.is_absent

    async def slow(chat_id: str, agent_id: str) -> bool:
        found = await silent(chat_id, agent_id)
        await send.show(job)
        await send.agent(job, "connected", 3)
        await rig.hand().pump()
        return found

    taken = hand.take()
    monkeypatch.setattr(hand.relay, "is_absent", slow)
    await hand.work(taken)

    assert await losses(rig, chat) == []
    assert rig.state(chat)["agent"]["status"] == "connected"
    await rig.check(chat)


async def test_the_next_fact_of_a_lost_agent_undoes_its_loss(
    rig: Rig, hand: Hand, send: Senders, job: Job, chat: str
) -> None:
    await hand.let_time_pass(SILENCE)

    await send.agent(job, "ready", 3)
    await hand.pump()

    assert rig.state(chat)["agent"]["status"] == "connected"


async def test_a_loss_while_the_bus_is_away_is_noticed_later(
    rig: Rig, hand: Hand, job: Job, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(chat_id: str, agent_id: str) -> bool:
        raise Unavailable(f"{chat_id} {agent_id}")

    rig.clock.advance(SILENCE)
    with monkeypatch.context() as patch:
        patch.setattr(hand.relay, "is_absent", away)
        await hand.pump()
    assert await losses(rig, chat) == []
    await hand.let_time_pass(WORKER_PRESENCE.ack_wait)

    assert len(await losses(rig, chat)) == 1
    assert rig.dead == []


async def test_the_marker_of_an_unknown_agent_is_ignored(
    rig: Rig, hand: Hand, send: Senders, job: Job, chat: str
) -> None:
    await send.show(job, agent="unknown")
    await hand.let_time_pass(SILENCE)

    assert len(await losses(rig, chat)) == 1


@pytest.mark.parametrize("sequence", [0, 1, 2, 3])
async def test_a_lost_agent_returns_with_any_sequence_and_its_workspace_is_not_replaced(
    rig: Rig, hand: Hand, send: Senders, job: Job, chat: str, sequence: int
) -> None:
    """The agent was restored from a copy, or its clock was set back."""
    await hand.let_time_pass(SILENCE)
    assert rig.state(chat)["agent"]["status"] == "disconnected"

    await send.agent(job, "connected", sequence)
    await send.create(chat, "again")
    await hand.pump()

    assert rig.state(chat)["agent"]["status"] == "connected"
    assert rig.answer(chat, "again")["result"]["status"] == "already_exists"
    await rig.check(chat)


async def test_a_repeat_of_a_fact_from_before_the_loss_does_not_undo_it(
    rig: Rig, hand: Hand, send: Senders, job: Job, chat: str
) -> None:
    said = new_id()
    await send.agent(job, "connected", 5, event_id=said)
    await hand.pump()
    await hand.let_time_pass(SILENCE)

    await send.agent(job, "connected", 5, event_id=said)
    await hand.pump()

    assert rig.state(chat)["agent"]["status"] == "disconnected"
    await rig.check(chat)


async def test_an_agent_is_lost_again_if_a_delayed_fact_undid_its_loss(
    rig: Rig, hand: Hand, send: Senders, job: Job, chat: str
) -> None:
    """Such a fact looks like one of a restored agent. So the agent must show its presence."""
    await hand.let_time_pass(SILENCE)
    await send.agent(job, "starting", 1)
    await hand.pump()
    assert rig.state(chat)["agent"]["status"] == "connected"

    await hand.let_time_pass(SILENCE)

    assert rig.state(chat)["agent"]["status"] == "disconnected"
    assert len(await losses(rig, chat)) == 2
    await rig.check(chat)


async def test_an_agent_that_returns_and_renews_its_presence_is_not_lost_again(
    rig: Rig, hand: Hand, send: Senders, job: Job, chat: str
) -> None:
    await hand.let_time_pass(SILENCE)
    await send.agent(job, "connected", 1)
    await hand.pump()

    for _ in range(3):
        await send.show(job)
        await hand.let_time_pass(19)

    assert rig.state(chat)["agent"]["status"] == "connected"
    assert len(await losses(rig, chat)) == 1


async def test_the_presence_message_of_workers_never_replaces_that_of_the_agent(
    rig: Rig, hand: Hand, send: Senders, job: Job, chat: str
) -> None:
    await hand.let_time_pass(SILENCE)
    own = await send.show(job)

    await send.agent(job, "connected", 1)
    await hand.pump()

    last = await rig.bus.get_last(PRESENCE.name, presence(chat, agent_of(job)))
    assert last is not None
    assert last.sequence == own.sequence


async def test_presence_is_expected_after_the_worker_that_applied_the_fact_crashed(
    rig: Rig, send: Senders, job: Job, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def died(rows: Any, **_more: Any) -> None:
        raise Unavailable(f"died with {rows}")

    dying = rig.hand()
    rig.clock.advance(SILENCE)
    await dying.pump()
    await send.agent(job, "starting", 1)
    with monkeypatch.context() as patch:
        patch.setattr(dying.relay, "publish", died)
        await dying.pump()
    rig.clock.advance(WORKER_IN.ack_wait)
    hand = rig.hand()
    await hand.pump()
    assert rig.state(chat)["agent"]["status"] == "connected"

    await hand.let_time_pass(SILENCE)

    assert rig.state(chat)["agent"]["status"] == "disconnected"


async def test_the_loss_of_an_agent_of_an_unreadable_chat_becomes_a_dead_letter(
    rig: Rig, hand: Hand, job: Job, chat: str
) -> None:
    """The worker continues, because other chats are not affected."""
    rig.clock.advance(SILENCE)
    rig.store.snapshots[chat] = "{}"

    await hand.pump()

    (letter,) = rig.dead
    assert letter.headers["Workspaced-Subject"] == presence(chat, agent_of(job))
    assert letter.headers["Workspaced-Reason"] == "internal"
