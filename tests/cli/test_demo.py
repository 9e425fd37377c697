"""`workspaced demo` runs to its end, or is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rigs.processes import ROOT, environment, kill_processes, processes_using, run


def test_the_demo_runs_to_its_end() -> None:
    done = run("demo", patience=120)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "every line came once" in done.stdout


def interrupted(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C


def terminated(process: subprocess.Popen[str]) -> None:
    process.terminate()


def unread(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize(
    ("ended", "status", "when"),
    [
        (interrupted, 130, "ready after"),
        (interrupted, 130, "  building"),
        (interrupted, 130, "== A command in the workspace"),
        (terminated, 143, "  building"),
        (unread, 1, "== A command in the workspace"),
    ],
)
def test_an_interrupted_demo_leaves_no_files_or_processes(
    tmp_path: Path, ended: Callable[[subprocess.Popen[str]], None], status: int, when: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "handlers", "demo"],
        cwd=ROOT,
        env=environment({"TMPDIR": str(tmp_path)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert any(when in line for line in process.stdout)
            assert len(processes_using(tmp_path)) >= 3

            ended(process)
            assert process.stderr is not None
            said = process.stderr.read()

            assert process.wait(30) == status
            assert said == ""
            assert processes_using(tmp_path) == []
            assert list(tmp_path.iterdir()) == []
        finally:
            process.kill()
            kill_processes(processes_using(tmp_path))
