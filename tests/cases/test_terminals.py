"""Cases of builds that try to use the terminal in which the operator started `up`."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cases.playing import INPUTS
from tests.rigs.messages import new_id
from tests.rigs.processes import ROOT, TIMEOUT, environment, kill_processes, processes_using, run

IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "handlers", *sys.argv[1:]])
"""


@dataclass
class InATerminal:
    """A running `up` that an operator started in a terminal."""

    directory: Path
    process: subprocess.Popen[bytes]
    master: int
    slave: int

    def create(self, case: str) -> tuple[dict[str, Any], str]:
        """Create a workspace from the case's template; return the answer and the build's log."""
        chat = new_id()
        pushed = self.data("template", "push", INPUTS / case)
        created = self.run(
            *("tool", "create_workspace", "--chat", chat, "--json"),
            *("--arg", f"template_id={pushed['template_id']}"),
        )
        return json.loads(created.stdout), self.run("log", chat).stdout

    def data(self, *words: str | Path) -> Any:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return run(*words, "--data-dir", self.directory)

    def shown(self) -> str:
        """Return what the terminal shows so far, both output and typed text."""
        os.set_blocking(self.master, False)
        pieces = []
        while True:
            try:
                pieces.append(os.read(self.master, 65_536))
            except BlockingIOError:
                return b"".join(pieces).decode()


@contextmanager
def up_in_a_terminal(directory: Path) -> Iterator[InATerminal]:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, "up", "--data-dir", directory],
        cwd=ROOT,
        env=environment({"WORKSPACED_BUILD_TIMEOUT": "60"}),
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["ready"]
        yield InATerminal(directory, process, master, slave)
    finally:
        process.terminate()
        process.wait(TIMEOUT)
        process.stdout.close()
        kill_processes(processes_using(directory))
        os.close(master)
        os.close(slave)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InATerminal]:
    with up_in_a_terminal(tmp_path_factory.mktemp("terminal") / "data") as running:
        yield running


def test_b20_a_build_step_cannot_read_from_the_operators_terminal(terminal: InATerminal) -> None:
    created, log = terminal.create("B20-step-asks-on-the-terminal")

    assert created["created"]
    assert "error" not in created
    assert "/dev/tty" in log
    assert "got" in log, "the step went on: it was not stopped by the terminal"
    assert "/dev/tty" not in terminal.shown()


def test_b21_a_build_step_cannot_type_into_the_operators_terminal(terminal: InATerminal) -> None:
    created, log = terminal.create("B21-step-types-into-the-terminal")

    assert "error" in created
    assert "No such device or address" in log
    assert "typed" not in log
    shown = terminal.shown()
    assert "PASSWORD" not in shown
    assert "typed-by-a-build" not in shown
    waiting = fcntl.ioctl(terminal.slave, termios.FIONREAD, b"\0" * 4)
    assert waiting == b"\0" * 4, "nothing waits to be read by the operator's shell"
