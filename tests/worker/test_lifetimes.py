"""Nobody is stopped at work: calls, activity and requests to keep a workspace put the end of its lifetime off."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.rigs.messages import new_id
from tests.worker.messages import Job, Senders
from tests.worker.rig import Hand, Rig

TTL, BUMP, HOUR, DAY = 7200.0, 3600.0, 3600.0, 86_400.0
PASSED = "workspaced.ttl_passed.v1"


@pytest.fixture
async def rig() -> Rig:
    rig = await Rig().open()
    await rig.store.put_setting("chat_workspace_ttl", "2h")
    return rig


async def ready(rig: Rig, hand: Hand, chat: str, *, agents: tuple[str, ...] = ("main",)) -> Job:
    """Create a workspace whose agent is ready; return its job. Its lifetime begins now."""
    await rig.senders.create(chat)
    await hand.pump()
    job = rig.job
    await rig.senders.built(job, agents=agents)
    await rig.senders.agent(job, "connected", 1)
    await rig.senders.agent(job, "ready", 2)
    await hand.pump()
    assert rig.state(chat)["state"] == "ready"
    return job


def left(rig: Rig, chat: str) -> float | None:
    """Return the seconds until the workspace is stopped, as frontends see it."""
    stops_at = rig.state(chat)["stops_at"]
    if stops_at is None:
        return None
    return (datetime.fromisoformat(stops_at) - rig.now().astimezone(UTC)) / timedelta(seconds=1)


async def test_stops_at_is_the_end_of_the_lifetime_while_the_workspace_runs(
    rig: Rig, hand: Hand, chat: str
) -> None:
    job = await ready(rig, hand, chat)

    seen = [(state["state"], state["stops_at"] is None) for state in rig.states[chat]]
    assert seen[0] == ("building", True)
    assert {absent for state, absent in seen if state != "building"} == {False}
    assert left(rig, chat) == TTL
    assert job["activity_seconds"] == 1200
    await hand.let_time_pass(TTL)
    assert rig.state(chat)["stops_at"] is None
    assert rig.job["activity_seconds"] == 0
    await rig.senders.built(rig.job)
    await hand.pump()
    assert rig.state(chat)["stops_at"] is None
    await rig.check(chat)


@pytest.mark.parametrize(
    ("ttl", "bump", "seconds"),
    [
        ("2h", None, 1200),
        ("30m", None, 600),
        ("2h", "30s", 10),
        ("2h", "2s", 1),
        ("2h", "500ms", 1),
        ("2h", "0", 0),
        ("2h", "", 0),
        ("", "1h", 0),
        ("1d", "2d", 28_800),
        ("2h", "unreadable", 1200),
    ],
)
async def test_the_job_says_how_often_activity_is_reported(
    rig: Rig, hand: Hand, chat: str, ttl: str, bump: str | None, seconds: int
) -> None:
    await rig.store.put_setting("chat_workspace_ttl", ttl)
    if bump is not None:
        await rig.store.put_setting("chat_workspace_activity_bump", bump)
    await rig.senders.create(chat)
    await hand.pump()

    assert rig.job["activity_seconds"] == seconds


async def test_activity_puts_the_end_off_as_soon_as_that_gains_a_tenth(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    job = await ready(rig, hand, chat)
    version = rig.state(chat)["version"]
    await hand.let_time_pass(TTL - BUMP + BUMP / 10 - 1)
    await send.active(job, 10)
    await hand.pump()
    assert rig.state(chat)["version"] == version

    await hand.let_time_pass(1)
    await send.active(job, 11)
    await hand.pump()

    assert rig.state(chat)["version"] == version + 1
    assert left(rig, chat) == BUMP
    assert rig.state(chat)["cause"]["type"] == "workspaced.agent_activity.v1"
    await hand.let_time_pass(BUMP - 1)
    assert rig.state(chat)["state"] == "ready"
    await hand.let_time_pass(1)
    assert rig.state(chat)["state"] == "stopping"
    assert rig.state(chat)["cause"]["type"] == PASSED
    await rig.check(chat)


async def test_activity_that_puts_nothing_off_leaves_no_trace(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    job = await ready(rig, hand, chat)
    entries = len(await rig.outcomes(chat))
    rows = dict(rig.store.row_versions), set(rig.store.identities)

    for sequence in range(10, 20):
        await send.active(job, sequence)
    await hand.pump()

    assert len(await rig.outcomes(chat)) == entries
    assert (dict(rig.store.row_versions), set(rig.store.identities)) == rows


async def test_only_activity_above_the_last_one_that_counted_counts(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    job = await ready(rig, hand, chat, agents=("main", "other"))
    await hand.let_time_pass(TTL - 60)
    await send.active(job, 10)
    await hand.pump()
    assert left(rig, chat) == BUMP
    await hand.let_time_pass(BUMP - 60)

    for sequence in (10, 9):
        await send.active(job, sequence)
        await hand.pump()
        assert left(rig, chat) == 60
    await send.active(job, 3, agent="other")  # each agent counts by itself, the chosen one or not
    await hand.pump()
    assert left(rig, chat) == BUMP
    await rig.check(chat)


@pytest.mark.parametrize("what", ["build", "workspace", "agent"])
async def test_activity_of_another_build_workspace_or_agent_does_not_count(
    rig: Rig, hand: Hand, send: Senders, chat: str, what: str
) -> None:
    job = await ready(rig, hand, chat)
    await hand.let_time_pass(TTL - 60)
    if what == "agent":
        await send.active(job, 10, agent="nobody")
    else:
        await send.active({**job, f"{what}_id": new_id()}, 10)
    await hand.pump()

    assert left(rig, chat) == 60
    await hand.let_time_pass(60)
    assert rig.state(chat)["state"] == "stopping"


async def test_a_repeated_report_of_activity_changes_nothing(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    job, same = await ready(rig, hand, chat), new_id()
    await hand.let_time_pass(TTL - 60)
    await send.active(job, 10, event_id=same)
    await hand.pump()
    rig.clock.advance(300)
    entries = len(await rig.outcomes(chat))

    await send.active(job, 10, event_id=same)
    await hand.pump()

    assert left(rig, chat) == BUMP - 300
    assert len(await rig.outcomes(chat)) == entries


async def test_activity_of_an_agent_that_lost_its_count_counts_again(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """After a loss its numbers begin anew with its next fact, whatever that fact's number is."""
    job = await ready(rig, hand, chat)
    await hand.let_time_pass(TTL - 60)
    await send.active(job, 1000)
    await hand.pump()
    await send.show(job, ttl=5.0)
    await hand.let_time_pass(6)
    assert rig.state(chat)["agent"]["status"] == "disconnected"
    await send.agent(job, "connected", 1)
    await hand.let_time_pass(BUMP - 100)

    await send.active(job, 2)
    await hand.pump()

    assert left(rig, chat) == BUMP
    await rig.check(chat)


@pytest.mark.parametrize("tool", ["create_workspace", "start_workspace"])
async def test_a_call_that_finds_the_workspace_running_puts_the_end_off(
    rig: Rig, hand: Hand, send: Senders, chat: str, tool: str
) -> None:
    await ready(rig, hand, chat)
    await hand.let_time_pass(TTL - 60)

    args: dict[str, Any] = {} if tool == "start_workspace" else {"template_id": new_id()}
    await send.ask(chat, tool, "again", **args)
    await hand.pump()

    assert left(rig, chat) == BUMP
    assert rig.state(chat)["cause"]["type"] == "workspaced.tool_requested.v1"
    assert not rig.answer(chat, "again")["is_error"]
    await rig.check(chat)


@pytest.mark.parametrize(
    ("tool", "args"),
    [
        ("create_workspace", {"template_id": ""}),
        ("start_workspace", {"parameters": 5}),
        ("list_templates", {}),
    ],
)
async def test_other_calls_put_nothing_off(
    rig: Rig, hand: Hand, send: Senders, chat: str, tool: str, args: dict[str, Any]
) -> None:
    await ready(rig, hand, chat)
    await hand.let_time_pass(TTL - 60)

    await send.ask(chat, tool, "again", **args)
    await hand.pump()

    assert left(rig, chat) == 60


async def test_a_call_that_waits_for_the_agent_counts_once(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await rig.store.put_setting("chat_workspace_ttl", "1m")
    await send.create(chat)
    await hand.pump()
    job = rig.job
    await send.built(job)
    await hand.let_time_pass(0)
    await hand.let_time_pass(30)

    await send.ask(chat, "start_workspace", "again")
    await hand.pump()
    assert left(rig, chat) == 60
    await hand.let_time_pass(30)
    await send.agent(job, "connected", 1)
    await send.agent(job, "ready", 2)
    await hand.pump()

    assert left(rig, chat) == 30
    assert rig.answer(chat, "again")["result"]["no_build"] is True
    await rig.check(chat)


async def test_both_settings_are_those_of_the_last_start(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    job = await ready(rig, hand, chat)
    await rig.store.put_setting("chat_workspace_activity_bump", "0")
    await rig.store.put_setting("chat_workspace_ttl", "")
    await hand.let_time_pass(TTL - 60)
    await send.active(job, 10)
    await hand.pump()
    assert left(rig, chat) == BUMP

    await send.ask(chat, "stop_workspace", "stop")
    await hand.pump()
    await send.built(rig.job)
    await hand.pump()
    await send.ask(chat, "start_workspace", "start")
    await hand.pump()
    await send.built(rig.job)
    await hand.pump()

    assert rig.state(chat)["stops_at"] is None
    await rig.check(chat)


async def test_without_a_bump_nothing_but_keep_puts_the_end_off(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await rig.store.put_setting("chat_workspace_activity_bump", "0")
    job = await ready(rig, hand, chat)
    await hand.let_time_pass(TTL - 60)
    await send.active(job, 10)
    await send.ask(chat, "start_workspace", "again")
    await hand.pump()
    assert left(rig, chat) == 60

    await send.keep(chat, 90)
    await hand.pump()

    assert left(rig, chat) == 90
    await rig.check(chat)


@pytest.mark.parametrize(
    ("seconds", "until"), [(60, TTL), (TTL + 1, TTL + 1), (8 * DAY, 7 * DAY), (1e300, 7 * DAY)]
)
async def test_keep_lets_the_lifetime_end_no_sooner(
    rig: Rig, hand: Hand, send: Senders, chat: str, seconds: float, until: float
) -> None:
    await ready(rig, hand, chat)

    await send.keep(chat, seconds)
    await hand.pump()

    assert left(rig, chat) == until
    await hand.let_time_pass(until - 1)
    assert rig.state(chat)["state"] == "ready"
    await hand.let_time_pass(1)
    assert rig.state(chat)["state"] == "stopping"
    await rig.check(chat)


@pytest.mark.parametrize("seconds", [0, -1, "soon", None])
async def test_a_request_to_keep_for_no_time_is_a_dead_letter(
    rig: Rig, hand: Hand, send: Senders, chat: str, seconds: Any
) -> None:
    await ready(rig, hand, chat)

    await send.keep(chat, seconds)
    await hand.pump()

    assert [message.headers["Workspaced-Reason"] for message in rig.dead] == ["bad_data"]


async def test_keep_acts_on_the_present_lifetime_only(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    """Nothing is remembered of a request that comes before the workspace runs, or while it is stopped."""
    await send.create(chat)
    await hand.pump()
    await send.keep(chat, DAY)
    await send.built(rig.job, agents=())
    await hand.pump()
    assert left(rig, chat) == TTL
    await send.ask(chat, "stop_workspace", "stop")
    await hand.pump()
    await send.keep(chat, DAY)
    await send.built(rig.job)
    await hand.pump()
    await send.keep(chat, DAY)
    await send.ask(chat, "start_workspace", "start")
    await hand.pump()
    await send.built(rig.job, agents=())
    await hand.pump()

    assert left(rig, chat) == TTL
    await rig.check(chat)


async def test_a_call_puts_a_stop_off_that_failed_and_is_tried_again(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await ready(rig, hand, chat)
    await hand.let_time_pass(TTL)
    await send.built(rig.job, "failed")
    await hand.pump()
    assert left(rig, chat) == 60

    await send.ask(chat, "start_workspace", "again")
    await hand.pump()
    assert left(rig, chat) == BUMP
    jobs = len(rig.jobs())
    await hand.let_time_pass(BUMP - 1)
    assert len(rig.jobs()) == jobs
    await hand.let_time_pass(1)
    await send.built(rig.job, "failed")
    await hand.pump()

    assert left(rig, chat) == 60, "the attempts are counted anew"
    await rig.check(chat)


async def test_a_late_success_of_a_stop_that_ran_out_of_time_ends_the_attempts(
    rig: Rig, hand: Hand, send: Senders, chat: str
) -> None:
    await ready(rig, hand, chat)
    await hand.let_time_pass(TTL)
    stop = rig.job
    await hand.let_time_pass(600)
    assert left(rig, chat) == 60
    await send.built(stop)
    await hand.pump()
    assert rig.state(chat)["state"] == "stopped"

    await hand.let_time_pass(DAY)

    assert rig.job == stop
    assert rig.state(chat)["stops_at"] is None
    await rig.check(chat)
