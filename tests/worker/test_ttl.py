"""A workspace is stopped when its lifetime ends, whoever started it and whenever timers fire."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tests.rigs.messages import new_id
from tests.worker.messages import Job, Senders
from tests.worker.rig import Hand, Rig

TTL, HOUR, DAY = 7200.0, 3600.0, 86_400.0
PASSED = "workspaced.ttl_passed.v1"


@pytest.fixture
async def rig() -> Rig:
    rig = await Rig().open()
    await rig.store.put_setting("chat_workspace_ttl", "2h")
    return rig


def job_from_elsewhere(job: Job, number: int, transition: str) -> Job:
    """Return a build of the job's workspace that was made elsewhere."""
    return {**job, "build_id": new_id(), "build_number": number, "transition": transition}


async def given_running_workspace(rig: Rig, hand: Hand, chat: str, how: str = "ready") -> Job:
    """Create a workspace whose agent gets as far as `how`; return its job."""
    send = rig.senders
    await send.create(chat)
    await hand.pump()
    job = rig.job
    agents = () if how == "no agents" else ("main",)
    await send.built(job, agents=agents)
    if how in ("scripts_running", "ready", "start_error"):
        await send.agent(job, "connected", 1)
    if how in ("ready", "start_error"):
        await send.agent(job, how, 2)
    await hand.pump()
    return job


async def expect_stop(rig: Rig, hand: Hand, job: Job) -> Job:
    await rig.senders.built(job)
    await hand.pump()
    assert rig.state(job["chat_id"])["state"] == "stopped"
    return job


@pytest.mark.parametrize(
    "how", ["ready", "no agents", "agent_connecting", "scripts_running", "start_error"]
)
async def test_a_workspace_is_stopped_when_its_lifetime_is_over(
    rig: Rig, hand: Hand, chat: str, how: str
) -> None:
    started = await given_running_workspace(rig, hand, chat, how)
    assert started["ttl_ms"] == TTL * 1000
    await hand.let_time_pass(TTL - 1)
    assert rig.jobs() == [started]

    await hand.let_time_pass(1)

    state = rig.state(chat)
    assert (state["state"], state["build"]["transition"]) == ("stopping", "stop")
    assert state["cause"]["type"] == PASSED
    assert state["cause"]["source"] == "/workspaced"
    _, stop = rig.jobs()
    assert (stop["transition"], stop["build_number"]) == ("stop", 2)
    assert stop["workspace_id"] == started["workspace_id"]
    assert "ttl_ms" not in stop
    await expect_stop(rig, hand, stop)
    await hand.let_time_pass(9 * TTL)
    assert len(rig.jobs()) == 2
    assert (await rig.outcomes(chat)).count("repeat") == 0
    await rig.check(chat)


@pytest.mark.parametrize("how", ["failed", "canceled", "out of time"])
async def test_a_stop_after_a_lifetime_is_tried_again_until_it_succeeds(
    rig: Rig, hand: Hand, chat: str, how: str
) -> None:
    """After 1, 5 and 25 minutes, then daily; `stops_at` says when."""
    await given_running_workspace(rig, hand, chat)
    await hand.let_time_pass(TTL)
    for number, delay in enumerate((60.0, 300.0, 1500.0, DAY, DAY), 2):
        stop = rig.job
        assert (stop["transition"], stop["build_number"]) == ("stop", number)
        if how == "out of time":
            await hand.let_time_pass(rig.limits.build.total_seconds())
        else:
            await rig.senders.built(stop, how)
            await hand.pump()
        state = rig.state(chat)
        assert state["state"] == "failed"
        left = datetime.fromisoformat(state["stops_at"]) - await rig.store.now()
        assert left == timedelta(seconds=delay)

        await hand.let_time_pass(delay - 1)
        assert rig.job == stop
        await hand.let_time_pass(1)
        assert rig.state(chat)["cause"]["type"] == PASSED

    await expect_stop(rig, hand, rig.job)
    count = len(rig.jobs())
    await hand.let_time_pass(9 * DAY)
    assert len(rig.jobs()) == count
    assert rig.state(chat)["stops_at"] is None
    await rig.check(chat)


async def test_a_failed_stop_does_not_change_the_lifetime(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await given_running_workspace(rig, hand, chat)
    await hand.let_time_pass(HOUR)
    await send.ask(chat, "stop_workspace", "stop")
    await hand.pump()
    await send.built(rig.job, "failed")
    await hand.let_time_pass(HOUR - 1)
    assert len(rig.jobs()) == 2

    await hand.let_time_pass(1)

    assert (rig.job["transition"], rig.job["build_number"]) == ("stop", 3)
    assert rig.state(chat)["cause"]["type"] == PASSED
    await rig.check(chat)


async def test_a_stop_and_a_start_begin_a_new_lifetime(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await given_running_workspace(rig, hand, chat)
    await hand.let_time_pass(HOUR)
    await send.ask(chat, "stop_workspace", "stop")
    await hand.pump()
    await expect_stop(rig, hand, rig.job)
    await rig.store.put_setting("chat_workspace_ttl", "3h")
    await send.ask(chat, "start_workspace", "start")
    await hand.pump()
    assert rig.job["ttl_ms"] == 3 * HOUR * 1000
    await send.built(rig.job, agents=())
    await hand.pump()

    await hand.let_time_pass(3 * HOUR - 1)  # the old timer fires meanwhile
    assert rig.state(chat)["state"] == "ready"
    await hand.let_time_pass(1)

    assert rig.state(chat)["state"] == "stopping"
    assert rig.job["build_number"] == 4
    await rig.check(chat)


@pytest.mark.parametrize("between", ["stop of ours", "stop elsewhere", "nothing"])
async def test_a_start_made_elsewhere_has_the_last_known_lifetime(
    rig: Rig, hand: Hand, send: Senders, chat: str, between: str
) -> None:
    job, number = await given_running_workspace(rig, hand, chat), 2
    if between == "stop of ours":
        await send.ask(chat, "stop_workspace", "stop")
        await hand.pump()
        await expect_stop(rig, hand, rig.job)
        number = 3
    elif between == "stop elsewhere":
        await send.built(job_from_elsewhere(job, 2, "stop"))
        number = 3
    await hand.let_time_pass(HOUR)
    await send.built(job_from_elsewhere(job, number, "start"), agents=())
    await hand.pump()
    await hand.let_time_pass(TTL - 1)
    assert rig.state(chat)["state"] == "ready"

    await hand.let_time_pass(1)

    assert rig.state(chat)["cause"]["type"] == PASSED
    assert rig.job["build_number"] == number + 1
    await rig.check(chat)


@pytest.mark.parametrize("how", ["deleted", "deleting", "stopped elsewhere", "failing elsewhere"])
async def test_deleted_workspaces_and_those_being_built_are_not_stopped(
    rig: Rig, hand: Hand, send: Senders, chat: str, how: str
) -> None:
    job = await given_running_workspace(rig, hand, chat)
    if how == "deleted":
        await send.deleted(job)
    elif how == "deleting":
        await send.delete(chat)
    elif how == "stopped elsewhere":
        await send.built(job_from_elsewhere(job, 2, "stop"))
    else:
        await send.built(job_from_elsewhere(job, 2, "start"), "failed")
    await hand.pump()

    await hand.let_time_pass(2 * TTL)

    assert "stop" not in [one["transition"] for one in rig.jobs()]
    assert PASSED not in [state["cause"]["type"] for state in rig.states[chat]]


@pytest.mark.parametrize("text", ["", "0", "0s", "0.1ms", "soon", "-2h", "9" * 40 + "h"])
async def test_without_the_setting_no_workspace_is_stopped(
    rig: Rig, hand: Hand, chat: str, text: str
) -> None:
    await rig.store.put_setting("chat_workspace_ttl", text)
    job = await given_running_workspace(rig, hand, chat)
    assert "ttl_ms" not in job
    assert rig.state(chat)["state"] == "ready"

    await hand.let_time_pass(100 * DAY)

    assert rig.state(chat)["state"] == "ready"
    await rig.check(chat)


async def test_a_lifetime_timer_that_fires_early_is_armed_again(
    rig: Rig, hand: Hand, chat: str
) -> None:
    await given_running_workspace(rig, hand, chat)
    rig.skew = timedelta(seconds=30)

    await hand.let_time_pass(TTL)
    assert rig.state(chat)["state"] == "ready"
    rig.clock.advance(29)
    assert await hand.pump() == 0, "it is not armed to fire at once"
    await hand.let_time_pass(1)

    assert rig.state(chat)["state"] == "stopping"
    await rig.check(chat)


async def test_a_lifetime_may_be_longer_than_the_retention_of_timers(
    rig: Rig, hand: Hand, chat: str
) -> None:
    """The timer is armed again on the way, which may delay the stop by a minute."""
    await rig.store.put_setting("chat_workspace_ttl", f"{100 * 24}h")
    await given_running_workspace(rig, hand, chat)

    for _ in range(100):
        assert rig.state(chat)["state"] == "ready"
        await hand.let_time_pass(DAY)
    await hand.let_time_pass(60)

    assert rig.state(chat)["state"] == "stopping"
    await rig.check(chat)


@pytest.mark.parametrize("away", [0.0, TTL + HOUR])
async def test_a_lifetime_ends_although_nats_lost_its_timer(
    rig: Rig, hand: Hand, chat: str, away: float
) -> None:
    """A worker arms the timer from the database when it starts, even if it is overdue."""
    await given_running_workspace(rig, hand, chat)
    rig.server.stop(lose=True)
    rig.clock.advance(away)
    rig.server.start()

    started = rig.hand()
    await started.prepare()
    await started.let_time_pass(0)
    kept = await rig.store.chats.get(chat)
    assert kept is not None
    assert kept.state == ("stopping" if away else "ready")
    await started.let_time_pass(TTL + 60)

    assert rig.state(chat)["state"] == ("failed" if away else "stopping")
    (job,) = rig.jobs()
    assert job["transition"] == "stop"


async def test_only_one_of_several_workers_stops_an_expired_workspace(rig: Rig, chat: str) -> None:
    one, other = rig.hand(), rig.hand()
    await given_running_workspace(rig, one, chat)
    rig.clock.advance(TTL)
    fired = one.take()
    await other.work(fired)

    await one.work(fired)

    assert len(rig.jobs()) == 2
    await rig.check(chat)


async def test_waiting_calls_are_answered_when_the_lifetime_stops_the_workspace(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """Like all calls whose build a stop supersedes: own build's id, and the stop's in the error."""
    await rig.store.put_setting("chat_workspace_ttl", "30s")
    job = await given_running_workspace(rig, hand, chat, "agent_connecting")
    await send.ask(chat, "start_workspace", "start")
    await send.create(chat, "again")
    await hand.pump()
    assert rig.results == {}

    await hand.let_time_pass(30)

    assert rig.state(chat)["state"] == "stopping"
    for call in ("c", "start", "again"):
        answer = rig.answer(chat, call)
        assert not answer["is_error"]
        assert answer["result"]["build_id"] == job["build_id"]
        assert rig.job["build_id"] in answer["result"]["error"]
    await send.create(chat, "late")
    await hand.pump()
    assert (chat, "late") not in rig.results
    await expect_stop(rig, hand, rig.job)
    assert rig.answer(chat, "late")["result"]["status"] == "stopped"
    await rig.check(chat)


async def test_the_lifetime_of_a_replaced_workspace_has_no_effect(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    old = await given_running_workspace(rig, hand, chat)
    await send.agent(old, "disconnected", 3)
    await hand.let_time_pass(HOUR)
    await send.create(chat, "new")
    await hand.pump()
    new, stop = rig.jobs()[-2:]
    assert (stop["workspace_id"], stop["build_number"]) == (old["workspace_id"], 2)
    await send.built(stop)
    await send.built(new)
    await send.agent(new, "connected", 1)
    await send.agent(new, "ready", 2)
    await hand.pump()

    await hand.let_time_pass(TTL - 1)
    assert rig.state(chat)["state"] == "ready"
    await hand.let_time_pass(1)

    assert rig.state(chat)["state"] == "stopping"
    assert rig.job["workspace_id"] == new["workspace_id"]
    await rig.check(chat)
