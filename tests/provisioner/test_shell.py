"""No process of a step outlives the step's runner."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from handlers.sandbox.processes import end_marked, find_marked
from handlers.sandbox.shell import Shell

ENV = {"PATH": os.environ["PATH"]}


def without_reader(pipe: int) -> None:
    """Wait until no process has the pipe open for reading."""
    poll = select.poll()
    poll.register(pipe, 0)  # poll reports errors whatever events are registered
    assert poll.poll(20_000), "somebody still reads"


async def test_a_command_returns_its_output_and_status(tmp_path: Path) -> None:
    heard: list[bytes] = []
    shell = Shell("pwd; echo bad >&2; exit 9", cwd=tmp_path, env=ENV, output=heard.append)

    status = await shell.wait()
    shell.end()

    assert status == 9
    assert b"".join(heard).decode() == f"{tmp_path}\nbad\n"


async def test_background_processes_end_with_their_command(tmp_path: Path) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    command = f'(trap "" TERM; read go) < "{gate}" & exec true'
    shell = Shell(command, cwd=tmp_path, env=ENV, output=lambda _: None)
    writer = await asyncio.to_thread(os.open, gate, os.O_WRONLY)
    assert await shell.wait() == 0
    shell.end()
    await asyncio.to_thread(without_reader, writer)
    os.close(writer)


def test_killing_the_runner_ends_the_whole_process_group(tmp_path: Path) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    program = f"""
import asyncio
from pathlib import Path
from handlers.sandbox.shell import Shell
async def run():
    await Shell('(sleep 1000 & sleep 1000) > {gate}', cwd=Path('/'), env={ENV!r}, output=print).wait()
asyncio.run(run())
"""
    runner = subprocess.Popen([sys.executable, "-c", program])
    with gate.open() as held:  # returns when the step has begun
        runner.send_signal(signal.SIGKILL)
        runner.wait()
        assert held.read() == ""  # returns when all processes of the step have ended


async def test_marked_processes_are_ended_even_if_they_ignore_sigterm(tmp_path: Path) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    mark = f"WORKSPACED_TEST={gate}"
    stubborn = subprocess.Popen(
        ["setsid", "sh", "-c", f'trap "" TERM; exec > "{gate}"; while :; do sleep 1000; done'],
        env={**ENV, "WORKSPACED_TEST": str(gate)},
    )
    with await asyncio.to_thread(gate.open):
        assert stubborn.pid in find_marked(mark) or find_marked(mark)
        await end_marked(mark, grace=0.2)

    assert find_marked(mark) == []
    stubborn.wait()
