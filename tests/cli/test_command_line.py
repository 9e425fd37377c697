"""Help, arguments, exit statuses, and errors of every command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import get_type_hints

import pytest

from bus import BusError
from handlers.cli.arguments import Command
from handlers.cli.command_table import COMMANDS, command_parser
from handlers.cli.command_table.chats import STATES
from handlers.cli.command_table.event_logs import ExportEvents
from handlers.cli.dispatch import exit_status_of, load_function
from handlers.errors import WorkspacedError
from handlers.setting_flags import SETTING_FLAGS
from handlers.settings import Settings
from statemachine.states import STATE_INFO
from statemachine.store import StoreUnavailableError
from statemachine.templates import TemplateError
from tests.rigs.processes import ROOT, Up, environment, run

CHAT = "8a804acf-6f16-4fe3-8544-2c2e56a0edad"
SERVERS = ["--data-dir", "--nats-url", "--database-url", "--credentials"]
CALLS = [*SERVERS, "--call-id", "--json", "--quiet", "--organization", "--owner", "--owner-name"]
FLAGS: dict[str, list[str]] = {
    "up": [*SERVERS, "--nats-port", "--http-port"],
    "worker": SERVERS,
    "gateway": SERVERS,
    "provisioner": [*SERVERS, "--name", "--pool"],
    "mcp": [*SERVERS, "--http-port", "--chat", "--organization", "--owner", "--owner-name"],
    "agent": ["config"],
    "create": [*CALLS, "TEMPLATE", "--parameter", "--chat", "--preset", "--name"],
    "start": [*CALLS, "CHAT", "--parameter"],
    "stop": [*CALLS, "CHAT"],
    "tool": [*CALLS, "TOOL", "--chat", "--arg", "--args", "--schema", "--format"],
    "exec": [*SERVERS, "CHAT", "COMMAND", "-t", "--attach"],
    "ps": [*SERVERS, "CHAT", "--json"],
    "kill": [*SERVERS, "CHAT", "ID", "--signal"],
    "cp": [*SERVERS, "SOURCE", "TARGET"],
    "template push": [*SERVERS, "DIR", "--organization"],
    "template list": [*SERVERS, "--organization", "--json"],
    "template versions": [*SERVERS, "NAME|ID", "--organization", "--json"],
    "template activate": [*SERVERS, "VERSION_ID"],
    "chat list": [*SERVERS, "--state", "--organization", "--owner", "--json"],
    "chat show": [*SERVERS, "CHAT", "--json"],
    "chat keep": [*SERVERS, "CHAT", "--for", "--json"],
    "build cancel": [*SERVERS, "CHAT", "--build"],
    "build times": [*SERVERS, "--since", "--json"],
    "workspace delete": [
        *SERVERS,
        "CHAT",
        "--workspace",
        "--all",
        "--older-than",
        "--dry-run",
        "--reason",
        "--json",
    ],
    "workspace orphans": [*SERVERS, "--json"],
    "watch": [*SERVERS, "CHAT", "--json"],
    "log": [*SERVERS, "CHAT", "BUILD", "-f", "--follow", "--json"],
    "history": [*SERVERS, "CHAT", "--json"],
    "events": [*SERVERS, "CHAT", "--all"],
    "replay": [*SERVERS, "FILE", "--chat", "--all", "--rebuild", "--dry-run"],
    "report": [*SERVERS, "FILE", "--all", "--out"],
    "status": [*SERVERS, "--json"],
    "top": SERVERS,
    "calls list": [*SERVERS, "--chat", "--json"],
    "dead list": [*SERVERS, "--json"],
    "dead show": [*SERVERS, "NUMBER", "--json"],
    "dead replay": [*SERVERS, "NUMBER"],
    "dead drop": [*SERVERS, "NUMBER", "--all", "--yes"],
    "settings set": [*SERVERS, "KEY", "VALUE"],
    "settings unset": [*SERVERS, "KEY"],
    "settings list": [*SERVERS, "--json"],
    "migrate": SERVERS,
    "nats-auth": SERVERS,
    "credentials issue": [
        *SERVERS,
        "--role",
        "--chat",
        "--pool",
        "--name",
        "--exec",
        "--no-exec",
        "--for",
        "--out",
    ],
    "credentials list": [*SERVERS, "--all", "--json"],
    "credentials revoke": [*SERVERS, "KEY"],
    "token issue": [
        *SERVERS,
        "--role",
        "--chat",
        "--organization",
        "--owner",
        "--no-exec",
        "--for",
    ],
    "token list": SERVERS,
    "token revoke": [*SERVERS, "ID"],
    "page": ["--chat", "--url", "--json", *SERVERS],
    "demo": ["--keep"],
    "completion": ["SHELL", "bash"],
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


@pytest.mark.parametrize("group", sorted({c.split()[0] for c in FLAGS if " " in c}))
def test_the_help_of_a_group_says_what_its_commands_do(group: str) -> None:
    helped = run(group, "--help").stdout

    usage, description, *_ = helped.split("\n\n")
    assert usage.startswith("usage: ")
    assert description[0].isupper()
    assert description.endswith(".")


@pytest.mark.parametrize("command", ["up", "worker", "gateway", "provisioner"])
def test_the_help_of_a_role_describes_the_settings_that_it_uses(command: str) -> None:
    helped = run(command, "--help").stdout
    (role,) = (one for one in COMMANDS if one.name == command)

    assert role.variables
    for name, field in Settings.model_fields.items():
        described = name in role.variables or name in SETTING_FLAGS
        described &= name != "organization"  # for commands that act for one
        assert (f"WORKSPACED_{name.upper()}" in " ".join(helped.split())) is described
        if name in role.variables:
            assert " ".join(str(field.description).split()) in " ".join(helped.split())


def test_the_demo_takes_no_servers() -> None:
    """It starts its own servers in a temporary directory."""
    assert not [flag for flag in SERVERS if flag in run("demo", "--help").stdout]
    assert run("demo", "--data-dir", "x").returncode == 2


def test_the_help_of_the_gateway_mentions_the_issuer_seed() -> None:
    assert "issuer.nk" in run("gateway", "--help").stdout


def test_help_imports_nothing_slow() -> None:
    code = "import sys; from handlers.cli.command_table import command_parser; command_parser().format_help();"
    code += (
        "sys.exit(any(name in sys.modules for name in ('pydantic', 'asyncpg', 'rich', 'shtab')))"
    )

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_table_of_commands_is_complete() -> None:
    assert [command.name for command in COMMANDS] == [*FLAGS]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_a_function_and_a_type_for_each_argument(command: type[Command]) -> None:
    arguments = {name for name, _ in command.arguments()}

    assert callable(load_function(command))
    assert arguments <= get_type_hints(command).keys()
    assert set(command.one_of) <= arguments


def test_a_parsed_command_has_its_arguments_as_attributes() -> None:
    parsed = command_parser().parse_args(["events", CHAT, "--data-dir", "/data"])

    command = parsed.command(vars(parsed))

    assert isinstance(command, ExportEvents)
    assert (command.chat, command.all, command.data_dir) == (CHAT, False, "/data")


def test_the_version_is_printed() -> None:
    done = run("--version")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"workspaced {version('workspaced')}\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["work"], ["workspace", "worker"]),
        (["chat", ""], ["list", "show"]),
        (["chat", "list", "--st"], ["--state"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["dead", ""], ["list", "show", "replay", "drop"]),
    ],
    ids=" ".join,
)
def test_bash_completes_commands_and_flags(words: list[str], offered: list[str]) -> None:
    script = run("completion", "bash").stdout
    line = " ".join(f"'{word}'" for word in ("workspaced", *words))
    script += f"""
COMP_WORDS=({line}); COMP_CWORD={len(words)}
$(complete -p workspaced | sed 's/.*-F \\([^ ]*\\).*/\\1/') workspaced '{words[-1]}' ''
printf '%s\\n' "${{COMPREPLY[@]}}"
"""

    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)

    assert set(offered) <= set(done.stdout.split())


def test_there_is_a_completion_script_for_zsh() -> None:
    done = run("completion", "zsh")

    assert done.returncode == 0
    assert done.stdout.startswith("#compdef workspaced")


def test_there_is_a_completion_script_for_fish() -> None:
    done = run("completion", "fish")

    assert done.returncode == 0
    assert "complete -c workspaced" in done.stdout
    assert "replay" in done.stdout


@pytest.mark.parametrize("error", [BusError, StoreUnavailableError, TemplateError, WorkspacedError])
def test_errors_that_users_can_act_on_have_an_exit_status(error: type[Exception]) -> None:
    """Such an error is printed as one line; without a status it would be a traceback."""
    assert exit_status_of(error("text")) == 1


@pytest.mark.parametrize("seconds", ["0", "1e9", "nan", "2592001"])
def test_a_timeout_out_of_range_is_wrong_usage(seconds: str) -> None:
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
        ["settings", "unset", "colour"],
        ["workspace", "delete", CHAT, "--all"],
        ["workspace", "delete", CHAT, "--dry-run"],
        ["workspace", "delete", CHAT, "--older-than", "30d"],
        ["settings", "set", "chat_workspace_ttl", "soon"],
        ["settings", "set", "chat_workspace_ttl"],
        ["settings", "set", "chat_template_allowlist", "python"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_status_2(running: Up, words: list[str]) -> None:
    servers = ["--data-dir", str(running.directory)] if len(words) > 1 else []

    refused = run(*words, *servers)

    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_invalid_id_names_its_flag(running: Up) -> None:
    refused = running.run("tool", "list_templates", "--chat", "new", "--call-id", "a b.c")

    assert "argument --call-id: 'a b.c'" in refused.stderr


def test_a_missing_agent_configuration_is_named_once(tmp_path: Path) -> None:
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


def test_an_invalid_setting_is_wrong_usage() -> None:
    refused = run("up", env={"WORKSPACED_BUILD_TIMEOUT": "soon"})

    assert refused.returncode == 2
    assert "WORKSPACED_BUILD_TIMEOUT" in refused.stderr


@pytest.mark.parametrize(
    ("given", "missing"),
    [("--tls-certificate", "--tls-key"), ("--tls-key", "--tls-certificate")],
)
def test_a_certificate_without_its_key_names_the_missing_flag(
    given: str, missing: str, tmp_path: Path
) -> None:
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


def test_a_data_directory_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")

    refused = run("chat", "list", "--data-dir", file)

    assert refused.returncode == 1
    assert refused.stderr == (
        f"workspaced: {file} can't be the data directory (Not a directory): "
        "choose another with --data-dir\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_data_directory_is_an_error(tmp_path: Path) -> None:
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
def test_a_stdout_that_cannot_be_written_is_an_error(
    running: Up, words: list[str], to: str, why: str
) -> None:
    asked = ("tool", "list_templates", "--chat", CHAT, "--call-id", "unwritable", "--quiet")
    running.data(*asked)

    failed = unwritable(running, words, to)

    assert failed.returncode == 1
    assert f"workspaced: can't write to stdout: {why}" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_missing_seed_file_is_named(tmp_path: Path) -> None:
    missing = ("--nats-url", "nats://127.0.0.1:1", "--credentials", tmp_path / "none.nk")

    refused = run("events", CHAT, *missing)

    assert refused.returncode == 1
    assert "none.nk" in refused.stderr


def test_settings_list_prints_what_settings_set_stored(running: Up) -> None:
    try:
        assert running.run("settings", "set", "chat_workspace_ttl", "1h30m").returncode == 0
        assert running.data("settings", "list") == {
            "chat_workspace_ttl": "1h30m",
            "chat_workspace_activity_bump": "1h",
            "stopped_workspace_retention": "",
            "chat_template_allowlist": "",
        }
    finally:
        assert running.run("settings", "unset", "chat_workspace_ttl").returncode == 0


def test_the_states_of_chat_list_are_all_states() -> None:
    assert set(STATES) == {about.wire for about in STATE_INFO.values()}
