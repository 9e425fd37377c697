"""Commands that draw, on a real terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.cli.template_folders import QUICK, folder
from tests.rigs.messages import new_id
from tests.rigs.processes import ROOT, TIMEOUT, Up, environment


class Terminal:
    """A command on a terminal of 100 columns."""

    def __init__(self, ours: int, process: subprocess.Popen[bytes]) -> None:
        self.ours, self.process, self.shown = ours, process, b""

    def wait_for(self, words: str) -> None:
        """Read what the command shows until it has shown `words`."""
        while words.encode() not in self.shown:
            try:
                self.shown += os.read(self.ours, 65_536)
            except OSError:  # it has ended
                raise AssertionError(f"no {words!r} in {self.shown!r}") from None

    def write(self, keys: str) -> None:
        """Press keys."""
        os.write(self.ours, keys.encode())

    def end(self) -> int:
        """Read until the command ends; return its exit status."""
        with suppress(OSError):
            while piece := os.read(self.ours, 65_536):
                self.shown += piece
        return self.process.wait(TIMEOUT)


@contextmanager
def on_terminal(running: Up, *words: str | Path) -> Iterator[Terminal]:
    """Run a command with all three streams on a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "handlers", *map(str, words), "--data-dir", running.directory],
        cwd=ROOT,
        env=environment({"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(TIMEOUT)
        os.close(ours)


def test_create_and_watch_show_one_line_with_phase_and_last_log_line(
    running: Up, tmp_path: Path
) -> None:
    slow = QUICK.replace("quick", "slow").replace("from the build", "from the build; sleep 1")
    pushed = running.data("template", "push", folder(tmp_path, slow))
    chat = new_id()
    with on_terminal(running, "create", pushed["template_id"], "--chat", chat) as creating:
        creating.wait_for("building  ")
        with on_terminal(running, "watch", chat) as watching:
            watching.wait_for("left")
            assert creating.end() == 0
            watching.wait_for("ready")
            watching.process.send_signal(signal.SIGINT)
            assert watching.end() == 130

    assert b"left  hello from the build" in creating.shown
    assert b'"created": true' in creating.shown
    assert b"  | hello from the build" in creating.shown
    running.data("stop", chat)


def test_status_and_history_are_for_reading(running: Up, tmp_path: Path) -> None:
    text = QUICK.replace("quick", "told")
    pushed = running.data("template", "push", folder(tmp_path, text))
    chat = new_id()
    running.data("create", pushed["template_id"], "--chat", chat)
    with on_terminal(running, "status") as status:
        status.end()
    with on_terminal(running, "history", chat) as history:
        assert history.end() == 0
    running.data("stop", chat)

    shown = status.shown.decode()
    assert "postgresql" in shown
    assert "local: served" in shown
    told = history.shown.decode()
    assert "me (cli) asked for create_workspace" in told
    assert "provisioner local began start build 1" in told
    assert "→ ready, after" in told
    assert "now: ready for" in told
    assert "a repeat" not in told
