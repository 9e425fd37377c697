"""Flags, exit statuses, and where a command writes what."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from handlers.cli.dispatch import COMMANDS, called
from handlers.cli.flags import parser
from handlers.cli.words import STATES
from handlers.settings import Settings
from statemachine.states import STATE_INFO
from tests.wire.running import ROOT, Up, environment, run

CHAT = "8a804acf-6f16-4fe3-8544-2c2e56a0edad"
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
        "--args",
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
    "events": [*PLACE, "CHAT", "--all"],
    "replay": [*PLACE, "FILE", "--chat", "--all", "--rebuild", "--dry-run"],
    "settings set": [*PLACE, "KEY", "VALUE"],
    "settings list": PLACE,
    "migrate": PLACE,
    "nats-auth": PLACE,
    "credentials issue": [
        *PLACE,
        "--role",
        "--chat",
        "--pool",
        "--name",
        "--for",
        "--out",
    ],
    "credentials list": [*PLACE, "--all", "--json"],
    "credentials revoke": [*PLACE, "KEY"],
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


@pytest.mark.parametrize("command", ["up", "worker", "gateway", "provisioner"])
def test_the_help_of_what_serves_names_every_setting(command: str) -> None:
    helped = run(command, "--help").stdout

    for name, field in Settings.model_fields.items():
        assert f"WORKSPACED_{name.upper()}" in helped
        assert " ".join(str(field.description).split()) in " ".join(helped.split())


def test_the_demo_is_not_told_where() -> None:
    """It has servers of its own, in a directory of its own."""
    assert not [flag for flag in PLACE if flag in run("demo", "--help").stdout]
    assert run("demo", "--data-dir", "x").returncode == 2


def test_the_gateway_tells_of_the_file_that_signs() -> None:
    assert "issuer.nk" in run("gateway", "--help").stdout


def test_quick_words_import_nothing_heavy() -> None:
    code = "import sys; from handlers.cli.flags import parser; parser().format_help();"
    code += "sys.exit('pydantic' in sys.modules or 'asyncpg' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


WORDS = {
    **{role: [role] for role in ("up", "worker", "gateway", "provisioner", "demo")},
    "tool": ["tool", "list_templates", "--chat", "new"],
    "template push": ["template", "push", "."],
    "template versions": ["template", "versions", "x"],
    "template activate": ["template", "activate", CHAT],
    "chat show": ["chat", "show", CHAT],
    "workspace delete": ["workspace", "delete", CHAT],
    "log": ["log", CHAT],
    "events": ["events", CHAT],
    "replay": ["replay", "-"],
    "settings set": ["settings", "set", "a", "b"],
    "credentials issue": ["credentials", "issue", "--role", "operator"],
    "credentials revoke": ["credentials", "revoke", "U"],
}


def test_every_command_but_the_agent_is_in_the_table() -> None:
    assert COMMANDS.keys() == FLAGS.keys() - {"agent"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_function_and_all_that_it_asks_for(command: str) -> None:
    flags = parser().parse_args(WORDS.get(command, command.split()))

    function, arguments = called(flags, Settings())

    assert flags.command == command
    inspect.signature(function).bind(**arguments)


@pytest.mark.parametrize("seconds", ["0", "1e9", "nan", "2592001"])
def test_a_time_that_nobody_waits_is_refused(seconds: str) -> None:
    refused = run("worker", env={"WORKSPACED_BUILD_TIMEOUT": seconds})

    assert refused.returncode == 2
    assert "WORKSPACED_BUILD_TIMEOUT" in refused.stderr


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
        ["tool", "list_templates", "--chat", "new", "--call-id", "a b.c"],
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
        ["log", CHAT, "newest"],
        ["events"],
        ["events", "new"],
        ["events", CHAT, "--all"],
        ["replay"],
        ["replay", "-", "--all"],
        ["replay", "-", "--rebuild"],
        ["replay", "--all", "--dry-run"],
        ["replay", "--chat", "new"],
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


def test_an_id_that_is_none_names_its_flag(running: Up) -> None:
    refused = running.run("tool", "list_templates", "--chat", "new", "--call-id", "a b.c")

    assert "argument --call-id: 'a b.c'" in refused.stderr


def test_a_configuration_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    file = tmp_path / "none.json"

    refused = run("agent", file)

    assert refused.returncode == 1
    assert refused.stderr.count(str(file)) == 1
    assert "No such file or directory" in refused.stderr
    assert "Errno" not in refused.stderr


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["tool", "start_workspace", "--chat", CHAT, "--bogus"], "workspaced tool"),
        (["chat", "list", "--bogus"], "workspaced chat list"),
        (["events", CHAT, "more"], "workspaced events"),
        (["--bogus", "chat", "list"], "workspaced"),
    ],
)
def test_the_usage_is_that_of_the_command(words: list[str], program: str) -> None:
    refused = run(*words)

    assert refused.returncode == 2
    assert refused.stderr.startswith(f"usage: {program} [-h]")
    assert f"{program}: error: " in refused.stderr
    assert words[-1] in refused.stderr or words[0] in refused.stderr


def test_a_setting_that_can_not_be_is_wrong_usage() -> None:
    refused = run("up", env={"WORKSPACED_BUILD_TIMEOUT": "soon"})

    assert refused.returncode == 2
    assert "WORKSPACED_BUILD_TIMEOUT" in refused.stderr


@pytest.mark.parametrize(
    ("given", "missing"),
    [("--tls-certificate", "--tls-key"), ("--tls-key", "--tls-certificate")],
)
def test_half_a_certificate_names_the_other_flag(given: str, missing: str, tmp_path: Path) -> None:
    refused = run("up", given, "x", "--data-dir", tmp_path / "data")

    assert refused.returncode == 2
    assert f"({missing}) is missing" in refused.stderr


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
        ["chat", "show", CHAT],
        ["workspace", "delete", CHAT],
        ["workspace", "orphans"],
        ["log", CHAT],
        ["events", CHAT],
        ["events", "--all"],
        ["replay", "--all"],
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


def test_a_data_directory_that_is_none_is_said(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")

    refused = run("chat", "list", "--data-dir", file)

    assert refused.returncode == 1
    assert refused.stderr == (
        f"workspaced: {file} can't be the data directory (Not a directory): "
        "choose another with --data-dir\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_so_is_one_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "lock").touch(0)

    refused = run("chat", "list", "--data-dir", tmp_path)

    assert refused.returncode == 1
    assert f"{tmp_path} can't be the data directory (Permission denied)" in refused.stderr


def unwritable(running: Up, words: list[str], to: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "handlers", *words, "--data-dir", str(running.directory)]
    return subprocess.run(
        ["/bin/sh", "-c", f'"$@" >{to}', "sh", *command],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [["chat", "list"], ["events", "--all"], ["replay", "--chat", CHAT], ["settings", "list"]],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("to", "why"), [("/dev/full", "No space left on device"), ("&-", "it is closed")]
)
def test_what_can_not_be_written_is_said(running: Up, words: list[str], to: str, why: str) -> None:
    asked = ("tool", "list_templates", "--chat", CHAT, "--call-id", "unwritable", "--quiet")
    running.data(*asked)

    failed = unwritable(running, words, to)

    assert failed.returncode == 1
    assert f"workspaced: can't write to stdout: {why}" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_nats_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = ("--nats-url", "nats://127.0.0.1:1", "--credentials", tmp_path / "none.nk")

    refused = run("events", CHAT, *missing)

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
    assert set(STATES) == {about.wire for about in STATE_INFO.values()}
