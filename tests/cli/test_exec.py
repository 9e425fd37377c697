"""`exec`, `ps`, `kill` and `cp` in a workspace of a running `up`, whose agent is the real one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.publishing.agent_files import running_agent
from tests.cli.template_folders import folder
from tests.rigs.messages import new_id
from tests.rigs.processes import ROOT, Process, Up, environment, run
from tests.rigs.terminal import Terminal


@pytest.fixture(scope="module")
def chat(running: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A chat whose workspace is ready."""
    pushed = running.data("template", "push", folder(tmp_path_factory.mktemp("templates")))
    chat = new_id()
    template = ("--arg", f"template_id={pushed['template_id']}")
    created = running.run("tool", "create_workspace", "--chat", chat, *template)
    assert created.returncode == 0, created.stderr
    yield chat
    running.run("workspace", "delete", chat)


def execute(
    running: Up, chat: str, *words: str, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `exec`; what follows `--` belongs to the command."""
    return run("exec", chat, "--data-dir", running.directory, *words, stdin=stdin)


def test_a_command_gets_the_input_and_its_output_and_status_are_those_of_exec(
    running: Up, chat: str
) -> None:
    done = execute(running, chat, "--", "cat; echo done; exit 3", stdin="one\ntwo\n")

    assert (done.stdout, done.returncode) == ("one\ntwo\ndone\n", 3), done.stderr


def test_the_first_ctrl_c_interrupts_the_command(running: Up, chat: str) -> None:
    text = "trap 'echo interrupted; exit 7' INT; echo begun; while :; do read line || :; done"
    process = Process("exec", chat, "--data-dir", running.directory, "--", text)
    try:
        assert process.line() == b"begun\n"
        process.send(signal.SIGINT)

        assert process.line() == b"interrupted\n"
        assert process.ended() == 7
    finally:
        process.kill()


def test_the_second_ctrl_c_detaches_and_attach_comes_back(running: Up, chat: str) -> None:
    text = "trap '' INT; echo begun; read line; sleep 3600"
    process = Process("exec", chat, "--data-dir", running.directory, "--", text)
    try:
        assert process.line() == b"begun\n"
        process.send(signal.SIGINT)
        process.wait_for_output("again to detach")
        process.send(signal.SIGINT)

        assert process.ended() == 130
    finally:
        process.kill()
    exec_id = process.output().split("--attach ")[1].split()[0]
    listed = [json.loads(line) for line in running.run("ps", chat).stdout.splitlines()]
    assert [p["status"] for p in listed if p["exec_id"] == exec_id] == ["running"]
    killed = running.run("kill", chat, exec_id, "--signal", "KILL")
    assert killed.returncode == 0, killed.stderr
    attached = execute(running, chat, "--attach", exec_id)
    assert (attached.stdout, attached.returncode) == ("begun\n", 128 + signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_is_restored_and_the_command_goes_on_when_exec_is_ended(
    running: Up, chat: str, number: signal.Signals
) -> None:
    words = ("exec", chat, "-t", "--data-dir", running.directory)
    command = "trap 'stty size' WINCH; stty size; while :; do read line || :; echo got $line; done"
    with Terminal(*words, "--", command, cols=101, rows=31) as terminal:
        terminal.wait_for(b"31 101")
        terminal.resize(70, 20)
        terminal.wait_for(b"20 70")
        terminal.type(b"keys\r")
        terminal.wait_for(b"got keys")
        raw = terminal.settings()
        terminal.process.send_signal(number)
        terminal.wait_for(b"--attach ")
        terminal.wait_for(b"\n", after=terminal.shown.index(b"--attach "))

        assert terminal.ended() == 128 + number
        assert terminal.settings() == terminal.before != raw
    exec_id = terminal.shown.split(b"--attach ")[1].split()[0].decode()
    with Terminal(*words, "--attach", exec_id, cols=60, rows=10) as terminal:
        terminal.wait_for(b"10 60")
        running.run("kill", chat, exec_id, "--signal", "SIGKILL")

        assert terminal.ended() == 128 + signal.SIGKILL
        assert terminal.settings() == terminal.before


def test_keys_are_shown_as_they_are_typed_and_ctrl_c_reaches_the_command(
    running: Up, chat: str
) -> None:
    words = ("exec", chat, "-t", "--data-dir", running.directory, "--", "echo begun; cat")
    with Terminal(*words) as terminal:
        terminal.wait_for(b"begun")
        assert len(terminal.echo_milliseconds(16)) == 16
        terminal.type(b"\x03")

        assert terminal.ended() == 128 + signal.SIGINT
        assert terminal.settings() == terminal.before


def test_the_output_goes_on_when_the_agent_was_killed(running: Up, chat: str) -> None:
    text = "echo begun; for i in 1 2 3 4 5; do sleep 0.2; echo $i; done; exit 9"
    process = Process("exec", chat, "--data-dir", running.directory, "--", text)
    try:
        assert process.line() == b"begun\n"
        homes = running.directory.glob("provisioner/*/workspaces/*/.workspaced/agents/*")
        for pid in filter(None, map(running_agent, homes)):
            os.kill(pid, signal.SIGKILL)

        assert [process.line() for _ in range(5)] == [b"%d\n" % i for i in range(1, 6)]
        assert process.ended() == 9
    finally:
        process.kill()


def test_either_a_command_or_a_process_is_named(running: Up, chat: str) -> None:
    for words in ([], ["--attach", new_id(), "--", "true"]):
        refused = execute(running, chat, *words)

        assert refused.returncode == 2
        assert "either" in refused.stderr


def test_input_of_any_size_and_bytes_reaches_the_command(
    running: Up, chat: str, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 16 * 1024
    (tmp_path / "input").write_bytes(content)
    with (tmp_path / "input").open("rb") as file:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "handlers", "exec", chat),
                *("--data-dir", str(running.directory), "--", "sha256sum"),
            ],
            cwd=ROOT,
            env=environment(),
            stdin=file,
            stdout=subprocess.PIPE,
            check=True,
        )

    assert done.stdout.split()[0].decode() == hashlib.sha256(content).hexdigest()


def test_files_and_directories_are_copied_both_ways(running: Up, chat: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "bytes").write_bytes(bytes(range(256)) * 2_000)
    (source / "text").write_text("grüße\n")
    (source / "empty").mkdir()
    (source / "deep" / "program").write_text("#!/bin/sh\n")
    (source / "deep" / "program").chmod(0o755)
    (source / "link").symlink_to("text")
    (source / "dead").symlink_to("nothing")

    sent = running.run("cp", str(source), f"{chat}:sent")
    fetched = running.run("cp", f"{chat}:sent", str(tmp_path / "back"))
    one = running.run("cp", f"{chat}:sent/text", str(tmp_path / "one"))

    assert [done.returncode for done in (sent, fetched, one)] == [0, 0, 0], sent.stderr
    for name in ("deep/bytes", "text"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    assert (tmp_path / "one").read_text() == "grüße\n"
    assert (tmp_path / "back" / "empty").is_dir()
    assert (tmp_path / "back" / "link").read_text() == "grüße\n"
    assert os.access(tmp_path / "back" / "deep" / "program", os.X_OK)
    assert not os.access(tmp_path / "back" / "text", os.X_OK)
    assert "dead: neither" in sent.stderr
    again = running.run("cp", str(source / "text"), f"{chat}:sent/deep")  # a directory that exists
    assert again.returncode == 0, again.stderr
    listed = execute(running, chat, "--", "cat sent/deep/text; find . -name '*part'")
    assert listed.stdout == "grüße\n"
    missing = running.run("cp", f"{chat}:nothing", str(tmp_path / "nothing"))
    assert missing.returncode == 1


def test_a_chat_without_a_workspace_is_a_failure_that_says_what_to_do(running: Up) -> None:
    refused = execute(running, new_id(), "--", "true")

    assert refused.returncode == 1
    assert "create_workspace" in refused.stderr
