"""The journal of a provisioner: the facts of its builds, on disk before they are published."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from workspaced.provisioning.events import Fact

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


@dataclass(slots=True)
class Workspace:
    """One workspace: its last builds, oldest first."""

    workspace_id: str
    chat_id: str
    name: str = ""
    builds: list[Build] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    """The agents of the last start that succeeded, while the workspace runs."""
    running: bool = False
    deleted: bool = False

    @property
    def highest(self) -> int:
        """The highest number of its builds; -1 if there is none."""
        return max((build.number for build in self.builds), default=-1)

    @property
    def newest(self) -> Build | None:
        """The build with the highest number; of equal numbers, the one that came last."""
        return self.builds[-1] if self.builds else None

    def find(self, build_id: str) -> Build | None:
        """Return the record of a build, or None."""
        return next((build for build in self.builds if build.build_id == build_id), None)

    def add(self, build: Build) -> Build:
        """Add a build, and forget the oldest one if there are too many."""
        self.builds.append(build)
        self.builds.sort(key=lambda one: one.number)
        del self.builds[:-_REMEMBERED]
        return build


class Journal:
    """One file for each workspace in `directory`, which one provisioner uses at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._records: dict[str, Workspace] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(directory.glob("*.json")):
            self._load(path)

    def of(self, workspace_id: str, chat_id: str) -> Workspace:
        """Return the record of a workspace, a new one if there is none."""
        return self._records.setdefault(workspace_id, Workspace(workspace_id, chat_id))

    def find(self, workspace_id: str) -> Workspace | None:
        """Return the record of a workspace, or None."""
        return self._records.get(workspace_id)

    def workspaces(self) -> list[Workspace]:
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

    def save(self, record: Workspace) -> None:
        """Write a record; when this returns, it survives a crash and a loss of power. Raises OSError."""
        path = self._directory / f"{record.workspace_id}.json"
        temporary = path.with_name(f".{path.name}.new")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(record), file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        opened = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

    def _load(self, path: Path) -> None:
        try:
            record = _record(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            # To build a workspace again is better than a provisioner that can't start.
            _log.exception("%s can't be read; it is renamed to *.unreadable and ignored", path)
            path.replace(path.with_suffix(".unreadable"))
            return
        if record.deleted and time.time() - path.stat().st_mtime > _DELETED_KEPT:
            path.unlink()
        else:
            self._records[record.workspace_id] = record


def _record(content: dict[str, Any]) -> Workspace:
    builds = [
        Build(**{**build, "facts": [Fact(**fact) for fact in build["facts"]]})
        for build in content.pop("builds")
    ]
    return Workspace(**content, builds=builds)


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
