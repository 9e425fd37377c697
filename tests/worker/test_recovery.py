"""Workers publish again from the database what NATS has lost."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from bus import Message, Unavailable, subjects
from bus.streams import IN, JOB, LOG, PRESENCE, RESULT, STATE, TIMER, WORKER_IN
from handlers.runtime import clock
from handlers.worker import relay
from handlers.worker.recovery import stream_watch
from handlers.worker.recovery.republisher import ASK_COUNT
from statemachine.store import StreamPosition
from tests.doubles.memory_server import Interest
from tests.doubles.memory_store import MemoryRecovery, MemoryStore
from tests.rigs.messages import new_id
from tests.worker.messages import Job, Senders
from tests.worker.rig import Hand, Rig

TEN_MINUTES = 600.0
SILENCE = 30.0
PATIENCE = 10.0


@pytest.fixture
async def job(rig: Rig, hand: Hand, send: Senders, chat: str) -> Job:
    """Return the job of a chat that is being built, when the worker has recorded the streams."""
    await hand.prepare()
    await send.create(chat)
    await hand.pump()
    return rig.job


@pytest.fixture
async def ready(rig: Rig, hand: Hand, send: Senders, job: Job) -> Job:
    await send.built(job)
    await send.agent(job, "connected", 1)
    await send.agent(job, "ready", 2)
    await send.show(job)
    await hand.pump()
    return job


def wipe_streams(rig: Rig) -> None:
    rig.server.stop(lose=True)
    rig.server.start()


def crash(rig: Rig, tails: Mapping[str, int]) -> None:
    """Kill the server, which takes the newest messages of streams, and start it again."""
    rig.server.stop(tails=tails)
    rig.server.start()


def last_sequence(rig: Rig, stream: str) -> int:
    return rig.server.streams[stream].last_sequence


async def test_nothing_is_published_again_if_nats_lost_nothing(
    rig: Rig, hand: Hand, ready: Job, caplog: pytest.LogCaptureFixture
) -> None:
    assert await hand.prepare() == frozenset()

    before = {name: last_sequence(rig, name) for name in (STATE.name, JOB.name, RESULT.name)}
    rig.server.stop()
    rig.server.start()
    with caplog.at_level(logging.INFO, "handlers.worker.recovery.stream_watch"):
        lost = await hand.prepare()

    assert lost == {PRESENCE.name}
    assert {name: last_sequence(rig, name) for name in before} == before
    told = [r for r in caplog.records if r.name == "handlers.worker.recovery.stream_watch"]
    assert [(r.levelname, "presence messages" in r.message) for r in told] == [("INFO", True)]


async def test_a_stream_that_grows_during_the_check_has_lost_nothing(
    rig: Rig, send: Senders, ready: Job, chat: str
) -> None:
    """Other workers publish messages and record positions during the check."""
    other = rig.hand()
    await other.prepare()

    class Busy(MemoryRecovery):
        async def stream_positions(self) -> dict[str, StreamPosition]:
            await send.ask(chat, "stop_workspace", new_id())
            newest = other.take()
            await other.work(newest)
            other.watch._recorded_at = 0.0
            await other.watch.follow(newest[-1:])
            return await rig.store.recovery.stream_positions()

    busy = MemoryStore(rig.now)
    busy.recovery = Busy(busy)
    looking = rig.hand(store=busy).watch

    assert await looking.find_losses() == frozenset()


async def test_lost_states_are_published_again(
    rig: Rig, hand: Hand, ready: Job, chat: str, send: Senders
) -> None:
    before = rig.state(chat)
    wipe_streams(rig)

    await hand.prepare()

    assert rig.state(chat) == before
    await send.ask(chat, "stop_workspace", "s")
    await hand.pump()
    assert rig.state(chat)["version"] == before["version"] + 1


async def test_lost_answers_are_published_again(
    rig: Rig, hand: Hand, ready: Job, chat: str
) -> None:
    before = rig.answer(chat)
    wipe_streams(rig)

    await hand.prepare()

    last = await rig.bus.get_last(RESULT.name, subjects.result(chat, "c"))
    assert last is not None
    assert json.loads(last.data)["data"] == before


@pytest.mark.parametrize("read", ["answers_of", "answered_calls"])
async def test_no_answer_that_is_published_again_overtakes_its_state(
    rig: Rig,
    hand: Hand,
    send: Senders,
    job: Job,
    chat: str,
    read: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another worker commits it when the states have been published again, before the answers are read."""
    seen: list[str] = []
    other, answers = rig.hand(), getattr(rig.store.recovery, read)

    async def read_late(*args: Any, **words: Any) -> Any:
        await other.worker.commit(other.take())
        return await answers(*args, **words)

    monkeypatch.setattr(rig.store.recovery, read, read_late)
    await send.built(job, "failed")
    result = Interest("workspaced.result.>", "", lambda _: seen.append(rig.state(chat)["state"]))
    rig.server.interests.append(result)
    crash(rig, {STATE.name: 1})
    if read == "answered_calls":
        del rig.server.streams[RESULT.name]

    await hand.prepare()

    assert seen == ["failed"]


async def test_the_job_of_an_open_build_is_published_again_unchanged(
    rig: Rig, hand: Hand, job: Job
) -> None:
    wipe_streams(rig)

    await hand.prepare()

    assert rig.jobs() == [job]


async def test_the_job_of_an_ended_build_is_not_published_again(
    rig: Rig, hand: Hand, ready: Job
) -> None:
    wipe_streams(rig)

    await hand.prepare()

    assert rig.jobs() == []


async def test_the_job_that_stops_a_replaced_workspace_is_published_again(
    rig: Rig, hand: Hand, send: Senders, ready: Job, chat: str
) -> None:
    await send.agent(ready, "disconnected", 3)
    await send.create(chat, "new")
    await hand.pump()
    before = sorted(job["build_id"] for job in rig.jobs() if job["build_id"] != ready["build_id"])
    assert len(before) == 2
    wipe_streams(rig)

    await hand.prepare()

    assert sorted(job["build_id"] for job in rig.jobs()) == before


async def test_the_job_of_a_build_that_exceeded_its_limit_is_published_again(
    rig: Rig, hand: Hand, job: Job
) -> None:
    """Its provisioner ends or cancels it. Without the job the chat would wait for ever."""
    wipe_streams(rig)
    rig.clock.advance(TEN_MINUTES + 1)

    await hand.prepare()

    assert rig.jobs() == [job]


async def test_a_limit_passes_although_its_timer_was_lost(
    rig: Rig, hand: Hand, job: Job, chat: str
) -> None:
    wipe_streams(rig)

    await hand.prepare()
    await hand.let_time_pass(TEN_MINUTES)

    assert rig.state(chat)["failure"]["reason"] == "build_timeout"
    assert "error" in rig.answer(chat)["result"]


async def test_an_agent_that_never_returns_after_a_loss_counts_as_lost(
    rig: Rig, hand: Hand, ready: Job, chat: str
) -> None:
    """Presence messages are kept in memory: no delete marker would report that one expired."""
    rig.server.stop()
    rig.server.start()

    await hand.prepare()
    await hand.let_time_pass(SILENCE)

    assert rig.state(chat)["agent"]["status"] == "disconnected"


async def test_an_agent_that_renews_its_presence_after_a_loss_is_not_lost(
    rig: Rig, hand: Hand, send: Senders, ready: Job, chat: str
) -> None:
    rig.server.stop()
    rig.server.start()

    await hand.prepare()
    rig.clock.advance(SILENCE - 1)
    await send.show(ready)
    await hand.prepare()
    await hand.let_time_pass(2)

    assert rig.state(chat)["agent"]["status"] == "connected"


async def test_what_a_dead_worker_committed_is_published_although_its_event_was_lost(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """It died between commit and publish, and NATS lost the event that it would redeliver."""
    await hand.prepare()
    await send.create(chat)
    await hand.worker.commit(hand.take())
    wipe_streams(rig)

    await hand.prepare()

    assert rig.state(chat)["state"] == "building"
    assert len(rig.jobs()) == 1
    await hand.let_time_pass(TEN_MINUTES)
    assert rig.state(chat)["failure"]["reason"] == "build_timeout"


async def test_a_job_that_another_worker_publishes_meanwhile_is_published_once(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """After a loss of requests, each worker that reconnects publishes what the chats stand for."""
    await hand.prepare()
    await send.create(chat)
    committed = await hand.worker.commit(hand.take())
    assert committed is not None
    await hand.relay.publish(committed.result.messages)
    await rig.store.recovery.reset_positions({IN.name: StreamPosition("", 0)})

    lost = await rig.hand().prepare()

    assert lost == {IN.name}
    assert len(rig.jobs()) == 1


async def test_a_worker_that_was_paused_before_publishing_jobs_prepares_again(
    rig: Rig, hand: Hand, send: Senders, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hand.prepare()
    await send.create(chat)
    await hand.worker.commit(hand.take())
    wipe_streams(rig)
    late = clock() + hand.worker.tuning.duplicate_window + 1
    with monkeypatch.context() as paused:
        paused.setattr(relay, "clock", lambda: late)
        with pytest.raises(Unavailable, match="paused"):
            await hand.prepare()
    assert rig.jobs() == []

    await hand.prepare()

    assert len(rig.jobs()) == 1


async def test_a_lost_end_of_a_stream_is_published_again(
    rig: Rig, hand: Hand, send: Senders, ready: Job, chat: str
) -> None:
    """The stream is the same one, but the last acknowledged messages are gone."""
    before = rig.state(chat)
    crash(rig, {STATE.name: 2})

    lost = await hand.prepare()

    assert STATE.name not in lost  # which would ask all senders for their facts
    assert rig.state(chat) == before


async def test_a_tail_that_a_crash_took_from_the_server_and_the_memory_of_workers_is_published_again(
    rig: Rig, hand: Hand, send: Senders, ready: Job, chat: str
) -> None:
    """The worker that published it is gone too, and had not recorded how far the streams were."""
    await hand.prepare()
    await send.ask(chat, "stop_workspace", "stop")
    await hand.pump()
    await send.built(rig.job)
    await hand.pump()
    tails = {STATE.name: 2, RESULT.name: 1, TIMER.name: 1}
    rig.server.stop(tails=tails)
    rig.server.start()
    assert rig.state(chat)["state"] == "ready"
    assert await rig.bus.get_last(RESULT.name, subjects.result(chat, "stop")) is None
    rig.states[chat].clear()
    positions = await rig.store.recovery.stream_positions()
    for name, lost in tails.items():  # as recorded before the last second of work
        info = await rig.bus.stream_info(name)
        positions[name] = StreamPosition(info.created, info.last - lost)
    await rig.store.recovery.reset_positions(positions)

    lost = await rig.hand().prepare()

    assert not lost & {STATE.name, RESULT.name}
    assert rig.state(chat)["state"] == "stopped"
    assert await rig.bus.get_last(RESULT.name, subjects.result(chat, "stop")) is not None
    assert [state["state"] for state in rig.states[chat]] == ["stopped"]
    await rig.hand().prepare()
    assert len(rig.states[chat]) == 1


async def test_after_a_restart_nothing_is_published_that_the_streams_hold(
    rig: Rig, hand: Hand, ready: Job, chat: str
) -> None:
    await hand.prepare()
    before = {name: last_sequence(rig, name) for name in (STATE.name, RESULT.name, JOB.name)}
    rig.server.stop()
    rig.server.start()

    await rig.hand().prepare()

    assert before == {name: last_sequence(rig, name) for name in before}


async def test_a_restart_stays_suspect_until_everything_is_published_again(
    rig: Rig, hand: Hand, ready: Job
) -> None:
    await hand.prepare()
    rig.server.stop(tails={STATE.name: 1})
    rig.server.start()
    dying = rig.hand()
    await dying.watch.find_losses()  # it stops before it has published anything
    next_worker = rig.hand()

    await next_worker.watch.find_losses()

    assert next_worker.watch.suspect_since is not None
    await next_worker.prepare()
    await next_worker.watch.find_losses()
    assert next_worker.watch.suspect_since is None


async def test_a_second_loss_of_republished_messages_is_noticed(
    rig: Rig, hand: Hand, ready: Job, chat: str
) -> None:
    """The worker that finds it is another one, as the one that published again may have died."""
    before = rig.state(chat)
    wipe_streams(rig)
    await hand.prepare()
    crash(rig, {STATE.name: 1})

    lost = await rig.hand().prepare()

    assert STATE.name not in lost
    assert rig.state(chat) == before


async def test_two_workers_that_find_the_same_loss_publish_each_job_once(
    rig: Rig, hand: Hand, job: Job
) -> None:
    """Both looked before one of them had published again; the stream grew in between."""
    wipe_streams(rig)
    other = rig.hand()
    looked = await hand.watch.find_losses()
    await rig.senders.ask(new_id(), "list_templates", new_id())

    await other.prepare()
    with_names = {name: hand.watch.token(name) for name in looked}
    await hand.worker.republisher._publish_again(with_names)

    assert JOB.name in looked
    assert [found["build_id"] for found in rig.jobs()] == [job["build_id"]]


async def test_a_lost_job_is_published_once_although_requests_still_count_as_lost(
    rig: Rig, hand: Hand, job: Job, chat: str
) -> None:
    """Another worker prepares before senders were asked, and a caller repeats its request."""
    wipe_streams(rig)
    await hand.worker.republisher.prepare()

    other = rig.hand()
    assert await other.worker.republisher.prepare() == {IN.name}
    await other.worker.republisher.publish_missing({chat})

    assert rig.jobs() == [job]


async def test_a_worker_that_finds_a_loss_which_another_has_just_repaired_checks_again(
    rig: Rig, hand: Hand, job: Job
) -> None:
    wipe_streams(rig)
    other = rig.hand()

    class Late(MemoryRecovery):
        async def mark_lost(self, before: Mapping[str, StreamPosition | None], token: str) -> None:
            await other.prepare()
            await rig.store.recovery.mark_lost(before, token)

    late = MemoryStore(rig.now)
    late.recovery = Late(late)
    late.recovery._positions = rig.store.recovery._positions

    with pytest.raises(Unavailable, match="another worker"):
        await rig.hand(store=late).watch.find_losses()

    assert len(rig.jobs()) == 1


async def test_a_loss_stays_marked_until_everything_is_published_again(
    rig: Rig, hand: Hand, ready: Job, chat: str
) -> None:
    """A worker may die while it publishes again, when its messages have already filled the gap."""
    await hand.prepare()
    before = rig.state(chat)
    crash(rig, {STATE.name: 1})
    await hand.watch.find_losses()
    other = {"data": {"chat_id": new_id(), "version": 1}}
    await rig.bus.publish(subjects.state(other["data"]["chat_id"]), json.dumps(other).encode())

    await rig.hand().prepare()

    assert rig.state(chat) == before


async def test_a_stream_that_is_shorter_without_a_restart_is_only_searched(
    rig: Rig, hand: Hand, ready: Job, chat: str
) -> None:
    """Another worker may have recorded a position of the time before the crash."""
    await hand.prepare()
    before = rig.state(chat)
    rig.server.streams[STATE.name].lose_tail(1)

    lost = await hand.prepare()

    assert lost == frozenset()
    assert rig.state(chat) == before


async def test_streams_that_are_shorter_together_with_one_on_the_disk_have_lost_more(
    rig: Rig, hand: Hand, ready: Job, chat: str
) -> None:
    """The files of all streams may be those of yesterday."""
    await hand.prepare()
    crash(rig, {IN.name: 1, STATE.name: 1})

    lost = await hand.prepare()

    assert {IN.name, STATE.name} <= lost


async def test_a_second_crash_soon_after_the_first_loses_nothing(
    rig: Rig, hand: Hand, ready: Job, chat: str
) -> None:
    """What was published again need not be on the disk, however long ago it was committed."""
    await hand.prepare()
    before = rig.state(chat)
    crash(rig, {STATE.name: 1})
    rig.clock.advance(TEN_MINUTES / 2)
    await hand.prepare()
    await rig.senders.ask(new_id(), "list_templates", "other")
    newest = hand.take()
    await hand.work(newest)
    await hand.watch.follow(newest[-1:])
    crash(rig, {STATE.name: 1})

    await rig.hand().prepare()

    assert rig.state(chat) == before


async def test_after_a_crash_the_second_worker_has_nothing_left_to_publish(
    rig: Rig, hand: Hand, ready: Job, chat: str
) -> None:
    """It knows how far the streams were before the crash, and may record that once more."""
    other = rig.hand()
    await hand.prepare()
    await other.prepare()
    await rig.senders.ask(chat, "stop_workspace", "stop")
    newest = other.take()
    await other.work(newest)
    crash(rig, {STATE.name: 1, TIMER.name: 1})
    rig.states[chat].clear()
    assert await hand.prepare() == {PRESENCE.name}
    assert [state["state"] for state in rig.states[chat]] == ["stopping"]
    published = {name: last_sequence(rig, name) for name in (STATE.name, RESULT.name)}
    await other.watch.follow(newest[-1:])

    assert await other.prepare() == frozenset()
    assert await rig.hand().prepare() == frozenset()

    assert published == {name: last_sequence(rig, name) for name in published}


async def test_a_worker_that_has_not_checked_a_new_server_does_not_say_it_was_seen(
    rig: Rig, hand: Hand, send: Senders, ready: Job, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next worker would not look for what the earlier process lost."""
    monkeypatch.setattr(stream_watch, "UNWRITTEN", timedelta(0))
    other = rig.hand()
    for one in (hand, other):
        await one.prepare()
    before = await rig.store.recovery.seen_server()
    await send.ask(chat, "stop_workspace", "stop")
    newest = other.take()
    await other.work(newest)
    crash(rig, {STATE.name: 1})
    dying = rig.hand()
    await dying.watch.find_losses()  # it stops before it has published anything
    rig.clock.advance(TEN_MINUTES)
    await dying.watch.follow(newest[-1:])

    assert await rig.store.recovery.seen_server() == before
    await hand.prepare()
    assert rig.state(chat)["state"] == "stopping"


async def test_messages_published_during_the_check_count_in_the_next_check(
    rig: Rig, hand: Hand, send: Senders, ready: Job, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hand.prepare()
    seen = rig.store.recovery.stream_positions

    async def slow() -> dict[str, StreamPosition]:
        await send.ask(chat, "stop_workspace", "stop")
        await hand.pump()
        return await seen()

    with monkeypatch.context() as patch:
        patch.setattr(rig.store.recovery, "stream_positions", slow)
        await hand.prepare()
    before = rig.state(chat)
    assert before["state"] == "stopping"
    crash(rig, {STATE.name: 1})

    await hand.prepare()
    assert rig.state(chat) == before


async def test_nothing_is_published_between_a_reconnect_and_the_check_for_losses(
    rig: Rig, hand: Hand, send: Senders, ready: Job, chat: str
) -> None:
    """New messages would have the sequences of lost ones, which would hide the loss."""
    hand.worker.gate.close()
    await send.ask(chat, "stop_workspace", "stop")
    await hand.pump()
    assert rig.state(chat)["state"] == "ready"

    await hand.prepare()
    await hand.let_time_pass(WORKER_IN.ack_wait)

    assert rig.state(chat)["state"] == "stopping"


async def test_two_workers_may_recover_from_the_same_loss(
    rig: Rig, hand: Hand, job: Job, chat: str
) -> None:
    before, other = rig.state(chat), rig.hand()
    await other.prepare()
    wipe_streams(rig)

    first = await hand.watch.find_losses()
    await other.prepare()
    await hand.prepare()

    assert STATE.name in first
    assert rig.state(chat) == before
    assert rig.jobs() == [job]


async def test_a_lost_end_of_the_log_stream_is_ignored(rig: Rig, hand: Hand, chat: str) -> None:
    await rig.bus.publish(subjects.log(chat, new_id()), b"{}")
    await hand.prepare()
    rig.server.streams[LOG.name].lose_tail(1)

    assert LOG.name not in await hand.prepare()


async def test_senders_are_asked_for_their_facts_more_than_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some senders reconnect to NATS later than the worker, and must receive the request too."""
    monkeypatch.setattr("handlers.worker.recovery.republisher.RECONNECT_SECONDS", 0.001)
    asked: list[Message] = []
    rig.server.interests.append(Interest("workspaced.resend.*", "", asked.append))

    hand = rig.hand()

    await hand.worker.republisher.ask_senders()

    assert [m.subject for m in asked] == [
        subjects.RESEND_PROVISIONER,
        subjects.RESEND_AGENT,
    ] * ASK_COUNT


async def test_the_next_worker_asks_senders_if_one_crashed_before_it_asked(
    rig: Rig, hand: Hand, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other streams are repaired by then; only the requests are still marked as lost."""
    monkeypatch.setattr("handlers.worker.recovery.republisher.RECONNECT_SECONDS", 0.001)
    wipe_streams(rig)
    await hand.worker.republisher.prepare()

    next_one = rig.hand()
    lost = await next_one.watch.find_losses()
    assert await rig.hand().watch.find_losses() == {IN.name}
    await next_one.worker.republisher.ask_senders()

    assert lost == {IN.name}
    assert await rig.hand().watch.find_losses() == frozenset()


async def test_a_running_worker_notices_a_loss_and_asks_senders(
    rig: Rig, hand: Hand, send: Senders, job: Job, chat: str
) -> None:
    """The worker compares the streams with the database when it reconnects to NATS."""
    asked = asyncio.Event()
    before = rig.state(chat)
    running = asyncio.create_task(hand.worker.run())
    try:
        await hand.worker.ready.wait()
        rig.server.interests.append(Interest(subjects.RESEND_AGENT, "", lambda _: asked.set()))

        wipe_streams(rig)
        await asyncio.wait_for(asked.wait(), PATIENCE)
    finally:
        running.cancel()
        await asyncio.wait([running])

    assert rig.state(chat) == before
    assert rig.jobs() == [job]
