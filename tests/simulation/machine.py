"""The machine of the local provisioner: its disk, what runs there, and how things go on it."""

from __future__ import annotations

import json
import time
from asyncio import Future
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from handlers.publishing.agent_files import AgentConfig
from tests.simulation.loop import Process, SeededLoop


class DiskPath:
    """A path on the disk of a machine; what is written survives its writer."""

    def __init__(self, files: dict[str, bytes], path: str) -> None:
        self.files, self.path = files, path

    def __truediv__(self, name: str) -> DiskPath:
        return DiskPath(self.files, f"{self.path}/{name}")

    def resolve(self) -> DiskPath:
        return self

    def mkdir(self, **_how: Any) -> None:
        """Directories are there when something is in them."""

    def glob(self, _pattern: str) -> Iterator[DiskPath]:
        inside = [name for name in self.files if name.startswith(f"{self.path}/")]
        return iter([DiskPath(self.files, name) for name in inside])

    def __lt__(self, other: DiskPath) -> bool:
        return self.path < other.path

    def exists(self) -> bool:
        return self.path in self.files or any(n.startswith(f"{self.path}/") for n in self.files)

    def read_bytes(self) -> bytes:
        try:
            return self.files[self.path]
        except KeyError:
            raise FileNotFoundError(self.path) from None

    def touch(self) -> None:
        self.files[self.path] = str(time.time()).encode()

    def stat(self) -> Any:
        """Only what is touched tells of its time; the rest is young for ever."""
        touched = self.path.endswith("/alive")
        return SimpleNamespace(st_mtime=float(self.read_bytes()) if touched else float("inf"))

    def unlink(self, *, missing_ok: bool = False) -> None:
        del missing_ok
        self.files.pop(self.path, None)


def write_atomically(path: DiskPath, data: bytes) -> None:
    """Write a file: it is whole or not there."""
    path.files[path.path] = data


@dataclass
class Ways:
    """How builds and scripts go on this machine, in seconds and chances."""

    build: float = 2.0
    script: float = 1.0
    agent: float = 0.0
    """Until its process runs."""
    fails: float = 0.1
    script_fails: float = 0.1
    without_agents: float = 0.1
    torn: float = 0.1
    """Chance that a build lists two agents of which none can be chosen."""


@dataclass
class Machine:
    """What outlives the processes on it."""

    loop: SeededLoop
    ways: Ways
    pace: Any
    """Draws how long something takes, about so many seconds."""
    files: dict[str, bytes] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)
    """Workspaces with a directory, and what was last done to its end there: `start` or `stop`."""
    made: Counter[str] = field(default_factory=Counter)
    """How often a build's step was run to its end."""
    built_again: set[str] = field(default_factory=set)
    """Builds whose step began though the journal held their end."""
    configs: dict[str, AgentConfig] = field(default_factory=dict)
    agents: dict[str, Process] = field(default_factory=dict)
    """Agent processes that run, by agent id."""
    instances: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, list[Future[bool]]] = field(default_factory=dict)
    start_agent: Any = None
    """Starts the process of an agent; the run's own."""

    @property
    def root(self) -> DiskPath:
        return DiskPath(self.files, "")

    def ends(self) -> dict[str, int]:
        """Return how many terminal facts the journal holds of each build."""
        return {
            build["build_id"]: len([f for f in build["facts"] if "build_started" not in f["body"]])
            for path, content in self.files.items()
            if path.startswith("/journal/")
            for build in json.loads(content)["builds"]
            if build["finished"]
        }

    def last_words(self) -> Iterator[tuple[str, str]]:
        """Yield the identity of the end of each workspace's newest build."""
        for path, content in self.files.items():
            if path.startswith("/journal/"):
                newest = max(json.loads(content)["builds"], key=lambda build: build["number"])
                if newest["finished"]:
                    event = json.loads(newest["facts"][-1]["body"])
                    yield event["source"], event["id"]

    def over(self, agent_id: str, *, well: bool) -> None:
        """Let those who watch an agent know that its process is gone."""
        self.agents.pop(agent_id, None)
        self.instances.pop(agent_id, None)
        for waiting in self.ended.pop(agent_id, []):
            if not waiting.done():
                waiting.set_result(well)

    async def gone(self, agent_id: str) -> bool:
        """Wait until an agent's process is gone; tell whether it ended by itself."""
        if agent_id not in self.agents:
            return True
        waiting: Future[bool] = self.loop.create_future()
        self.ended.setdefault(agent_id, []).append(waiting)
        return await waiting
