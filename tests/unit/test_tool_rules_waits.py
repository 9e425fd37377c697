"""Answers of waiting calls: readiness R, failures F, superseding U, cancellation X, waits W."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from statemachine import answers, tool_rules
from statemachine.calls import Answered
from statemachine.events import Event, Quota
from statemachine.states import Phase, State
from tests.unit.driver import Desk
from tests.unit.facts import (
    DELETE,
    START,
    STOP,
    agents,
    cancel_requested,
    canceled,
    chat,
    connected,
    deleted,
    disconnected,
    exited,
    failed,
    lifecycle,
    requested,
    started,
    succeeded,
    uid,
    ways,
)
from tests.unit.jobs import Jobs, at

S = State


def scripts(state: str, lifecycle_state: str | None = None) -> dict[str, str]:
    more = {} if lifecycle_state is None else {"lifecycle_state": lifecycle_state}
    return {"startup_scripts": f"startup_scripts_{state}", **more}


READINESS: dict[str, tuple[list[Event], dict[str, Any]]] = {
    "R1 ready": (ways()[S.READY], {}),
    "R1 ready, agent lost": ([*ways()[S.READY], disconnected(9)], {}),
    "R1 ready, started again": ([*ways()[S.READY], lifecycle(9, "starting")], {}),
    "R2 no agents": ([requested(), succeeded(made=())], {"agent_status": "no_agent"}),
    "R5 failed": (ways()[S.SCRIPTS_FAILED], scripts("failed", "start_error")),
    "R5 settled later": (
        [*ways()[S.READY], lifecycle(9, "shutting_down")],
        scripts("failed", "shutting_down"),
    ),
    "R5 failed, then begun again": (
        [*ways()[S.SCRIPTS_FAILED], lifecycle(9, "starting")],
        scripts("failed", "starting"),
    ),
    "R5 out of time, then failed": (
        [*ways()[S.SCRIPTS_TIMED_OUT], lifecycle(9, "start_error")],
        scripts("failed", "start_error"),
    ),
    "R6 out of time": (ways()[S.SCRIPTS_TIMED_OUT], scripts("timeout")),
    "R6 out of time, then ready": ([*ways()[S.SCRIPTS_TIMED_OUT], lifecycle(9, "ready")], {}),
    "failed stop, ready before": ([*ways()[S.READY], started(2, STOP), failed(2, STOP)], {}),
    "failed stop, failed before": (
        [*ways()[S.SCRIPTS_FAILED], started(2, STOP), failed(2, STOP)],
        scripts("failed", "start_error"),
    ),
    "failed stop, no agents": (
        [requested(), succeeded(made=()), started(2, STOP), failed(2, STOP)],
        {"agent_status": "no_agent"},
    ),
}


NEVER_PRESENT = {
    "never connected": [],
    "only created": [lifecycle(1, "created")],
    "ended before it connected": [exited(137)],
}
UNSUCCESSFUL_STOPS = {
    "failed": [requested(2, STOP), failed(2, STOP)],
    "canceled": [requested(2, STOP), canceled(2, STOP)],
    "given up": [requested(2, STOP), cancel_requested(2)],
}


@pytest.mark.parametrize("stop", UNSUCCESSFUL_STOPS)
@pytest.mark.parametrize("agent", NEVER_PRESENT)
def test_r4_an_agent_that_never_connected_is_not_ready_after_a_failed_stop_either(
    agent: str, stop: str
) -> None:
    there = chat(requested(), succeeded(), *NEVER_PRESENT[agent], *UNSUCCESSFUL_STOPS[stop])
    assert there.phase is Phase.RUNNING

    keys = answers.readiness(there)

    assert keys["agent_status"] == "not_ready"
    assert ("exit code 137" in keys["agent_error"]) is (agent == "ended before it connected")
    assert not there.usable


@pytest.mark.parametrize("name", READINESS)
def test_r_readiness_keys_describe_agent_and_scripts(name: str) -> None:
    facts, keys = READINESS[name]

    assert answers.readiness(chat(*facts)) == keys


@pytest.mark.parametrize(
    ("state", "status"),
    [(S.SELECTION_ERROR, "selection_error"), (S.AGENT_NOT_READY, "not_ready")],
)
def test_r3_r4_a_problem_with_the_agent_is_explained(state: State, status: str) -> None:
    keys = answers.readiness(chat(*ways()[state]))

    assert keys.pop("agent_error")
    assert keys == {"agent_status": status}


def test_r4_an_agent_that_only_reports_that_it_was_created_is_still_not_ready() -> None:
    keys = answers.readiness(chat(*ways()[S.AGENT_NOT_READY], lifecycle(9, "created")))

    assert keys["agent_status"] == "not_ready"


def test_f1_a_build_failure_says_which_build_and_why() -> None:
    desk = Desk()
    desk.create("c")

    desk.late()

    assert set(desk.result("c")) == {"error", "build_id"}
    assert desk.result("c")["build_id"] == desk.job.build_id


@pytest.mark.parametrize(("call", "word"), [("create", "create"), ("start", "start")])
def test_f2_an_exhausted_quota_is_reported_with_its_numbers(call: str, word: str) -> None:
    desk = Desk() if call == "create" else at(S.STOPPED)
    getattr(desk, call)("c")

    quota = Quota(credits_consumed=12, budget=10.5)
    Jobs(desk).fail("too much", "INSUFFICIENT_QUOTA", quota)

    result = desk.result("c")
    assert f"ould not {word}" in result.pop("message")
    assert "too much" in result.pop("error")
    assert result == {
        "error_code": "INSUFFICIENT_QUOTA",
        "title": "Workspace quota reached",
        "build_id": desk.job.build_id,
        "quota": {"credits_consumed": 12, "budget": 10.5},
    }


def test_f2_a_quota_without_numbers_omits_their_keys() -> None:
    desk = Desk()
    desk.create("c")

    Jobs(desk).fail("too much", "INSUFFICIENT_QUOTA")

    assert "quota" not in desk.result("c")
    assert desk.result("c")["error_code"] == "INSUFFICIENT_QUOTA"


def test_f2_other_error_codes_are_not_quota_errors() -> None:
    desk = Desk()
    desk.create("c")

    Jobs(desk).fail("too much", "OTHER", Quota(credits_consumed=1, budget=1))

    assert set(desk.result("c")) == {"error", "build_id"}


def test_u1_a_call_follows_the_start_build_that_superseded_its_own() -> None:
    desk = Desk()
    desk.create("made")
    desk.create("joined")
    workspace, number = desk.job.workspace_id, 2
    assert desk.chat.current is not None
    newer = started(number).data.model_copy(
        update={"workspace_id": workspace, "build_id": uid("newer")}
    )

    desk.hear(started().model_copy(update={"data": newer, "id": uid("e1")}))
    assert set(desk.open) == {"made", "joined"}
    done = succeeded(number, made=()).data.model_copy(
        update={"workspace_id": workspace, "build_id": uid("newer")}
    )
    desk.hear(succeeded().model_copy(update={"data": done, "id": uid("e2")}))

    assert desk.result("made")["build_id"] == desk.result("joined")["build_id"] == uid("newer")
    assert desk.result("made")["created"] is True


def test_u1_a_call_that_waited_for_the_agent_names_the_superseding_build() -> None:
    """Its workspace was built for it, so `no_build` would be wrong."""
    desk = at(S.AGENT_CONNECTING)
    desk.start("s")

    desk.hear(started(2), succeeded(2, made=()))

    assert desk.result("s") == {
        "started": True,
        "workspace_name": "w",
        "build_id": uid("w/b2"),
        "agent_status": "no_agent",
    }


@pytest.mark.parametrize("transition", [STOP, DELETE])
@pytest.mark.parametrize("state", [S.BUILDING, S.AGENT_CONNECTING, S.SCRIPTS_RUNNING])
def test_u2_a_call_is_answered_when_a_stop_supersedes_its_build(
    state: State, transition: Any
) -> None:
    desk = at(state)
    desk.create("c")
    desk.start("s")

    desk.hear(started(2, transition))

    for call in ("c", "s"):
        assert set(desk.result(call)) == {"error", "build_id"}
        assert desk.result(call)["build_id"] == uid("w/b1")
        assert uid("w/b2") in desk.result(call)["error"]


def test_u2_a_superseding_stop_that_has_already_ended_also_answers() -> None:
    desk = at(S.BUILDING)
    desk.create("c")

    desk.hear(succeeded(2, DELETE))

    assert desk.chat.state is S.NONE
    assert desk.result("c")["build_id"] == uid("w/b1")
    assert uid("w/b2") in desk.result("c")["error"]


def test_u2_a_delete_request_answers_waiting_calls() -> None:
    desk = at(S.BUILDING)
    desk.create("c")
    desk.start("s")

    desk.delete()

    assert desk.job.transition is DELETE
    assert {*desk.answers} == {"c", "s"}
    assert desk.job.build_id in desk.result("c")["error"]


def test_u3_the_deletion_of_a_workspace_answers_waiting_calls() -> None:
    for state in (S.BUILDING, S.SCRIPTS_RUNNING):
        desk = at(state)
        desk.create("c")

        desk.hear(deleted())

        assert set(desk.result("c")) == {"error", "build_id"}
        assert desk.result("c")["build_id"] == uid("w/b1")


@pytest.mark.parametrize("state", [S.BUILDING, S.SCRIPTS_RUNNING])
def test_u3_a_call_is_never_answered_with_the_workspace_that_replaced_its_own(
    state: State,
) -> None:
    gone, taken_over = (at(state).hear(started(workspace="x")) for _ in range(2))
    for desk in (gone, taken_over):
        desk.create("c")
    gone.hear(deleted())
    taken_over.hear(succeeded(2, DELETE))

    for desk in (gone, taken_over):
        assert desk.chat.current is not None
        assert desk.chat.current.id == uid("x")
        assert set(desk.result("c")) == {"error", "build_id"}
        assert desk.result("c")["build_id"] == uid("w/b1")
    assert "deleted" in gone.result("c")["error"]
    assert uid("w/b2") in taken_over.result("c")["error"]

    gone.create("again")
    gone.hear(succeeded(workspace="x", made=()))
    assert gone.result("again")["status"] == "already_exists"


def test_u4_a_stop_is_answered_when_another_workspace_becomes_current() -> None:
    desk = at(S.READY).hear(started(workspace="x"))
    desk.stop("p")

    desk.hear(deleted())

    assert desk.result("p")["build_id"] == desk.job.build_id
    assert "deleted" in desk.result("p")["error"]


@pytest.mark.parametrize("transition", [START, STOP, DELETE])
def test_u4_a_stop_is_answered_when_another_build_supersedes_it(transition: Any) -> None:
    desk = at(S.READY)
    desk.stop("p")

    desk.hear(started(3, transition))

    assert desk.result("p")["build_id"] == desk.job.build_id
    assert uid("w/b3") in desk.result("p")["error"]


def test_u4_a_stop_is_answered_when_its_workspace_is_deleted() -> None:
    desk = at(S.READY)
    desk.stop("p")

    desk.hear(deleted())

    assert desk.result("p")["build_id"] == desk.job.build_id


@pytest.mark.parametrize("tool", ["create", "start", "stop"])
@pytest.mark.parametrize("state", [S.BUILDING, S.STOPPING])
def test_x1_a_call_canceled_during_a_build_is_answered_with_an_error(
    state: State, tool: str
) -> None:
    desk = at(state)
    getattr(desk, tool)("x")
    assert desk.chat.build is not None

    answer = desk.cancel("x")

    assert not answer.is_error
    assert set(answer.result) == {"error", "build_id"}
    assert answer.result["build_id"] == desk.chat.build.id
    assert desk.chat.state is state


def test_x2_a_call_canceled_while_the_agent_connects_gets_its_workspace() -> None:
    made, started_, joined = Desk(), at(S.STOPPED), at(S.AGENT_CONNECTING)
    made.create("x", name="box")
    started_.start("x")
    for desk in (made, started_):
        Jobs(desk).succeed()
    joined.create("x")

    assert made.cancel("x").result == {
        "created": True,
        "workspace_name": "ann/box",
        "build_id": made.job.build_id,
        "agent_status": "not_ready",
    }
    assert started_.cancel("x").result == {
        "started": True,
        "workspace_name": "w",
        "build_id": started_.job.build_id,
        "agent_status": "not_ready",
    }
    answer = joined.cancel("x").result
    assert (answer["status"], answer["agent_status"]) == ("already_exists", "not_ready")


def test_x3_a_call_canceled_while_scripts_run_reports_their_outcome_as_unknown() -> None:
    desk = at(S.SCRIPTS_RUNNING)
    desk.start("x")

    assert desk.cancel("x") == Answered(
        {
            "started": True,
            "workspace_name": "w",
            "no_build": True,
            "startup_scripts": "startup_scripts_unknown",
        }
    )


def test_x4_a_call_canceled_before_it_arrived_requests_nothing() -> None:
    desk = Desk()
    desk.create("x")
    unjudged = replace(desk.open["x"], wait=None)

    answer = tool_rules.canceled(unjudged, Desk().chat)

    assert set(answer.result) == {"error"}


@pytest.mark.parametrize(
    ("state", "keys"),
    [
        (S.BUILDING, {"error", "build_id"}),
        (
            S.AGENT_CONNECTING,
            {"created", "workspace_name", "status", "message", "agent_status", "agent_error"},
        ),
        (
            S.SCRIPTS_RUNNING,
            {"created", "workspace_name", "status", "message", "startup_scripts"},
        ),
    ],
)
def test_w1_a_waiting_call_is_answered_when_the_limit_passes(state: State, keys: set[str]) -> None:
    desk = at(state)
    desk.create("c")
    late_comer = at(state)

    desk.late()
    late_comer.late()

    assert set(desk.result("c")) == keys
    if state is S.BUILDING:
        assert desk.chat.state is S.BUILD_TIMED_OUT
        assert late_comer.create("c") is None
        assert late_comer.chat.state is S.BUILDING


def test_w1_a_second_wait_has_a_limit_too() -> None:
    desk = at(S.BUILD_TIMED_OUT)
    desk.create("c")

    desk.late()

    assert desk.chat.state is S.BUILD_TIMED_OUT
    assert set(desk.result("c")) == {"error", "build_id"}


def test_w2_waiting_calls_are_evaluated_in_order_of_arrival() -> None:
    """A start and a create wait for a stop: the start requests a build, the create waits for it."""
    desk = at(S.STOPPING)
    desk.start("first")
    desk.create("second")
    desk.start("third")

    desk.hear(succeeded(2, STOP))

    assert len(desk.jobs) == 1
    assert {*desk.open} == {"first", "second", "third"}
    Jobs(desk).succeed(())
    assert desk.result("first")["build_id"] == desk.result("third")["build_id"]
    assert desk.result("second")["created"] is False
    assert desk.result("second")["status"] == "already_exists"


def test_w2_an_earlier_create_is_answered_before_a_later_start_requests_a_build() -> None:
    desk = at(S.STOPPING)
    desk.create("first")
    desk.start("second")

    desk.hear(succeeded(2, STOP))

    assert desk.result("first")["status"] == "stopped"
    assert desk.chat.state is S.BUILDING


def test_w2_stops_that_waited_for_the_same_build_request_one_stop() -> None:
    desk = at(S.BUILDING)
    desk.stop("first")
    desk.stop("second")

    desk.hear(succeeded())
    Jobs(desk).succeed()

    assert len(desk.jobs) == 1
    assert desk.result("first")["build_id"] == desk.job.build_id
    assert desk.result("second") == {"stopped": True, "workspace_name": "w", "no_build": True}


def test_w3_the_tools_lead_a_chat_through_its_whole_life() -> None:
    desk = Desk()
    desk.create("create")
    Jobs(desk).succeed(agents("main")).connect().live("ready")
    desk.stop("stop")
    Jobs(desk).succeed()
    desk.start("start")
    Jobs(desk).succeed(agents("other")).live("ready")
    desk.delete()
    Jobs(desk).succeed()

    assert [job.build_number for job in desk.jobs] == [1, 2, 3, 4]
    assert {*desk.answers} == {"create", "stop", "start"}
    assert desk.states == [
        S.BUILDING,
        S.AGENT_CONNECTING,
        S.SCRIPTS_RUNNING,
        S.READY,
        S.STOPPING,
        S.STOPPED,
        S.BUILDING,
        S.AGENT_CONNECTING,
        S.SCRIPTS_RUNNING,
        S.READY,
        S.STOPPING,
        S.NONE,
    ]
    assert connected(1).data.name == "agent_connected"
