"""Workspaces that rest are deleted after a time, and replaced ones leave nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from statemachine.lifetimes import rests_since
from tests.rigs.messages import new_id
from tests.worker.messages import TEMPLATE_ID, Job, Senders
from tests.worker.rig import Hand, Rig

KEEP, BUILD, DAY = 3600.0, 600.0, 86_400.0
DELAYS = (60.0, 300.0, 1500.0, DAY, DAY)
PASSED = "workspaced.retention_passed.v1"


@pytest.fixture
async def rig() -> Rig:
    rig = await Rig().open()
    await rig.store.put_setting("stopped_workspace_retention", "1h")
    return rig


async def given(rig: Rig, hand: Hand, chat: str, how: str) -> Job:
    """Bring a workspace to rest now; return its last job."""
    send = rig.senders
    await send.create(chat)
    await hand.pump()
    if how in ("failed", "canceled"):
        await send.built(rig.job, how)
    else:
        await send.built(rig.job, agents=("main",))
        await send.agent(rig.job, "connected", 1)
        await send.agent(rig.job, "ready", 2)
        await hand.pump()
        if how != "running":
            await send.ask(chat, "stop_workspace", "stop")
            await hand.pump()
            await send.built(rig.job)
    await hand.pump()
    return rig.job


async def end(rig: Rig, hand: Hand, job: Job, how: str) -> None:
    """End a build: `failed`, `canceled`, or `out of time`."""
    if how == "out of time":
        await hand.let_time_pass(BUILD)
    else:
        await rig.senders.built(job, how)
        await hand.pump()


async def types(rig: Rig, chat: str) -> Sequence[str]:
    return [e["event"]["type"] for e in await rig.store.chats.log(chat, limit=10_000)]


@pytest.mark.parametrize("how", ["stopped", "failed", "canceled"])
async def test_a_workspace_that_rests_is_deleted(rig: Rig, hand: Hand, chat: str, how: str) -> None:
    job = await given(rig, hand, chat, how)
    await hand.let_time_pass(KEEP - 1)
    assert rig.job == job

    await hand.let_time_pass(1)

    state, delete = rig.state(chat), rig.job
    assert (state["state"], state["build"]["transition"]) == ("stopping", "delete")
    assert (state["cause"]["type"], state["cause"]["source"]) == (PASSED, "/workspaced")
    assert delete["transition"] == "delete"
    assert delete["build_number"] == job["build_number"] + 1
    await rig.senders.built(delete)
    await hand.pump()
    assert rig.state(chat)["state"] == "none"
    await hand.let_time_pass(DAY)
    assert rig.job == delete
    await rig.check(chat)


@pytest.mark.parametrize("how", ["failed", "canceled", "out of time"])
async def test_a_delete_that_does_not_succeed_is_tried_again(
    rig: Rig, hand: Hand, chat: str, how: str
) -> None:
    job = await given(rig, hand, chat, "stopped")
    await hand.let_time_pass(KEEP)
    for number, delay in enumerate(DELAYS, job["build_number"] + 1):
        delete = rig.job
        assert (delete["transition"], delete["build_number"]) == ("delete", number)
        await rig.senders.built(delete, "started")
        await end(rig, hand, delete, how)
        assert rig.state(chat)["state"] == "failed"
        assert rig.state(chat)["stops_at"] is None
        await hand.let_time_pass(delay - 1)
        assert rig.job == delete
        await hand.let_time_pass(1)
        assert rig.state(chat)["cause"]["type"] == PASSED
    await rig.senders.built(rig.job)
    await hand.pump()
    assert rig.state(chat)["state"] == "none"
    await rig.check(chat)


async def test_a_delete_that_was_canceled_before_it_began_is_tried_again(
    rig: Rig, hand: Hand, chat: str
) -> None:
    await given(rig, hand, chat, "stopped")
    await hand.let_time_pass(KEEP)
    delete = rig.job
    await rig.senders.built(delete, "canceled")
    await hand.pump()
    await hand.let_time_pass(59)
    assert rig.job == delete

    await hand.let_time_pass(1)

    assert rig.job["build_number"] == delete["build_number"] + 1
    await rig.check(chat)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("revoked", [False, True])
@pytest.mark.parametrize("how", ["failed", "canceled"])
async def test_a_delete_that_was_requested_is_tried_again_unless_somebody_canceled_it_before_it_began(
    rig: Rig, hand: Hand, chat: str, how: str, *, begun: bool, revoked: bool
) -> None:
    await given(rig, hand, chat, "running")
    await rig.senders.delete(chat)
    await hand.pump()
    delete = rig.job
    if begun:
        await rig.senders.built(delete, "started")
        await hand.pump()
    if revoked:
        await rig.senders.cancel_build(chat)
        await hand.pump()
    await rig.senders.built(delete, how)
    await hand.pump()
    await hand.let_time_pass(60)

    kept = revoked and how == "canceled" and not begun
    assert (rig.state(chat)["build"]["id"] == delete["build_id"]) is kept
    await rig.check(chat)


async def test_a_canceled_delete_that_had_begun_is_tried_again_whatever_came_first(
    rig: Rig, hand: Hand, chat: str
) -> None:
    await given(rig, hand, chat, "stopped")
    await rig.senders.delete(chat)
    await hand.pump()
    delete = rig.job
    await rig.senders.cancel_build(chat)
    await hand.pump()
    for fact in ("canceled", "started"):
        await rig.senders.built(delete, fact)
        await hand.pump()
    await hand.let_time_pass(60)

    assert rig.state(chat)["build"]["number"] == delete["build_number"] + 1
    await rig.check(chat)


async def test_a_workspace_that_runs_or_was_started_again_does_not_rest(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    running, other = new_id(), new_id()
    await given(rig, hand, running, "running")
    await given(rig, hand, other, "running")
    await send.agent(rig.job, "disconnected", 3)
    await given(rig, hand, chat, "stopped")
    await hand.let_time_pass(KEEP - 1)
    await send.ask(chat, "start_workspace", "again")
    await hand.pump()
    started = rig.job

    await hand.let_time_pass(KEEP)
    await send.built(started)
    await hand.let_time_pass(DAY)

    assert rig.job == started
    assert rig.state(running)["state"] == "ready"
    await rig.check(chat)


async def test_a_changed_setting_holds_at_once_for_all_that_rest(
    rig: Rig, hand: Hand, chat: str
) -> None:
    await rig.store.put_setting("stopped_workspace_retention", "")
    chats = [chat, *(new_id() for _ in range(3))]
    for one in chats:
        await given(rig, hand, one, "stopped")
    await hand.let_time_pass(DAY)
    await rig.store.put_setting("stopped_workspace_retention", "2d")
    await hand.worker.republisher.ring(rig.now())
    await hand.let_time_pass(DAY - 60)
    assert {rig.state(one)["state"] for one in chats} == {"stopped"}
    await hand.let_time_pass(60)
    assert {rig.state(one)["state"] for one in chats} == {"stopping"}


async def test_a_shorter_time_holds_at_once_and_a_longer_one_too(
    rig: Rig, hand: Hand, chat: str
) -> None:
    await given(rig, hand, chat, "stopped")
    await rig.store.put_setting("stopped_workspace_retention", "10m")
    await hand.worker.republisher.ring(rig.now())
    await hand.let_time_pass(599)
    await rig.store.put_setting("stopped_workspace_retention", "2h")
    await hand.let_time_pass(KEEP)
    assert rig.state(chat)["state"] == "stopped"

    await rig.store.put_setting("stopped_workspace_retention", "1s")
    await hand.worker.republisher.ring(rig.now())
    await hand.let_time_pass(0.5)

    assert rig.state(chat)["state"] == "stopping"
    await rig.check(chat)


async def test_resting_chats_have_no_alarms_of_their_own(rig: Rig, hand: Hand) -> None:
    chats = [new_id() for _ in range(5)]
    for one in chats:
        await given(rig, hand, one, "stopped")
        await hand.let_time_pass(1)
    await hand.let_time_pass(BUILD)  # the alarms of their limits have rung

    assert not rig.store.alarms

    await hand.let_time_pass(KEEP)
    assert {rig.state(one)["state"] for one in chats} == {"stopping"}


async def test_what_a_worker_could_not_publish_of_a_delete_another_one_publishes(
    rig: Rig, chat: str
) -> None:
    one, other = rig.hand(), rig.hand()
    job = await given(rig, one, chat, "stopped")
    rig.clock.advance(KEEP)
    fired = one.take()
    assert await one.worker.commit(fired) is not None
    assert rig.job == job

    await other.let_time_pass(60)

    assert rig.job["transition"] == "delete"
    await rig.check(chat)


async def replaced(rig: Rig, hand: Hand, chat: str) -> Job:
    """Replace a workspace whose agent is gone; return its stop job."""
    old = await given(rig, hand, chat, "running")
    await rig.senders.agent(old, "disconnected", 3)
    await rig.senders.create(chat, "again")
    await hand.pump()
    new = next(job for job in rig.jobs() if job["workspace_id"] != old["workspace_id"])
    await rig.senders.built(new)
    await rig.senders.agent(new, "connected", 1)
    await rig.senders.agent(new, "ready", 2)
    await hand.pump()
    (stop,) = [job for job in rig.jobs() if job["transition"] == "stop"]
    assert stop["workspace_id"] == old["workspace_id"]
    return stop


@pytest.mark.parametrize("how", ["failed", "canceled", "out of time"])
async def test_a_stop_of_a_replaced_workspace_is_tried_again_and_it_is_deleted_in_the_end(
    rig: Rig, hand: Hand, chat: str, how: str
) -> None:
    stop = await replaced(rig, hand, chat)
    shown = rig.state(chat)
    for number, delay in enumerate(DELAYS, stop["build_number"]):
        job = rig.job if number > stop["build_number"] else stop
        assert (job["transition"], job["build_number"]) == ("stop", number)
        await end(rig, hand, job, how)
        await hand.let_time_pass(delay - 1)
        assert max(j["build_number"] for j in rig.jobs()) == number
        await hand.let_time_pass(1)
    await rig.senders.built(rig.job)
    await hand.pump()
    await hand.let_time_pass(KEEP - 1)
    assert rig.job["transition"] == "stop"
    await hand.let_time_pass(1)
    for delay in DELAYS:
        delete = rig.job
        assert (delete["transition"], delete["workspace_id"]) == ("delete", stop["workspace_id"])
        await end(rig, hand, delete, how)
        await hand.let_time_pass(delay)
    await rig.senders.built(rig.job)
    await hand.pump()

    assert rig.state(chat) == shown, "the chat has another workspace"
    kept = await rig.store.chats.get(chat)
    assert kept is not None
    assert [record.deleted for record in kept.previous] == [True]
    assert rests_since(kept) is None
    logged = await types(rig, chat)
    assert logged.count(PASSED) == 1
    assert logged.count("workspaced.retry_due.v1") == 2 * len(DELAYS)
    assert logged.count("workspaced.build_overdue.v1") == (10 if how == "out of time" else 0)
    await rig.check(chat)


async def test_a_replaced_workspace_that_never_ran_is_deleted_until_that_succeeds(
    rig: Rig, hand: Hand, chat: str
) -> None:
    old = await given(rig, hand, chat, "failed")
    await rig.senders.create(chat, "again")
    await hand.pump()
    (delete,) = [job for job in rig.jobs() if job["transition"] == "delete"]
    assert (delete["workspace_id"], delete["build_number"]) == (old["workspace_id"], 2)

    await rig.senders.built(delete, "failed")
    await hand.pump()
    await hand.let_time_pass(60)

    assert (rig.job["transition"], rig.job["build_number"]) == ("delete", 3)
    await rig.check(chat)


async def test_a_workspace_that_nobody_here_can_delete_is_tried_again_and_reported(
    rig: Rig, hand: Hand, send: Senders, chat: str, caplog: pytest.LogCaptureFixture
) -> None:
    theirs: Any = {"chat_id": chat, "workspace_id": new_id(), "template": {"version_id": None}}
    for number, transition in enumerate(("start", "stop"), 1):
        job = theirs | {"build_id": new_id(), "build_number": number, "transition": transition}
        await send.built(job)
        await hand.pump()
    await hand.let_time_pass(KEEP)
    assert "nobody here can delete workspace" in caplog.text
    assert rig.jobs() == []
    assert (await types(rig, chat)).count(PASSED) == 1

    await send.built(job, "started", template_id=TEMPLATE_ID)
    await hand.pump()
    await hand.let_time_pass(60)
    assert (await types(rig, chat)).count("workspaced.retry_due.v1") == 1
    await rig.check(chat)


async def test_a_replaced_workspace_is_deleted_on_request(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    stop = await replaced(rig, hand, chat)
    await send.built(stop)
    await hand.pump()
    await send.delete(chat, workspace=stop["workspace_id"])
    await send.delete(chat, workspace=stop["workspace_id"])
    await send.delete(chat, workspace=new_id())
    await hand.pump()

    deletes = [job for job in rig.jobs() if job["transition"] == "delete"]
    assert [job["workspace_id"] for job in deletes] == [stop["workspace_id"]]
    assert rig.state(chat)["state"] == "ready"
    await rig.check(chat)
