"""The database was restored to an earlier moment; NATS, provisioners and agents were not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from bus import subjects
from bus.streams import RESULT
from statemachine.views import state_changed
from tests.rigs.messages import new_id
from tests.worker.messages import Job, Senders
from tests.worker.rig import Hand, Rig

Restore = Callable[[], Hand]
RESTORED = "workspaced.database_restored.v1"


@pytest.fixture
def backup(rig: Rig) -> Callable[[], Restore]:
    """Return a function that copies the store and returns another, which restores the copy."""

    def taken() -> Restore:
        kept = rig.store.backup()

        def restored() -> Hand:
            rig.store.restore(kept)
            rig.store.recovery.current_origin = "another"
            return rig.hand()

        return restored

    return taken


async def expect_published_state_matches(rig: Rig, chat: str) -> dict[str, Any]:
    """Expect that the published state is the database's; return it."""
    kept = await rig.store.chats.get(chat)
    assert kept is not None
    published = rig.state(chat)
    assert published == json.loads(json.dumps(state_changed(kept)))
    return published


async def report_build(send: Senders, job: Job, *, ids: str = "1") -> None:
    """Publish all facts of a build and its agent; facts with equal `ids` are repeats."""
    names = {"workspace_name": job["workspace_name"], "owner_name": job["owner_name"]}
    names |= {"template_id": job["template"]["id"]}
    await send.built(job, "started", event_id=f"{job['build_id']}-s{ids}", **names)
    await send.built(job, event_id=f"{job['build_id']}-e{ids}")
    if job["transition"] == "start":
        await send.agent(job, "connected", 1, event_id=f"{job['build_id']}-c{ids}")
        await send.agent(job, "ready", 2, event_id=f"{job['build_id']}-r{ids}")


async def given_ready_workspace(
    rig: Rig, hand: Hand, send: Senders, chat: str, call: str = "c"
) -> Job:
    await send.create(chat, call, name="blue")
    await hand.pump()
    job = rig.job
    await report_build(send, job)
    await hand.pump()
    return job


async def given_stopped_workspace(rig: Rig, hand: Hand, send: Senders, chat: str) -> Job:
    await send.ask(chat, "stop_workspace", "stop")
    await hand.pump()
    job = rig.job
    await report_build(send, job)
    await hand.pump()
    return job


async def test_a_restored_chat_continues_above_its_published_version(
    rig: Rig, hand: Hand, send: Senders, chat: str, backup: Callable[[], Restore]
) -> None:
    await hand.prepare()
    await given_ready_workspace(rig, hand, send, chat)
    restore = backup()
    stop = await given_stopped_workspace(rig, hand, send, chat)
    before = rig.state(chat)
    assert (before["state"], before["version"]) == ("stopped", 8)

    worker = restore()
    lost = await worker.prepare()

    assert lost, "so senders are asked for their facts"
    after = await expect_published_state_matches(rig, chat)
    assert (after["state"], after["version"]) == ("ready", 9)
    assert (after["cause"]["source"], after["cause"]["type"]) == ("/workspaced", RESTORED)
    await report_build(send, stop)
    await worker.pump()
    assert (await expect_published_state_matches(rig, chat))["state"] == "stopped"
    assert (await expect_published_state_matches(rig, chat))["version"] == 11


async def test_a_chat_that_is_not_behind_is_left_unchanged(
    rig: Rig, hand: Hand, send: Senders, chat: str, backup: Callable[[], Restore]
) -> None:
    await hand.prepare()
    await given_ready_workspace(rig, hand, send, chat)
    restore = backup()

    await restore().prepare()

    await rig.check(chat)
    log = await rig.store.chats.log(chat)
    assert not [entry for entry in log if "database_restored" in entry["event"]["type"]]


async def test_a_restore_is_handled_only_once(
    rig: Rig, hand: Hand, send: Senders, chat: str, backup: Callable[[], Restore]
) -> None:
    await hand.prepare()
    await given_ready_workspace(rig, hand, send, chat)
    restore = backup()
    await given_stopped_workspace(rig, hand, send, chat)
    worker = restore()
    await worker.prepare()
    published = len(rig.envelopes)

    assert await rig.hand().prepare() == frozenset()
    assert await worker.prepare() == frozenset()
    assert len(rig.envelopes) == published


async def test_a_chat_missing_from_the_database_gets_its_workspace_and_name_back(
    rig: Rig, hand: Hand, send: Senders, chat: str, backup: Callable[[], Restore]
) -> None:
    await hand.prepare()
    restore = backup()
    job = await given_ready_workspace(rig, hand, send, chat)
    version = rig.state(chat)["version"]
    answer = rig.answer(chat)

    worker = restore()
    await worker.prepare()

    bare = await expect_published_state_matches(rig, chat)
    assert (bare["state"], bare["workspace"], bare["version"]) == ("none", None, version + 1)
    await report_build(send, job)
    await worker.pump()
    back = await expect_published_state_matches(rig, chat)
    assert (back["state"], back["workspace"]["id"]) == ("ready", job["workspace_id"])
    assert back["workspace"]["name"] == "blue"
    await send.create(chat, "c", name="blue")
    await send.create(chat, "another-call", name="blue")
    await send.create(other := new_id(), name="blue")
    await worker.pump()
    assert rig.answer(chat) == answer
    assert rig.answer(chat, "another-call")["result"]["status"] == "already_exists"
    assert rig.job["chat_id"] == other
    assert rig.job["workspace_name"].startswith("blue-")
    assert [j["workspace_id"] for j in rig.jobs() if j["chat_id"] == chat] == [job["workspace_id"]]


async def test_a_call_answered_before_the_restore_stays_answered(
    rig: Rig, hand: Hand, send: Senders, chat: str, backup: Callable[[], Restore]
) -> None:
    """Even if the restored database has it as open; and a refused call may still be corrected."""
    await hand.prepare()
    await send.create(chat)
    await hand.pump()
    job = rig.job
    restore = backup()
    await report_build(send, job)
    await hand.pump()
    await send.ask(chat, "create_workspace", "wrong", template_id="x")
    await hand.pump()
    answer = rig.answer(chat)

    worker = restore()
    await worker.prepare()
    kept = await rig.store.chats.get(chat)
    assert kept is not None
    assert kept.open_calls == 0
    await send.create(chat)
    await send.ask(chat, "list_templates", "wrong")
    await worker.pump()

    assert rig.answer(chat) == answer
    assert rig.results[chat, "wrong"][-1]["is_error"] is False
    last = await rig.bus.get_last(RESULT.name, subjects.result(chat, "c"))
    assert last is not None
    assert json.loads(last.data)["data"] == answer


async def test_the_job_of_a_build_that_is_open_after_a_restore_is_published_again(
    rig: Rig, hand: Hand, send: Senders, chat: str, backup: Callable[[], Restore]
) -> None:
    await hand.prepare()
    await send.create(chat)
    await hand.pump()
    restore = backup()
    asked = len(rig.jobs())

    await restore().prepare()

    assert rig.jobs()[asked:] == [rig.jobs()[0]]


async def test_an_empty_database_counts_as_restored_if_the_streams_have_states(
    rig: Rig, hand: Hand, send: Senders, chat: str, backup: Callable[[], Restore]
) -> None:
    """The database has no rows at all, and no record of its origin."""
    restore = backup()
    job = await given_ready_workspace(rig, hand, send, chat)

    worker = restore()
    await worker.prepare()
    await report_build(send, job)
    await worker.pump()

    assert (await expect_published_state_matches(rig, chat))["state"] == "ready"


@pytest.mark.parametrize("moves", [1, 2, 3])
async def test_a_running_worker_detects_the_restore_at_the_first_move(
    rig: Rig, hand: Hand, send: Senders, chat: str, backup: Callable[[], Restore], moves: int
) -> None:
    """Whether the new version is below, equal to, or above the published one."""
    quiet = new_id()
    await hand.prepare()
    await given_ready_workspace(rig, hand, send, chat)
    await given_ready_workspace(rig, hand, send, quiet, "q")
    restore = backup()
    await send.ask(chat, "stop_workspace", "stop")
    await hand.pump()
    stop = rig.job
    await given_stopped_workspace(rig, hand, send, quiet)
    restore()
    rig.store.recovery.current_origin = (
        "memory"  # the same origin: a copy of the data files was restored
    )

    await send.agent({**stop, "build_id": await build_id_of(rig, chat)}, "disconnected", 7 + moves)
    await hand.pump()
    found = hand.worker.republisher._restored
    await hand.prepare()

    assert found
    assert (await expect_published_state_matches(rig, chat))["agent"]["status"] == "disconnected"
    assert (await expect_published_state_matches(rig, quiet))["state"] == "ready"
    assert (await expect_published_state_matches(rig, quiet))["cause"]["type"] == RESTORED
    assert hand.worker.republisher._restored is False


async def build_id_of(rig: Rig, chat: str) -> str:
    kept = await rig.store.chats.get(chat)
    assert kept is not None
    assert kept.build is not None
    return kept.build.id


async def test_a_state_published_by_a_crashed_worker_does_not_count_as_a_restore(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """A worker died between publishing and its ack, so others find its state."""
    await hand.prepare()
    event = {"event_id": new_id()}
    await send.create(chat, **event)
    dying = rig.hand()

    batch = await dying.worker.commit(dying.take())
    assert batch is not None
    await dying.relay.publish(batch.result.messages)
    await send.create(chat, **event)

    await hand.pump()

    assert hand.worker.republisher._restored is False
    assert rig.state(chat)["version"] == 1


async def test_messages_that_are_neither_states_nor_answers_are_skipped(
    rig: Rig, hand: Hand, send: Senders, chat: str, backup: Callable[[], Restore]
) -> None:
    await hand.prepare()
    await given_ready_workspace(rig, hand, send, chat)
    restore = backup()
    await given_stopped_workspace(rig, hand, send, chat)
    rig.server.interests.clear()
    for subject in (subjects.state(new_id()), subjects.state("x"), subjects.result("x", "y")):
        for body in (b"{", b"[]", b'{"data": 7}', b'{"data": {"version": "x", "result": 1}}'):
            await rig.bus.publish(subject, body)
    shouted = new_id().upper()  # PostgreSQL would accept it, and return it in lower case
    await rig.bus.publish(subjects.state(shouted), b'{"data": {"version": 1}}')
    await rig.bus.publish(subjects.result(shouted, "y"), b'{"data": {"result": {}}}')

    await restore().prepare()

    assert (await expect_published_state_matches(rig, chat))["version"] == 9
    assert await rig.store.chats.get(shouted) is None
