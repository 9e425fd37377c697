"""Servers on which a test starts each role when it wants, so that it causes the situations in which operators ask."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handlers.embedded import Servers
from tests.rigs.processes import Process, run

SLOW = """
name = "slow"
pool = "garage"

[build]
start = "echo begun; exec sleep 600"
"""
"""A template whose build goes on until somebody cancels it."""


class System:
    """Servers without roles, and the commands that use them."""

    def __init__(self, servers: Servers, database: str, home: Path) -> None:
        self._servers, self._database, self._home = servers, database, home
        self.nats, self.credentials = servers.nats_url, servers.credentials
        self._begun: list[Process] = []

    def flags(self, nats: str = "", database: str = "") -> tuple[str | Path, ...]:
        return (
            *("--nats-url", nats or self._servers.nats_url),
            *("--database-url", database or self._database),
            *("--credentials", self._servers.credentials, "--data-dir", self._home),
        )

    def run(self, *words: str | Path, **other: str) -> subprocess.CompletedProcess[str]:
        return run(*words, *self.flags(**other))

    def data(self, *words: str | Path) -> Any:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def begin(self, *words: str | Path) -> Process:
        """Start a command that waits; `close` kills it if it still runs."""
        self._begun.append(Process(*words, *self.flags()))
        return self._begun[-1]

    def close(self) -> None:
        for process in self._begun:
            process.kill()

    @contextmanager
    def role(self, *words: str, **env: str) -> Iterator[Process]:
        """Run a role; kill it at the end if the test has not."""
        process = Process(*words, *self.flags(), env=env)
        try:
            process.wait_for_output(f"{words[0]} is ready")
            yield process
        finally:
            process.kill()
