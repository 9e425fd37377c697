"""Tool rules of start_workspace (S) and stop_workspace (P); the table is in `test_tool_rules`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from msgspec import structs

from statemachine.calls import Answered, Policy, call_from_json, call_to_json
from statemachine.states import State
from statemachine.templates import Template
from tests.unit.driver import PLAIN, Desk, catalog, template
from tests.unit.facts import (
    DELETE,
    START,
    STOP,
    canceled,
    deleted,
    disconnected,
    failed,
    lifecycle,
    requested,
    started,
    succeeded,
    uid,
    ways,
)
from tests.unit.jobs import Jobs, at, is_error

S = State


@pytest.mark.parametrize("tool", ["start_workspace", "stop_workspace"])
def test_s1_p1_without_a_workspace_there_is_nothing_to_start_or_stop(tool: str) -> None:
    for desk in (Desk(), Desk(*ways()[S.READY], deleted())):
        answer = desk.ask(tool)

        assert is_error(answer)
        assert answer is not None
        assert "create_workspace" in answer.result["error"]


def test_s2a_the_call_waits_for_a_running_build() -> None:
    desk = at(S.BUILDING)

    assert desk.start("s") is None
    desk.hear(*ways()[S.READY][1:])

    assert desk.answers["s"] == Answered(
        {"started": True, "workspace_name": "w", "build_id": uid("w/b1")}
    )
    assert desk.jobs == []


def test_s2b_the_call_fails_when_the_running_build_is_canceled() -> None:
    desk = at(S.BUILDING)
    desk.start("s")

    desk.hear(canceled())

    assert set(desk.result("s")) == {"error", "build_id"}


def test_s2c_the_call_waits_again_for_a_timed_out_build() -> None:
    desk = at(S.BUILD_TIMED_OUT)

    assert desk.start("s") is None

    assert desk.chat.state is S.BUILDING
    assert desk.jobs == []


@pytest.mark.parametrize("state", [S.STOPPING, S.STOP_TIMED_OUT])
def test_s3a_after_a_stop_the_waiting_call_starts_the_workspace(state: State) -> None:
    desk = at(state)

    assert desk.start("s") is None
    assert desk.jobs == []
    desk.hear(succeeded(2, STOP))

    assert (desk.job.transition, desk.job.build_number) == (START, 3)
    assert desk.chat.state is S.BUILDING
    Jobs(desk).succeed(())
    assert desk.result("s") == {
        "started": True,
        "workspace_name": "w",
        "build_id": desk.job.build_id,
        "agent_status": "no_agent",
    }


def test_s3b_a_timed_out_stop_ends_the_wait() -> None:
    desk = at(S.STOPPING)
    desk.start("s")

    desk.late()

    assert desk.result("s")["build_id"] == uid("w/b2")
    assert set(desk.result("s")) == {"error", "build_id"}
    assert desk.jobs == []


def test_s3c_after_a_delete_there_is_nothing_to_start() -> None:
    desk = at(S.READY)
    desk.hear(started(2, DELETE))
    desk.start("s")

    desk.hear(succeeded(2, DELETE))

    assert is_error(desk.answers["s"])


@pytest.mark.parametrize(
    ("state", "keys"),
    [
        (S.READY, {}),
        (
            S.SCRIPTS_FAILED,
            {"startup_scripts": "startup_scripts_failed", "lifecycle_state": "start_error"},
        ),
        (S.SCRIPTS_TIMED_OUT, {"startup_scripts": "startup_scripts_timeout"}),
        (S.STOP_FAILED, {}),
    ],
)
def test_s4a_s5c_a_running_workspace_needs_no_build(state: State, keys: dict[str, str]) -> None:
    desk = at(state)
    expected = {"started": True, "workspace_name": "w", "no_build": True, **keys}

    assert desk.start() == Answered(expected)
    desk.hear(disconnected(9))
    assert desk.start() == Answered(expected)
    assert desk.jobs == []


def test_s4b_the_call_waits_until_the_workspace_is_ready() -> None:
    desk = at(S.AGENT_CONNECTING)

    assert desk.start("s") is None
    desk.hear(lifecycle(3, "ready"))

    assert desk.result("s") == {"started": True, "workspace_name": "w", "no_build": True}


@pytest.mark.parametrize("state", [S.STOPPED, S.BUILD_FAILED, S.BUILD_CANCELED])
def test_s5a_s5b_a_workspace_that_does_not_run_is_started(state: State) -> None:
    desk = at(state, policy=Policy(ttl_ms=5))
    number = desk.chat.build.number if desk.chat.build else 0

    assert desk.start("s") is None

    assert (desk.job.workspace_id, desk.job.transition) == (uid("w"), START)
    assert (desk.job.build_number, desk.job.ttl_ms) == (number + 1, 5)
    Jobs(desk).succeed().connect().live("ready")
    assert desk.result("s") == {
        "started": True,
        "workspace_name": "w",
        "build_id": desk.job.build_id,
    }


def test_s5b_a_failed_start_is_answered_as_a_build_failure() -> None:
    desk = at(S.STOPPED)
    desk.start("s")

    Jobs(desk).fail("no disk")

    assert desk.result("s")["build_id"] == desk.job.build_id
    assert "no disk" in desk.result("s")["error"]


def test_s5c_a_failed_stop_after_a_failed_start_is_started() -> None:
    desk = at(S.BUILD_FAILED).hear(started(2, STOP), failed(2, STOP))

    assert desk.start() is None

    assert (desk.job.transition, desk.job.build_number) == (START, 3)


def stopped(active: Template, *, last: str = "version") -> Desk:
    """Return a desk whose workspace of `active`'s template is stopped, last built from `last`."""
    older = replace(template().active, id=uid(last), template_id=active.id)
    return Desk(
        started(1, workspace_name="w", template_id=active.id),
        succeeded(),
        requested(2, STOP),
        succeeded(2, STOP),
        known=catalog(active, older=(older,)),
    )


def test_s6a_a_template_that_requires_its_active_version_gets_it() -> None:
    active = template(f"require_active_version = true\n{PLAIN}", version="newer")
    desk = stopped(active)

    desk.start("s")

    assert desk.job.template is not None
    assert desk.job.template.version_id == uid("newer")
    Jobs(desk).succeed(())
    result = desk.result("s")
    assert result.pop("message")
    assert result.pop("update_reason")
    assert result == {
        "started": True,
        "workspace_name": "w",
        "build_id": desk.job.build_id,
        "agent_status": "no_agent",
        "updated_to_active_version": True,
    }


def test_s6a_no_update_is_reported_if_the_last_build_used_the_active_version() -> None:
    active = template(f"require_active_version = true\n{PLAIN}")
    desk = stopped(active)

    desk.start("s")
    Jobs(desk).succeed(())

    assert "updated_to_active_version" not in desk.result("s")


def test_s6a_an_update_is_reported_if_the_last_version_is_unknown() -> None:
    active = template(f"require_active_version = true\n{PLAIN}", version="newer")
    desk = stopped(active, last="elsewhere")

    desk.start("s")
    Jobs(desk).succeed(())

    assert desk.result("s")["updated_to_active_version"] is True


def test_s6b_a_workspace_keeps_its_version_otherwise() -> None:
    desk = stopped(template(version="newer"))

    desk.start("s")

    assert desk.job.template is not None
    assert desk.job.template.version_id == uid("version")


OPEN = template(
    """
name = "python"
[[parameter]]
name = "branch"
default = "main"
[[parameter]]
name = "size"
mutable = false
default = "s"
[[parameter]]
name = "cpus"
type = "number"
[build]
start = "true"
"""
)


def made(**parameters: str) -> Desk:
    """Return a desk with a stopped workspace that was created with these parameters."""
    desk = Desk(known=catalog(OPEN))
    desk.create(parameters=parameters)
    Jobs(desk).succeed(())
    desk.stop()
    Jobs(desk).succeed()
    assert desk.chat.state is S.STOPPED
    return desk


def test_s7a_a_value_comes_from_the_call_else_the_last_build_else_the_default() -> None:
    desk = made(size="xl", branch="next")

    desk.start(parameters={"branch": "hotfix", "cpus": 4})
    assert desk.job.parameters == {"branch": "hotfix", "size": "xl", "cpus": "4"}


def test_s7a_a_parameter_without_a_value_keeps_none() -> None:
    """An absent number is an empty text in the job; the next build does not reject that text."""
    desk = made()
    assert desk.jobs[0].parameters["cpus"] == ""

    assert desk.start() is None

    assert desk.job.parameters == {"branch": "main", "size": "s", "cpus": ""}


def test_s7a_an_empty_text_is_kept() -> None:
    desk = made(branch="")

    desk.start()

    assert desk.job.parameters["branch"] == ""


def test_s7b_the_error_names_invalid_and_immutable_parameters_and_the_template() -> None:
    desk = made()
    jobs = len(desk.jobs)

    answer = desk.start(parameters={"size": "xl", "cpus": "many", "colour": "red"})

    assert answer is not None
    assert not answer.is_error
    assert answer.result["template_id"] == OPEN.id
    fields = {wrong["field"] for wrong in answer.result["validations"]}
    assert fields == {"size", "cpus", "colour"}
    assert len(desk.jobs) == jobs
    assert desk.chat.state is S.STOPPED


def test_s7b_an_immutable_parameter_may_be_given_with_its_present_value() -> None:
    desk = made(size="xl")

    assert desk.start(parameters={"size": "xl"}) is None
    assert desk.job.parameters["size"] == "xl"


def numbered(**keys: str) -> str:
    """Return a template.toml whose parameter `cpus` has these keys."""
    declared = "".join(f"{key} = {value}\n" for key, value in {"type": '"number"', **keys}.items())
    return (
        'name = "numbered"\nrequire_active_version = true\n'
        f'[[parameter]]\nname = "cpus"\n{declared}[build]\nstart = "true"\n'
    )


def changed(before: str, after: str, **parameters: object) -> Desk:
    """Return a desk with a stopped workspace of version `before`, when `after` is active."""
    old, new = template(before, version="old"), template(after, version="new")
    desk = Desk(known=catalog(old))
    desk.create(template_id=old.id, parameters=parameters)
    Jobs(desk).succeed(())
    desk.stop()
    Jobs(desk).succeed()
    assert desk.chat.state is S.STOPPED
    desk.known = structs.replace(desk.known, catalog=catalog(new, older=(old.active,)))
    return desk


@pytest.mark.parametrize("spelling", ["4", "4.0", "+4", 4, 4.0])
def test_s7c_another_spelling_of_an_immutable_value_is_not_a_change(spelling: object) -> None:
    desk = changed(numbered(mutable="false"), numbered(mutable="false"), cpus=4)

    assert desk.start(parameters={"cpus": spelling}) is None

    assert desk.job.parameters == {"cpus": "4"}


def test_s7d_a_new_immutable_parameter_may_be_set_once() -> None:
    text = 'name = "numbered"\nrequire_active_version = true\n[build]\nstart = "true"\n'
    new = numbered(mutable="false", default="2")
    once = changed(text, new)
    assert once.start(parameters={"cpus": 8}) is None
    assert once.job.parameters == {"cpus": "8"}

    by_default = changed(text, new)
    assert by_default.start() is None
    assert by_default.job.parameters == {"cpus": "2"}

    Jobs(once).succeed(())
    once.stop()
    Jobs(once).succeed()
    again = once.start(parameters={"cpus": 2})
    assert again is not None
    assert again.result["validations"][0]["field"] == "cpus"


def test_s7e_a_value_that_became_invalid_is_reset_to_the_default_and_reported() -> None:
    desk = changed(numbered(), numbered(validation_max="4", default="2"), cpus=8)

    assert desk.start("s") is None

    assert desk.job.parameters == {"cpus": "2"}
    wait = desk.open["s"].wait
    assert wait is not None
    desk.open["s"] = call_from_json(call_to_json(desk.open["s"]))
    Jobs(desk).succeed(())
    assert desk.result("s")["parameters_reset"] == ["cpus"]
    assert desk.result("s")["updated_to_active_version"] is True


def test_s7e_a_value_given_by_the_call_is_not_reported_as_reset() -> None:
    desk = changed(numbered(), numbered(validation_max="4", default="2"), cpus=8)

    assert desk.start("s", parameters={"cpus": 3}) is None

    Jobs(desk).succeed(())
    assert desk.job.parameters == {"cpus": "3"}
    assert "parameters_reset" not in desk.result("s")


def test_s7e_without_a_default_the_call_must_give_a_value() -> None:
    desk = changed(numbered(), numbered(validation_max="4", required="true"), cpus=8)

    answer = desk.start("s")

    assert answer is not None
    assert [wrong["field"] for wrong in answer.result["validations"]] == ["cpus"]
    assert answer.result["template_id"]
    assert desk.start("t", parameters={"cpus": 3}) is None


def test_s7e_a_call_that_waited_for_a_stop_reports_the_reset_too() -> None:
    old = template(numbered(), version="old")
    desk = Desk(known=catalog(old))
    desk.create(template_id=old.id, parameters={"cpus": 8})
    Jobs(desk).succeed(())
    desk.stop()
    assert desk.start("s") is None
    new = template(numbered(validation_max="4", default="2"), version="new")
    desk.known = structs.replace(desk.known, catalog=catalog(new, older=(old.active,)))

    Jobs(desk).succeed()
    Jobs(desk).succeed(())

    assert desk.result("s")["parameters_reset"] == ["cpus"]


def test_s7f_an_immutable_value_that_became_invalid_is_kept() -> None:
    fixed = {"mutable": "false"}
    desk = changed(numbered(**fixed), numbered(validation_max="4", default="2", **fixed), cpus=8)

    assert desk.start("s") is None

    Jobs(desk).succeed(())
    assert desk.job.parameters == {"cpus": "8"}
    assert "parameters_reset" not in desk.result("s")


def test_s7g_a_parameter_that_the_version_removed_is_omitted() -> None:
    text = 'name = "numbered"\nrequire_active_version = true\n[build]\nstart = "true"\n'
    desk = changed(numbered(), text, cpus=8)

    assert desk.start("s") is None

    Jobs(desk).succeed(())
    assert desk.job.parameters == {}
    assert "parameters_reset" not in desk.result("s")


@pytest.mark.parametrize("tool", ["start_workspace", "stop_workspace"])
def test_s8_p5_a_workspace_of_an_unknown_template_is_neither_started_nor_stopped(tool: str) -> None:
    elsewhere = catalog(template(version="other"))
    desk = Desk(started(1), failed(1), known=elsewhere)

    assert is_error(desk.ask(tool))
    assert desk.jobs == []


def test_p2a_a_stop_waits_for_the_end_of_the_build_but_not_for_ready() -> None:
    desk = at(S.BUILDING)
    desk.create("c")

    assert desk.stop("p") is None
    assert desk.jobs == []
    desk.hear(succeeded())

    assert (desk.job.transition, desk.job.build_number) == (STOP, 2)
    assert desk.chat.state is S.STOPPING
    assert desk.result("c")["build_id"] == uid("w/b1")
    assert desk.job.build_id in desk.result("c")["error"]
    Jobs(desk).succeed()
    assert desk.answers["p"] == Answered(
        {"stopped": True, "workspace_name": "w", "build_id": desk.job.build_id}
    )


def test_p2a_a_build_that_fails_is_stopped_too() -> None:
    desk = at(S.BUILDING)
    desk.stop("p")

    desk.hear(failed())

    assert (desk.job.transition, desk.job.build_number) == (STOP, 2)


@pytest.mark.parametrize("state", [S.STOPPING, S.STOP_TIMED_OUT])
def test_p2b_p2c_the_call_waits_for_a_running_stop(state: State) -> None:
    desk = at(state)

    assert desk.stop("p") is None
    assert desk.chat.state is S.STOPPING
    desk.hear(succeeded(2, STOP))

    assert desk.result("p") == {"stopped": True, "workspace_name": "w", "no_build": True}
    assert desk.jobs == []


def test_p2b_after_a_failed_stop_a_new_stop_is_requested() -> None:
    desk = at(S.STOPPING)
    desk.stop("p")

    desk.hear(failed(2, STOP))

    assert (desk.job.transition, desk.job.build_number) == (STOP, 3)


def test_p2c_the_call_waits_again_for_a_timed_out_build() -> None:
    desk = at(S.BUILD_TIMED_OUT)

    assert desk.stop("p") is None

    assert desk.chat.state is S.BUILDING
    assert desk.jobs == []


@pytest.mark.parametrize("state", [S.BUILDING, S.STOPPING])
def test_p2d_a_build_that_times_out_ends_the_wait_of_a_stop(state: State) -> None:
    desk = at(state)
    desk.stop("p")

    desk.late()

    assert desk.chat.build is not None
    assert desk.result("p")["build_id"] == desk.chat.build.id
    assert set(desk.result("p")) == {"error", "build_id"}
    assert desk.jobs == []


def test_p3_a_stopped_workspace_needs_no_build() -> None:
    desk = at(S.STOPPED)

    answer = desk.stop()

    assert answer == Answered({"stopped": True, "workspace_name": "w", "no_build": True})
    assert desk.jobs == []


STOPPABLE = [
    S.AGENT_CONNECTING,
    S.SCRIPTS_RUNNING,
    S.READY,
    S.SELECTION_ERROR,
    S.AGENT_NOT_READY,
    S.SCRIPTS_FAILED,
    S.SCRIPTS_TIMED_OUT,
    S.BUILD_FAILED,
    S.BUILD_CANCELED,
    S.STOP_FAILED,
    S.STOP_CANCELED,
]


@pytest.mark.parametrize("state", STOPPABLE)
def test_p4a_a_workspace_in_any_other_state_is_stopped(state: State) -> None:
    desk = at(state)
    number = desk.chat.build.number if desk.chat.build else 0

    assert desk.stop("p") is None

    assert (desk.job.transition, desk.job.build_number) == (STOP, number + 1)
    assert desk.job.template is not None
    Jobs(desk).succeed()
    assert desk.result("p") == {
        "stopped": True,
        "workspace_name": "w",
        "build_id": desk.job.build_id,
    }


def test_p4b_a_failed_stop_is_answered_as_a_build_failure() -> None:
    ends: list[Callable[[Desk], object]] = [
        lambda desk: Jobs(desk).fail("stuck"),
        lambda desk: Jobs(desk).cancel(),
        lambda desk: desk.late(),
    ]
    for end in ends:
        desk = at(S.READY)
        desk.stop("p")

        end(desk)

        assert set(desk.result("p")) == {"error", "build_id"}
        assert desk.result("p")["build_id"] == desk.job.build_id
