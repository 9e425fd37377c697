"""What a request names and contains: names beside ids (C5j, C5k), contents (G4, G5), unused parameters (C9, S9)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from statemachine.arguments import content_digest, unknown_arguments
from statemachine.calls import call_from_json, call_to_json
from statemachine.states import State
from tests.unit.driver import PYTHON, Desk, catalog, template
from tests.unit.facts import agents, started, succeeded, uid
from tests.unit.jobs import Jobs, at, is_error

WITH_PRESET = """
name = "Preset"
[[parameter]]
name = "branch"
[[preset]]
name = "next"
parameters = { branch = "next" }
[[preset]]
name = "main"
parameters = { branch = "main" }
[build]
start = "true"
"""


@pytest.mark.parametrize("name", ["python", " python\n", "PYTHON"])
@pytest.mark.parametrize("template_id", [None, "", "  "])
def test_c5j_a_template_may_be_named(name: str, template_id: str | None) -> None:
    desk = Desk()

    assert desk.create(template_id=template_id, template=name) is None
    assert desk.job.template is not None
    assert desk.job.template.id == PYTHON.id


def test_c5j_the_id_of_a_template_counts_if_the_call_has_its_name_too() -> None:
    desk = Desk(known=catalog(PYTHON, template(WITH_PRESET)))

    assert is_error(desk.create(template_id="python", template="python"))
    assert is_error(desk.create(template_id=uid("nothing"), template="python"))
    assert desk.create(template="Preset") is None
    assert desk.job.template is not None
    assert desk.job.template.id == PYTHON.id


def test_c5j_a_template_of_another_organization_can_not_be_named() -> None:
    foreign = template(organization=uid("another"))

    theirs = Desk(known=catalog(foreign)).create(template_id=None, template="python")
    unknown = Desk(known=catalog()).create(template_id=None, template="python")

    assert is_error(theirs)
    assert theirs == unknown
    assert is_error(Desk().create(template_id=None, template=7))


def test_c5k_a_preset_may_be_named() -> None:
    made = template(WITH_PRESET)
    presets = made.active.manifest.preset
    for given, wanted in (
        ({"preset": " next "}, presets[0]),
        ({"preset": "next", "preset_id": made.preset_id(presets[1])}, presets[1]),
        ({"preset": "next", "preset_id": " "}, presets[0]),
    ):
        desk = Desk(known=catalog(made))
        assert desk.create(template_id=made.id, **given) is None
        assert desk.job.preset_id == made.preset_id(wanted)
        assert desk.job.parameters == {"branch": wanted.name}

    desk = Desk(known=catalog(made))
    assert is_error(desk.create(template_id=made.id, preset="other"))
    assert is_error(desk.create(template_id=made.id, preset=made.preset_id(presets[0])))
    assert desk.create(template_id=made.id, preset=" ") is None
    assert desk.job.preset_id is None


def digest(tool: str = "create_workspace", call_id: str = "c", **args: Any) -> str:
    return content_digest(b"key", uid("chat"), call_id, tool, args)


@pytest.mark.parametrize(
    "same",
    [
        ({"template_id": PYTHON.id}, {"template_id": PYTHON.id, "name": None, "preset_id": ""}),
        ({"template_id": PYTHON.id}, {"template_id": PYTHON.id, "unknown": 1, "parameters": {}}),
        ({"parameters": {"a": 4.0, "b": 1}}, {"parameters": {"b": 1, "a": 4, "c": None}}),
        ({"parameters": 5.0}, {"parameters": 5, "other": 1}),
    ],
)
def test_g4_spellings_of_the_same_arguments_have_one_content(same: tuple[Any, Any]) -> None:
    assert digest(**same[0]) == digest(**same[1])


def test_g4_requests_for_different_things_have_different_contents() -> None:
    contents = [
        digest(template_id=PYTHON.id),
        digest(template="python"),
        digest(template_id=PYTHON.id, template="python"),
        digest(template_id=PYTHON.id, parameters={"a": ""}),
        digest(template_id=PYTHON.id, parameters={"a": "b"}),
        digest(),
        digest("start_workspace"),
        digest("nothing"),
        digest("nothing", a=1),
        digest(call_id="d"),
        digest(parameters=[]),
        content_digest(b"other key", uid("chat"), "c", "create_workspace", {}),
    ]

    assert len(set(contents)) == len(contents)


def test_g4_another_request_gets_the_first_answer_with_a_conflict() -> None:
    desk = Desk()
    first = desk.ask("list_templates", "c", page=1)

    assert desk.ask("list_templates", "c", page=1.0, query="") == first
    assert desk.conflicts == set()
    assert desk.ask("start_workspace", "c") == first
    assert desk.conflicts == {"c"}


def test_g4_a_waiting_call_is_answered_with_the_conflict() -> None:
    desk = Desk()
    assert desk.create("c") is None
    assert desk.stop("c") is None
    assert len(desk.jobs) == 1

    Jobs(desk).succeed(()).desk.result("c")

    assert desk.result("c")["created"] is True
    assert desk.conflicts == {"c"}


def test_g4_a_call_that_an_earlier_version_stored_never_conflicts() -> None:
    desk = Desk()
    desk.create("c")
    stored = json.loads(call_to_json(desk.open["c"]))
    del stored["digest"]

    old = call_from_json(json.dumps(stored))

    assert old.digest is None
    assert old.conflict is False
    assert not old.conflicts_with("anything")
    assert desk.open["c"].conflicts_with("anything")


def test_g5_the_arguments_that_a_tool_does_not_have_are_named() -> None:
    args = {"page": 1, "pages": 2, "query": None, "none": None, "Query": ""}

    assert unknown_arguments("list_templates", args) == ["pages", "Query"]
    assert unknown_arguments("stop_workspace", {"page": 1}) == ["page"]
    assert unknown_arguments("drop_database", args) == []


GIVEN = {"parameters": {"branch": "next", "size": None, "other": 3}}


@pytest.mark.parametrize("state", [State.READY, State.STOPPED, State.SELECTION_ERROR])
def test_c9_a_create_names_the_parameters_that_it_did_not_use(state: State) -> None:
    desk = at(state)

    answer, plain = desk.create(**GIVEN), desk.create(parameters={"size": None})

    assert answer is not None
    assert plain is not None
    assert answer.result["parameters_ignored"] == ["branch", "other"]
    assert "parameters_ignored" not in plain.result


def test_c9_s9_calls_that_join_a_build_name_their_parameters() -> None:
    desk = at(State.BUILDING)
    desk.create("create", **GIVEN)
    desk.start("start", **GIVEN)
    desk.start("plain")

    desk.hear(succeeded(made=()))

    for call in ("create", "start"):
        assert desk.result(call)["parameters_ignored"] == ["branch", "other"]
    assert "parameters_ignored" not in desk.result("plain")


def test_s9_a_start_of_a_running_workspace_names_its_parameters() -> None:
    answer = at(State.READY).start(**GIVEN)

    assert answer is not None
    assert answer.result["no_build"] is True
    assert answer.result["parameters_ignored"] == ["branch", "other"]


def test_a_superseded_call_names_the_workspace_that_it_waited_for() -> None:
    desk = at(State.AGENT_CONNECTING)
    desk.start("c")

    desk.hear(started(1, workspace="other"), succeeded(1, workspace="other", made=agents("other")))
    desk.stop("p")

    assert desk.workspaces["c"] == uid("w")
