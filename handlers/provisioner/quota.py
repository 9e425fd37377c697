"""The quotas of each owner on this machine: the number of workspaces, and their total disk space."""

from __future__ import annotations

import asyncio
import math
import os
import stat
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from workspaced.provisioning.journal import Journal

from handlers.provisioner.job import Job
from handlers.provisioner.journal import LocalWorkspace
from handlers.provisioner.step import Failed

CODE: Final = "INSUFFICIENT_QUOTA"
_MIB: Final = 1024 * 1024
_BLOCK: Final = 512
_MAX_NAMED: Final = 5
"""Largest number of workspaces that an error names."""


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """The limits of each owner; 0 means no limit."""

    workspaces: int = 0
    disk_mib: int = 0


class Quotas:
    """Checks start builds against the quotas of their owner.

    The journal stores the owner of each workspace; the workspace's directory shows whether it still exists.

    """

    def __init__(
        self, journal: Journal[LocalWorkspace], directory: Path, quota_limits: QuotaLimits
    ) -> None:
        self._journal, self._directory, self._limits = journal, directory, quota_limits
        self._claimed: set[str] = set()
        self._disk_locks: defaultdict[str | None, asyncio.Lock] = defaultdict(asyncio.Lock)

    def admit(self, job: Job) -> Failed | None:
        """Reserve one of the owner's workspaces until `release`; return Failed if all are in use.

        There is no await between check and reservation: of two builds for the last one, the second fails.

        """
        limit = self._limits.workspaces
        others = [
            record
            for record in (self._of_owner(job) if limit else ())
            if record.workspace_id != job.workspace_id and self._counts(record)
        ]
        if limit and (count := len(others)) >= limit:
            return Failed(
                f"{job.owner_name} has {_workspaces(count)} on this machine and may have {limit}: "
                f"{_named(map(_name, others))}. Stopped ones count too. Delete one "
                "that is no longer needed, then try again; or ask the operator for a higher limit "
                "(WORKSPACED_WORKSPACES_PER_OWNER).",
                CODE,
                {"credits_consumed": count, "budget": limit},
            )
        self._claimed.add(job.workspace_id)
        return None

    def release(self, workspace_id: str) -> None:
        """End the reservation: from now on the journal decides whether the workspace counts."""
        self._claimed.discard(workspace_id)

    def disk_lock(self, job: Job) -> asyncio.Lock:
        """Return a lock to hold while the owner's disk usage is checked.

        If two builds exceed the quota together, the first makes room before the second is checked.

        """
        return self._disk_locks[job.owner_id]

    async def check_disk(self, job: Job) -> Failed | None:
        """Return Failed if the owner's workspaces use more disk space than the limit."""
        limit = self._limits.disk_mib
        if not limit or not (records := self._of_owner(job)):
            return None
        sizes = await measure_disk_usage(
            [self._directory / record.workspace_id for record in records]
        )
        if (used := sum(sizes)) <= limit * _MIB:
            return None
        by_size = sorted(zip(sizes, records, strict=True), key=lambda pair: -pair[0])
        largest = (f"{_name(record)} ({_mib(size):g} MiB)" for size, record in by_size if size)
        return Failed(
            f"The workspaces of {job.owner_name} use {_mib(used):g} MiB of disk on this machine "
            f"and may use {limit} MiB: {_named(largest)}. Delete files or workspaces that are no "
            "longer needed, then try again; or ask the operator for a higher limit "
            "(WORKSPACED_DISK_PER_OWNER_MIB).",
            CODE,
            {"credits_consumed": _mib(used), "budget": limit},
        )

    def _of_owner(self, job: Job) -> list[LocalWorkspace]:
        if job.owner_id is None:
            return []
        return [r for r in self._journal.workspaces() if r.owner_id == job.owner_id]

    def _counts(self, record: LocalWorkspace) -> bool:
        """Return whether the workspace counts. One whose first start never succeeded does not.

        Nobody could use it, and its owner has no way to delete it.

        """
        return record.workspace_id in self._claimed or (
            not record.new and (self._directory / record.workspace_id).exists()
        )


async def measure_disk_usage(directories: Iterable[Path]) -> list[int]:
    """Return the disk usage of each directory in bytes, as `du` counts it."""
    abandoned = threading.Event()
    try:
        return await asyncio.to_thread(_measure, list(directories), abandoned)
    finally:
        # A thread can't be cancelled; a large tree must not delay the end of the process.
        abandoned.set()


def _measure(directories: list[Path], abandoned: threading.Event) -> list[int]:
    seen: set[tuple[int, int]] = set()
    return [sum(_sizes(directory, seen, abandoned)) for directory in directories]


def _sizes(root: Path, seen: set[tuple[int, int]], abandoned: threading.Event) -> Iterator[int]:
    """Yield the disk usage of each file, without following links or entering other file systems.

    Files that vanish meanwhile or can't be read are skipped.

    """
    try:
        top = root.lstat()
    except OSError:
        return
    if not stat.S_ISDIR(top.st_mode):
        return
    yield top.st_blocks * _BLOCK
    waiting = [str(root)]
    while waiting and not abandoned.is_set():
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    if found.st_dev != top.st_dev:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif found.st_nlink > 1:
                        if (found.st_dev, found.st_ino) in seen:
                            continue
                        seen.add((found.st_dev, found.st_ino))
                    yield found.st_blocks * _BLOCK


def _mib(size: int) -> float:
    """Round up to tenths of a MiB: a size above the limit must look like it."""
    return math.ceil(size / _MIB * 10) / 10


def _workspaces(count: int) -> str:
    return "1 workspace" if count == 1 else f"{count} workspaces"


def _name(record: LocalWorkspace) -> str:
    return record.name or record.workspace_id


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - _MAX_NAMED
    return ", ".join(listed[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
