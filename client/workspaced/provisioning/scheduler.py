"""Schedules jobs: those of one workspace one after another, and a limited number at the same time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from workspaced.provisioning.jobs import Job, JobHead
from workspaced.provisioning.link import Delivery
from workspaced.tasks import cancel_and_wait

J = TypeVar("J", bound=Job)


@dataclass(slots=True, eq=False)
class QueuedJob(Generic[J]):
    """A delivered job, readable or not, in its workspace's queue."""

    head: JobHead
    job: J | None
    problem: str
    """Why the job can't be read, if `job` is None."""
    delivery: Delivery
    late: bool = False
    """It arrived after its `not_after`."""
    highest: int = -1
    """The highest build number of its workspace that is known when its turn comes."""
    canceled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the build has to be ended."""
    canceled_because: str = ""

    def cancel(self, because: str) -> None:
        """End the build, or do not begin it. `because` completes the sentence "canceled because …"."""
        if not self.canceled.is_set():
            self.canceled_because = because
            self.canceled.set()


@dataclass(slots=True)
class _WorkspaceQueue(Generic[J]):
    current: QueuedJob[J]
    waiting: deque[QueuedJob[J]] = field(default_factory=deque)


class Scheduler(Generic[J]):
    """Runs the queued jobs of each workspace one after another, at most `limit` jobs at a time."""

    def __init__(
        self, run_job: Callable[[QueuedJob[J]], Coroutine[Any, Any, None]], limit: int
    ) -> None:
        self._run_job, self._slots = run_job, asyncio.Semaphore(limit)
        self._queues: dict[str, _WorkspaceQueue[J]] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}

    def add(self, queued: QueuedJob[J]) -> None:
        """Run the job now, or when the earlier jobs of its workspace are done."""
        queue = self._queues.get(queued.head.workspace_id)
        if queue is None:
            # In the table at once: a newer job that arrives now must find it.
            queue = self._queues[queued.head.workspace_id] = _WorkspaceQueue(queued)
            self.spawn(self._drive(queue))
            return
        for other in queue.waiting:
            other.highest = max(other.highest, queued.head.build_number)
            queued.highest = max(queued.highest, other.head.build_number)
        queue.waiting.append(queued)
        _cancel_before_delete(queue.current, queued)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as a task that `cancel` ends."""
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    def has(self, workspace_id: str) -> bool:
        """Return whether a job of that workspace runs or waits."""
        return workspace_id in self._queues

    def find(self, workspace_id: str, build_id: str) -> list[QueuedJob[J]]:
        """Return the jobs of that build: the one that runs, and those that wait."""
        queue = self._queues.get(workspace_id)
        jobs = [] if queue is None else [queue.current, *queue.waiting]
        return [queued for queued in jobs if queued.head.build_id == build_id]

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        await cancel_and_wait(*self._tasks)

    async def _drive(self, queue: _WorkspaceQueue[J]) -> None:
        try:
            while True:
                async with self._slot(queue.current):
                    await self._run_job(queue.current)
                if not queue.waiting:
                    return
                queue.current = queue.waiting.popleft()
        finally:
            del self._queues[queue.current.head.workspace_id]

    @asynccontextmanager
    async def _slot(self, queued: QueuedJob[J]) -> AsyncIterator[None]:
        """Hold one of the slots. A job that is canceled while it waits for one needs none."""
        acquired = asyncio.create_task(self._slots.acquire())
        canceled = asyncio.create_task(queued.canceled.wait())
        try:
            await asyncio.wait((acquired, canceled), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(acquired, canceled)
        try:
            yield
        finally:
            if not acquired.cancelled():
                self._slots.release()


def _cancel_before_delete(current: QueuedJob[J], newer: QueuedJob[J]) -> None:
    """Cancel a build whose workspace a later job deletes."""
    if newer.head.transition == "delete" and current.head.build_number < newer.head.build_number:
        current.cancel("the workspace is to be deleted")
