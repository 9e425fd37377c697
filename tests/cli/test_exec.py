"""`exec`, `ps`, `kill` and `cp` in a workspace of a running `up`, whose agent is the real one."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.template_folders import folder
from tests.rigs.messages import new_id
from tests.rigs.processes import Process, Up, run


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


def test_files_and_directories_are_copied_both_ways(running: Up, chat: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "bytes").write_bytes(bytes(range(256)) * 2_000)
    (source / "text").write_text("grüße\n")

    sent = running.run("cp", str(source), f"{chat}:sent")
    fetched = running.run("cp", f"{chat}:sent", str(tmp_path / "back"))
    one = running.run("cp", f"{chat}:sent/text", str(tmp_path / "one"))

    assert [done.returncode for done in (sent, fetched, one)] == [0, 0, 0], sent.stderr
    for name in ("deep/bytes", "text"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    assert (tmp_path / "one").read_text() == "grüße\n"
    missing = running.run("cp", f"{chat}:nothing", str(tmp_path / "nothing"))
    assert missing.returncode == 1


def test_a_chat_without_a_workspace_is_a_failure_that_says_what_to_do(running: Up) -> None:
    refused = execute(running, new_id(), "--", "true")

    assert refused.returncode == 1
    assert "create_workspace" in refused.stderr
