"""What this provisioner did and said, on disk: it answers for a build also after it was killed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from handlers.provisioner.job import Head
from handlers.publishing import FactMessage
from handlers.publishing.atomic_files import write_atomically
from statemachine.events import Transition

_REMEMBERED: Final = 16
"""Builds of one workspace whose ends are known: a job may come again long after it was done."""
_DELETED_KEPT: Final = 7 * 86_400
"""Seconds that a deleted workspace is remembered."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class BuildRecord:
    """One build and the facts that were stated of it, in order."""

    build_id: str
    number: int
    transition: Transition
    facts: list[FactMessage] = field(default_factory=list)
    finished: bool = False
    reply: str = ""
    """Where its job can be given back, by who comes after us too."""


@dataclass(slots=True)
class WorkspaceRecord:
    """One workspace: its last builds, and the agents that should run in it."""

    workspace_id: str
    chat_id: str
    builds: list[BuildRecord] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    owner_id: str | None = None
    name: str = ""
    new: bool = False
    """No start build of it has succeeded, nor was it here before: nobody has worked in it."""

    @property
    def highest(self) -> int:
        """The highest number of a build that was taken up or answered; -1 for none."""
        return max((build.number for build in self.builds), default=-1)

    @property
    def newest(self) -> BuildRecord | None:
        """The build with that number."""
        return max(self.builds, key=lambda build: build.number, default=None)

    def find(self, build_id: str) -> BuildRecord | None:
        """Return what is known of that build."""
        return next((build for build in self.builds if build.build_id == build_id), None)

    def build_of(self, agent_id: str) -> str | None:
        """Return the build that the agent belongs to."""
        for build in reversed(self.builds):
            for fact in build.facts:
                listed = json.loads(fact.body)["data"].get("agents", ())
                if any(agent["id"] == agent_id for agent in listed):
                    return build.build_id
        return None

    def add(self, head: Head) -> BuildRecord:
        """Begin to remember a build, and forget the oldest of too many."""
        build = BuildRecord(head.build_id, head.build_number, head.transition)
        self.builds.append(build)
        self.builds.sort(key=lambda build: build.number)
        del self.builds[:-_REMEMBERED]
        return build


class BuildJournal:
    """One file per workspace; written before what it says is published."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._records: dict[str, WorkspaceRecord] = {}
        for path in sorted(directory.glob("*.json")):
            self._load(path)

    def of(self, head: Head) -> WorkspaceRecord:
        """Return what is known of the job's workspace."""
        new = WorkspaceRecord(head.workspace_id, head.chat_id)
        return self._records.setdefault(head.workspace_id, new)

    def records(self) -> Iterator[WorkspaceRecord]:
        """Return every workspace that is known."""
        return iter(list(self._records.values()))

    def unfinished(self) -> list[BuildRecord]:
        """Return the builds that were begun and have no end."""
        return [b for record in self._records.values() for b in record.builds if not b.finished]

    def newest_facts(self) -> list[FactMessage]:
        """Return the facts of the newest build of each workspace, in the order they came about."""
        return [
            fact
            for record in self._records.values()
            if record.newest is not None
            for fact in record.newest.facts
        ]

    def save(self, record: WorkspaceRecord) -> None:
        """Write the record; on return it survives whatever comes."""
        content = asdict(record)
        for build, kept in zip(record.builds, content["builds"], strict=True):
            kept["facts"] = [fact.kept() for fact in build.facts]
        write_atomically(
            self._path(record.workspace_id), json.dumps(content, ensure_ascii=False).encode()
        )

    def _load(self, path: Path) -> None:
        try:
            record = _record(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            # Better a workspace that is built again than a provisioner that can't start.
            _log.exception("%s can't be read and is set aside", path)
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


def _record(content: dict[str, Any]) -> WorkspaceRecord:
    builds = [
        BuildRecord(
            build["build_id"],
            build["number"],
            Transition(build["transition"]),
            [FactMessage.from_kept(fact) for fact in build["facts"]],
            build["finished"],
            build.get("reply", ""),
        )
        for build in content["builds"]
    ]
    return WorkspaceRecord(
        content["workspace_id"],
        content["chat_id"],
        builds,
        list(content["agents"]),
        content.get("owner_id"),
        content.get("name", ""),
        content.get("new", False),
    )
