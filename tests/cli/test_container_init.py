"""As the first process of a container, `up` reaps orphans."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.rigs.messages import new_id
from tests.rigs.processes import ROOT, TIMEOUT, environment, kill_processes, processes_using, run

NEW_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
SUBREAPER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def _zombies(first: int) -> list[str]:
    """Return the zombies among the descendants of a process."""
    found = list[str]()
    with suppress(FileNotFoundError):
        for child in Path(f"/proc/{first}/task/{first}/children").read_text().split():
            with suppress(FileNotFoundError):
                stat = Path(f"/proc/{child}/stat").read_text()
                if stat.rpartition(")")[2].split()[0] == "Z":
                    found.append(stat)
            found += _zombies(int(child))
    return found


def _may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*NEW_NAMESPACE, "true"], check=False, capture_output=True)
    return tried.returncode == 0


@pytest.mark.parametrize("way", ["pid 1", "subreaper"])
def test_up_reaps_orphans_and_keeps_the_exit_statuses_of_steps(tmp_path: Path, way: str) -> None:
    if way == "pid 1" and not _may_unshare():
        pytest.skip("this user may make no process namespace")
    python = [sys.executable] if way == "pid 1" else [sys.executable, "-c", SUBREAPER]
    before = NEW_NAMESPACE if way == "pid 1" else []
    data = tmp_path / "data"
    process = subprocess.Popen(
        [*before, *python, "-m", "handlers", "up", "--data-dir", data],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        with process.stdout as stdout:
            assert json.loads(stdout.readline())["ready"]
            _builds(tmp_path, data)
            assert _zombies(process.pid) == []
            (handed,) = _workers(process.pid)
            os.kill(handed, signal.SIGTERM)
            assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()
        kill_processes(processes_using(data))


def _workers(first: int) -> list[int]:
    """Return the process that forwards signals: the namespace's first one, or the subreaper."""
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    line = Path(f"/proc/{first}/cmdline").read_text()
    return [int(children[0])] if "unshare" in line else [first]


def _builds(tmp_path: Path, data: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    (template / "template.toml").write_text(
        'name = "plain"\n[build]\n'
        "start = \"(setsid sh -c ':' &) ; sh -c ':' & exit 3\"\nstop = \"(setsid true &); true\"\n"
    )
    pushed = run("template", "push", template, "--data-dir", data)
    template_id = json.loads(pushed.stdout)["template_id"]
    for _ in range(3):
        chat = new_id()
        words = ("tool", "create_workspace", "--chat", chat, "--arg", f"template_id={template_id}")
        created = run(*words, "--json", "--data-dir", data)
        assert "exited with status 3" in json.loads(created.stdout)["error"]
        stopped = run("tool", "stop_workspace", "--chat", chat, "--json", "--data-dir", data)
        assert json.loads(stopped.stdout)["stopped"], stopped.stdout
