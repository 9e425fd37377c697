"""Roles as processes of their own, any number of them, on one NATS and one PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.rigs.client import TIMEOUT, Event
from tests.rigs.processes import ROOT, environment, run
from tests.rigs.world import ORGANIZATION, TEMPLATES, template_folder

STARTED_WITHIN = 60.0
"""Seconds until a role must work: a cluster that just forms may leave some questions of 5 s unanswered."""


@dataclass
class Fleet:
    """Workers and gateways, and what each needs to find its servers."""

    nats_url: str
    credentials: Path
    database_url: str
    parent: Path
    env: dict[str, str] = field(default_factory=dict)
    running: dict[Process, asyncio.Task[None]] = field(default_factory=dict)
    said: dict[Process, bytearray] = field(default_factory=dict)
    """What each wrote to stderr."""
    _wanted: dict[tuple[Process, bytes], asyncio.Event] = field(default_factory=dict)

    async def heard(self, process: Process, words: bytes) -> None:
        """Wait until a role says that, from now on."""
        wanted = self._wanted.setdefault((process, words), asyncio.Event())
        wanted.clear()
        await wanted.wait()

    async def start(self, role: str, **env: str) -> Process:
        """Start a role; return when it works."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "handlers", role),
            *("--credentials", str(self.credentials / f"{role}.nk")),
            *("--data-dir", str(self.parent / "nowhere")),
            cwd=ROOT,
            env=environment(self.urls | self.env | env),
            stdout=PIPE,
            stderr=PIPE,
        )
        ready, said = asyncio.Event(), bytearray()
        self.said[process] = said

        async def listen() -> None:
            assert process.stderr is not None
            async for line in process.stderr:
                said.extend(line)
                for (whose, words), wanted in self._wanted.items():
                    if whose is process and words in line:
                        wanted.set()
                if b"is ready" in line:
                    ready.set()

        listening = asyncio.create_task(listen())
        self.running[process] = listening
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait(
            (waiting, listening), timeout=STARTED_WITHIN, return_when=asyncio.FIRST_COMPLETED
        )
        waiting.cancel()
        assert ready.is_set(), said.decode()
        return process

    @property
    def urls(self) -> dict[str, str]:
        return {
            "WORKSPACED_NATS_URL": self.nats_url,
            "WORKSPACED_DATABASE_URL": self.database_url,
        }

    def push(self, name: str) -> Event:
        """Push a template of the tests."""
        folder = template_folder(self.parent, name, TEMPLATES[name])
        operator = ("--credentials", self.credentials / "operator.nk")
        done = run(
            "template", "push", folder, "--organization", ORGANIZATION, *operator, env=self.urls
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    async def end(self, process: Process, how: signal.Signals) -> int:
        """End a process; return its status."""
        with suppress(ProcessLookupError):
            process.send_signal(how)
        async with asyncio.timeout(TIMEOUT):
            status = await process.wait()
            await self.running.pop(process)
        return status

    async def end_all(self) -> None:
        """End what still runs, by force."""
        for process in list(self.running):
            await self.end(process, signal.SIGKILL)
