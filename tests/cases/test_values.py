"""Recorded cases about parameters: compared as values, and passed exactly as they are given."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cases.playing import INPUTS
from tests.rigs.messages import Event, new_id
from tests.rigs.processes import Up


class Caller:
    """Calls the tools for one chat on the command line, like the run.sh of each case."""

    def __init__(self, running: Up) -> None:
        self._running = running
        self.chat, self.organization = new_id(), new_id()

    def push(self, folder: str) -> str:
        """Push the folder of a case; return the template's id."""
        pushed = self._running.data(
            "template", "push", INPUTS / folder, "--organization", self.organization
        )
        return str(pushed["template_id"])

    def call(self, tool: str, *words: str) -> tuple[int, Event]:
        """Call a tool; return the exit status and the answer."""
        place = ("--chat", self.chat, "--organization", self.organization, "--json")
        done = self._running.run("tool", tool, *place, *words)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def succeed(self, tool: str, *words: str) -> Event:
        """Call a tool that must succeed; return the answer."""
        status, answer = self.call(tool, *words)
        assert status == 0, answer
        return answer

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the newest build, as the event log has them."""
        done = self._running.run("events", self.chat)
        assert done.returncode == 0, done.stderr
        entries = [json.loads(line) for line in done.stdout.splitlines()]
        asked = [e["event"]["data"] for e in entries if "build_requested" in e["event"]["type"]]
        return dict(asked[-1]["parameters"])


@pytest.fixture
def caller(running: Up) -> Caller:
    return Caller(running)


def test_b01_a_start_keeps_an_immutable_value_that_the_new_version_does_not_allow(
    caller: Caller,
) -> None:
    template = caller.push("B01-stale-immutable-option/v1")
    caller.succeed(
        "create_workspace", "--arg", f"template_id={template}", "--arg", "parameters.image=old"
    )
    caller.succeed("stop_workspace")
    caller.push("B01-stale-immutable-option/v2")

    status, changed = caller.call("start_workspace", "--arg", "parameters.image=new")
    started = caller.succeed("start_workspace")

    assert status == 1
    assert [wrong["field"] for wrong in changed["validations"]] == ["image"]
    assert started["started"] is True
    assert started["updated_to_active_version"] is True
    assert "parameters_reset" not in started
    assert caller.parameters() == {"image": "old"}


def test_b01_the_same_immutable_value_may_be_given(caller: Caller) -> None:
    template = caller.push("B01-stale-immutable-option/v1")
    caller.succeed(
        "create_workspace", "--arg", f"template_id={template}", "--arg", "parameters.image=old"
    )
    caller.succeed("stop_workspace")
    caller.push("B01-stale-immutable-option/v2")

    assert caller.succeed("start_workspace", "--arg", "parameters.image=old")["started"] is True


def test_b02_a_new_immutable_parameter_can_be_set_once(caller: Caller) -> None:
    template = caller.push("B02-new-immutable-parameter/v1")
    caller.succeed("create_workspace", "--arg", f"template_id={template}")
    caller.succeed("stop_workspace")
    caller.push("B02-new-immutable-parameter/v2")

    caller.succeed("start_workspace", "--arg", "parameters.region=eu")
    assert caller.parameters() == {"x": "1", "region": "eu"}
    caller.succeed("stop_workspace")
    status, _ = caller.call("start_workspace", "--arg", "parameters.region=us")
    assert status == 1


def test_b02_the_same_value_in_another_spelling_is_no_change(caller: Caller) -> None:
    template = caller.push("B02-same-value-other-spelling")
    tags = 'parameters.tags="[\\"a\\",\\"b\\"]"'
    made = ("--arg", f"template_id={template}", "--arg", tags, "--arg", "parameters.cpus=4")
    caller.succeed("create_workspace", *made)
    assert caller.parameters() == {"tags": '["a","b"]', "cpus": "4"}

    for spelling in ('tags=["a", "b"]', "cpus=4.0", "cpus=+4"):
        caller.succeed("stop_workspace")
        answer = caller.succeed("start_workspace", "--arg", f"parameters.{spelling}")
        assert answer["started"] is True
        assert caller.parameters() == {"tags": '["a","b"]', "cpus": "4"}
    caller.succeed("stop_workspace")
    assert caller.call("start_workspace", "--arg", "parameters.cpus=5")[0] == 1


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("python", "3.10"),
        ("sha", "1e5"),
        ("sha", "12e4567"),
        ("sha", "null"),
    ],
)
def test_b31_a_parameter_arrives_exactly_as_it_is_typed(
    caller: Caller, name: str, typed: str
) -> None:
    template = caller.push("B31-cli-values")

    caller.succeed(
        "create_workspace",
        "--arg",
        f"template_id={template}",
        "--arg",
        f"parameters.{name}={typed}",
    )

    assert caller.parameters()[name] == typed


def test_b31_names_and_queries_that_look_like_numbers_stay_texts(caller: Caller) -> None:
    template = caller.push("B31-cli-values")

    for name in ("2024", "true"):
        caller.chat = new_id()
        answer = caller.succeed(
            "create_workspace", "--arg", f"template_id={template}", "--arg", f"name={name}"
        )
        assert answer["workspace_name"].split("/")[1].startswith(name)
    found = caller.succeed("list_templates", "--arg", "query=2024", "--arg", "page=1")
    assert found["templates"] == []
    whole = json.dumps({"query": "typed", "page": 1})
    assert caller.succeed("list_templates", "--args", whole)["count"] == 1
