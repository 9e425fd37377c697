"""A running system with its servers and its sources, in its own directory."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bench.peer import KINDS, ROOT, Event, Peer, load
from tests.bench.processes import own_cpu, tree_cpu


class Source:
    """The process of the sources, as the app's process uses it."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self._argv = [name, json.dumps(options)]
        self._waiting: dict[int, asyncio.Future[Event]] = {}
        self._seq = 0

    async def start(self, address: Mapping[str, Any]) -> None:
        """Start the process, and let it connect."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.bench.source",
            *self._argv,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=256 * 2**20,
        )
        self.pid = self._process.pid
        self._reading = asyncio.create_task(self._read())
        await self._ask(do="connect", address=address)

    async def created(self, chats: Sequence[str]) -> None:
        """Wait until the calls of these chats are applied."""
        await self._ask(do="created", chats=chats)

    async def play(
        self,
        chats: Sequence[str],
        *,
        gaps: Sequence[float] | None = None,
        kinds: Sequence[str] = KINDS,
        inflight: int = 256,
        copies: int = 1,
    ) -> dict[str, tuple[list[int], list[int]]]:
        """Send the events of each chat; return when each was sent and accepted, in ns."""
        plan = [(chat, gaps or [0] * len(kinds)) for chat in chats]
        reply = await self._ask(do="play", plan=plan, kinds=kinds, inflight=inflight, copies=copies)
        times: dict[str, tuple[list[int], list[int]]] = reply["times"]
        return times

    async def stop(self) -> None:
        """Stop the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            reply = json.loads(line)
            self._waiting.pop(reply["seq"]).set_result(reply)
        for future in self._waiting.values():
            future.set_exception(RuntimeError("the sources' process ended"))

    async def _ask(self, **command: Any) -> Event:
        assert self._process.stdin is not None
        self._seq += 1
        future = self._waiting[self._seq] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"seq": self._seq, **command}).encode() + b"\n")
        await self._process.stdin.drain()
        reply: Event = await future
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply


class RunningSystem:
    """A running system and its sources."""

    def __init__(self, name: str, options: Mapping[str, Any], most: int) -> None:
        self.name = name
        self.peer: Peer = load(name, options)
        self.peer.most = most
        self.source = Source(name, options)

    async def __aenter__(self) -> Self:
        self.peer.root = Path(tempfile.mkdtemp(prefix=f"bench-{self.name}-"))
        self.peer.root.chmod(0o755)
        try:
            await self.peer.start()
            await self.source.start(self.peer.address())
        except BaseException:
            await self._down()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.source.stop()
        finally:
            await self._down()

    async def _down(self) -> None:
        try:
            await self.peer.stop()
        finally:
            shutil.rmtree(self.peer.root, ignore_errors=True)


class Usage:
    """The CPU time since this object was made, by process tree."""

    def __init__(self, rig: RunningSystem) -> None:
        self._rig = rig
        self._started, self._before = time.monotonic(), self._read()

    def _read(self) -> dict[str, float]:
        app = "caller" if self._rig.peer.app_is_load else "app"
        servers = {name: tree_cpu(pid) for name, pid in self._rig.peer.pids().items()}
        return {**servers, app: own_cpu(), "sources": tree_cpu(self._rig.source.pid)}

    def since(self) -> dict[str, Any]:
        """Return the CPU seconds, in total and by process tree; the load generator counts apart."""
        used = {name: now - self._before[name] for name, now in self._read().items()}
        load = sum(used.pop(name, 0.0) for name in ("caller", "sources"))
        return {
            "cpu": round(sum(used.values()), 3),
            "cpu_load": round(load, 3),
            "cpu_of": {name: round(seconds, 3) for name, seconds in used.items()},
            "wall": round(time.monotonic() - self._started, 3),
        }


def paced(spread: float = 0.0) -> list[float]:
    """Return the pause before each event, for events that come one by one."""
    pauses = [random.uniform(0.05, 0.10) for _ in KINDS]
    return [pauses[0] + random.uniform(0, spread), *pauses[1:]]
