"""`workspaced tool` explains each kind of answer; the tool rules produce the answers."""

from __future__ import annotations

from typing import Any

import pytest
from workspaced import Answer, Log, State
from workspaced.following import read_state

from handlers.cli.commands.texts import ChangeDescriber, describe, describe_result
from statemachine import answers
from statemachine.calls import Answered, Until, Wait
from statemachine.chat import Chat
from statemachine.events import Quota
from statemachine.parameters import Misfits
from statemachine.views import state_changed
from tests.unit.driver import PYTHON
from tests.unit.facts import START, STOP, chat, failed, requested, succeeded, uid

CHAT = uid("chat")
WAIT = Wait(until=Until.SETTLED, build_id=uid("w/b1"), workspace_id=uid("w"))
ERROR = "The start step exited with status 1. Its last lines:\nfetching\nerror: not found"


def explain(tool: str, answer: Answered, place: str = "") -> str:
    given = Answer(call_id="c", tool=tool, is_error=answer.is_error, result=dict(answer.result))
    return "\n".join(describe_result(given, CHAT, place))


def state(workspace: Chat, at: int = 5, **keys: Any) -> State:
    time = f"2030-01-02T03:04:{at:02}.678Z"
    return read_state({"time": time, "data": {**state_changed(workspace), **keys}})


def failure(workspace: Chat) -> Answered:
    assert workspace.build is not None
    return answers.build_failure(workspace, workspace.build.id, "create")


def created(**keys: Any) -> Answered:
    return Answered({"created": True, "workspace_name": "ann/w", "build_id": uid("b"), **keys})


def test_a_build_failure_names_the_error_and_the_command_for_its_log() -> None:
    build = uid("w/b1")

    words = explain("create_workspace", failure(chat(requested(), failed(error=ERROR))))

    assert words.split("\n") == [
        "create_workspace failed: the workspace build did not succeed",
        "  The start step exited with status 1. Its last lines:",
        "  fetching",
        "  error: not found",
        f"  build  {build}",
        f"  log    workspaced log {CHAT} {build}",
    ]


def test_the_command_for_the_log_uses_the_same_servers() -> None:
    words = explain("create_workspace", failure(chat(requested(), failed())), " --data-dir /data")

    assert words.endswith(f"workspaced log {CHAT} {uid('w/b1')} --data-dir /data")


def test_a_quota_error_shows_usage_and_budget() -> None:
    quota = Quota(credits_consumed=3, budget=4.5)
    refused = failed(error="ann has 3", code="INSUFFICIENT_QUOTA", quota=quota)

    words = explain("create_workspace", failure(chat(requested(), refused))).split("\n")

    assert words[0] == "Workspace quota reached: 3 of 4.5 used"
    assert words[1].startswith("  Could not create the workspace")
    assert words[2] == "  ann has 3"
    assert words[3].split() == ["build", uid("w/b1")]


def test_a_quota_error_without_numbers_shows_none() -> None:
    answer = failure(chat(requested(), failed(code="INSUFFICIENT_QUOTA")))

    assert explain("create_workspace", answer).startswith("Workspace quota reached\n")


def test_each_validation_error_is_one_line() -> None:
    misfits = Misfits((("size", "must be 9 at most"), ("name", "is in use\nalready")))

    words = explain("create_workspace", answers.invalid(misfits)).split("\n")

    assert words == [
        "create_workspace was not carried out: some values are not valid",
        "  size  must be 9 at most",
        "  name  is in use …",
    ]


@pytest.mark.parametrize("transition", [START, STOP])
def test_a_superseded_call_names_the_build_that_took_over(transition: Any) -> None:
    overtaken = chat(requested(), requested(2, transition))
    by = overtaken.build
    assert by is not None

    words = explain("start_workspace", answers.superseded(WAIT, overtaken)).split("\n")

    assert words[0].startswith(f"start_workspace was superseded: a {transition} build took over")
    assert words[1].split() == ["build", uid("w/b1")]
    assert words[2].split() == ["by", by.id]
    assert words[3].endswith(f"workspaced log {CHAT} {by.id}")


def test_a_superseded_call_may_know_only_the_id_of_that_build() -> None:
    gone = Chat(chat_id=CHAT, deleted_builds=(uid("w/b1"), uid("w/b2")))
    words = explain("stop_workspace", answers.superseded(WAIT, gone))

    assert words.startswith("stop_workspace was superseded: a build took over")
    assert uid("w/b2") in words


def test_a_call_whose_workspace_was_deleted_names_that_reason() -> None:
    words = explain("stop_workspace", answers.superseded(WAIT, Chat(chat_id=CHAT))).split("\n")

    assert words[0] == "stop_workspace did not succeed: the workspace was deleted"
    assert words[1].split() == ["build", uid("w/b1")]


def test_a_failure_without_a_build_names_no_build() -> None:
    words = explain("create_workspace", Answered({"error": "the call was canceled"}))

    assert words == "create_workspace did not succeed: the call was canceled"


def test_a_refusal_shows_the_error_text() -> None:
    words = explain("stop_workspace", answers.error("there is nothing\nto stop"))

    assert words == "stop_workspace was refused: there is nothing\n  to stop"


def test_a_refusal_names_the_command_in_place_of_the_tool() -> None:
    words = explain(
        "stop_workspace", answers.error("no workspace; use create_workspace to make one")
    )

    assert words.endswith("use `workspaced create TEMPLATE --chat CHAT` to make one")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"agent_status": "no_agent"}, "no agent"),
        ({"agent_status": "selection_error", "agent_error": "a and b"}, "chosen: a and b"),
        ({"agent_status": "not_ready", "agent_error": "in time"}, "not connected: in time"),
        ({"agent_status": "not_ready"}, "has not connected yet"),
        (
            {"startup_scripts": "startup_scripts_failed", "lifecycle_state": "start_error"},
            "failed (start_error); see their output with `workspaced log",
        ),
        ({"startup_scripts": "startup_scripts_timeout"}, "did not finish in time"),
        ({"startup_scripts": "startup_scripts_unknown"}, "not known yet"),
        ({"agent_status": "asleep"}, "agent_status is asleep"),
    ],
)
def test_readiness_keys_are_explained(keys: dict[str, str], words: str) -> None:
    first, second = explain("create_workspace", created(**keys)).split("\n")

    assert first == f"created ann/w, build {uid('b')}"
    assert second.startswith("  but ")
    assert words in second


@pytest.mark.parametrize(
    ("tool", "result", "words"),
    [
        ("create_workspace", created().result, f"created ann/w, build {uid('b')}"),
        (
            "create_workspace",
            {"created": False, "workspace_name": "w", "status": "already_exists", "message": "m"},
            "created nothing: w exists already",
        ),
        (
            "create_workspace",
            {"created": False, "workspace_name": "w", "status": "stopped", "message": "m"},
            "created nothing: w exists and is stopped; start_workspace starts it",
        ),
        (
            "start_workspace",
            {"started": True, "workspace_name": "w", "no_build": True},
            "w runs already",
        ),
        (
            "start_workspace",
            {"started": True, "workspace_name": "w", "build_id": "b"},
            "started w, build b",
        ),
        (
            "start_workspace",
            {
                "started": True,
                "workspace_name": "w",
                "build_id": "b",
                "updated_to_active_version": True,
                "update_reason": "it must",
            },
            "started w, build b, updated to the active version: it must",
        ),
        (
            "stop_workspace",
            {"stopped": True, "workspace_name": "w", "build_id": "b"},
            "stopped w, build b",
        ),
        (
            "stop_workspace",
            {"stopped": True, "workspace_name": "w", "no_build": True},
            "w is stopped already",
        ),
        (
            "list_templates",
            answers.templates_page([PYTHON], 1).result,
            "1 template, page 1 of 1: python",
        ),
        ("list_templates", answers.templates_page([], 1).result, "0 templates, page 1 of 1"),
        (
            "read_template",
            answers.template_read(PYTHON).result,
            f"template python: 0 parameters, 0 presets, active version {PYTHON.active.id}",
        ),
        ("fly", {}, "fly is done"),
    ],
)
def test_success_is_explained_in_one_line(tool: str, result: dict[str, Any], words: str) -> None:
    assert explain(tool, Answered(result)) == words


def test_escape_sequences_of_a_build_do_not_reach_the_terminal() -> None:
    error = "\x1b[31mred\x1b[0m\x1b]0;title\x07\rbell"

    words = explain("create_workspace", failure(chat(requested(), failed(error=error))))

    assert "\x1b" not in words
    assert "\x07" not in words
    assert "  red]0;title\n  bell" in words


def test_a_failure_of_several_lines_is_indented() -> None:
    first, *more = describe(state(chat(requested(), failed(error=ERROR))))

    assert first[12:] == (
        "  failed  build_failed: The start step exited with status 1. Its last lines:"
    )
    assert more == [f"{'':12}  fetching", f"{'':12}  error: not found"]


def test_each_line_of_log_has_a_mark() -> None:
    assert describe(Log(build_id=uid("b"), output="a\nb\n")) == ["  | a", "  | b"]


def test_a_state_line_names_the_agent() -> None:
    (line,) = describe(state(chat(requested(), succeeded())))

    assert line.endswith("agent_connecting  (agent main: connecting)")


def test_a_change_of_fields_that_are_not_shown_gives_no_line() -> None:
    built = chat(requested(), succeeded())
    log = Log(build_id=uid("b"), output="a\n")
    describing = ChangeDescriber()

    assert len(describing.lines(state(built, 1))) == 1
    assert describing.lines(state(built, 2, version=99)) == []
    assert describing.lines(log) == describing.lines(log) == ["  | a"]
    assert len(describing.lines(state(built, 3, state="ready"))) == 1
    assert len(describing.lines(state(built, 4))) == 1


def test_a_chat_of_which_nothing_is_known_gives_no_line() -> None:
    unknown = {"chat_id": CHAT, "version": 0, "state": "none"}

    assert ChangeDescriber().lines(read_state({"data": unknown})) == []


def test_what_had_no_effect_is_explained() -> None:
    result = {"started": True, "workspace_name": "w", "no_build": True, "parameters_ignored": ["a"]}
    answer = Answer(
        call_id="c",
        tool="start_workspace",
        is_error=False,
        conflict=True,
        ignored=("colour", "si\x1bze"),
        result={**result, "parameters_reset": ["b"]},
    )

    first, *remarks = describe_result(answer, CHAT)

    assert first == "w runs already"
    assert [remark.rpartition(": ")[2] for remark in remarks[1:]] == ["colour, size", "a", "b"]
    assert "answer to the first request" in remarks[0]
