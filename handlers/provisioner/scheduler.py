"""Which job is worked when: those of one workspace one after another, so many at once in all."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from handlers.provisioner.job import Head, Job
from handlers.supervise import cancel_and_wait
from statemachine.events import Transition

_log = logging.getLogger(__name__)


class Over(Protocol):
    """Called once when a job leaves our hands."""

    def __call__(self, *, answered: bool) -> Awaitable[None]:
        """Ack it if it was answered, else let it come again."""
        ...


@dataclass(slots=True)
class QueuedJob:
    """One delivery of a job, readable or not, on its way through its workspace's queue."""

    head: Head
    job: Job | None
    problem: str | None
    over: Over
    reply: str = ""
    """Where it can be given back."""
    late: bool = False
    """It came after its `not_after`."""
    highest: int = -1
    """The highest number that its workspace had seen when its turn came."""
    called_off: asyncio.Event = field(default_factory=asyncio.Event)
    """The workspace is to be deleted: there is no point in building it to the end."""


@dataclass(slots=True)
class _WorkspaceQueue:
    current: QueuedJob
    waiting: deque[QueuedJob] = field(default_factory=deque)


class Scheduler:
    """Calls `work` with one queued after another of each workspace."""

    def __init__(
        self, work: Callable[[QueuedJob], Coroutine[Any, Any, None]], at_once: int
    ) -> None:
        self._work, self._slots = work, asyncio.Semaphore(at_once)
        self._queues: dict[str, _WorkspaceQueue] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, queued: QueuedJob) -> None:
        """Work the queued now, or when those before it in its workspace are done."""
        queue = self._queues.get(queued.head.workspace_id)
        if queue is None:
            # Taken at once: a newer job that comes now finds it begun.
            queue = self._queues[queued.head.workspace_id] = _WorkspaceQueue(queued)
            self.spawn(self._drive(queue))
            return
        for other in queue.waiting:
            other.highest = max(other.highest, queued.head.build_number)
            queued.highest = max(queued.highest, other.head.build_number)
        queue.waiting.append(queued)
        self._call_off(queue.current, queued)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task until it ends or `cancel` ends it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel(self) -> None:
        """End all work and wait until it has."""
        await cancel_and_wait(*self._tasks)

    async def _drive(self, queue: _WorkspaceQueue) -> None:
        try:
            while True:
                queued = queue.current
                async with self._slots:
                    try:
                        await self._work(queued)
                    except Exception:  # noqa: BLE001 — a bug, or a full disk: others must go on
                        _log.exception("build %s could not be worked", queued.head.build_id)
                        await queued.over(answered=False)
                if not queue.waiting:
                    return
                queue.current = queue.waiting.popleft()
        finally:
            del self._queues[queue.current.head.workspace_id]

    def _call_off(self, current: QueuedJob, newer: QueuedJob) -> None:
        """End a build whose workspace is to be deleted."""
        if (
            newer.head.transition is Transition.DELETE
            and current.head.build_number < newer.head.build_number
        ):
            current.called_off.set()
