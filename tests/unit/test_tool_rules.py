"""The tool rules of create_workspace (contract §5). The table lists the branches of all tools.

Tests of G and C are in this module; S and P in `test_tool_rules_start_stop`; L and T in
`test_tool_rules_templates`; R, F, U, X and W in `test_tool_rules_waits`. Branches after a delete
that did not succeed (C3g, C4l, C4m, S3d, S5d, S5e, P4c, P4d) are in `test_tool_rules_deletes`.

| branch | condition | answer |
| --- | --- | --- |
| G1 | unknown tool | `is_error` |
| G2 | `args` have the wrong shape | `is_error` |
| G3 | organization or owner differ from those of the chat's first request | `is_error` |
| C1a | `template_id` absent or blank | `is_error`, before any other check |
| C1b | `template_id` is no UUID | `is_error`, before any other check |
| C1c | `preset_id` is neither blank nor a UUID | `is_error`, before any other check |
| C2a | build succeeds | waits; `created:false`, `already_exists`, `build_id`, readiness keys |
| C2b | build fails | waits; build failure object |
| C2c | `build_timeout` of a start, not ended | `building`, new limit, waits, no second build |
| C3a | being stopped; the stop succeeds | waits, evaluated again: `stopped` |
| C3b | being stopped; the limit passes | build failure object |
| C3c | `build_timeout` of a stop | `stopping` again, waits |
| C3d | stopped | `created:false`, `stopped`, points to start_workspace |
| C3e | being deleted | waits, evaluated again: a new workspace |
| C3f | being stopped; the stop fails | waits, evaluated again as C4i or C4j |
| C3g | being deleted; the delete fails | waits, evaluated again as C4l or C4m |
| C4a | running, settled, agent connected | `already_exists` + readiness keys, no `build_id` |
| C4b | running, agent connecting or scripts running | waits; then as C4a |
| C4c | running, `selection_error` | `already_exists` + readiness keys |
| C4d | running, agent disconnected | new workspace, stop job for the old one |
| C4e | running, agent not connected in time | new workspace, stop job |
| C4f | running, no agents | new workspace, stop job |
| C4g | failed build | new workspace, stop job for the old one |
| C4h | no workspace, or deleted | new workspace |
| C4i | failed stop, the last start succeeded | as running |
| C4j | failed stop, the last start failed | as after a failed build |
| C4k | to be replaced, but its template is not known here | new workspace, no job for the old one |
| C4l | failed delete | new workspace, delete job for the old one |
| C4m | canceled delete that never began | as before the delete |
| C4n | ours, and none of its start builds succeeded | new workspace, delete job for the old one |
| C5a | template unknown | `is_error` |
| C5b | template of another organization | `is_error` |
| C5c | template not `agents_allowed` | `is_error` |
| C5d | template not on the allowlist | `is_error` |
| C5e | `preset_id` names no preset | `is_error` |
| C5f | parameters that do not fit | `error`, `detail`, `validations` with each of them |
| C5g | preset | the call's value, else the preset's, else the default |
| C5h | a workspace exists | rules about the workspace precede those about the template |
| C5i | `null`, numbers, booleans, lists | `null` is absent; others become text as in a template |
| C6a | new; the build succeeds | `created:true`, `<owner>/<name>`, `build_id`, readiness keys |
| C6b | new workspace | bound and `building` before the call waits |
| C6c | new workspace; the build fails | build failure object; the binding stays |
| C6d | name in use | one retry with a suffix |
| C7 | a lifetime is set | the job's `ttl_ms` |
| C7b | running; a call finds it | the end of its lifetime is put off |
| C8 | two calls at once | one workspace; the second call as C2 |
| S1 | no workspace, or deleted | `is_error`, points to create_workspace |
| S2a | being built; the build succeeds | waits; `started:true`, `build_id`, readiness keys |
| S2b | being built; the build fails | build failure object |
| S2c | `build_timeout` of a start | `building` again, waits |
| S3a | being stopped; the stop succeeds | waits, evaluated again: a start build |
| S3b | being stopped; the limit passes | build failure object |
| S3c | being deleted | waits, evaluated again: as S1 |
| S3d | being deleted; the delete fails | waits, evaluated again as S5d or S5e |
| S4a | settled; also agent lost, scripts failed | `started:true`, `no_build:true`, readiness keys |
| S4b | running, not settled | waits; then as S4a |
| S5a | stopped | a start build with the next number |
| S5b | failed build | a start build with the next number |
| S5c | failed stop, the last start succeeded / failed | as running / a start build |
| S5d | failed delete | `is_error`, points to create_workspace |
| S5e | canceled delete that never began | as before the delete |
| S6a | active version required, not the last | active version, `updated_to_active_version` … |
| S6b | active version not required | the last build's version |
| S7a | parameters | the call's value, else the last build's, else the default |
| S7b | parameters that do not fit or are not mutable | as C5f, plus `template_id` |
| S7c | not mutable, the same value in another spelling | no change: the last build's text is kept |
| S7d | not mutable, without a value in the last build | a call may give a value once |
| S7e | mutable, the last value no longer fits | the default; `parameters_reset` names it |
| S7f | not mutable, the last value no longer fits | kept |
| S7g | a parameter that the version no longer has | omitted |
| S8 | template not known here | `is_error` |
| P1 | no workspace, or deleted | `is_error`, points to create_workspace |
| P2a | being built | waits until it is built, not until it is ready; then a stop build |
| P2b | being stopped | waits, evaluated again: `no_build` |
| P2c | `build_timeout` of a start or a stop | the state before the timeout again, waits |
| P2d | being built or stopped; the limit passes | build failure object |
| P3 | stopped | `stopped:true`, `no_build:true` |
| P4a | running, failed build, failed stop | a stop build; `stopped:true`, `build_id` |
| P4b | the stop fails or is canceled, or its limit passes | build failure object |
| P4c | failed delete | a stop build; `stopped:true`, `build_id` |
| P4d | canceled delete that never began | as before the delete |
| P5 | template not known here | `is_error` |
| L1 | list_templates | allowed templates of the organization, by name |
| L2 | `query` | case-insensitive substring, no wildcards |
| L3 | `page` | 10 per page; below 1 counts as 1; a page past the end is empty |
| T1 | read_template | template, parameters, presets |
| T2 | template unknown, of another organization, or not allowed | `is_error`, not found |
| T3 | `template_id` blank or no UUID | `is_error` |
| R1 | ready | no readiness keys |
| R2 | no agents | `agent_status:no_agent` |
| R3 | no agent can be chosen | `agent_status:selection_error`, `agent_error` |
| R4 | agent not connected in time | `agent_status:not_ready`, `agent_error` |
| R5 | startup ended, lifecycle not `ready` | `startup_scripts_failed`, `lifecycle_state` |
| R6 | the limit of the scripts passes | `startup_scripts_timeout` |
| F1 | build failed, was canceled, or its limit passed | `error`, `build_id` |
| F2 | INSUFFICIENT_QUOTA | `error_code`, `title`, `message`, `quota?` |
| U1 | superseded by a start build | waits for that build; `build_id` of the build that settled |
| U2 | superseded by a stop or delete | own `build_id`; `error` has the other's id, if known |
| U3 | the workspace is deleted | its own `build_id` |
| U4 | a stop superseded | as U2 |
| X1 | canceled in `building`, `stopping` | build failure object |
| X2 | canceled while the agent connects | success object, `agent_status:not_ready` |
| X3 | canceled while scripts run | success object, `startup_scripts_unknown` |
| X4 | canceled before a build was requested | `error`, nothing requested |
| W1 | the limit passes while a call waits | answered, does not wait again |
| W2 | several calls wait | evaluated in the order of their arrival |

R5 holds in state `ready` too, if the lifecycle changed later. S7e: a required parameter without a
default is answered as in S7b.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from statemachine.calls import Answered, Policy
from statemachine.events import BuildCanceled, BuildFailed, BuildSucceeded, Retried, Transition
from statemachine.states import State
from statemachine.views import state_changed
from tests.unit.driver import PLAIN, PYTHON, Desk, asked, catalog, template
from tests.unit.facts import (
    DELETE,
    NOW,
    START,
    STOP,
    agents,
    connected,
    deleted,
    disconnected,
    event,
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


def new(desk: Desk) -> bool:
    """Return whether the newest job is for a workspace that the chat did not have before."""
    return desk.job.build_number == 1 and desk.job.workspace_id != uid("w")


def test_g1_an_unknown_tool_is_an_error() -> None:
    assert is_error(Desk().ask("drop_database"))


@pytest.mark.parametrize(
    ("tool", "args"),
    [
        ("create_workspace", {"template_id": 5}),
        ("create_workspace", {"template_id": PYTHON.id, "parameters": []}),
        ("create_workspace", {"template_id": PYTHON.id, "parameters": {"a": {"b": 1}}}),
        ("create_workspace", {"template_id": PYTHON.id, "name": 7}),
        ("start_workspace", {"parameters": "none"}),
        ("list_templates", {"page": "2"}),
        ("list_templates", {"page": True}),
        ("list_templates", {"query": ["x"]}),
        ("read_template", {"template_id": {}}),
    ],
)
def test_g2_arguments_of_the_wrong_shape_are_an_error(tool: str, args: dict[str, Any]) -> None:
    desk = Desk()

    assert is_error(desk.ask(tool, **args))
    assert desk.jobs == []


def test_g3_the_first_request_fixes_the_owner_of_the_chat() -> None:
    desk = Desk(asked("list_templates", organization=uid("another")))

    assert is_error(desk.create())
    assert is_error(desk.ask("list_templates"))


@pytest.mark.parametrize("blank", [None, "", " \t\n"])
def test_c1a_a_template_is_required(blank: str | None) -> None:
    assert is_error(at(S.STOPPED).create(template_id=blank))


@pytest.mark.parametrize("wrong", ["python", PYTHON.id[:-1], f"{{{PYTHON.id}}}", "0" * 32])
def test_c1b_the_template_must_be_a_uuid(wrong: str) -> None:
    assert is_error(at(S.STOPPED).create(template_id=wrong))


def test_c1b_a_uuid_may_be_written_in_capitals_with_space_around() -> None:
    desk = Desk()

    assert desk.create(template_id=f" {PYTHON.id.upper()} ") is None
    assert desk.job.template is not None
    assert desk.job.template.id == PYTHON.id


@pytest.mark.parametrize("state", [S.NONE, S.BUILDING, S.STOPPING, S.STOPPED, S.READY])
@pytest.mark.parametrize("preset", ["fast", PYTHON.id + "0"])
def test_c1c_the_preset_must_be_a_uuid_in_every_state(state: State, preset: str) -> None:
    assert is_error(at(state).create(preset_id=preset))


@pytest.mark.parametrize("preset", ["", "  ", None])
def test_c1c_a_blank_preset_counts_as_absent(preset: str | None) -> None:
    desk = Desk()

    assert desk.create(preset_id=preset) is None
    assert desk.job.preset_id is None


def test_c2a_the_call_waits_for_a_running_build() -> None:
    desk = at(S.BUILDING)

    assert desk.create("c") is None
    desk.hear(*ways()[S.SCRIPTS_FAILED][1:])

    result = desk.result("c")
    assert result.pop("message")
    assert result == {
        "created": False,
        "workspace_name": "w",
        "status": "already_exists",
        "build_id": uid("w/b1"),
        "startup_scripts": "startup_scripts_failed",
        "lifecycle_state": "start_error",
    }
    assert desk.jobs == []


def test_c2b_the_call_fails_when_the_running_build_fails() -> None:
    desk = at(S.BUILDING)
    desk.create("c")

    desk.hear(failed(error="disk full"))

    assert desk.result("c")["build_id"] == uid("w/b1")
    assert "disk full" in desk.result("c")["error"]
    assert desk.jobs == []


def test_c2c_the_call_waits_again_for_a_timed_out_build() -> None:
    desk = at(S.BUILD_TIMED_OUT)
    before = desk.chat.generation

    assert desk.create("c") is None

    assert desk.chat.state is S.BUILDING
    assert desk.chat.generation == before + 1
    assert desk.jobs == []
    desk.hear(succeeded(made=()))
    assert desk.result("c")["agent_status"] == "no_agent"


@pytest.mark.parametrize("state", [S.STOPPING, S.STOP_TIMED_OUT])
def test_c3a_c3c_the_call_waits_for_a_stop_and_is_then_evaluated_again(state: State) -> None:
    desk = at(state)

    assert desk.create("c") is None
    assert desk.chat.state is S.STOPPING
    desk.hear(succeeded(2, STOP))

    assert desk.result("c")["status"] == "stopped"
    assert desk.jobs == []


def test_c3b_a_timed_out_stop_ends_the_wait() -> None:
    desk = at(S.STOPPING)
    desk.create("c")

    desk.late()

    assert set(desk.result("c")) == {"error", "build_id"}
    assert desk.result("c")["build_id"] == uid("w/b2")


def test_c3d_the_answer_for_a_stopped_workspace_names_start_workspace() -> None:
    answer = at(S.STOPPED).create()

    assert answer is not None
    message = answer.result.pop("message")
    assert "start_workspace" in message
    assert answer == Answered({"created": False, "workspace_name": "w", "status": "stopped"})


def test_c3e_after_a_delete_a_new_workspace_is_created() -> None:
    desk = at(S.READY)
    desk.hear(started(2, DELETE))

    assert desk.create("c") is None
    assert desk.jobs == []
    desk.hear(succeeded(2, DELETE))

    assert new(desk)
    assert desk.chat.state is S.BUILDING
    assert "c" in desk.open


def test_c3f_after_a_failed_stop_the_last_start_determines_the_answer() -> None:
    desk = at(S.STOPPING)
    desk.create("c")

    desk.hear(failed(2, STOP))

    assert desk.result("c")["status"] == "already_exists"


@pytest.mark.parametrize("state", [S.READY, S.SCRIPTS_FAILED, S.SCRIPTS_TIMED_OUT, S.STOP_FAILED])
def test_c4a_c4i_a_running_workspace_with_a_connected_agent_is_kept(state: State) -> None:
    desk = at(state)

    answer = desk.create()

    assert answer is not None
    assert answer.result["status"] == "already_exists"
    assert answer.result["workspace_name"] == "w"
    assert answer.result["message"]
    assert "build_id" not in answer.result
    assert desk.jobs == []


@pytest.mark.parametrize("state", [S.AGENT_CONNECTING, S.SCRIPTS_RUNNING])
def test_c4b_the_call_waits_until_the_workspace_is_ready(state: State) -> None:
    desk = at(state)

    assert desk.create("c") is None
    desk.hear(lifecycle(5, "start_timeout"))

    assert desk.result("c")["status"] == "already_exists"
    assert desk.result("c")["lifecycle_state"] == "start_timeout"
    assert "build_id" not in desk.result("c")
    assert desk.jobs == []


def test_c4b_an_agent_that_never_connects_is_answered_as_not_ready() -> None:
    desk = at(S.AGENT_CONNECTING)
    desk.create("c")

    desk.late()

    assert desk.result("c")["agent_status"] == "not_ready"


def test_c4c_a_workspace_whose_agent_cannot_be_chosen_is_kept() -> None:
    answer = at(S.SELECTION_ERROR).create()

    assert answer is not None
    assert answer.result["status"] == "already_exists"
    assert answer.result["agent_status"] == "selection_error"
    assert answer.result["agent_error"]


@pytest.mark.parametrize("state", [S.SCRIPTS_RUNNING, S.READY, S.SCRIPTS_FAILED, S.STOP_FAILED])
def test_c4d_a_workspace_whose_agent_disconnected_is_replaced_and_stopped(state: State) -> None:
    desk = at(state)
    number = desk.chat.build.number if desk.chat.build else 0
    desk.hear(disconnected(9))

    assert desk.create() is None

    old, made = desk.jobs
    assert (old.workspace_id, old.transition, old.build_number) == (uid("w"), STOP, number + 1)
    assert old.template is not None
    assert new(desk)
    assert len({old.build_id, made.build_id}) == 2
    assert desk.chat.state is S.BUILDING
    assert desk.chat.current is not None
    assert desk.chat.current.id == made.workspace_id
    desk.hear(succeeded(2, STOP, build=f"x{old.build_id}"))
    assert desk.chat.state is S.BUILDING


def test_c4e_a_workspace_whose_agent_never_connected_is_replaced_and_stopped() -> None:
    desk = at(S.AGENT_NOT_READY)

    assert desk.create() is None

    assert [job.transition for job in desk.jobs] == [STOP, START]


def test_c4e_a_workspace_with_a_failed_stop_whose_agent_never_connected_is_replaced() -> None:
    desk = at(S.AGENT_CONNECTING)
    desk.hear(requested(2, STOP), failed(2, STOP))
    started_before = desk.start()

    assert started_before is not None
    assert started_before.result["no_build"] is True
    assert started_before.result["agent_status"] == "not_ready"
    assert "did not connect" in started_before.result["agent_error"]
    assert desk.create() is None
    assert [(job.transition, job.build_number) for job in desk.jobs] == [(STOP, 3), (START, 1)]


def test_c4e_a_workspace_whose_agent_connected_late_is_kept() -> None:
    desk = at(S.AGENT_NOT_READY)
    desk.hear(lifecycle(3, "ready"))

    answer = desk.create()

    assert answer is not None
    assert answer.result["status"] == "already_exists"
    assert "agent_status" not in answer.result


def test_c4f_a_workspace_without_agents_exists_already() -> None:
    desk = Desk(started(1, workspace_name="w", template_id=PYTHON.id), succeeded(made=()))

    answer = desk.create()

    assert answer is not None
    assert not answer.is_error
    assert answer.result == {
        "created": False,
        "workspace_name": "w",
        "status": "already_exists",
        "message": answer.result["message"],
        "agent_status": "no_agent",
    }
    assert desk.jobs == []


@pytest.mark.parametrize("state", [S.BUILD_FAILED, S.BUILD_CANCELED])
def test_c4g_a_failed_build_is_replaced_and_its_workspace_stopped(state: State) -> None:
    """It was made elsewhere: somebody may have worked in it."""
    desk = at(state)

    assert desk.create() is None

    assert new(desk)
    assert [(job.transition, job.build_number) for job in desk.jobs[:-1]] == [(STOP, 2)]


def _of_job(desk: Desk) -> dict[str, Any]:
    job = desk.job
    return {
        "workspace_id": job.workspace_id,
        "build_id": job.build_id,
        "build_number": job.build_number,
        "transition": job.transition,
    }


def succeeded_(desk: Desk) -> BuildSucceeded:
    return BuildSucceeded(**_of_job(desk))


def failed_(desk: Desk) -> BuildFailed:
    return BuildFailed(**_of_job(desk), error="disk full")


def canceled_(desk: Desk) -> BuildCanceled:
    return BuildCanceled(**_of_job(desk))


@pytest.mark.parametrize("ended", [failed_, canceled_])
def test_c4n_a_workspace_of_ours_that_never_ran_is_deleted_when_it_is_replaced(ended: Any) -> None:
    desk = Desk()
    assert desk.create() is None
    desk.hear(event(ended(desk)))

    assert desk.create() is None

    first, delete, _ = desk.jobs
    assert (delete.transition, delete.build_number) == (DELETE, 2)
    assert delete.retried is Retried.ALWAYS
    assert delete.workspace_id == first.workspace_id


def test_c4n_a_workspace_that_ran_once_is_stopped_when_it_is_replaced() -> None:
    desk = Desk()
    assert desk.create() is None
    desk.hear(event(succeeded_(desk)))
    assert desk.stop() is None
    desk.hear(event(succeeded_(desk)))
    assert desk.start() is None
    desk.hear(event(failed_(desk)))

    assert desk.create() is None

    assert (desk.jobs[-2].transition, desk.jobs[-2].build_number) == (STOP, 4)


def test_c4h_a_chat_without_a_workspace_gets_a_new_one() -> None:
    never, gone = Desk(), Desk(*ways()[S.READY], deleted())

    for desk in (never, gone):
        assert desk.create() is None
        assert new(desk)
        assert len(desk.jobs) == 1


def test_c4j_a_workspace_with_a_failed_stop_after_a_failed_start_is_replaced_and_stopped() -> None:
    desk = at(S.BUILD_FAILED)
    desk.hear(started(2, STOP), failed(2, STOP))
    assert desk.chat.state is S.STOP_FAILED

    assert desk.create() is None

    assert new(desk)
    assert [(job.transition, job.build_number) for job in desk.jobs[:-1]] == [(STOP, 3)]


def test_c4k_a_replaced_workspace_of_an_unknown_template_is_not_stopped() -> None:
    unknown = [started(1), succeeded(), connected(1), disconnected(2)]
    desk = Desk(*unknown, known=catalog(template(PLAIN, version="other")))

    assert desk.create() is None

    assert [job.transition for job in desk.jobs] == [START]


def test_c5a_an_unknown_template_is_an_error() -> None:
    assert is_error(Desk().create(template_id=uid("nothing")))


def test_c5b_a_template_of_another_organization_is_an_error() -> None:
    foreign = template(organization=uid("another"))

    theirs = Desk(known=catalog(foreign)).create()
    unknown = Desk(known=catalog()).create()

    assert is_error(theirs)
    assert theirs == unknown, "nobody learns what another organization has"


def test_c5c_a_template_not_for_chats_is_an_error() -> None:
    kept = template(f"agents_allowed = false\n{PLAIN}")

    assert is_error(Desk(known=catalog(kept)).create())


def test_c5d_a_template_not_on_the_list_is_an_error() -> None:
    listed = Policy(allowlist=frozenset((PYTHON.id,)))
    other = Policy(allowlist=frozenset((uid("x"),)))

    assert is_error(Desk(policy=other).create())
    assert Desk(policy=listed).create() is None


def test_c5e_an_unknown_preset_is_an_error() -> None:
    assert is_error(Desk().create(preset_id=uid("nothing")))


CHOICES = template(
    """
name = "python"
[[parameter]]
name = "branch"
default = "main"
options = [{ name = "Main", value = "main" }, { name = "Next", value = "next" }]
[[parameter]]
name = "cpus"
type = "number"
validation_min = 1
validation_max = 8
default = 2
[[parameter]]
name = "token"
sensitive = true
validation_regex = "^t-"
required = true
[[parameter]]
name = "size"
mutable = false
default = "s"
[[preset]]
name = "big"
parameters = { cpus = 8, size = "xl", token = "t-preset" }
[build]
start = "true"
"""
)


def test_c5f_all_invalid_parameters_are_named_at_once() -> None:
    wrong = {"branch": "old", "cpus": 9, "colour": "red"}
    desk = Desk(known=catalog(CHOICES))

    answer = desk.create(parameters=wrong)

    assert answer is not None
    assert not answer.is_error
    assert set(answer.result) <= {"error", "detail", "validations"}
    assert all(set(wrong) == {"field", "detail"} for wrong in answer.result["validations"])
    fields = sorted(wrong["field"] for wrong in answer.result["validations"])
    assert fields == ["branch", "colour", "cpus", "token"]
    assert desk.jobs == []
    assert desk.chat.state is S.NONE


def test_c5f_a_sensitive_value_is_never_shown() -> None:
    for value in ("hunter2", "e", "a\nb'\"", "is"):
        answer = Desk(known=catalog(CHOICES)).create(parameters={"token": value})

        assert answer is not None
        (wrong,) = answer.result["validations"]
        assert wrong == {"field": "token", "detail": "*** does not match ^t-"}


def test_c5i_json_values_become_the_text_that_a_template_would_contain() -> None:
    kinds = template(
        """
name = "kinds"
[[parameter]]
name = "text"
default = "d"
[[parameter]]
name = "number"
type = "number"
[[parameter]]
name = "flag"
type = "bool"
[[parameter]]
name = "list"
type = "list(string)"
[build]
start = "true"
"""
    )
    given = {"text": None, "number": 4.0, "flag": True, "list": ["a", "b"], "unknown": None}
    desk = Desk(known=catalog(kinds))
    assert desk.create(template_id=kinds.id, parameters=given) is None
    assert desk.job.parameters == {
        "text": "d",
        "number": "4",
        "flag": "true",
        "list": '["a", "b"]',
    }
    as_typed = {"text": "3.10", "number": "4.0", "flag": "true", "list": '["a","b"]'}
    desk = Desk(known=catalog(kinds))
    assert desk.create(template_id=kinds.id, parameters=as_typed) is None
    assert desk.job.parameters == as_typed


def test_c5g_a_value_comes_from_the_call_else_the_preset_else_the_default() -> None:
    desk = Desk(known=catalog(CHOICES))
    (preset,) = CHOICES.active.manifest.preset

    desk.create(preset_id=CHOICES.preset_id(preset).upper(), parameters={"cpus": 4})

    assert desk.job.parameters == {"branch": "main", "cpus": "4", "token": "t-preset", "size": "xl"}
    assert desk.job.preset_id == CHOICES.preset_id(preset)


def test_c5h_the_check_of_an_existing_workspace_comes_first() -> None:
    answer = at(S.READY).create(template_id=uid("nothing"), parameters={"no": "such"})

    assert answer is not None
    assert answer.result["status"] == "already_exists"


def test_c6a_a_create_is_answered_when_the_workspace_is_ready() -> None:
    desk = Desk()
    desk.create("c", name=" my-box ")
    jobs = Jobs(desk)

    jobs.succeed().connect().live("ready")

    assert desk.answers["c"] == Answered(
        {"created": True, "workspace_name": "ann/my-box", "build_id": desk.job.build_id}
    )


def test_c6b_the_chat_is_bound_before_the_wait() -> None:
    desk = Desk()

    assert desk.create("c", name="box") is None

    data = state_changed(desk.chat)
    assert data["state"] == "building"
    assert data["workspace"] == {
        "id": desk.job.workspace_id,
        "name": "box",
        "owner_name": "ann",
        "template_id": PYTHON.id,
    }
    assert data["build"]["id"] == desk.job.build_id
    assert (desk.job.build_number, desk.job.transition) == (1, Transition.START)


def test_c6c_the_binding_stays_when_the_build_fails() -> None:
    desk = Desk()
    desk.create("c")

    Jobs(desk).fail("no such image")

    assert desk.result("c") == {
        "error": "workspace build failed: no such image",
        "build_id": desk.job.build_id,
    }
    assert desk.chat.current is not None
    assert desk.chat.state is S.BUILD_FAILED


def test_c6d_a_name_in_use_gets_a_suffix() -> None:
    desk = Desk(names=("box",))

    desk.create(name="Box")

    assert desk.job.workspace_name.startswith("Box-")
    assert len(desk.job.workspace_name) == 8


def test_c6d_a_name_that_stays_in_use_is_a_validation_error() -> None:
    first = Desk(names=("box",))
    first.create("c", name="box")
    second = Desk(names=("box", first.job.workspace_name))

    answer = second.create("c", name="box")

    assert answer is not None
    assert not answer.is_error
    assert [wrong["field"] for wrong in answer.result["validations"]] == ["name"]
    assert second.jobs == []


def test_c7_the_job_contains_the_lifetime() -> None:
    limited, free = Desk(policy=Policy(ttl_ms=7_200_000)), Desk()

    limited.create()
    free.create()

    assert (limited.job.ttl_ms, free.job.ttl_ms) == (7_200_000, None)


def test_c7b_a_call_that_finds_the_workspace_running_puts_the_end_of_its_lifetime_off() -> None:
    desk = Desk(policy=Policy(ttl_ms=7_200_000, bump_ms=3_600_000))
    desk.create()
    desk.hear(event(succeeded_(desk)))
    assert desk.chat.current is not None
    build = desk.chat.current.build
    assert build is not None
    earlier = replace(build, ended_at=NOW - timedelta(minutes=90))
    desk.chat = replace(desk.chat, current=replace(desk.chat.current, build=earlier))
    version, end = desk.chat.version, desk.chat.stops_at
    assert end == NOW + timedelta(minutes=30)

    desk.ask("list_templates")
    desk.create(template_id="")
    assert desk.chat.version == version

    desk.start()

    assert desk.chat.stops_at == NOW + timedelta(hours=1)
    assert desk.chat.version == version + 1


def test_g6_answers_about_a_workspace_or_a_build_have_the_id_of_the_workspace() -> None:
    desk = Desk()
    desk.create("created")
    Jobs(desk).succeed(agents("main")).connect().live("ready")
    desk.create("found")
    desk.start("started")
    desk.stop("failed")
    Jobs(desk).fail("disk full")
    desk.ask("list_templates", "listed")

    assert desk.workspaces.keys() == {"created", "found", "started", "failed"}
    assert set(desk.workspaces.values()) == {desk.job.workspace_id}


def test_c8_two_concurrent_calls_make_one_workspace_and_both_are_answered() -> None:
    desk = Desk()
    assert desk.create("first", name="box") is None
    assert desk.create("second", name="other") is None

    Jobs(desk).succeed(agents("main")).connect().live("ready")

    assert len(desk.jobs) == 1
    assert desk.result("first")["created"] is True
    assert desk.result("second")["created"] is False
    assert desk.result("second")["status"] == "already_exists"
    assert desk.result("second")["build_id"] == desk.job.build_id
    assert desk.result("second")["workspace_name"] == "box"
