"""The local provisioner's machine: its disk, its processes, and the durations of builds."""

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
    """A path on the machine's disk; files remain when the process that wrote them ends."""

    def __init__(self, files: dict[str, bytes], path: str) -> None:
        self.files, self.path = files, path

    def __truediv__(self, name: str) -> DiskPath:
        return DiskPath(self.files, f"{self.path}/{name}")

    def resolve(self) -> DiskPath:
        return self

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return self.path.rpartition("/")[2].rpartition(".")[0]

    def mkdir(self, **_how: Any) -> None:
        """Do nothing: a directory exists when a file is in it."""

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
        """Return the time of the last touch for an `alive` file; other files are always new."""
        touched = self.path.endswith("/alive")
        return SimpleNamespace(st_mtime=float(self.read_bytes()) if touched else float("inf"))

    def unlink(self, *, missing_ok: bool = False) -> None:
        del missing_ok
        self.files.pop(self.path, None)


def _is_end(body: str) -> bool:
    """Return whether a fact of a build is its terminal one."""
    name = json.loads(body)["type"].split(".")[1]
    return name not in ("build_started", "agent_exited")


def write_atomically(path: DiskPath, data: bytes) -> None:
    """Write a file; readers see the old or the new content, never a part."""
    path.files[path.path] = data


@dataclass
class Ways:
    """Durations in seconds and probabilities of failures for builds and scripts."""

    build: float = 2.0
    script: float = 1.0
    agent: float = 0.0
    """Time until an agent's process runs."""
    fails: float = 0.1
    script_fails: float = 0.1
    without_agents: float = 0.1
    worked_in: float = 0.5
    """Probability that somebody works in a workspace from time to time."""
    hangs: float = 0.0
    """Probability that the step of a start build never ends."""
    exits: float = 0.1
    """Probability that an agent's process ends before it connects."""
    torn: float = 0.1
    """Probability that a build lists two agents, none of which can be chosen."""


@dataclass
class HungStep:
    """A step that goes on when it is told to."""

    chat: str
    since: float
    goes_on: Future[None]


@dataclass
class Machine:
    """The state of the machine, which remains when processes on it end."""

    loop: SeededLoop
    ways: Ways
    pace: Any
    """Draws a random duration of about the given seconds."""
    files: dict[str, bytes] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)
    """Workspaces that have a directory: `start` or `stop` completed last, or a start `failed`, or the first one
    is `half` done."""
    steps: dict[str, Process] = field(default_factory=dict)
    """The builds whose step runs, with the process that runs it; those of dead processes do not count."""
    hung: dict[str, HungStep] = field(default_factory=dict)
    """The steps that hang, by build."""
    failed: Counter[str] = field(default_factory=Counter)
    """How often stops and deletes of each workspace have failed."""
    begun: set[str] = field(default_factory=set)
    """Builds whose step has ever begun."""
    doomed: set[str] = field(default_factory=set)
    """Agents whose process ends before it connects."""
    made: Counter[str] = field(default_factory=Counter)
    """How often each build's step ran to its end."""
    built_again: set[str] = field(default_factory=set)
    """Builds whose step began although the journal already held their end."""
    configs: dict[str, AgentConfig] = field(default_factory=dict)
    agents: dict[str, Process] = field(default_factory=dict)
    """Running agent processes, by agent id."""
    instances: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, list[Future[bool]]] = field(default_factory=dict)
    start_agent: Any = None
    """Starts an agent's process; the run sets it."""

    @property
    def root(self) -> DiskPath:
        return DiskPath(self.files, "")

    def ends(self) -> dict[str, int]:
        """Return how many terminal facts the journal holds for each finished build."""
        return {
            build["build_id"]: len([fact for fact in build["facts"] if _is_end(fact["body"])])
            for path, content in self.files.items()
            if path.startswith("/journal/")
            for build in json.loads(content)["builds"]
            if build["finished"]
        }

    def unfinished(self) -> Iterator[str]:
        """Yield the builds that the journal holds and that have not ended."""
        for path, content in self.files.items():
            if path.startswith("/journal/"):
                builds = json.loads(content)["builds"]
                yield from (build["build_id"] for build in builds if not build["finished"])

    def last_words(self) -> Iterator[tuple[str, str]]:
        """Yield the identity of the last fact of each workspace's newest build, if it has ended."""
        for path, content in self.files.items():
            if path.startswith("/journal/"):
                newest = max(json.loads(content)["builds"], key=lambda build: build["number"])
                if newest["finished"]:
                    event = json.loads(newest["facts"][-1]["body"])
                    yield event["source"], event["id"]

    def working(self) -> set[str]:
        """Return the builds whose step runs now."""
        return {build for build, process in self.steps.items() if not process.dead}

    def over(self, agent_id: str, *, well: bool) -> None:
        """Record that an agent's process has ended, and notify those who wait for it."""
        self.agents.pop(agent_id, None)
        self.instances.pop(agent_id, None)
        for waiting in self.ended.pop(agent_id, []):
            if not waiting.done():
                waiting.set_result(well)

    async def gone(self, agent_id: str) -> bool:
        """Wait until an agent's process has ended; return whether it ended by itself."""
        if agent_id not in self.agents:
            return True
        waiting: Future[bool] = self.loop.create_future()
        self.ended.setdefault(agent_id, []).append(waiting)
        return await waiting
