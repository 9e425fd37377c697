"""The journal of a provisioner: its builds and their facts, on disk, to continue after a crash."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from handlers.provisioner.job import JobHead
from handlers.publishing import OutgoingEvent
from handlers.publishing.atomic_files import write_atomically
from statemachine.events import Transition

_REMEMBERED: Final = 16
"""Finished builds remembered per workspace: a job may be redelivered long after it was done."""
_DELETED_KEPT: Final = 7 * 86_400
"""Seconds for which a deleted workspace is remembered."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class BuildRecord:
    """One build and the facts published for it, in order."""

    build_id: str
    number: int
    transition: Transition
    facts: list[OutgoingEvent] = field(default_factory=list)
    finished: bool = False
    reply: str = ""
    """Reply subject of its job, so that also the next process can nak it."""

    @property
    def reported(self) -> set[str]:
        """The names of the types of its facts."""
        return {json.loads(fact.body)["type"].split(".")[1] for fact in self.facts}

    def has_succeeded(self, transition: Transition) -> bool:
        """Return whether it is a build of that kind that has succeeded."""
        return self.transition is transition and "build_succeeded" in self.reported


@dataclass(slots=True)
class LocalWorkspace:
    """One workspace: its last builds, and the agents that should run in it."""

    workspace_id: str
    chat_id: str
    builds: list[BuildRecord] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    owner_id: str | None = None
    name: str = ""
    machine: str = ""
    """The machine, since it was started, on which the last start succeeded: `machine_identity`."""
    new: bool = False
    """No start build has succeeded and no directory existed before: nobody has worked in it yet."""

    @property
    def highest(self) -> int:
        """The highest number of its builds; -1 if there is none."""
        return max((build.number for build in self.builds), default=-1)

    @property
    def newest(self) -> BuildRecord | None:
        """The build with the highest number."""
        return max(self.builds, key=lambda build: build.number, default=None)

    @property
    def has_directory(self) -> bool:
        """Whether a build has made its directory, and nothing is known to have deleted it since."""
        made = False
        for build in self.builds:
            if "workspace_deleted" in build.reported or build.has_succeeded(Transition.DELETE):
                made = False
            elif build.has_succeeded(Transition.START):
                made = True
        return made

    @property
    def runs(self) -> bool:
        """Whether its newest build is a start that succeeded."""
        return self.newest is not None and self.newest.has_succeeded(Transition.START)

    def find(self, build_id: str) -> BuildRecord | None:
        """Return the record of that build, or None."""
        return next((build for build in self.builds if build.build_id == build_id), None)

    def creator_of(self, agent_id: str) -> BuildRecord | None:
        """Return the build that created the agent."""
        for build in reversed(self.builds):
            for fact in build.facts:
                listed = json.loads(fact.body)["data"].get("agents", ())
                if any(agent["id"] == agent_id for agent in listed):
                    return build
        return None

    def add(self, head: JobHead) -> BuildRecord:
        """Add the build of a job, and forget the oldest build if there are too many."""
        return self.add_build(head.build_id, head.build_number, head.transition)

    def add_build(self, build_id: str, number: int, transition: Transition) -> BuildRecord:
        """Add a build, and forget the oldest one if there are too many."""
        build = BuildRecord(build_id, number, transition)
        self.builds.append(build)
        self.builds.sort(key=lambda build: build.number)
        del self.builds[:-_REMEMBERED]
        return build


class BuildJournal:
    """One file per workspace, written before its facts are published."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._records: dict[str, LocalWorkspace] = {}
        for path in sorted(directory.glob("*.json")):
            self._load(path)

    def of(self, head: JobHead) -> LocalWorkspace:
        """Return the record of the job's workspace, a new one if there is none."""
        new = LocalWorkspace(head.workspace_id, head.chat_id)
        return self._records.setdefault(head.workspace_id, new)

    def find(self, workspace_id: str) -> LocalWorkspace | None:
        """Return the record of that workspace, or None."""
        return self._records.get(workspace_id)

    def records(self) -> Iterator[LocalWorkspace]:
        """Return the records of all workspaces."""
        return iter(list(self._records.values()))

    def unfinished(self) -> list[BuildRecord]:
        """Return the builds that have begun and not ended."""
        return [b for record in self._records.values() for b in record.builds if not b.finished]

    def newest_facts(self) -> list[OutgoingEvent]:
        """Return the facts of the newest build of each workspace, in the order they were made."""
        return [
            fact
            for record in self._records.values()
            if record.newest is not None
            for fact in record.newest.facts
        ]

    def open_facts(self) -> list[OutgoingEvent]:
        """Return the facts of builds that have begun and not ended."""
        return [fact for build in self.unfinished() for fact in build.facts]

    def save(self, record: LocalWorkspace) -> None:
        """Write the record; when this returns, it survives a crash and a loss of power."""
        content = asdict(record)
        for build, kept in zip(record.builds, content["builds"], strict=True):
            kept["facts"] = [fact.to_json() for fact in build.facts]
        write_atomically(
            self._path(record.workspace_id), json.dumps(content, ensure_ascii=False).encode()
        )

    def _load(self, path: Path) -> None:
        try:
            record = _record(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            # Building a workspace again is better than a provisioner that can't start.
            _log.exception("%s can't be read; it is renamed to *.unreadable and ignored", path)
            path.replace(path.with_suffix(".unreadable"))
            return
        newest = record.newest
        gone = newest is not None and newest.finished and newest.transition is Transition.DELETE
        if gone and time.time() - path.stat().st_mtime > _DELETED_KEPT:
            path.unlink()
        else:
            self._records[record.workspace_id] = record

    def _path(self, workspace_id: str) -> Path:
        return self._directory / f"{workspace_id}.json"


def _record(content: dict[str, Any]) -> LocalWorkspace:
    builds = [
        BuildRecord(
            build["build_id"],
            build["number"],
            Transition(build["transition"]),
            [OutgoingEvent.from_json(fact) for fact in build["facts"]],
            build["finished"],
            build.get("reply", ""),
        )
        for build in content["builds"]
    ]
    return LocalWorkspace(
        content["workspace_id"],
        content["chat_id"],
        builds,
        list(content["agents"]),
        content.get("owner_id"),
        content.get("name", ""),
        content.get("machine", ""),
        content.get("new", False),
    )
