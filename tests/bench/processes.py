"""Servers as child processes, and the CPU and memory of processes, read from /proc."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.bench.peer import ROOT

_LAUNCH = ROOT / "handlers" / "embedded" / "launch.py"
_TICK = 1 / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


async def answers(port: int, seconds: float = 60) -> None:
    """Wait until a server listens on the port."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


class Server:
    """A child process that logs to a file; it ends when this process ends."""

    def __init__(
        self, argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with_us = [sys.executable, "-I", "-S", _LAUNCH, os.getpid(), int(signal.SIGTERM)]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(part) for part in (*with_us, *argv)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
            )
        self.pid = self._process.pid

    async def said(self, words: str, seconds: float = 60) -> None:
        """Wait until the log contains these words."""
        deadline = time.monotonic() + seconds
        while words not in self.log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.log}:\n{self.log.read_text(errors='replace')[-2000:]}")
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """Stop the process; kill it if it takes too long."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)


def tree(pid: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def tree_cpu(pid: int) -> float:
    """Return the CPU seconds of a process tree, including members that ended and were reaped."""
    ticks = 0
    for member in tree(pid):
        with suppress(OSError):
            # The name may contain anything; after it, utime, stime, cutime, cstime are 14 to 17.
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks * _TICK


def own_cpu() -> float:
    """Return the CPU seconds of this process, without its children."""
    times = os.times()
    return times.user + times.system


def memory(pid: int) -> float:
    """Return the MiB of a process tree; a shared page is divided among all who share it."""
    return round(sum(_kib(f"/proc/{one}/smaps_rollup", "Pss:") for one in tree(pid)) / 1024, 1)


def rss(pid: int) -> float:
    """Return the resident MiB of one process, shared pages included."""
    return round(_kib(f"/proc/{pid}/status", "VmRSS:") / 1024, 1)


def _kib(path: str, key: str) -> int:
    with suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1])
    return 0
