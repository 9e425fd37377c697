"""The journal of a provisioner: its builds, their facts and open jobs, on disk, to continue after a crash."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar
from uuid import NAMESPACE_URL, uuid5

from workspaced.events import Fact, new_fact
from workspaced.files import write_atomically

_REMEMBERED: Final = 16
"""Builds remembered for each workspace: a job may be delivered again long after it was done."""
_DELETED_KEPT: Final = 7 * 86_400
"""Seconds for which a deleted workspace is remembered."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Build:
    """One build, and the facts made for it, in order."""

    build_id: str
    number: int
    transition: str
    facts: list[Fact] = field(default_factory=list)
    finished: bool = False
    reply: str = ""
    """Where its job is acknowledged, so that also the next process can hand the job back."""

    @property
    def reported(self) -> set[str]:
        """The names of the types of its facts."""
        return {fact.type_name for fact in self.facts}

    @property
    def traceparent(self) -> str | None:
        """The trace of its job."""
        trace = json.loads(self.facts[0].body).get("traceparent") if self.facts else None
        return None if trace is None else str(trace)

    def has_succeeded(self, transition: str) -> bool:
        """Return whether it is a build of that kind that has succeeded."""
        return self.transition == transition and "build_succeeded" in self.reported


@dataclass(slots=True)
class Workspace:
    """One workspace: its last builds, oldest first, and its agents. A provisioner may add fields."""

    workspace_id: str
    chat_id: str
    builds: list[Build] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    """The agents that should run in it: those of the last start that succeeded."""
    name: str = ""

    @property
    def highest(self) -> int:
        """The highest number of its builds; -1 if there is none."""
        return max((build.number for build in self.builds), default=-1)

    @property
    def newest(self) -> Build | None:
        """The build with the highest number; of equal numbers, the one that came last."""
        return self.builds[-1] if self.builds else None

    @property
    def exists(self) -> bool:
        """Whether a start has succeeded, and nothing is known to have deleted the workspace since."""
        made = False
        for build in self.builds:
            if "workspace_deleted" in build.reported or build.has_succeeded("delete"):
                made = False
            elif build.has_succeeded("start"):
                made = True
        return made

    @property
    def running(self) -> bool:
        """Whether it exists, and its last build that succeeded was a start."""
        succeeded = [build for build in self.builds if "build_succeeded" in build.reported]
        return self.exists and succeeded[-1].transition == "start"

    @property
    def deleted(self) -> bool:
        """Whether its newest build has deleted it, or it is known to be gone since then."""
        newest = self.newest
        if newest is None or not newest.finished or self.exists:
            return False
        return newest.transition == "delete" or "workspace_deleted" in newest.reported

    def find(self, build_id: str) -> Build | None:
        """Return the record of a build, or None."""
        return next((build for build in self.builds if build.build_id == build_id), None)

    def creator_of(self, agent_id: str) -> Build | None:
        """Return the build that created the agent."""
        for build in reversed(self.builds):
            for fact in build.facts:
                listed = json.loads(fact.body)["data"].get("agents", ())
                if any(agent["id"] == agent_id for agent in listed):
                    return build
        return None

    def add(self, build: Build) -> Build:
        """Add a build, and forget the oldest one if there are too many."""
        self.builds.append(build)
        self.builds.sort(key=lambda one: one.number)
        del self.builds[:-_REMEMBERED]
        return build

    def succeed(self, transition: str, agents: Sequence[str]) -> None:
        """Record that a build has succeeded, which made these agents."""
        del transition
        self.agents = list(agents)

    def copy(self) -> Self:
        """Return a copy, with which `restore` undoes later changes of the fields."""
        return replace(self)

    def restore(self, earlier: Self) -> None:
        """Give all fields the values of a copy."""
        for one in fields(self):
            setattr(self, one.name, getattr(earlier, one.name))

    def stop_elsewhere(self, provisioner: str) -> list[Fact]:
        """Add a stop that nobody requested, as a build made elsewhere; return its facts."""
        number = self.highest + 1
        build_id = str(uuid5(NAMESPACE_URL, f"workspaced:{self.workspace_id}:{number}"))
        build = self.add(Build(build_id, number, "stop", finished=True))
        self.agents = []
        data = {
            "workspace_id": self.workspace_id,
            "build_id": build_id,
            "build_number": number,
            "transition": "stop",
        }
        names = {"workspace_name": self.name} if self.name else {}
        build.facts = [
            new_fact("build_started", provisioner, self.chat_id, {**data, **names}),
            new_fact("build_succeeded", provisioner, self.chat_id, {**data, "agents": []}),
        ]
        return build.facts

    def vanish(self, provisioner: str) -> list[Fact]:
        """Add that the workspace and its data are gone; return the fact about it."""
        build = self.newest
        if build is None:
            return []
        self.agents = []
        data = {
            "workspace_id": self.workspace_id,
            "build_id": build.build_id,
            "build_number": build.number,
        }
        build.facts.append(new_fact("workspace_deleted", provisioner, self.chat_id, data))
        return build.facts[-1:]


W = TypeVar("W", bound=Workspace)


class Journal(Generic[W]):
    """One file for each workspace in `directory`, written before its facts are published.

    One provisioner uses the directory at a time. `kind` is the class of the records.
    """

    def __init__(self, directory: Path, kind: type[W]) -> None:
        self._directory, self._kind = directory, kind
        self._records: dict[str, W] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(directory.glob("*.json")):
            self._load(path)

    def of(self, workspace_id: str, chat_id: str) -> W:
        """Return the record of a workspace, a new one if there is none."""
        return self._records.setdefault(workspace_id, self._kind(workspace_id, chat_id))

    def find(self, workspace_id: str) -> W | None:
        """Return the record of a workspace, or None."""
        return self._records.get(workspace_id)

    def workspaces(self) -> list[W]:
        """Return all records."""
        return list(self._records.values())

    def unfinished(self) -> list[Build]:
        """Return the builds that have begun and not ended."""
        return [build for one in self.workspaces() for build in one.builds if not build.finished]

    def newest_facts(self) -> list[Fact]:
        """Return the facts of the newest build of each workspace, in the order they were made."""
        newest = [one.newest for one in self.workspaces()]
        return [fact for build in newest if build is not None for fact in build.facts]

    def open_facts(self) -> list[Fact]:
        """Return the facts of the builds that have begun and not ended."""
        return [fact for build in self.unfinished() for fact in build.facts]

    def save(self, record: W) -> None:
        """Write a record; when this returns, it survives a crash and a loss of power. Raises OSError."""
        content = json.dumps(asdict(record), ensure_ascii=False).encode()
        write_atomically(self._directory / f"{record.workspace_id}.json", content)

    def _load(self, path: Path) -> None:
        try:
            record = self._record(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            # Building a workspace again is better than a provisioner that can't start.
            _log.exception("%s can't be read; it is renamed to *.unreadable and ignored", path)
            path.replace(path.with_suffix(".unreadable"))
            return
        if time.time() - path.stat().st_mtime > _DELETED_KEPT and record.deleted:
            path.unlink()
        else:
            self._records[record.workspace_id] = record

    def _record(self, content: dict[str, Any]) -> W:
        builds = [
            Build(**{**build, "facts": [Fact(**fact) for fact in build["facts"]]})
            for build in content["builds"]
        ]
        known = {one.name for one in fields(self._kind)}
        given = {key: value for key, value in content.items() if key in known}
        return self._kind(**{**given, "builds": builds})


class KeptJobs:
    """The jobs of the builds that have begun and not ended, on disk.

    With its job, what a build has left can be removed even if the job does not come back.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def keep(self, build_id: str, body: bytes) -> None:
        """Save a job. Raises OSError."""
        path = self._path(build_id)
        if body and not path.exists():
            write_atomically(path, body)

    def find(self, build_id: str) -> bytes | None:
        """Return the job of a build that has begun; None if it is not there or can't be read."""
        try:
            return self._path(build_id).read_bytes()
        except OSError:
            return None

    def drop(self, build_id: str) -> None:
        """Remove the job of a build that has ended."""
        try:
            self._path(build_id).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("the job of build %s can't be removed: %s", build_id, error)

    def drop_all_except(self, builds: Container[str]) -> None:
        """Remove the jobs of all other builds."""
        for path in self._directory.glob("*.json"):
            if path.stem not in builds:
                self.drop(path.stem)

    def _path(self, build_id: str) -> Path:
        return self._directory / f"{build_id}.json"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a provisioner's directory. Raises BlockingIOError if another process has it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(held)
