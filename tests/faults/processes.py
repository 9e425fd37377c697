"""The processes that faults strike; each is restarted when it ends, as by an init system."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import asyncpg

from handlers.embedded.child import Child, launch_command
from handlers.errors import EmbeddedError
from tests.rigs.processes import ROOT, environment


def strike(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Program:
    """One role's process, restarted up to two seconds after it ends."""

    def __init__(
        self,
        kind: str,
        name: str,
        command: Sequence[str | Path],
        env: Mapping[str, str],
        logs: Path,
        rng: random.Random,
    ) -> None:
        self.kind, self.name, self._command, self._rng = kind, name, command, rng
        self._env, self._log = environment(env), logs / f"{name}.log"
        self._process: Process | None = None
        self.busy = False
        """Whether a fault is being applied to it now."""
        self.unasked: list[int] = []
        """Exit statuses of the times when it ended although no fault had killed it."""
        self._killed = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def keep(self) -> None:
        """Run the process, and restart it when it ends, until cancelled."""
        try:
            while True:
                self._killed = False
                with self._log.open("ab") as log:
                    self._process = await asyncio.create_subprocess_exec(
                        *launch_command(self._command, stop_signal=signal.SIGKILL, run_as=()),
                        cwd=ROOT,
                        env=self._env,
                        stdin=DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                status = await self._process.wait()
                self._process = None
                if not self._killed:
                    self.unasked.append(status)
                await asyncio.sleep(self._rng.uniform(0, 2))
        finally:
            if self._process is not None:
                strike(self._process.pid, signal.SIGKILL)
                await self._process.wait()

    async def kill(self) -> None:
        if self.pid is not None:
            self._killed = True
            strike(self.pid, signal.SIGKILL)

    async def pause(self, seconds: float) -> None:
        if (pid := self.pid) is None:
            return
        strike(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            if self.pid == pid:
                strike(pid, signal.SIGCONT)


Start = Callable[[], AbstractAsyncContextManager[tuple[Any, ...]]]


class Server:
    """nats-server or PostgreSQL, restarted on the same data, ports and sockets."""

    def __init__(self, kind: str, start: Start, rng: random.Random) -> None:
        self.kind = self.name = kind
        self._start, self._rng = start, rng
        self._child: Child | None = None
        self.place: tuple[Any, ...] = ()
        """The values that the start function returned: the server's URL first, its process last."""
        self.up = asyncio.Event()
        self.busy = False
        self.complaints: list[str] = []
        self._lost: Path | None = None

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    async def keep(self) -> None:
        """Run the server, and restart it when it ends, until cancelled."""
        while True:
            try:
                async with self._start() as self.place:
                    self._child = self.place[-1]
                    self.up.set()
                    await self._child.ended()
                    self.up.clear()
                    self._child = None
            except (EmbeddedError, OSError, asyncpg.PostgresError) as error:
                self._child = None
                self.complaints.append(str(error))
            await asyncio.sleep(self._rng.uniform(0, 3))
            if self._lost is not None:
                shutil.rmtree(self._lost)
                self._lost = None

    async def kill(self) -> None:
        if self.pid is not None:
            strike(self.pid, signal.SIGKILL)

    async def restart(self) -> None:
        """Stop it with SIGINT: PostgreSQL rolls back transactions and closes connections."""
        if self.pid is not None:
            strike(self.pid, signal.SIGINT)

    async def wipe(self, store: Path) -> None:
        """Kill it, and remove its store before it starts again."""
        self._lost = store
        await self.kill()

    async def pause(self, seconds: float) -> None:
        """Pause it with all its children; PostgreSQL has one child for each connection."""
        family = [] if self.pid is None else [self.pid, *children(self.pid)]
        for pid in family:
            strike(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            for pid in family:
                strike(pid, signal.SIGCONT)


class AgentProcess:
    """A workspace's agent: a process that other programs start and stop."""

    def __init__(self, kind: str, pid: int) -> None:
        self.kind, self.name, self.pid, self.busy = kind, f"{kind} {pid}", pid, False

    async def kill(self) -> None:
        strike(self.pid, signal.SIGKILL)

    async def pause(self, seconds: float) -> None:
        strike(self.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            strike(self.pid, signal.SIGCONT)


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
