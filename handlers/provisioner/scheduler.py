"""Schedules jobs: those of one workspace one after another, and a limited number at the same time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from handlers.provisioner.job import Job, JobHead
from handlers.runtime.supervise import cancel_and_wait, first_to_end
from statemachine.events import Transition

_log = logging.getLogger(__name__)


class Finish(Protocol):
    """Called once when a job has been handled."""

    def __call__(self, *, answered: bool) -> Awaitable[None]:
        """Ack the job if it was answered; otherwise it is redelivered."""
        ...


@dataclass(slots=True)
class QueuedJob:
    """A delivered job, readable or not, in its workspace's queue."""

    head: JobHead
    job: Job | None
    problem: str | None
    finish: Finish
    reply: str = ""
    """The reply subject of the delivery."""
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
class _WorkspaceQueue:
    current: QueuedJob
    waiting: deque[QueuedJob] = field(default_factory=deque)


class Scheduler:
    """Runs the queued jobs of each workspace one after another, at most `limit` jobs at a time."""

    def __init__(
        self, run_job: Callable[[QueuedJob], Coroutine[Any, Any, None]], limit: int
    ) -> None:
        self._run_job, self._slots = run_job, asyncio.Semaphore(limit)
        self._queues: dict[str, _WorkspaceQueue] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, queued: QueuedJob) -> None:
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
        self._cancel_before_delete(queue.current, queued)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as a task that `cancel` ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def find(self, workspace_id: str, build_id: str) -> list[QueuedJob]:
        """Return the jobs of that build: the one that runs, and those that wait."""
        queue = self._queues.get(workspace_id)
        jobs = [] if queue is None else [queue.current, *queue.waiting]
        return [queued for queued in jobs if queued.head.build_id == build_id]

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        await cancel_and_wait(*self._tasks)

    async def _drive(self, queue: _WorkspaceQueue) -> None:
        try:
            while True:
                queued = queue.current
                async with self._slot(queued):
                    try:
                        await self._run_job(queued)
                    except Exception:  # noqa: BLE001 — a bug or a full disk must not stop other jobs
                        _log.exception("build %s failed in the provisioner", queued.head.build_id)
                        await queued.finish(answered=False)
                if not queue.waiting:
                    return
                queue.current = queue.waiting.popleft()
        finally:
            del self._queues[queue.current.head.workspace_id]

    @asynccontextmanager
    async def _slot(self, queued: QueuedJob) -> AsyncIterator[None]:
        """Hold one of the slots. A job that is canceled while it waits for one needs none."""
        acquired = asyncio.create_task(self._slots.acquire())
        canceled = asyncio.create_task(queued.canceled.wait())
        try:
            await first_to_end(acquired, canceled)
        finally:
            await cancel_and_wait(acquired, canceled)
        try:
            yield
        finally:
            if not acquired.cancelled():
                self._slots.release()

    def _cancel_before_delete(self, current: QueuedJob, newer: QueuedJob) -> None:
        """Cancel a build whose workspace a later job deletes."""
        if (
            newer.head.transition is Transition.DELETE
            and current.head.build_number < newer.head.build_number
        ):
            current.cancel("the workspace is to be deleted")
