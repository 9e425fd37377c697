"""`tool`, `template`, `events` and `replay` with a running `up`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pytest
import workspaced

from tests.cli.template_folders import FAILING, QUICK, folder
from tests.rigs.messages import new_id
from tests.rigs.processes import ROOT, Process, Up, agents_using, environment, run, wait_until_gone


@pytest.fixture(scope="module")
def template(running: Up, tmp_path_factory: pytest.TempPathFactory) -> str:
    pushed = running.data("template", "push", folder(tmp_path_factory.mktemp("quick")))
    return str(pushed["template_id"])


def log_of(running: Up, chat: str) -> list[dict[str, Any]]:
    printed = running.run("events", chat)
    assert printed.returncode == 0, printed.stderr
    return [json.loads(line) for line in printed.stdout.split("\n") if line]


def replayed(log: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    return run(
        "replay", "-", stdin="".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in log)
    )


class TestTool:
    def test_a_workspace_from_its_creation_to_its_end(self, running: Up, template: str) -> None:
        chat = new_id()
        args = ("--arg", f"template_id={template}", "--arg", "parameters.greeting=howdy")

        created = running.run("tool", "create_workspace", "--chat", chat, *args)
        assert created.returncode == 0, created.stderr
        workspaces = running.directory / "provisioner" / "local" / "workspaces"
        # Other tests have left workspaces running.
        agents = agents_using(workspaces / json.loads(created.stdout)["workspace_id"])
        stopped = running.run("tool", "stop_workspace", "--chat", chat, "--quiet")

        assert json.loads(created.stdout).keys() == {
            "created",
            "workspace_id",
            "workspace_name",
            "build_id",
        }
        for shown in ("building", "agent_connecting", "ready", "howdy from the build"):
            assert shown in created.stderr
        assert stopped.returncode == 0
        assert stopped.stderr == ""
        assert json.loads(stopped.stdout)["stopped"] is True
        assert agents
        assert wait_until_gone(agents, 10)

    def test_an_error_answer_exits_with_status_1(self, running: Up) -> None:
        refused = running.run("tool", "start_workspace", "--chat", "new")

        assert refused.returncode == 1
        assert "create_workspace" in json.loads(refused.stdout)["error"]

    def test_a_failed_build_exits_with_status_1(self, running: Up, tmp_path: Path) -> None:
        pushed = running.data("template", "push", folder(tmp_path, FAILING))
        args = ("--arg", f"template_id={pushed['template_id']}")

        failed = running.run("tool", "create_workspace", "--chat", "new", *args)

        assert failed.returncode == 1
        assert json.loads(failed.stdout).keys() == {"error", "build_id", "workspace_id"}
        assert "on my way" in failed.stderr
        assert "build_failed" in failed.stderr

    def test_create_start_and_stop_name_the_template_and_act_for_the_owner_of_the_chat(
        self, running: Up, template: str
    ) -> None:
        chat, owner = new_id(), new_id()
        args = ("-p", "greeting=howdy", "--owner", owner, "--owner-name", "ada", "--chat", chat)

        created = running.run("create", "quick", *args, "--name", "mine")
        stopped = running.data("stop", chat, "--json")
        started = running.data("start", chat, "--json", "-p", "greeting=again")
        refused = running.run("stop", chat, "--owner", new_id())
        running.data("stop", chat, "--json")

        assert created.returncode == 0, created.stderr
        assert json.loads(created.stdout)["workspace_name"] == "ada/mine"
        assert "howdy from the build" in created.stderr
        assert stopped["stopped"] is True
        assert started["started"] is True
        assert refused.returncode == 1
        assert "owner" in json.loads(refused.stdout)["error"]

    @pytest.mark.parametrize("name", ["openai", "anthropic", "mcp"])
    def test_the_tools_for_models_are_printed_without_a_server(self, name: str) -> None:
        printed = run("tool", "--schema", "--format", name)

        assert printed.returncode == 0, printed.stderr
        assert json.loads(printed.stdout) == workspaced.tools(name)  # type: ignore[arg-type]

    def test_the_same_call_id_returns_the_same_answer(self, running: Up) -> None:
        chat = new_id()
        ask = ("tool", "list_templates", "--chat", chat, "--call-id", "mine", "--quiet")

        first, second = running.run(*ask), running.run(*ask, "--arg", "page=7")

        assert first.returncode == 0
        assert json.loads(first.stdout) == json.loads(second.stdout)
        explained = running.run(*ask[:-1], "--arg", "other=7")
        assert "this call_id was used with another tool or other arguments" in explained.stderr

    def test_a_template_is_named_and_an_unknown_argument_is_told(
        self, running: Up, tmp_path: Path
    ) -> None:
        running.data("template", "push", folder(tmp_path, QUICK))
        args = ("--arg", "template=quick", "--arg", "colour=red")

        done = running.run("tool", "create_workspace", "--chat", new_id(), *args)

        assert json.loads(done.stdout)["created"] is True
        assert "arguments that the tool does not have were ignored: colour" in done.stderr

    def test_the_organization_may_come_from_the_environment(
        self, running: Up, tmp_path: Path
    ) -> None:
        default = str(uuid5(NAMESPACE_URL, "workspaced:organization:default"))
        push = ("template", "push", folder(tmp_path, QUICK), "--data-dir", running.directory)

        def template(*words: str, organization: str = "") -> str:
            done = run(*push, *words, env={"WORKSPACED_ORGANIZATION": organization})
            assert done.returncode == 0, done.stderr
            return str(json.loads(done.stdout)["template_id"])

        other = new_id()
        wrong = run(*push, env={"WORKSPACED_ORGANIZATION": "ours"})

        assert template() == template("--organization", default) == template("--organization", "")
        assert template(organization=other.upper()) == template("--organization", other)
        assert template("--organization", default, organization=other) == template()
        assert template(organization=other) != template()
        assert wrong.returncode == 2
        assert "WORKSPACED_ORGANIZATION is 'ours': it must be a UUID" in wrong.stderr

    @pytest.mark.parametrize(
        "words", [("chat", "show"), ("events",), ("log",), ("replay", "--chat")], ids=" ".join
    )
    def test_an_unknown_chat_is_an_error(self, running: Up, words: tuple[str, ...]) -> None:
        chat = new_id()

        unknown = running.run(*words, chat)

        assert unknown.returncode == 1
        assert unknown.stdout == ""
        assert unknown.stderr == (
            f"workspaced: there is no chat {chat}; `workspaced chat list` shows all chats\n"
        )

    def test_an_interrupted_tool_command_leaves_the_call_open(
        self, running: Up, tmp_path: Path
    ) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        text = QUICK.replace("quick", "slow").replace("echo $", f"cat {pipe}; echo $")
        pushed = running.data("template", "push", folder(tmp_path, text))
        args = ("--arg", f"template_id={pushed['template_id']}", "--call-id", "mine")
        chat = new_id()
        ask = ("tool", "create_workspace", "--chat", chat, *args, "--data-dir", running.directory)

        waiting = Process(*ask)
        waiting.wait_for_output("building")
        status = waiting.stop(signal.SIGINT)
        pipe.write_bytes(b"go on\n")
        created = running.data(*ask[:-2])
        running.data("tool", "stop_workspace", "--chat", chat)

        assert status == 130
        assert waiting.rest == b""
        assert "Traceback" not in waiting.output()
        assert waiting.output().endswith(
            f"the call goes on; to get its answer: workspaced tool create_workspace --chat {chat} "
            f"--call-id mine --data-dir {running.directory} (with the same arguments)\n"
        )
        assert created["created"] is True


class TestTemplates:
    def test_a_push_prints_the_same_ids_until_something_changes(
        self, running: Up, tmp_path: Path
    ) -> None:
        place = folder(tmp_path, QUICK.replace("quick", "changing"))
        organization = ("--organization", new_id())

        first = running.data("template", "push", place, *organization)
        second = running.data("template", "push", place, *organization)
        (place / "more").write_text("more")
        third = running.data("template", "push", place, *organization)
        elsewhere = running.data("template", "push", place, "--organization", new_id())
        listed = running.run("template", "list", *organization)

        assert first.keys() == {"template_id", "version_id"}
        assert first == second
        assert third["template_id"] == first["template_id"]
        assert third["version_id"] != first["version_id"]
        assert elsewhere["template_id"] != first["template_id"]
        (line,) = listed.stdout.splitlines()
        assert json.loads(line)["version_id"] == third["version_id"]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('name = "a b"', ["name", "a b"]),
            ("colour = 1", ["colour"]),
            ('name = "x"\npool = 7', ["pool"]),
            ('name = "x"\npool =', ["TOML"]),
            (
                'name = "x"\n[[parameter]]\nname = "p"\ntype = "text"',
                [":4: ", "type", "list(string)"],
            ),
            ('name = "x"\n[[parameter]]\nname = "p"\nvalidation_regex = "("', ["regex", "p"]),
            ('name = "x"\n[[preset]]\nname = "s"\nparameters = { q = 1 }', ["preset", "q"]),
            ('name = "x"\n[build]\nstop = "true"', ["build", "start"]),
        ],
    )
    def test_an_invalid_template_is_not_stored(
        self, running: Up, tmp_path: Path, text: str, words: list[str]
    ) -> None:
        organization = ("--organization", new_id())

        refused = running.run("template", "push", folder(tmp_path, text), *organization)
        listed = running.run("template", "list", *organization)

        assert refused.returncode == 1
        assert refused.stdout == ""
        assert "template.toml" in refused.stderr
        assert "Traceback" not in refused.stderr
        for word in words:
            assert word in refused.stderr
        assert listed.stdout == ""

    def test_a_folder_without_template_toml_is_an_error(self, running: Up, tmp_path: Path) -> None:
        refused = running.run("template", "push", tmp_path)

        assert refused.returncode == 1
        assert str(tmp_path) in refused.stderr

    def test_pushing_the_file_instead_of_the_folder_is_an_error(
        self, running: Up, tmp_path: Path
    ) -> None:
        file = folder(tmp_path) / "template.toml"

        refused = running.run("template", "push", file)

        assert refused.returncode == 1
        assert refused.stderr == (f"workspaced: {file} is a file; name the folder instead\n")

    def test_a_folder_that_is_too_large_is_an_error(self, running: Up, tmp_path: Path) -> None:
        place = folder(tmp_path, QUICK.replace("quick", "large"))
        (place / "noise").write_bytes(os.urandom(17 * 1024 * 1024))

        refused = running.run("template", "push", place)

        assert refused.returncode == 1
        assert "16777216" in refused.stderr

    def test_a_template_too_large_for_an_answer_is_an_error(
        self, running: Up, tmp_path: Path
    ) -> None:
        text = f'description = "{"w" * 50_000}"\n{QUICK}'

        refused = running.run("template", "push", folder(tmp_path, text))

        assert refused.returncode == 1
        assert "template.toml" in refused.stderr
        assert "49152" in refused.stderr


@pytest.fixture(scope="module")
def log(running: Up, template: str) -> list[dict[str, Any]]:
    chat = new_id()
    args = ("--arg", f"template_id={template}")
    running.data("tool", "create_workspace", "--chat", chat, *args)
    running.data("tool", "stop_workspace", "--chat", chat)
    return log_of(running, chat)


class TestReplay:
    def test_a_log_replays_to_the_recorded_states(self, log: list[dict[str, Any]]) -> None:
        done = replayed(log)

        assert done.returncode == 0, done.stderr
        assert done.stderr == f"1 chat, {len(log)} entries: all agree\n"
        path = [
            "none",
            "building",
            "agent_connecting",
            "scripts_running",
            "ready",
            "stopping",
            "stopped",
        ]
        positions = [done.stdout.index(state) for state in path]
        assert positions == sorted(positions)

    def test_unicode_line_separators_do_not_end_an_entry(self, running: Up) -> None:
        chat = new_id()
        running.data("tool", "list_templates", "--chat", chat, "--arg", "query=a\u2028b\x85c")

        assert replayed(log_of(running, chat)).returncode == 0

    @pytest.mark.parametrize(
        ("key", "value"), [("version", 77), ("state_after", "failed"), ("outcome", "stale")]
    )
    def test_replay_reports_a_changed_log(
        self, log: list[dict[str, Any]], key: str, value: object
    ) -> None:
        changed = [dict(entry) for entry in log]
        changed[2][key] = value

        done = replayed(changed)

        assert done.returncode == 1
        assert f"seq {log[2]['seq']}" in done.stderr
        assert key in done.stderr

    def test_replay_reports_a_changed_event(self, log: list[dict[str, Any]]) -> None:
        changed = json.loads(json.dumps(log))
        for entry in changed:
            if entry["event"]["type"].startswith("workspaced.build_succeeded"):
                entry["event"]["data"]["build_id"] = new_id()
                break

        done = replayed(changed)

        assert done.returncode == 1
        assert "seq" in done.stderr

    @pytest.mark.parametrize(
        "line", ["{", "[]", "7", "{}", '{"event": 1, "at": 2}', '{"event": {"type": "x"}}']
    )
    def test_a_file_that_is_not_a_log_is_an_error(self, tmp_path: Path, line: str) -> None:
        file = tmp_path / "log.jsonl"
        file.write_text(line + "\n")

        done = run("replay", file)

        assert done.returncode == 1
        assert str(file) in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("text", ["", "\n\n"])
    def test_a_file_without_entries_is_an_error(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "empty.jsonl"
        file.write_text(text)

        done, of_stdin = run("replay", file), run("replay", "-", stdin=text)

        assert (done.returncode, of_stdin.returncode) == (1, 1)
        assert done.stderr == f"workspaced: no entries in {file}\n"
        assert of_stdin.stderr == "workspaced: no entries in stdin\n"

    def test_a_missing_file_is_an_error(self, tmp_path: Path) -> None:
        done = run("replay", tmp_path / "none")

        assert done.returncode == 1
        assert done.stderr == f"workspaced: {tmp_path / 'none'}: No such file or directory\n"

    def test_a_closed_pipe_ends_the_command_quietly(
        self, running: Up, log: list[dict[str, Any]]
    ) -> None:
        chat = log[0]["event"]["subject"]
        words = [sys.executable, "-m", "handlers", "events", chat]
        process = subprocess.Popen(
            [*words, "--data-dir", str(running.directory)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.close()

        _, said = process.communicate(timeout=30)

        assert said == b""
