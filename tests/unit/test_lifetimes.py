"""Lifetimes, what puts their end off, retention, and stops and deletes that are requested again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from statemachine.calls import Policy
from statemachine.events import (
    AgentActivity,
    BuildCanceled,
    BuildFailed,
    BuildRequested,
    BuildStarted,
    BuildSucceeded,
    KeepRequested,
    Transition,
)
from statemachine.lifetimes import rests_since
from statemachine.states import State
from statemachine.timers import TimerKind, timers_of
from tests.unit.driver import PYTHON, Desk
from tests.unit.facts import DELETE, LIMITS, NOW, STOP, cancel_requested, event, uid
from tests.unit.jobs import Jobs

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
POLICY = Policy(ttl_ms=7_200_000, bump_ms=3_600_000)
"""A lifetime of two hours, which activity puts off to one hour from then."""
RESTING = Policy(retention_ms=86_400_000)


def running(policy: Policy = POLICY) -> tuple[Desk, Jobs]:
    """Return a chat whose workspace is ready since `NOW`."""
    desk = Desk(policy=policy)
    desk.create("c")
    return desk, Jobs(desk).succeed().connect().live("ready")


def made_elsewhere(job: BuildRequested, number: int, transition: Transition) -> dict[str, Any]:
    """Return the keys of the facts about a build of the job's workspace that was made elsewhere."""
    return {
        "workspace_id": job.workspace_id,
        "build_id": uid(f"elsewhere {number}"),
        "build_number": number,
        "transition": transition,
    }


def activity(desk: Desk, jobs: Jobs, sequence: int = 1) -> Any:
    job = desk.job
    return event(
        AgentActivity(
            workspace_id=job.workspace_id,
            build_id=job.build_id,
            agent_id=jobs.made[0].id,
            sequence=sequence,
        )
    )


def test_d1a_activity_puts_the_end_of_the_lifetime_off() -> None:
    desk, jobs = running()
    assert desk.chat.stops_at == NOW + 2 * HOUR
    desk.pass_time(90 * MINUTE)

    desk.hear(activity(desk, jobs))

    assert desk.chat.stops_at == NOW + 90 * MINUTE + HOUR
    assert desk.entries[-1] == "agent_activity"


@pytest.mark.parametrize("after", [MINUTE, HOUR, 65 * MINUTE])
def test_d1b_activity_that_gains_less_than_a_tenth_leaves_no_trace(after: timedelta) -> None:
    desk, jobs = running()
    before, entries = desk.chat, list(desk.entries)
    desk.pass_time(after)

    desk.hear(activity(desk, jobs))

    assert desk.chat == before
    assert desk.entries == entries


def test_d1b_activity_that_is_not_above_the_last_one_that_counted_does_not_count() -> None:
    desk, jobs = running()
    desk.pass_time(90 * MINUTE).hear(activity(desk, jobs, 7))
    end = desk.chat.stops_at
    desk.pass_time(30 * MINUTE)

    desk.hear(activity(desk, jobs, 7), activity(desk, jobs, 6))
    assert desk.chat.stops_at == end

    desk.hear(activity(desk, jobs, 8))
    assert desk.chat.stops_at == desk.at + HOUR


def test_d2a_keep_lets_the_lifetime_end_no_sooner() -> None:
    desk, _ = running()

    desk.hear(event(KeepRequested(seconds=60)))
    assert desk.chat.stops_at == NOW + 2 * HOUR

    desk.hear(event(KeepRequested(seconds=3 * 3600)))
    assert desk.chat.stops_at == NOW + 3 * HOUR

    desk.hear(event(KeepRequested(seconds=30 * 86_400)))
    assert desk.chat.stops_at == NOW + 7 * DAY


@pytest.mark.parametrize("what", ["no lifetime", "being built", "stopped"])
def test_d2b_keep_does_nothing_without_a_running_workspace_that_has_a_lifetime(what: str) -> None:
    if what == "being built":
        desk = Desk(policy=POLICY)
        desk.create("c")
    else:
        desk, jobs = running(Policy() if what == "no lifetime" else POLICY)
        if what == "stopped":
            desk.stop("d")
            jobs.succeed()
    version = desk.chat.version

    desk.hear(event(KeepRequested(seconds=3600)))

    assert desk.chat.version == version
    assert desk.chat.stops_at is None


def test_d3a_a_workspace_is_stopped_at_the_end_of_its_lifetime() -> None:
    desk, jobs = running()

    desk.pass_time(2 * HOUR - timedelta(seconds=1))
    assert desk.chat.state is State.READY
    desk.pass_time(timedelta(seconds=1))

    assert desk.chat.state is State.STOPPING
    assert desk.job.transition is STOP
    assert "ttl_passed" in desk.entries
    jobs.succeed()
    assert desk.chat.state is State.STOPPED
    assert timers_of(desk.chat, LIMITS) == {}


def end(desk: Desk, jobs: Jobs, how: str) -> None:
    """End the newest build: `failed`, `canceled`, `cancel requested`, or `out of time`."""
    match how:
        case "failed":
            jobs.fail("disk full")
        case "canceled":
            jobs.cancel()
        case "cancel requested":
            desk.hear(cancel_requested())
        case _:
            desk.pass_time(LIMITS.build)


ENDS = pytest.mark.parametrize("how", ["failed", "canceled", "cancel requested", "out of time"])


@ENDS
def test_d3b_a_stop_after_the_lifetime_is_requested_again_until_it_succeeds(how: str) -> None:
    desk, jobs = running()
    desk.pass_time(2 * HOUR)
    for delay in (MINUTE, 5 * MINUTE, 25 * MINUTE, DAY, DAY):
        stop = desk.job
        end(desk, jobs, how)
        assert desk.chat.stops_at == desk.at + delay
        desk.pass_time(delay - timedelta(seconds=1))
        assert desk.job == stop
        desk.pass_time(timedelta(seconds=1))
        assert (desk.job.build_number, desk.job.transition) == (stop.build_number + 1, STOP)
    jobs.succeed()

    assert desk.chat.state is State.STOPPED
    assert timers_of(desk.chat, LIMITS) == {}


def at_rest(how: str) -> tuple[Desk, Jobs]:
    """Return a chat whose workspace rests since `NOW`."""
    if how == "stopped":
        desk, jobs = running(RESTING)
        desk.stop("d")
        return desk, jobs.succeed()
    desk = Desk(policy=RESTING)
    desk.create("c")
    jobs = Jobs(desk)
    return desk, jobs.fail("disk full") if how == "failed" else jobs.cancel()


@pytest.mark.parametrize("how", ["stopped", "failed", "canceled"])
def test_n1_a_workspace_that_has_rested_long_enough_is_deleted(how: str) -> None:
    desk, jobs = at_rest(how)
    assert rests_since(desk.chat) == NOW

    desk.pass_time(DAY - timedelta(seconds=1))
    assert desk.job.transition is not DELETE
    desk.pass_time(timedelta(seconds=1))

    assert desk.job.transition is DELETE
    assert "retention_passed" in desk.entries
    jobs.succeed()
    assert desk.chat.state is State.NONE


def test_n1_a_workspace_that_runs_does_not_rest() -> None:
    desk, _ = running(RESTING)

    desk.pass_time(7 * DAY)

    assert desk.chat.state is State.READY
    assert rests_since(desk.chat) is None


@ENDS
@pytest.mark.parametrize("asked", [False, True], ids=["after a rest", "on request"])
def test_n2_a_delete_is_requested_again_until_it_succeeds(how: str, asked: bool) -> None:
    desk, jobs = at_rest("stopped")
    if asked:
        desk.delete()
    else:
        desk.pass_time(DAY)
    for delay in (MINUTE, 5 * MINUTE, 25 * MINUTE, DAY):
        delete = desk.job
        if asked and how == "cancel requested":  # it is not taken back, because it had begun
            begin(desk)
            desk.hear(cancel_requested())
            desk.hear(*[event(BuildFailed(**of(desk.job), error="killed"))])
        else:
            end(desk, jobs, how)
        desk.pass_time(delay)
        assert (desk.job.build_number, desk.job.transition) == (delete.build_number + 1, DELETE)
    jobs.succeed()

    assert desk.chat.state is State.NONE
    assert timers_of(desk.chat, LIMITS) == {}


def of(job: BuildRequested) -> dict[str, Any]:
    return {
        "workspace_id": job.workspace_id,
        "build_id": job.build_id,
        "build_number": job.build_number,
        "transition": job.transition,
    }


def begin(desk: Desk) -> None:
    desk.hear(event(BuildStarted(**of(desk.job))))


@pytest.mark.parametrize("confirmed", [False, True])
def test_n3_a_requested_delete_that_was_canceled_before_it_began_is_not_requested_again(
    confirmed: bool,
) -> None:
    desk, jobs = running(Policy())
    desk.delete()
    delete = desk.job

    desk.hear(cancel_requested())
    if confirmed:
        jobs.cancel()
    desk.pass_time(7 * DAY)

    assert desk.job == delete
    assert timers_of(desk.chat, LIMITS) == {}


@pytest.mark.parametrize("transition", [STOP, DELETE])
def test_n4_a_replaced_workspace_is_stopped_or_deleted_in_the_end(transition: Transition) -> None:
    if transition is STOP:
        desk, jobs = running(RESTING)
        desk.stop("d")
        jobs.succeed()
        desk.start("e")
        jobs.fail("disk full")
    else:
        desk, jobs = at_rest("failed")
    old = desk.job.workspace_id
    desk.create("f", template_id=PYTHON.id)
    version = desk.chat.version

    def job_of_the_old_one() -> BuildRequested:
        return [job for job in desk.jobs if job.workspace_id == old][-1]

    for delay in (MINUTE, 5 * MINUTE, 25 * MINUTE, DAY):
        job = job_of_the_old_one()
        assert job.transition is transition
        desk.hear(event(BuildFailed(**of(job), error="disk full")))
        assert set(timers_of(desk.chat, LIMITS)) >= {TimerKind.RETRY}
        desk.pass_time(delay)
        assert job_of_the_old_one().build_number == job.build_number + 1
    desk.hear(event(BuildSucceeded(**of(job_of_the_old_one()))))
    if transition is STOP:
        desk.pass_time(DAY)
        assert job_of_the_old_one().transition is DELETE
        desk.hear(event(BuildSucceeded(**of(job_of_the_old_one()))))

    record = desk.chat.previous_workspace(old)
    assert record is not None
    assert record.deleted
    assert desk.entries.count("retry_due") == 4
    assert desk.chat.current is not None
    assert desk.chat.current.id != old
    assert desk.chat.version >= version


def test_d3c_a_requested_stop_that_ran_out_of_time_leaves_the_lifetime_its_end() -> None:
    desk, jobs = running()
    desk.stop("d")
    late_stop = desk.job

    desk.pass_time(LIMITS.build)
    assert desk.chat.state is State.STOP_TIMED_OUT
    assert desk.chat.stops_at == NOW + 2 * HOUR

    desk.pass_time(2 * HOUR - LIMITS.build)
    assert (desk.job.build_number, desk.job.transition) == (late_stop.build_number + 1, STOP)
    jobs.succeed()
    assert desk.chat.state is State.STOPPED


@pytest.mark.parametrize("transition", [STOP, DELETE])
def test_d3b_n2_a_build_that_runs_out_of_time_again_and_is_canceled_is_one_failed_attempt(
    transition: Transition,
) -> None:
    desk, jobs = running()
    if transition is DELETE:
        desk.delete()
        begin(desk)
    else:
        desk.pass_time(2 * HOUR)
    attempt = desk.job
    for call in ("d", "e"):
        desk.pass_time(LIMITS.build)
        assert desk.chat.state is State.STOP_TIMED_OUT
        desk.stop(call)
        assert desk.chat.state is State.STOPPING
    desk.pass_time(LIMITS.build)
    assert desk.job == attempt

    desk.pass_time(MINUTE - timedelta(seconds=1)).hear(cancel_requested())
    assert desk.job == attempt
    desk.pass_time(timedelta(seconds=1))
    assert desk.job.build_number == attempt.build_number + 1

    jobs.fail("disk full")
    desk.pass_time(5 * MINUTE)
    assert desk.job.build_number == attempt.build_number + 2


def test_d3c_a_requested_stop_that_succeeds_late_ends_the_lifetime() -> None:
    desk, jobs = running()
    desk.stop("d")
    desk.pass_time(LIMITS.build)

    jobs.succeed()

    assert desk.chat.state is State.STOPPED
    assert desk.chat.stops_at is None
    assert timers_of(desk.chat, LIMITS) == {}


def test_d3c_a_delete_that_ran_out_of_time_and_was_canceled_before_it_began_leaves_the_lifetime() -> (
    None
):
    desk, _ = running()
    desk.delete()
    delete = desk.job

    desk.pass_time(LIMITS.build)
    assert desk.chat.state is State.STOP_TIMED_OUT
    desk.hear(cancel_requested())
    assert desk.chat.state is State.STOP_ABANDONED
    assert desk.chat.stops_at == NOW + 2 * HOUR

    desk.pass_time(2 * HOUR)
    assert (desk.job.build_number, desk.job.transition) == (delete.build_number + 1, STOP)


@pytest.mark.parametrize("how", ["failed", "canceled", "out of time"])
def test_n2_a_delete_made_elsewhere_that_did_not_succeed_is_requested_again(how: str) -> None:
    desk, jobs = running()
    elsewhere = made_elsewhere(desk.job, 2, DELETE)
    desk.hear(event(BuildStarted(**elsewhere)))
    if how == "failed":
        desk.hear(event(BuildFailed(**elsewhere, error="disk full")))
    elif how == "canceled":
        desk.hear(event(BuildCanceled(**elsewhere)))
    else:
        desk.pass_time(LIMITS.build)

    assert desk.chat.stops_at is None
    assert timers_of(desk.chat, LIMITS) == {TimerKind.RETRY: desk.at + MINUTE}
    desk.pass_time(MINUTE)
    assert (desk.job.build_number, desk.job.transition) == (3, DELETE)
    assert desk.entries[-2:] == ["retry_due", "build_requested"]
    jobs.fail("disk full")
    assert desk.pass_time(5 * MINUTE).job.build_number == 4
    jobs.succeed()
    assert desk.chat.state is State.NONE


def test_n3_a_delete_made_elsewhere_and_canceled_before_it_began_is_not_requested_again() -> None:
    desk, _ = running()
    job = desk.job
    desk.hear(event(BuildCanceled(**made_elsewhere(job, 2, DELETE))))

    assert desk.chat.stops_at == NOW + 2 * HOUR
    assert timers_of(desk.chat, LIMITS) == {TimerKind.TTL: NOW + 2 * HOUR}
    assert desk.pass_time(HOUR).job == job


@pytest.mark.parametrize("transition", [STOP, DELETE])
@pytest.mark.parametrize("how", ["failed", "out of time"])
def test_n4_a_stop_or_delete_of_a_replaced_workspace_made_elsewhere_is_requested_again(
    transition: Transition, how: str
) -> None:
    desk, jobs = running(Policy())
    desk.stop("d")
    jobs.succeed()
    desk.start("e")
    jobs.fail("disk full")
    old = desk.job
    desk.create("f", template_id=PYTHON.id)
    stop = [job for job in desk.jobs if job.workspace_id == old.workspace_id][-1]
    desk.hear(event(BuildFailed(**of(stop), error="disk full")))
    elsewhere = made_elsewhere(old, stop.build_number + 1, transition)
    desk.hear(event(BuildStarted(**elsewhere)))
    if how == "failed":
        desk.hear(event(BuildFailed(**elsewhere, error="disk full")))
    else:
        desk.pass_time(LIMITS.build)
    desk.pass_time(MINUTE)

    again = [job for job in desk.jobs if job.workspace_id == old.workspace_id][-1]
    assert (again.build_number, again.transition) == (stop.build_number + 2, transition)


@pytest.mark.parametrize("begun", [False, True])
def test_n1_a_workspace_rests_from_the_time_at_which_workers_gave_its_build_up(begun: bool) -> None:
    desk = Desk(policy=RESTING)
    desk.create("c")
    if begun:
        begin(desk)
    desk.pass_time(5 * MINUTE)
    desk.hear(cancel_requested())
    if begun:
        desk.pass_time(LIMITS.cancel)
    given_up = desk.at
    assert desk.chat.state is State.BUILD_ABANDONED
    assert rests_since(desk.chat) == given_up

    desk.pass_time(DAY - timedelta(seconds=1))
    assert desk.job.transition is not DELETE
    assert desk.pass_time(timedelta(seconds=1)).job.transition is DELETE
