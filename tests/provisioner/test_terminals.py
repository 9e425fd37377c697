"""A step neither has nor can open the terminal of the operator who started the provisioner."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from handlers.sandbox import confined_exec
from handlers.sandbox.policy import Confinement, Mechanism
from tests.provisioner.test_confinement import WAYS, said

ATTACK = """
import errno, fcntl, getpass, json, os, sys, termios
terminal, said = sys.argv[1], {}

def tried(name, what):
    try:
        said[name] = str(what())
    except Exception as no:
        said[name] = type(no).__name__

def types(path):
    opened = os.open(path, os.O_RDWR)
    for one in b"id\\n":
        fcntl.ioctl(opened, termios.TIOCSTI, bytes([one]))

tried("tty", lambda: os.open("/dev/tty", os.O_RDWR))
tried("types by tty", lambda: types("/dev/tty"))
tried("types by name", lambda: types(terminal))
tried("opens by name", lambda: os.open(terminal, os.O_RDWR))
tried("opens to read", lambda: os.open(terminal, os.O_RDONLY))
for name in ("/dev/console", "/dev/tty0", "/dev/tty1", "/dev/ttyS0"):
    tried(name, lambda: os.open(name, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
tried("steals", lambda: fcntl.ioctl(os.open(terminal, os.O_RDWR), termios.TIOCSCTTY, 1))
tried("foreground", lambda: os.tcsetpgrp(os.open(terminal, os.O_RDWR), os.getpgrp()))
tried("input", lambda: os.read(0, 1))
tried("getpass", lambda: getpass.getpass("PASSWORD: "))
if os.fork() == 0:
    os.setsid()
    tried("types from a session of its own", lambda: types(terminal))
    print(json.dumps(said), flush=True)
    os._exit(0)
os.wait()
"""

RUNNER = """
import asyncio, fcntl, json, os, sys, termios
from pathlib import Path
from handlers.sandbox.policy import Confinement, Mechanism
from handlers.sandbox.shell import Shell
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
way, place = Mechanism(sys.argv[1]), Path(sys.argv[2])

async def run():
    ends = []
    for command in (f'exec "{sys.executable}" attack.py "{os.ttyname(0)}"', "set -e; read x </dev/tty; echo got $x"):
        heard = []
        prefix = Confinement(way, bubblewrap="bwrap").prefix(place, step=True, signals=True)
        shell = Shell(command, cwd=place, env=dict(os.environ), output=heard.append, prefix=prefix)
        async with asyncio.timeout(20):
            status = await shell.wait()
        shell.end()
        ends.append([status, b"".join(heard).decode()])
    return {"ends": ends, "foreground": os.tcgetpgrp(0) == os.getpgrp()}

(place / "result").write_text(json.dumps(asyncio.run(run())))
"""


def attacked(way: Mechanism, place: Path) -> tuple[dict[str, Any], bytes]:
    """Run steps from a process with a terminal; return their result and the terminal's output."""
    (place / "attack.py").write_text(ATTACK)
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", RUNNER, way.value, str(place)],
            cwd=Path(__file__).parents[2],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            timeout=60,
            check=False,
        )
        os.set_blocking(master, False)
        try:
            shown = os.read(master, 65_536)
        except BlockingIOError:
            shown = b""
        assert done.returncode == 0, shown.decode()
        return json.loads((place / "result").read_text()), shown
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("way", [Mechanism.RLIMITS, *WAYS])
def test_a_step_can_neither_read_nor_write_nor_control_the_terminal(
    tmp_path: Path, way: Mechanism
) -> None:
    result, shown = attacked(way, tmp_path)

    (attack, output), (asks, words) = result["ends"]
    assert attack == 0, output
    found = json.loads(output[output.index("{") :])
    assert asks != 0
    assert "/dev/tty" in words
    assert "got" not in words.replace("got $x", "")
    assert shown == b"", "the terminal shows nothing of the step's"
    assert result["foreground"]
    assert found["tty"] == "OSError"  # ENXIO: no such device or address
    for name in ("types by tty", "types by name", "types from a session of its own"):
        assert found[name].endswith("Error"), name
    for name in ("steals", "foreground"):
        assert found[name].endswith("Error"), name
    assert (found["input"], found["getpass"]) == ("b''", "EOFError")
    if way is not Mechanism.RLIMITS:
        by_name = {name: found[name] for name in found if "/dev/" in name or "opens" in name}
        assert not {name for name, ends in by_name.items() if not ends.endswith("Error")}


@pytest.mark.parametrize("way", [Mechanism.RLIMITS, *WAYS])
async def test_a_step_may_open_pseudo_terminals(tmp_path: Path, way: Mechanism) -> None:
    """As `script` and `expect` do. Landlock can provide them only if this user may mount."""
    if way is Mechanism.LANDLOCK and not _may_mount():
        pytest.skip("this user may not mount")
    (tmp_path / "own.py").write_text(
        "import os, pty\n"
        "pid, master = pty.fork()\n"
        "if pid == 0:\n"
        "    os.execvp('sh', ['sh', '-c', 'tty; echo mine > /dev/tty'])\n"
        "while True:\n"
        "    try:\n"
        "        data = os.read(master, 1000)\n"
        "    except OSError:\n"
        "        break\n"
        "    print(data.decode().strip())\n"
    )
    prefix = Confinement(way, bubblewrap="bwrap").prefix(tmp_path, step=True)

    words, status = await said(prefix, f'"{sys.executable}" own.py', tmp_path)

    assert words.split() == [words.split()[0], "mine"]
    assert words.startswith("/dev/pts/")
    assert status == "exited with status 0"


def _may_mount() -> bool:
    without_rights = ["--user", "--map-current-user"] if os.geteuid() else []
    tried = ["unshare", "--mount", *without_rights, "true"]
    return subprocess.run(tried, check=False, capture_output=True).returncode == 0


def test_a_step_runs_without_terminals_if_its_namespace_forbids_mounts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ubuntu's AppArmor allows the creation of the namespace, and refuses everything in it."""

    def refused(_libc: object) -> None:
        raise PermissionError("/proc/self/uid_map")

    monkeypatch.setattr(confined_exec, "_mount_terminals", refused)

    assert confined_exec._make_terminals(confined_exec._libc()) is False
