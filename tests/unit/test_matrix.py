"""Each state with each kind of event. The table of moves is written a second time here, by hand."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from statemachine import events
from statemachine.chat import Chat, chat_from_json, chat_to_json
from statemachine.events import Event
from statemachine.fold import Unmoved
from statemachine.machine import Ignored, Moved, next_state
from statemachine.states import STATE_INFO, State
from statemachine.table import LEGAL, TABLE, Trigger
from statemachine.views import state_changed
from tests.unit.facts import (
    DELETE,
    START,
    STOP,
    apply,
    cancel_requested,
    canceled,
    chat,
    connected,
    deadline,
    deleted,
    disconnected,
    event,
    exited,
    failed,
    in_state,
    late,
    lifecycle,
    lost,
    requested,
    resumed,
    started,
    succeeded,
    uid,
    ways,
)

S, T = State, Trigger

ALL = [
    "none",
    "building",
    "agent_connecting",
    "scripts_running",
    "ready",
    "build_failed",
    "build_canceled",
    "build_timed_out",
    "selection_error",
    "agent_not_ready",
    "scripts_failed",
    "scripts_timed_out",
    "stopping",
    "stopped",
    "stop_failed",
    "stop_canceled",
    "stop_timed_out",
    "canceling_build",
    "canceling_stop",
    "build_abandoned",
    "stop_abandoned",
]
OPEN_BUILD = ("building", "build_timed_out", "canceling_build", "build_abandoned")
OPEN_STOP = ("stopping", "stop_timed_out", "canceling_stop", "stop_abandoned")
LEGAL_MOVES = {
    **{("start_followed", state): "building" for state in ALL},
    **{("stop_followed", state): "stopping" for state in ALL},
    **{("workspace_deleted", state): "none" for state in ALL if state != "none"},
    **{("built", state): "agent_connecting" for state in OPEN_BUILD},
    **{("built_without_agents", state): "ready" for state in OPEN_BUILD},
    **{("unselectable", state): "selection_error" for state in OPEN_BUILD},
    **{("build_failed", state): "build_failed" for state in OPEN_BUILD},
    **{("build_failed", state): "stop_failed" for state in OPEN_STOP},
    **{("build_canceled", state): "build_canceled" for state in OPEN_BUILD},
    **{("build_canceled", state): "stop_canceled" for state in OPEN_STOP},
    **{("stopped", state): "stopped" for state in OPEN_STOP},
    **{("deleted", state): "none" for state in OPEN_STOP},
    ("cancel_requested", "building"): "canceling_build",
    ("cancel_requested", "build_timed_out"): "build_abandoned",
    ("cancel_requested", "stopping"): "canceling_stop",
    ("cancel_requested", "stop_timed_out"): "stop_abandoned",
    ("canceled_unbegun", "building"): "build_abandoned",
    ("canceled_unbegun", "build_timed_out"): "build_abandoned",
    ("canceled_unbegun", "stopping"): "stop_abandoned",
    ("canceled_unbegun", "stop_timed_out"): "stop_abandoned",
    ("deadline_passed", "canceling_build"): "build_abandoned",
    ("deadline_passed", "canceling_stop"): "stop_abandoned",
    ("agent_exited", "agent_connecting"): "agent_not_ready",
    ("agent_connected", "agent_connecting"): "scripts_running",
    ("agent_connected", "agent_not_ready"): "scripts_running",
    ("agent_started", "agent_connecting"): "scripts_running",
    ("agent_started", "agent_not_ready"): "scripts_running",
    ("scripts_ready", "scripts_running"): "ready",
    ("scripts_ready", "scripts_failed"): "ready",
    ("scripts_ready", "scripts_timed_out"): "ready",
    ("scripts_failed", "scripts_running"): "scripts_failed",
    ("deadline_passed", "building"): "build_timed_out",
    ("deadline_passed", "agent_connecting"): "agent_not_ready",
    ("deadline_passed", "scripts_running"): "scripts_timed_out",
    ("deadline_passed", "stopping"): "stop_timed_out",
    ("wait_resumed", "build_timed_out"): "building",
    ("wait_resumed", "stop_timed_out"): "stopping",
}
"""Contract §4 by hand, not read from TABLE: (trigger, from) -> to. Any other pair has no move."""

LIMITED = {
    *(S.BUILDING, S.AGENT_CONNECTING, S.SCRIPTS_RUNNING, S.STOPPING),
    *(S.CANCELING_BUILD, S.CANCELING_STOP),
}
WIRE = {
    S.NONE: ("none", None),
    S.BUILDING: ("building", None),
    S.AGENT_CONNECTING: ("agent_connecting", None),
    S.SCRIPTS_RUNNING: ("scripts_running", None),
    S.READY: ("ready", None),
    S.BUILD_FAILED: ("failed", "build_failed"),
    S.BUILD_CANCELED: ("failed", "build_canceled"),
    S.BUILD_TIMED_OUT: ("failed", "build_timeout"),
    S.SELECTION_ERROR: ("failed", "selection_error"),
    S.AGENT_NOT_READY: ("failed", "agent_not_ready"),
    S.SCRIPTS_FAILED: ("failed", "startup_scripts_failed"),
    S.SCRIPTS_TIMED_OUT: ("failed", "startup_scripts_timeout"),
    S.STOPPING: ("stopping", None),
    S.STOPPED: ("stopped", None),
    S.STOP_FAILED: ("failed", "build_failed"),
    S.STOP_CANCELED: ("failed", "build_canceled"),
    S.STOP_TIMED_OUT: ("failed", "build_timeout"),
    S.CANCELING_BUILD: ("building", None),
    S.CANCELING_STOP: ("stopping", None),
    S.BUILD_ABANDONED: ("failed", "build_canceled"),
    S.STOP_ABANDONED: ("failed", "build_canceled"),
}


@pytest.mark.parametrize(("state", "trigger"), list(product(State, Trigger)))
def test_each_trigger_leads_to_the_state_of_the_contract(state: State, trigger: Trigger) -> None:
    assert next_state(state, trigger) == LEGAL_MOVES.get((trigger, state))


def test_the_table_has_each_move_once() -> None:
    moves = [(row.trigger, source) for row in TABLE for source in row.sources]

    assert len(moves) == len(set(moves)) == len(LEGAL_MOVES) == len(LEGAL)


@pytest.mark.parametrize("state", State)
def test_each_state_has_the_wire_name_of_the_contract(state: State) -> None:
    data = state_changed(in_state(state))

    wire, reason = WIRE[state]
    assert (data["state"], (data["failure"] or {}).get("reason")) == (wire, reason)
    assert STATE_INFO[state].settled is (state not in LIMITED)


def followed_number(workspace: Chat) -> int:
    return workspace.build.number if workspace.build else 1


def transition_of(workspace: Chat) -> events.Transition:
    return workspace.build.transition if workspace.build else START


def of_a_build(chat_: Chat, number: int, **more: Any) -> list[Event]:
    """Return the facts of a build: of its transition if the chat follows it, else of each."""
    kinds = {transition_of(chat_)} if not more else {START}
    return [
        fact
        for kind in (kinds if number == followed_number(chat_) else (START, STOP, DELETE))
        for fact in (
            started(number, kind, **more),
            succeeded(number, kind, **more),
            failed(number, kind, **more),
            canceled(number, kind, **more),
        )
    ]


def of_an_agent(**more: str | int) -> list[Event]:
    lives = [lifecycle(90, life, **more) for life in events.Lifecycle]  # type: ignore[arg-type]
    gone = [exited(**more), exited(9, **more)]  # type: ignore[arg-type]
    return [connected(90, **more), disconnected(90, **more), lost(**more), *gone, *lives]  # type: ignore[arg-type]


def everything(workspace: Chat) -> dict[str, list[Event]]:
    """Return events of every type, named after their relation to the chat."""
    number = followed_number(workspace)
    tool = events.ToolRequested(
        call_id="c",
        tool="stop_workspace",
        args={},
        organization_id=uid("org"),
        owner_id=uid("ann"),
        owner_name="ann",
    )
    return {
        "followed": of_a_build(workspace, number),
        "lower": of_a_build(workspace, 0),
        "higher": of_a_build(workspace, number + 1),
        "equal number": of_a_build(workspace, number, build="another"),
        "other workspace": [
            *of_a_build(workspace, 9, workspace="x"),
            *of_an_agent(workspace="x"),
            deleted("x"),
        ],
        "previous workspace": [*of_a_build(workspace, 9, workspace="f"), deleted("f")],
        "this workspace": [deleted()],
        "agent": [*of_an_agent(), *of_an_agent(number=number)],
        "other agent": of_an_agent(agent="nobody"),
        "own": [
            requested(number + 1),
            requested(number + 1, STOP),
            requested(number + 1, DELETE),
            requested(1, START, "y"),
            requested(4, STOP, "f"),
            deadline(workspace.generation),
            deadline(workspace.generation - 1),
            resumed(number),
            event(events.TtlPassed(build_id=uid("b"))),
        ],
        "tool": [
            event(tool),
            event(events.ToolCanceled(call_id="c")),
            event(events.DeleteRequested()),
        ],
        "cancel": [cancel_requested(number), cancel_requested()],
        "cancel of another build": [cancel_requested(number + 1), cancel_requested(1, "x")],
    }


def formerly_f(state: State) -> Chat:
    """Return a chat in `state` that had workspace `f` before."""
    gone = chat(requested(1, START, "f"), deleted("f"))
    return chat(*ways_after(state), of=gone)


def ways_after(state: State) -> list[Event]:
    """Return the events that lead to `state` in a chat that has had one deadline before."""
    return [
        deadline(fact.data.generation + 1) if isinstance(fact.data, events.DeadlinePassed) else fact
        for fact in ways()[state]
    ]


def assert_sound(workspace: Chat) -> None:
    """Assert that each field is set exactly in the states that the contract names for it."""
    data = state_changed(workspace)
    assert (data["deadline"] is not None) is (workspace.state in LIMITED)
    assert (data["failure"] is not None) is (data["state"] == "failed")
    assert (data["build"] is None) is (data["workspace"] is None) is (data["state"] == "none")
    if data["state"] in ("none", "building", "stopping", "stopped"):
        assert data["agent"] is None
    assert data["cause"] is not None or workspace.version == 0
    assert chat_from_json(chat_to_json(workspace)) == workspace


@pytest.mark.parametrize("state", State)
def test_every_event_is_accepted_in_every_state(state: State) -> None:
    """Nothing raises, each step is one version, and every published state is sound."""
    before = formerly_f(state)
    assert before.state is state
    for how, facts in everything(before).items():
        for fact in facts:
            decision = apply(before, fact)

            after = decision.chat
            assert_sound(after)
            if not isinstance(decision, Moved):
                assert after.version == before.version, (how, fact.data)
                assert state_changed(after) == state_changed(before), (how, fact.data)
                continue
            versions = [step.version for step in decision.steps]
            assert versions == [before.version + n + 1 for n in range(len(versions))]
            assert decision.steps[-1] == after
            previous = before.state
            for step in decision.steps:
                assert_sound(step)
                assert step.previous_state is previous
                assert step.cause is not None
                assert step.cause.id == fact.id
                previous = step.state


UNMOVING = ("lower", "equal number", "other workspace", "previous workspace", "other agent", "tool")
UNMOVING += ("cancel of another build",)


@pytest.mark.parametrize("state", [state for state in State if state is not S.NONE])
@pytest.mark.parametrize("how", UNMOVING)
def test_facts_of_older_builds_and_other_workspaces_move_nothing(state: State, how: str) -> None:
    before = formerly_f(state)
    for fact in everything(before)[how]:
        decision = apply(before, fact)

        assert not isinstance(decision, Moved), fact.data


@pytest.mark.parametrize("state", State)
def test_facts_of_a_previous_workspace_move_nothing_even_in_none(state: State) -> None:
    before = formerly_f(state)
    for fact in everything(before)["previous workspace"]:
        assert apply(before, fact) == Ignored(before, Unmoved.STALE), fact.data


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("transition", [START, STOP, DELETE])
def test_a_build_with_a_higher_number_is_followed_in_every_state(
    state: State, transition: events.Transition
) -> None:
    before = in_state(state)

    decision = apply(before, started(followed_number(before) + 1, transition))

    same = state_changed(decision.chat)["state"] == state_changed(before)["state"]
    assert decision.outcome == ("changed" if same else "moved")
    assert decision.chat.state is (S.BUILDING if transition is START else S.STOPPING)
    assert decision.chat.build is not None
    assert decision.chat.build.number == followed_number(before) + 1


@pytest.mark.parametrize("state", State)
def test_only_the_timer_of_the_present_limit_ends_it(state: State) -> None:
    before = in_state(state)

    stale = apply(before, deadline(before.generation - 1))
    due = apply(before, late(before))

    assert stale == Ignored(before, Unmoved.STALE)
    assert isinstance(due, Moved) is (state in LIMITED)


@pytest.mark.parametrize("value", events.Lifecycle)
@pytest.mark.parametrize("state", [S.READY, S.SCRIPTS_FAILED, S.SCRIPTS_TIMED_OUT])
def test_a_lifecycle_that_no_row_names_changes_the_agent_and_not_the_state(
    state: State, value: events.Lifecycle
) -> None:
    before = in_state(state)
    moves = value == "ready" and state in (S.SCRIPTS_FAILED, S.SCRIPTS_TIMED_OUT)

    after = apply(before, lifecycle(90, value)).chat

    assert after.state is (S.READY if moves else state)
    assert state_changed(after)["agent"]["lifecycle"] == value


@pytest.mark.parametrize("value", events.Lifecycle)
def test_a_lifecycle_beyond_created_implies_that_the_agent_is_connected(
    value: events.Lifecycle,
) -> None:
    after = apply(in_state(S.AGENT_CONNECTING), lifecycle(90, value)).chat

    expected = {"created": S.AGENT_CONNECTING, "starting": S.SCRIPTS_RUNNING, "ready": S.READY}
    assert after.state is expected.get(value, S.SCRIPTS_FAILED)
    assert after.agent_status() == ("connecting" if value == "created" else "connected")


@pytest.mark.parametrize("state", [S.STOPPING, S.STOPPED, S.BUILDING, S.BUILD_FAILED])
def test_an_agent_is_shown_only_once_it_is_chosen_for_the_followed_build(state: State) -> None:
    before = in_state(state)
    for fact in of_an_agent():
        decision = apply(before, fact)

        assert not isinstance(decision, Moved), fact.data
        assert state_changed(decision.chat)["agent"] is None
