"""`chat`, `log`, `workspace` and `template versions` with a running `up`."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.template_folders import QUICK, folder
from tests.rigs.client import Participant, connected, role_options
from tests.rigs.messages import Event, cloud_event, new_id, subject_of
from tests.rigs.processes import ROOT, TIMEOUT, Process, Up, environment

UNSERVED = """
name = "unserved"
pool = "moon"

[[parameter]]
name = "secret"
default = "swordfish"
sensitive = true

[build]
start = "true"
"""
STUBBORN = """
name = "stubborn"
pool = "local"

[build]
start = "echo made"
stop = "echo not that easily; exit 4"
delete = "echo never; exit 5"
"""


@pytest.fixture(scope="module")
def templates(running: Up, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    parent = tmp_path_factory.mktemp("templates")
    return {
        name: running.data("template", "push", folder(parent, text, name))["template_id"]
        for name, text in (("quick", QUICK), ("unserved", UNSERVED), ("stubborn", STUBBORN))
    }


def run_on_terminal(
    running: Up, *words: str | Path, terminal: str = "dumb"
) -> tuple[list[str], str, int]:
    """Run a command on a terminal; return its lines, its stderr and its exit status."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "handlers", *map(str, words), "--data-dir", running.directory],
        cwd=ROOT,
        env=environment({"TERM": terminal}),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65_536):
            shown += piece
    except OSError:
        pass  # the terminal was closed
    finally:
        os.close(ours)
    _, said = process.communicate(timeout=TIMEOUT)
    return shown.decode().splitlines(), said.decode(), process.returncode


def json_lines(running: Up, *words: str | Path) -> list[Any]:
    """Run a command that prints JSON lines; return them."""
    done = running.run(*words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def create_workspace(running: Up, template: str, **identity: str) -> tuple[str, Any]:
    """Create a workspace; return its chat and the answer."""
    chat = new_id()
    flags = [word for key, value in identity.items() for word in (f"--{key}", value)]
    args = ("--chat", chat, "--arg", f"template_id={template}", "--json", *flags)
    done = running.run("tool", "create_workspace", *args)
    return chat, json.loads(done.stdout)


def start_create(running: Up, chat: str, template: str) -> Process:
    """Start a command that creates a workspace and waits for it."""
    args = ("--chat", chat, "--arg", f"template_id={template}", "--data-dir", running.directory)
    return Process("tool", "create_workspace", *args)


def publish_as_provisioner(running: Up, chat: str, type_name: str, data: Event) -> None:
    """Publish a fact as a provisioner would."""

    async def publish() -> None:
        options = role_options(running.directory / "credentials", "provisioner")
        async with connected(Participant(), running.nats, **options) as party:
            fact = cloud_event(type_name, "/provisioner/forge", chat, data)
            await party.publish(subject_of(fact), fact)

    asyncio.run(publish())


def test_settings_list_prints_a_table_or_one_json_line(running: Up) -> None:
    names = [
        *("chat_workspace_ttl", "chat_template_allowlist"),
        *("chat_workspace_activity_bump", "stopped_workspace_retention"),
    ]

    lines, _, status = run_on_terminal(running, "settings", "list")

    assert status == 0
    assert [line.split()[0] for line in lines] == names
    for (found,) in (
        json_lines(running, "settings", "list"),
        [json.loads(line) for line in run_on_terminal(running, "settings", "list", "--json")[0]],
    ):
        assert list(found) == names


class TestTool:
    def test_json_prints_only_the_answer(self, running: Up, templates: dict[str, str]) -> None:
        wrong = ("--arg", f"template_id={templates['quick']}", "--arg", "parameters.colour=red")

        refused = running.run("tool", "create_workspace", "--chat", "new", *wrong, "--json")

        assert refused.returncode == 1
        assert refused.stderr == ""
        assert json.loads(refused.stdout)["validations"][0]["field"] == "colour"

    def test_the_answer_is_explained_on_stderr(
        self, running: Up, templates: dict[str, str]
    ) -> None:
        wrong = ("--arg", f"template_id={templates['quick']}", "--arg", "parameters.colour=red")

        refused = running.run("tool", "create_workspace", "--chat", "new", *wrong)

        assert json.loads(refused.stdout)["validations"]
        assert "\n  colour  " in refused.stderr

    def test_the_suggested_command_shows_the_log(
        self, running: Up, templates: dict[str, str]
    ) -> None:
        chat, _ = create_workspace(running, templates["stubborn"])

        failed = running.run("tool", "stop_workspace", "--chat", chat)
        (named,) = [line for line in failed.stderr.splitlines() if line.startswith("  log ")]
        shown = running.run(*named.split()[2:-2])

        assert named.split()[1:4] == ["workspaced", "log", chat]
        assert named.split()[-2:] == ["--data-dir", str(running.directory)]
        assert "not that easily\n" in shown.stdout

    def test_a_call_that_waits_for_an_unserved_pool_reports_that(
        self, running: Up, templates: dict[str, str]
    ) -> None:
        process = start_create(running, new_id(), templates["unserved"])
        try:
            process.wait_for_output("queued, pool moon: nobody serves it")
        finally:
            process.stop(signal.SIGINT)

    def test_a_status_line_on_stderr_says_what_a_call_waits_for(self, running: Up) -> None:
        ours, theirs = pty.openpty()
        command = ["tool", "list_templates", "--chat", "new", "--data-dir", str(running.directory)]

        done = subprocess.run(
            [sys.executable, "-m", "handlers", *command],
            cwd=ROOT,
            env=environment({"TERM": "xterm-256color"}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=TIMEOUT,
            check=True,
        )
        os.close(theirs)
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            shown = terminal.read(65_536).decode()

        assert "templates" in json.loads(done.stdout)
        assert "waiting for list_templates" in shown
        assert "templates, page 1" in shown or "template, page 1" in shown


class TestChats:
    def test_chat_list_prints_json_lines_or_a_table(
        self, running: Up, templates: dict[str, str]
    ) -> None:
        owner, other = new_id(), new_id()
        ready, answer = create_workspace(running, templates["quick"], owner=owner)
        failed, _ = create_workspace(running, templates["stubborn"], owner=owner)
        running.run("tool", "stop_workspace", "--chat", failed, "--owner", owner)
        mine = ("chat", "list", "--owner", owner)

        listed = {chat["chat_id"]: chat for chat in json_lines(running, *mine)}
        of_state = json_lines(running, *mine, "--state", "failed")
        table, _, status = run_on_terminal(running, *mine)
        coloured, _, _ = run_on_terminal(running, *mine, terminal="xterm-256color")
        as_json, _, _ = run_on_terminal(running, *mine, "--json")
        none, said, _ = run_on_terminal(running, "chat", "list", "--owner", other)
        running.run("tool", "stop_workspace", "--chat", ready, "--owner", owner)

        assert listed.keys() == {ready, failed}
        assert listed[ready]["workspace"]["name"] in answer["workspace_name"]
        assert [chat["chat_id"] for chat in of_state] == [failed]
        assert status == 0
        assert table[0].split() == ["CHAT", "STATE", "WORKSPACE", "BUILD", "AGENT", "NOTE"]
        rows = {line.split()[0]: line for line in table[1:]}
        assert rows.keys() == {ready, failed}
        assert f"ready                 {answer['workspace_name']}" in rows[ready]
        assert "main connected" in rows[ready]
        assert any(f"{ready}  \x1b[32mready\x1b[0m" in line for line in coloured)
        assert "failed: build_failed" in rows[failed]
        assert [json.loads(line)["chat_id"] for line in as_json] == sorted(listed)
        assert (none, json_lines(running, "chat", "list", "--owner", other)) == ([], [])
        assert "no such chats" in said

    def test_chat_show_includes_the_failure_message(
        self, running: Up, templates: dict[str, str]
    ) -> None:
        chat, answer = create_workspace(running, templates["stubborn"])
        running.run("tool", "stop_workspace", "--chat", chat)

        (found,) = json_lines(running, "chat", "show", chat)
        shown, _, _ = run_on_terminal(running, "chat", "show", chat)

        assert found["failure"]["reason"] == "build_failed"
        assert found["open_calls"] == []
        assert f"chat        {chat}" in shown
        assert any(line.startswith("state       failed: build_failed, version ") for line in shown)
        assert any(answer["workspace_name"] in line for line in shown)
        at = next(n for n, line in enumerate(shown) if line.startswith("failure  "))
        assert "exited with status 4" in shown[at]
        assert shown[at + 1].startswith(" " * 12)
        assert "open calls  none" in shown

    def test_a_chat_without_a_workspace_can_be_shown(self, running: Up) -> None:
        chat = new_id()
        running.data("tool", "list_templates", "--chat", chat)

        (found,) = json_lines(running, "chat", "show", chat)
        shown, _, status = run_on_terminal(running, "chat", "show", chat)

        assert (found["state"], found["version"]) == ("none", 0)
        assert "state       none, version 0" in shown
        assert status == 0

    def test_a_build_that_no_provisioner_has_started_has_a_notice(
        self, running: Up, templates: dict[str, str]
    ) -> None:
        chat = new_id()
        process = start_create(running, chat, templates["unserved"])
        try:
            process.wait_for_output("building")
            (found,) = json_lines(running, "chat", "show", chat)
            shown, _, _ = run_on_terminal(running, "chat", "show", chat)
            table, _, _ = run_on_terminal(running, "chat", "list", "--state", "building")
        finally:
            process.stop(signal.SIGINT)

        assert found["notice"] == "queued, pool moon: nobody serves it"
        assert f"notice      {found['notice']}" in shown
        assert any(chat in line and found["notice"] in line for line in table)
        assert any(line.startswith("open calls  create_workspace, since ") for line in shown)


class TestLog:
    def test_log_prints_the_newest_build_or_the_given_one(
        self, running: Up, templates: dict[str, str]
    ) -> None:
        chat, answer = create_workspace(running, templates["quick"])
        running.run("tool", "stop_workspace", "--chat", chat)

        newest = running.run("log", chat)
        named = running.run("log", chat, answer["build_id"])
        pieces = json_lines(running, "log", chat, answer["build_id"], "--json")
        unknown = running.run("log", chat, new_id())

        assert "hello from the build" not in newest.stdout
        assert "hello from the build\n" in named.stdout
        assert named.stderr == ""
        assert {piece["build_id"] for piece in pieces} == {answer["build_id"]}
        assert "".join(p["output"] for p in pieces if p["origin"] == "provisioner") in named.stdout
        assert unknown.returncode == 0
        assert unknown.stdout == ""
        assert "nothing" in unknown.stderr

    def test_a_chat_without_a_build_has_no_log(self, running: Up) -> None:
        chat = new_id()
        running.data("tool", "list_templates", "--chat", chat)
        for more in ((), ("--follow",)):
            refused = running.run("log", chat, *more)

            assert refused.returncode == 1
            assert refused.stdout == ""
            assert "no build" in refused.stderr

    def test_log_follow_ends_when_the_chat_is_settled(self, running: Up, tmp_path: Path) -> None:
        pipe, chat = tmp_path / "pipe", new_id()
        os.mkfifo(pipe)
        text = QUICK.replace("quick", "followed").replace("echo $", f"echo one; cat {pipe}; echo $")
        pushed = running.data("template", "push", folder(tmp_path, text))
        process = start_create(running, chat, pushed["template_id"])
        process.wait_for_output("| one")
        following = Process("log", chat, "--follow", "--data-dir", running.directory)
        try:
            first = following.line()  # it has read the past events
            pipe.write_bytes(b"two\n")
            status = following.ended()
            process.ended()
        finally:
            process.kill()
            following.kill()
        printed = (first + following.rest).decode().splitlines()
        again = running.run("log", chat, "--follow")
        running.run("tool", "stop_workspace", "--chat", chat)

        assert status == 0
        assert [line for line in printed if line in ("one", "two")] == ["one", "two"]
        assert printed.count("hello from the build") == 1
        assert "ready" in following.output()
        assert again.stdout.splitlines() == printed

    def test_following_ends_quietly_when_it_is_interrupted(
        self, running: Up, tmp_path: Path
    ) -> None:
        pipe, chat = tmp_path / "pipe", new_id()
        os.mkfifo(pipe)
        text = QUICK.replace("quick", "interrupted").replace(
            "echo $", f"echo one; cat {pipe}; echo $"
        )
        pushed = running.data("template", "push", folder(tmp_path, text))
        process = start_create(running, chat, pushed["template_id"])
        process.wait_for_output("| one")
        following = Process("log", chat, "--follow", "--data-dir", running.directory)
        try:
            following.line()
            status = following.stop(signal.SIGINT)
            pipe.write_bytes(b"two\n")
            process.ended()
        finally:
            process.kill()
            following.kill()

        assert status == 130
        assert "Traceback" not in following.output()


class TestDelete:
    def test_deleting_a_workspace_keeps_its_logs(
        self, running: Up, templates: dict[str, str]
    ) -> None:
        chat, answer = create_workspace(running, templates["quick"])

        shown, said, status = run_on_terminal(
            running, "workspace", "delete", chat, "--reason", "no longer needed"
        )
        again = running.run("workspace", "delete", chat)
        asked = [
            entry["event"]["data"]
            for entry in json_lines(running, "events", chat)
            if entry["event"]["type"] == "workspaced.delete_requested.v1"
        ]

        assert status == 0
        assert shown == [f"{answer['workspace_name']} is deleted"]
        assert "stopping" in said
        assert "none" in said
        assert asked == [{"reason": "no longer needed"}]
        assert again.returncode == 1
        assert again.stdout == ""
        assert "nothing to delete" in again.stderr
        assert "hello from the build" in running.run("log", chat, answer["build_id"]).stdout
        assert running.run("log", chat).returncode == 0

    def test_a_failed_deletion_prints_the_reason(
        self, running: Up, templates: dict[str, str]
    ) -> None:
        chat, _ = create_workspace(running, templates["stubborn"])

        first = running.run("workspace", "delete", chat)
        second = running.run("workspace", "delete", chat, "--json")

        for failed in (first, second):
            assert failed.returncode == 1
            state = json.loads(failed.stdout)
            assert (state["state"], state["build"]["transition"]) == ("failed", "delete")
            assert "is not deleted" in failed.stderr
            assert "exited with status 5" in failed.stderr
        assert "  | never" in first.stderr
        assert "  | never" not in second.stderr

    def test_a_workspace_of_an_unknown_template_is_not_deleted(self, running: Up) -> None:
        chat = new_id()
        build = {"workspace_id": new_id(), "build_id": new_id(), "build_number": 1}
        build["transition"] = "start"
        publish_as_provisioner(running, chat, "build_started", build)
        settled = new_id()
        publish_as_provisioner(
            running,
            chat,
            "build_succeeded",
            {**build, "template_version_id": settled, "agents": []},
        )
        running.run("tool", "list_templates", "--chat", chat)

        refused = running.run("workspace", "delete", chat)

        assert refused.returncode == 1
        assert "created elsewhere" in refused.stderr


class TestOrphans:
    def test_workspaces_without_a_chat_are_listed(
        self, running: Up, templates: dict[str, str]
    ) -> None:
        chat, _ = create_workspace(running, templates["quick"])
        stray = {"workspace_id": new_id(), "build_id": new_id(), "build_number": 7}
        stray["transition"] = "start"
        publish_as_provisioner(running, chat, "build_started", {**stray, "workspace_name": "stray"})
        ended = {**stray, "template_version_id": new_id(), "agents": []}
        publish_as_provisioner(running, chat, "build_succeeded", ended)
        running.run("tool", "list_templates", "--chat", chat)

        listed = running.data("workspace", "orphans")["workspaces"]
        shown, _, status = run_on_terminal(running, "workspace", "orphans")
        planned = running.data("workspace", "delete", "--all", "--older-than", "1d", "--dry-run")
        refused = running.run("workspace", "delete", "--workspace", str(stray["workspace_id"]))
        running.run("workspace", "delete", chat)

        (mine,) = [one for one in listed if one["id"] == stray["workspace_id"]]
        assert mine.keys() == {"id", "name", "owner_name", "pool", "state", "since"}
        assert (mine["name"], mine["pool"], mine["state"]) == ("stray", None, "running")
        assert status == 0
        assert shown[0].split()[:5] == ["WORKSPACE", "NAME", "POOL", "STATE", "SINCE"]
        (row,) = [line for line in shown if str(stray["workspace_id"]) in line]
        assert "?/stray" in row
        assert planned == {"workspaces": []}
        assert refused.returncode == 1
        assert "its pool is not known" in refused.stderr

    def test_a_workspace_is_deleted_by_its_id(self, running: Up, templates: dict[str, str]) -> None:
        chat, created = create_workspace(running, templates["quick"])
        workspace = str(created["workspace_id"])

        planned = running.run("workspace", "delete", "--workspace", workspace, "--dry-run")
        kept = running.data("chat", "show", chat)
        deleted = running.run("workspace", "delete", "--workspace", workspace)

        assert planned.returncode == 0
        assert workspace in planned.stderr
        (shown,) = json.loads(planned.stdout)["workspaces"]
        assert (shown["id"], shown["pool"], shown["state"]) == (workspace, "local", "ready")
        assert kept["state"] == "ready"
        assert deleted.returncode == 0
        assert running.data("chat", "show", chat)["state"] == "none"
        assert running.run("workspace", "delete", "--workspace", new_id()).returncode == 1


class TestKeep:
    def test_a_workspace_without_a_lifetime_is_not_kept(
        self, running: Up, templates: dict[str, str]
    ) -> None:
        chat, _ = create_workspace(running, templates["quick"])

        refused = running.run("chat", "keep", chat, "--for", "2h")
        running.run("workspace", "delete", chat)

        assert refused.returncode == 1
        assert json.loads(refused.stdout) == {"stops_at": None}
        assert "has no lifetime" in refused.stderr


class TestVersions:
    def test_an_earlier_version_can_be_activated(self, running: Up, tmp_path: Path) -> None:
        place = folder(tmp_path, QUICK.replace("quick", "moving"))
        organization = ("--organization", new_id())
        first = running.data("template", "push", place, *organization)
        (place / "more").write_text("more")
        second = running.data("template", "push", place, *organization)

        before = json_lines(running, "template", "versions", "Moving", *organization)
        moved = running.data("template", "activate", first["version_id"])
        after = json_lines(running, "template", "versions", first["template_id"])
        table, _, _ = run_on_terminal(running, "template", "versions", "moving", *organization)
        (listed,) = json_lines(running, "template", "list", *organization)

        ids = [first["version_id"], second["version_id"]]
        assert [version["version_id"] for version in before] == ids
        assert [version["active"] for version in before] == [False, True]
        assert [version["active"] for version in after] == [True, False]
        assert before[0]["pushed_at"] < before[1]["pushed_at"]
        assert moved == first
        assert listed["version_id"] == first["version_id"]
        assert table[0].split() == ["VERSION", "ID", "PUSHED", "AT", "ACTIVE"]
        assert [line.split()[0] for line in table[1:]] == ids
        assert [line.endswith("active") for line in table[1:]] == [True, False]

    @pytest.mark.parametrize("words", [("versions", "nothing"), ("activate", new_id())])
    def test_unknown_templates_and_versions_are_errors(
        self, running: Up, words: tuple[str, str]
    ) -> None:
        refused = running.run("template", *words)

        assert refused.returncode == 1
        assert refused.stdout == ""
        assert words[1] in refused.stderr

    def test_template_list_prints_a_table_on_a_terminal(
        self, running: Up, templates: dict[str, str]
    ) -> None:
        table, _, _ = run_on_terminal(running, "template", "list")

        assert table[0].split()[0] == "NAME"
        assert any(line.split()[:2] == ["quick", templates["quick"]] for line in table)


def test_no_command_prints_a_sensitive_value(running: Up, templates: dict[str, str]) -> None:
    chat, secret = new_id(), "tr0ub4dor"
    ask = ("--arg", f"template_id={templates['unserved']}")
    process = Process(
        "tool",
        "create_workspace",
        *("--chat", chat, *ask),
        *("--arg", f"parameters.secret={secret}", "--data-dir", running.directory),
    )
    try:
        process.wait_for_output("building")
        shown = [
            running.run(*words)
            for words in (
                ("template", "list"),
                ("template", "versions", "unserved"),
                ("chat", "list"),
                ("chat", "show", chat),
                ("events", chat),
                ("log", chat),
                ("tool", "read_template", "--chat", chat, *ask),
            )
        ]
    finally:
        process.stop(signal.SIGINT)

    for done in shown:
        assert done.returncode == 0, done.stderr
        assert secret not in done.stdout + done.stderr
        assert "swordfish" not in done.stdout + done.stderr
    assert secret not in process.output()
