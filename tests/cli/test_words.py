"""Flags, exit statuses, and where a command writes what."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.cli.words import STATES
from statemachine.states import ABOUT
from tests.wire.harness import new_id
from tests.wire.running import Up, run

PLACE = ["--data-dir", "--nats-url", "--database-url", "--credentials"]
FLAGS: dict[str, list[str]] = {
    "up": [*PLACE, "--nats-port", "--http-port"],
    "worker": PLACE,
    "gateway": PLACE,
    "provisioner": [*PLACE, "--name", "--pool"],
    "agent": ["config"],
    "tool": [
        *PLACE,
        "--chat",
        "--arg",
        "--call-id",
        "--json",
        "--quiet",
        "--organization",
        "--owner",
    ],
    "template push": [*PLACE, "DIR", "--organization"],
    "template list": [*PLACE, "--organization", "--json"],
    "template versions": [*PLACE, "NAME|ID", "--organization", "--json"],
    "template activate": [*PLACE, "VERSION_ID"],
    "chat list": [*PLACE, "--state", "--organization", "--owner", "--json"],
    "chat show": [*PLACE, "CHAT", "--json"],
    "workspace delete": [*PLACE, "CHAT", "--reason", "--json"],
    "workspace orphans": [*PLACE, "--json"],
    "log": [*PLACE, "CHAT", "BUILD", "--follow", "--json"],
    "events": [*PLACE, "CHAT"],
    "replay": ["FILE"],
    "settings set": [*PLACE, "KEY", "VALUE"],
    "settings list": PLACE,
    "demo": ["--keep"],
}


def test_the_help_names_every_command() -> None:
    helped = run("--help")

    assert helped.returncode == 0
    assert helped.stderr == ""
    for command in FLAGS:
        assert command.split()[0] in helped.stdout


@pytest.mark.parametrize("command", FLAGS)
def test_the_help_of_a_command_names_every_flag(command: str) -> None:
    helped = run(*command.split(), "--help")

    assert helped.returncode == 0
    assert helped.stderr == ""
    for flag in FLAGS[command]:
        assert flag in helped.stdout


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["sing"],
        ["up", "--loud"],
        ["up", "--nats-port", "many"],
        ["up", "--nats-port", "0"],
        ["up", "--http-port", "65536"],
        ["tool", "list_templates"],
        ["tool", "list_templates", "--chat", "mine"],
        ["tool", "list_templates", "--chat", "new", "--arg", "page"],
        ["tool", "list_templates", "--chat", "new", "--arg", "a=1", "--arg", "a.b=1"],
        ["tool", "list_templates", "--chat", "new", "--owner", "me"],
        ["template"],
        ["template", "push", ".", "--organization", "ours"],
        ["template", "versions"],
        ["template", "activate", "newest"],
        ["chat"],
        ["chat", "list", "--state", "asleep"],
        ["chat", "show", "new"],
        ["workspace"],
        ["workspace", "delete"],
        ["log"],
        ["log", new_id(), "newest"],
        ["events"],
        ["events", "new"],
        ["settings", "set", "colour", "red"],
        ["settings", "set", "chat_workspace_ttl", "soon"],
        ["settings", "set", "chat_workspace_ttl"],
        ["settings", "set", "chat_template_allowlist", "python"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told_from_failure(running: Up, words: list[str]) -> None:
    place = ["--data-dir", str(running.directory)] if len(words) > 1 else []

    refused = run(*words, *place)

    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_setting_that_can_not_be_is_wrong_usage() -> None:
    refused = run("up", env={"WORKSPACED_BUILD_TIMEOUT": "soon"})

    assert refused.returncode == 2
    assert "WORKSPACED_BUILD_TIMEOUT" in refused.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["worker"],
        ["gateway"],
        ["provisioner"],
        ["tool", "list_templates", "--chat", "new"],
        ["template", "list"],
        ["template", "versions", "python"],
        ["chat", "list"],
        ["chat", "show", new_id()],
        ["workspace", "delete", new_id()],
        ["workspace", "orphans"],
        ["log", new_id()],
        ["events", new_id()],
        ["settings", "list"],
        ["settings", "set", "chat_workspace_ttl", "2h"],
    ],
    ids=" ".join,
)
def test_without_a_running_up_a_command_says_what_to_do(words: list[str], tmp_path: Path) -> None:
    refused = run(*words, "--data-dir", tmp_path / "nothing")

    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "workspaced up" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_nats_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = ("--nats-url", "nats://127.0.0.1:1", "--credentials", tmp_path / "none.nk")

    refused = run("events", new_id(), *missing)

    assert refused.returncode == 1
    assert "none.nk" in refused.stderr


def test_settings_are_shown_as_they_were_set(running: Up) -> None:
    try:
        assert running.run("settings", "set", "chat_workspace_ttl", "1h30m").returncode == 0
        assert running.data("settings", "list") == {
            "chat_workspace_ttl": "1h30m",
            "chat_template_allowlist": "",
        }
    finally:
        assert running.run("settings", "set", "chat_workspace_ttl", "").returncode == 0


def test_the_states_that_can_be_asked_for_are_those_there_are() -> None:
    assert set(STATES) == {about.wire for about in ABOUT.values()}
