"""Canceled builds, and agents that ended: every order, and what calls get as answers."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest

from statemachine import answers
from statemachine.calls import Policy
from statemachine.chat import Chat, chat_from_json, chat_to_json
from statemachine.events import BuildCanceled, BuildStarted, Event, Lifecycle, Transition
from statemachine.machine import Moved, decide
from statemachine.states import Phase, State
from statemachine.step import canceled_builds
from statemachine.timers import TimerKind, timers_of
from statemachine.views import state_changed
from tests.unit.driver import Desk
from tests.unit.facts import (
    DELETE,
    LIMITS,
    NOW,
    START,
    STOP,
    apply,
    cancel_requested,
    canceled,
    chat,
    connected,
    event,
    exited,
    failed,
    late,
    lifecycle,
    lost,
    place,
    requested,
    started,
    succeeded,
    then_late,
)
from tests.unit.jobs import Jobs

S = State
READY = [requested(), succeeded(), connected(1), lifecycle(2, "ready")]
BEFORE: dict[Transition, tuple[list[Event], int]] = {
    START: ([requested()], 1),
    STOP: ([*READY, requested(2, STOP)], 2),
    DELETE: ([*READY, requested(2, DELETE)], 2),
}


@pytest.mark.parametrize("transition", BEFORE)
@pytest.mark.parametrize("end", [succeeded, failed, canceled])
def test_b2b_b3_a_cancel_never_changes_where_the_facts_of_a_build_lead(
    transition: Transition, end: Any
) -> None:
    before, number = BEFORE[transition]
    facts = [started(number, transition), end(number, transition)]
    for order in permutations([*facts, cancel_requested(number)]):
        without = [fact for fact in order if "cancel_requested" not in fact.type]

        assert place(chat(*before, *order)) == place(chat(*before, *without))


@pytest.mark.parametrize("transition", BEFORE)
def test_b1a_b1b_b2c_a_build_that_never_ends_is_canceled_whether_it_began_before_or_after_the_cancel(
    transition: Transition,
) -> None:
    before, number = BEFORE[transition]
    begun, asked = started(number, transition), cancel_requested(number)
    at_once = chat(*before, asked, begun)
    waited = chat(*before, begun, asked)
    waited = chat(late(waited), of=waited)

    assert place(at_once) == place(waited)
    assert state_changed(waited)["failure"]["reason"] == "build_canceled"
    assert waited.cause is not None
    assert waited.cause.type == "workspaced.deadline_passed.v1"


def test_b2a_b4a_b4b_a_cancel_brings_the_deadline_forward_and_never_puts_it_back() -> None:
    begun = chat(requested(), started())
    at = NOW + timedelta(minutes=1)
    soon = decide(begun, cancel_requested(), at, LIMITS)
    end = NOW + LIMITS.build - timedelta(seconds=1)
    later = decide(begun, cancel_requested(), end, LIMITS).chat

    assert soon.outcome == "changed"
    assert soon.chat.deadline == at + LIMITS.cancel
    assert later.deadline == begun.deadline
    assert state_changed(later)["build"]["cancel_requested_at"] is not None
    assert decide(soon.chat, cancel_requested(), at, LIMITS).outcome == "ignored"
    assert decide(begun, cancel_requested(7), at, LIMITS).outcome == "stale"


@pytest.mark.parametrize("how", ["start", "create", "delete"])
def test_b5_provisioners_are_told_of_a_canceled_build_until_it_ends_though_a_newer_one_is_followed(
    how: str,
) -> None:
    desk = Desk()
    jobs = Jobs(desk)
    desk.create("c")
    first = desk.job
    of = {
        "workspace_id": first.workspace_id,
        "build_id": first.build_id,
        "build_number": first.build_number,
        "transition": first.transition,
    }
    desk.hear(cancel_requested())
    desk.delete() if how == "delete" else getattr(desk, how)("d")
    assert desk.job.build_id != first.build_id

    desk.told.clear()
    desk.hear(event(BuildStarted(**of)))
    told = [(one.build_id, one.pool) for one in desk.told]
    jobs.succeed()
    desk.hear(cancel_requested(), event(BuildStarted(**of)))
    again = [one.build_id for one in canceled_builds(desk.chat)]
    desk.hear(event(BuildCanceled(**of)), event(BuildStarted(**of)))

    assert told == [(first.build_id, "local")]
    gone = how == "delete"  # nothing of the workspace is left
    assert again == ([] if gone else [first.build_id])
    assert canceled_builds(desk.chat) == []


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("transition", [STOP, DELETE])
def test_a_workspace_whose_stop_or_delete_was_canceled_still_has_a_timer(
    transition: Transition, begun: bool
) -> None:
    desk = Desk(policy=Policy(ttl_ms=3_600_000))
    desk.create("c")
    Jobs(desk).succeed().connect().live("ready")
    desk.stop("d") if transition is STOP else desk.delete()
    job = desk.job
    begin = BuildStarted(
        workspace_id=job.workspace_id,
        build_id=job.build_id,
        build_number=job.build_number,
        transition=transition,
    )
    desk.hear(*([event(begin)] if begun else []), cancel_requested())
    if begun:
        desk.late()

    assert desk.chat.state is S.STOP_ABANDONED
    kind = TimerKind.RETRY if transition is DELETE and begun else TimerKind.TTL
    assert timers_of(desk.chat, LIMITS).keys() == {kind}
    assert (desk.chat.stops_at is not None) is (kind is TimerKind.TTL)


def test_f1_calls_get_the_failure_of_a_canceled_build() -> None:
    desk = Desk()
    desk.create("c")

    desk.hear(cancel_requested(reason="too slow"))

    assert desk.result("c").keys() >= {"error", "build_id"}
    assert "too slow" in desk.result("c")["error"]
    assert desk.chat.phase is Phase.FAILED_BUILD


@pytest.mark.parametrize("began", [False, True])
def test_c4m_a_canceled_delete_leaves_the_workspace_as_it_was_if_it_had_not_begun(
    began: bool,
) -> None:
    facts = [*READY, requested(2, DELETE), *([started(2, DELETE)] if began else [])]
    asked = chat(*facts, cancel_requested())
    end = chat(late(asked), of=asked) if began else asked

    assert end.state is S.STOP_ABANDONED
    assert end.phase is (Phase.FAILED_DELETE if began else Phase.RUNNING)


@pytest.mark.parametrize("begun", [False, True])
def test_b1c_a_build_that_exceeded_its_limit_is_canceled_at_once(begun: bool) -> None:
    desk = Desk()
    desk.create("c")
    job = desk.job
    begin = BuildStarted(
        workspace_id=job.workspace_id,
        build_id=job.build_id,
        build_number=1,
        transition=START,
    )
    desk.hear(*([event(begin)] if begun else [])).late()

    desk.hear(cancel_requested())

    assert desk.chat.state is S.BUILD_ABANDONED
    assert [one.build_id for one in desk.told] == [job.build_id]
    assert state_changed(desk.chat)["failure"]["reason"] == "build_canceled"
    assert desk.unneeded_jobs == (set() if begun else {job.build_id})


@pytest.mark.parametrize("end", [succeeded, failed, canceled])
def test_b4c_a_cancel_of_a_build_that_has_ended_does_nothing(end: Any) -> None:
    ended = chat(requested(), end())

    for cancel in (cancel_requested(), cancel_requested(1)):
        after = apply(ended, cancel)
        assert after.outcome == "ignored"
        assert state_changed(after.chat) == state_changed(ended)


@pytest.mark.parametrize("value", [value for value in Lifecycle if value != "created"])
def test_e4_an_agent_that_was_given_up_shows_by_its_lifecycle_that_it_has_started(
    value: Lifecycle,
) -> None:
    given_up = chat(*then_late(requested(), succeeded()))
    assert given_up.state is S.AGENT_NOT_READY

    decision = apply(given_up, lifecycle(1, value))

    assert isinstance(decision, Moved)
    assert decision.steps[0].state is S.SCRIPTS_RUNNING
    assert decision.chat.agent_status() == "connected"


def test_a_build_shows_when_it_began_and_its_pool() -> None:
    asked = chat(requested())
    begun = apply(asked, started())

    assert state_changed(asked)["build"]["begun_at"] is None
    assert begun.outcome == "changed"
    assert state_changed(begun.chat)["build"]["begun_at"] is not None
    assert state_changed(chat(started()))["build"]["pool"] is None


def test_a_snapshot_of_an_earlier_version_knows_that_its_build_began() -> None:
    begun = chat(requested(), started())
    text = chat_to_json(begun).replace('"begun_at"', '"taken":true,"mood"')

    read = chat_from_json(text)

    assert read.build is not None
    assert read.build.begun_at == read.build.started_at


EXIT = exited(137, output="cannot open the workspace")


def test_e1_r4_an_agent_that_ended_before_it_connected_is_not_ready_at_once() -> None:
    end = chat(requested(), succeeded(), EXIT)
    agent = state_changed(end)["agent"]

    assert end.state is S.AGENT_NOT_READY
    assert agent["status"] == "disconnected"
    for text in (agent["reason"], end.failure and end.failure.message):
        assert "137" in (text or "")
        assert "cannot open the workspace" in (text or "")
    keys = answers.readiness(end)
    assert keys["agent_status"] == "not_ready"
    assert keys["agent_error"] == (end.failure and end.failure.message)


@pytest.mark.parametrize("sign", [connected(1), lifecycle(1, "ready")])
def test_e2_a_connection_undoes_the_end_of_an_agent_whichever_came_first(sign: Event) -> None:
    facts = [requested(), succeeded()]
    ends = [place(chat(*facts, *order)) for order in permutations([EXIT, sign])]

    assert ends[0] == ends[1]
    assert ends[0]["agent"]["status"] == "connected"
    assert ends[0]["agent"]["reason"] is None


def test_the_end_of_an_agent_after_its_limit_is_shown_as_before_it() -> None:
    waiting = chat(requested(), succeeded())
    after = chat(late(waiting), EXIT, of=waiting)

    assert place(after) == place(chat(EXIT, of=waiting))


def test_e3_the_end_of_an_agent_that_had_connected_is_shown_while_it_is_disconnected() -> None:
    there = chat(*READY, EXIT)
    gone = chat(*READY, EXIT, lost())

    assert state_changed(there)["agent"]["reason"] is None
    assert "137" in state_changed(gone)["agent"]["reason"]
    assert state_changed(gone)["agent"] == state_changed(chat(*READY, lost(), EXIT))["agent"]
    assert gone.state is S.READY


def test_of_a_long_output_the_beginning_is_cut_and_the_code_stays() -> None:
    end: Chat = chat(requested(), succeeded(), exited(3, output="é" * 2047 + "!"))
    reason = state_changed(end)["agent"]["reason"]

    assert reason.startswith("exit code 3;")
    assert reason.endswith("é!")
    assert len(reason.encode()) <= 4096
