"""An event is applied once, however often it is delivered, and to however many workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from bus import Bus, BusError, Outbound, PubAck, Unavailable, subjects
from bus.streams import JOB, WORKER_IN, Tuning
from handlers.worker.batch import Noticed, apply
from handlers.worker.deliveries import read, repeated
from handlers.worker.publications import Lane, Publication
from statemachine.store import Look
from tests.doubles.memory_store import MemoryStore
from tests.doubles.subjects import matches
from tests.rigs.messages import new_id, tool_request
from tests.worker.messages import Senders
from tests.worker.rig import Hand, Rig


async def test_a_create_is_answered_when_the_workspace_is_ready(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat, name="blue")
    await hand.pump()
    job = rig.job
    assert job["transition"] == "start"
    assert job["workspace_name"] == "blue"
    assert (chat, "c") not in rig.results

    for how in ("started", "succeeded"):
        await send.built(job, how)
    await send.agent(job, "connected", 1)
    await send.agent(job, "ready", 2)
    await hand.pump(most=1)

    assert rig.path(chat) == ["building", "agent_connecting", "scripts_running", "ready"]
    assert rig.answer(chat)["result"] == {
        "created": True,
        "workspace_id": job["workspace_id"],
        "workspace_name": "ann/blue",
        "build_id": job["build_id"],
    }
    await rig.check(chat)


@pytest.mark.parametrize("most", [1, 2])
async def test_a_repeated_identity_has_no_further_effect(
    rig: Rig, hand: Hand, send: Senders, chat: str, most: int
) -> None:
    """Whether both deliveries are in one batch or in two."""
    event_id = new_id()
    for _ in range(2):
        await send.create(chat, event_id=event_id)

    await hand.pump(most)

    assert len(rig.jobs()) == 1
    assert await rig.outcomes(chat) == ["kept", "moved", "repeat"]
    await rig.check(chat)


async def test_two_workers_that_have_the_same_event_apply_it_once(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    other = rig.hand()
    await send.create(chat)
    first = hand.take()
    rig.clock.advance(WORKER_IN.ack_wait)  # redelivered, to the other worker
    second = other.take()
    assert [d.sequence for d in first] == [d.sequence for d in second]

    await asyncio.gather(hand.work(first), other.work(second))

    assert len(rig.jobs()) == 1
    assert (await rig.outcomes(chat)).count("repeat") == 1
    await rig.check(chat)


async def test_the_same_identity_in_another_chat_is_another_event(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    event_id, other = new_id(), new_id()
    for one in (chat, other):
        await send.create(one, event_id=event_id)

    await hand.pump()

    assert {job["chat_id"] for job in rig.jobs()} == {chat, other}


class Broken:
    """A bus that fails once on a subject, before or `after` it has stored the message."""

    def __init__(self, bus: Bus, subject: str, *, after: bool) -> None:
        self._bus, self._subject, self._after = bus, subject, after
        self.broke = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish_many(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
        if self.broke or not any(matches(self._subject, m.subject) for m in messages):
            return await self._bus.publish_many(messages)
        self.broke = True
        if self._after:
            await self._bus.publish_many(messages)
        return [Unavailable("the connection broke")] * len(messages)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("subject", [subjects.STATES, subjects.JOBS])
async def test_committed_effects_are_published_when_the_event_is_redelivered(
    rig: Rig, send: Senders, chat: str, subject: str, *, after: bool
) -> None:
    broken = Broken(rig.bus, subject, after=after)
    await send.create(chat)

    await rig.hand(bus=broken).pump()
    assert broken.broke
    rig.clock.advance(WORKER_IN.ack_wait)
    await rig.hand().pump()

    assert len(rig.jobs()) == 1
    await rig.check(chat)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_call_is_answered_when_its_answer_was_not_published_at_first(
    rig: Rig, send: Senders, chat: str, *, after: bool
) -> None:
    broken = Broken(rig.bus, subjects.RESULTS, after=after)
    await send.ask(chat, "list_templates")

    await rig.hand(bus=broken).pump()
    rig.clock.advance(WORKER_IN.ack_wait)
    await rig.hand().pump()

    assert rig.answer(chat)["result"]["count"] == 1
    assert len(rig.results[chat, "c"]) == 1


@pytest.mark.parametrize("then", ["build_started", "much later"])
async def test_a_job_that_was_published_is_not_published_again(
    rig: Rig, hand: Hand, send: Senders, chat: str, then: str
) -> None:
    """Its provisioner may have acknowledged it, and NATS would store it as a new message."""
    await send.create(chat)
    deliveries: Any = hand.take()
    await hand.work(deliveries)
    job = rig.job
    stream = rig.server.streams[JOB.name]
    stream.remove(next(iter(stream.messages)))  # acknowledged
    if then == "build_started":
        await send.built(job, "started")
        await hand.pump()
    else:
        rig.clock.advance(hand.worker.tuning.duplicate_window + 1)

    for delivery in deliveries:  # its acknowledgement was lost
        delivery.redelivered = True
    await rig.hand().work(deliveries)

    assert rig.jobs() == []
    await rig.check(chat)


async def test_a_job_that_was_not_published_is_published_however_late(
    rig: Rig, send: Senders, chat: str
) -> None:
    """NATS remembers message ids for a shorter time than the event waited."""
    await send.create(chat)
    assert await rig.hand().worker.commit(rig.hand().take()) is not None
    hand = rig.hand()
    hand.watch.tuning = hand.worker.tuning = Tuning(duplicate_window=1.0)

    await hand.let_time_pass(WORKER_IN.ack_wait)

    assert len(rig.jobs()) == 1
    await rig.check(chat)


async def test_a_request_that_is_redelivered_is_answered_again(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """Its caller had the answer before, and asked again; the worker died before it answered that."""
    await send.ask(chat, "list_templates")
    await hand.pump()
    await send.ask(chat, "list_templates")
    assert await rig.hand().worker.commit(hand.take()) is not None
    assert len(rig.results[chat, "c"]) == 1

    await hand.let_time_pass(WORKER_IN.ack_wait)

    assert len(rig.results[chat, "c"]) == 2


async def test_a_refusal_does_not_count_as_the_answer_of_the_corrected_request(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    incomplete = {"call_id": "c", "tool": "list_templates"}
    await send.publish(tool_request("service", chat, incomplete))
    await hand.pump()
    await send.ask(chat, "list_templates")
    assert await rig.hand().worker.commit(hand.take()) is not None
    assert [answer["is_error"] for answer in rig.results[chat, "c"]] == [True]

    await hand.let_time_pass(WORKER_IN.ack_wait)

    assert [answer["is_error"] for answer in rig.results[chat, "c"]] == [True, False]


async def test_everything_is_published_when_an_event_is_redelivered_after_a_crash(
    rig: Rig, send: Senders, chat: str
) -> None:
    """The state, the job and the alarm; NATS discards what it has already."""
    await send.create(chat)
    assert await rig.hand().worker.commit(rig.hand().take()) is not None
    assert rig.jobs() == []
    assert chat not in rig.states

    rig.clock.advance(WORKER_IN.ack_wait)
    hand = rig.hand()
    await hand.pump()

    assert len(rig.jobs()) == 1
    await rig.check(chat)
    await hand.let_time_pass(600)
    assert rig.state(chat)["state"] == "failed"
    assert "error" in rig.answer(chat)["result"]


async def test_a_worker_that_crashes_before_its_ack_causes_a_repeat(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await send.create(chat)

    class Lost:
        def __init__(self, delivery: Any) -> None:
            self._delivery = delivery

        def __getattr__(self, name: str) -> Any:
            return getattr(self._delivery, name)

        async def ack(self) -> None:
            """Send nothing, as if the ack was lost."""

    await hand.work([Lost(delivery) for delivery in hand.take()])
    rig.clock.advance(WORKER_IN.ack_wait)
    assert await rig.hand().pump() == 1

    assert len(rig.jobs()) == 1
    assert await rig.outcomes(chat) == ["kept", "moved", "repeat"]
    await rig.check(chat)


async def test_an_older_state_never_replaces_a_newer_one(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """A worker that was paused between commit and publish continues."""
    late, sent = rig.hand(), list[Publication]()

    async def pause(rows: Sequence[Publication], **_more: object) -> None:
        sent.extend(rows)

    await send.create(chat)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(late.relay, "publish", pause)
        await late.pump()
    job_row = next(row for row in sent if row.lane == Lane.JOB)
    await hand.relay.publish([job_row])
    await send.built(rig.job, "failed")
    await hand.pump()
    assert rig.state(chat)["version"] == 2

    await late.relay.publish(sent)

    assert rig.state(chat)["version"] == 2
    assert [s["version"] for s in rig.states[chat]] == [2]
    assert len(rig.jobs()) == 1


async def test_after_two_relays_published_concurrently_the_newest_state_is_stored(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    sent: list[Publication] = []
    relay = rig.hand().relay

    async def keep(rows: Sequence[Publication], **_more: object) -> None:
        sent.extend(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hand.relay, "publish", keep)
        await send.create(chat)
        await hand.pump()
        job = {**created(sent), "chat_id": chat}
        for step in ("started", "succeeded"):
            await send.built(job, step)
        for sequence, how in enumerate(("connected", "ready"), 1):
            await send.agent(job, how, sequence)
        await hand.pump()
    states = [row for row in sent if row.lane == Lane.STATE]
    assert len(states) >= 4

    await asyncio.gather(relay.publish(states[::-1]), hand.relay.publish(states[:2]))
    await asyncio.gather(*(rig.hand().relay.publish([row]) for row in states[::-1]))

    assert rig.state(chat)["version"] == states[-1].version
    versions = [s["version"] for s in rig.states[chat]]
    assert versions == sorted(versions)


def created(rows: Sequence[Publication]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(next(r for r in rows if r.lane == Lane.JOB).payload)["data"]
    return data


async def test_a_relay_that_published_a_newer_state_publishes_no_older_one(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """It looks for unpublished messages when the event of another worker is redelivered."""
    event_id, dying = new_id(), rig.hand()
    await send.create(chat)
    await hand.pump()
    job = rig.job
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dying.relay, "publish", die_before_publishing)
        await send.built(job, agents=("main",), event_id=event_id)
        await dying.pump()
    await send.agent(job, "starting", 1)
    await hand.work(hand.take())
    assert rig.state(chat)["state"] == "scripts_running"

    await hand.let_time_pass(WORKER_IN.ack_wait)

    assert [s["version"] for s in rig.states[chat]] == [1, 3]


async def die_before_publishing(rows: Sequence[Publication], **_more: object) -> None:
    raise Unavailable(f"died with {len(rows)}")


async def test_a_redelivered_event_disconnects_agents_of_the_superseded_build(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """Its worker died after the commit, so the old build's agents are still connected."""
    await send.create(chat)
    items = [read(delivery, rig.now()) for delivery in hand.take()]
    await apply(items, rig.store, rig.limits, b"seed")
    noticed = Noticed()

    again = [repeated(item) for item in items]
    await apply(again, rig.store, rig.limits, b"seed", noticed=noticed)

    assert noticed.superseded == {chat}


@pytest.mark.parametrize("between", ["started", "succeeded"])
async def test_a_fact_whose_chat_changes_after_it_was_read_is_applied_to_the_changed_chat(
    rig: Rig, hand: Hand, send: Senders, chat: str, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    """A worker locks nothing between reading and writing; here another worker is faster."""
    await send.create(chat)
    await hand.pump()
    job, other, look = rig.job, rig.hand(), MemoryStore.look
    hand = rig.hand()  # it remembers nothing

    async def overtaken(self: MemoryStore, *wanted: Any) -> Look:
        seen = await look(self, *wanted)
        monkeypatch.setattr(MemoryStore, "look", look)
        await send.built(job, between)
        await other.work(other.take())
        return seen

    await send.agent(job, "connected", 1)
    mine = hand.take()
    monkeypatch.setattr(MemoryStore, "look", overtaken)
    await hand.work(mine)
    await hand.pump()

    facts = [e["event"]["type"].split(".")[1] for e in await rig.store.chats.log(chat)]
    assert facts[-2:] == [f"build_{between}", "agent_connected"]
    await send.built(job)
    await hand.pump()
    assert rig.path(chat) == ["building", "agent_connecting", "scripts_running"]
    await rig.check(chat)


async def test_new_chats_repeats_and_plain_facts_share_a_batch(
    rig: Rig, hand: Hand, send: Senders
) -> None:
    """One of the chats is new, one event is a repeat, and one chat's fact needs nothing more."""
    chats = [new_id() for _ in range(2)]
    for chat in chats:
        await send.create(chat, owner=new_id())
    await hand.pump()
    jobs = {job["chat_id"]: job for job in rig.jobs()}
    again = new_id()
    await send.built(jobs[chats[0]], "started", event_id=again)
    await hand.pump()

    stranger = {**jobs[chats[0]], "chat_id": new_id()}
    await send.built(jobs[chats[0]], "started", event_id=again)
    await send.built(stranger, "started")
    await send.built(jobs[chats[1]], "started")
    await hand.pump()

    assert await rig.outcomes(chats[0]) == ["kept", "moved", "changed", "repeat"]
    assert await rig.outcomes(chats[1]) == ["kept", "moved", "changed"]
    assert len(await rig.outcomes(stranger["chat_id"])) == 1
    for chat in chats:
        await rig.check(chat)


async def test_an_answer_never_overtakes_its_state_when_its_request_is_redelivered_too(
    rig: Rig, send: Senders, chat: str
) -> None:
    """A worker died after it had committed the request, the end of the build and the answer."""
    await send.create(chat)
    first = rig.hand()
    deliveries: Any = first.take()
    await first.work(deliveries)
    await send.built(rig.job, agents=())
    more: Any = rig.hand().take()
    assert await rig.hand().worker.commit(more) is not None
    assert rig.state(chat)["state"] == "building"
    seen: list[str] = []

    class Watched(Broken):
        async def publish_many(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
            seen.extend(message.subject.split(".")[1] for message in messages)
            return await rig.bus.publish_many(messages)

    for delivery in [*deliveries, *more]:
        delivery.redelivered = True
    await rig.hand(bus=Watched(rig.bus, "", after=False)).work([*deliveries, *more])

    assert seen.index("state") < seen.index("result")
    await rig.check(chat)
