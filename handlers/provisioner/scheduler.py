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
class Ticket:
    """One delivery of a job, readable or not, on its way through its workspace's lane."""

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
class _Lane:
    current: Ticket
    waiting: deque[Ticket] = field(default_factory=deque)


class Lanes:
    """Calls `work` with one ticket after another of each workspace."""

    def __init__(self, work: Callable[[Ticket], Coroutine[Any, Any, None]], at_once: int) -> None:
        self._work, self._slots = work, asyncio.Semaphore(at_once)
        self._lanes: dict[str, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, ticket: Ticket) -> None:
        """Work the ticket now, or when those before it in its workspace are done."""
        lane = self._lanes.get(ticket.head.workspace_id)
        if lane is None:
            # Taken at once: a newer job that comes now finds it begun.
            lane = self._lanes[ticket.head.workspace_id] = _Lane(ticket)
            self.spawn(self._drive(lane))
            return
        for other in lane.waiting:
            other.highest = max(other.highest, ticket.head.build_number)
            ticket.highest = max(ticket.highest, other.head.build_number)
        lane.waiting.append(ticket)
        self._call_off(lane.current, ticket)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task until it ends or `cancel` ends it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel(self) -> None:
        """End all work and wait until it has."""
        await cancel_and_wait(*self._tasks)

    async def _drive(self, lane: _Lane) -> None:
        try:
            while True:
                ticket = lane.current
                async with self._slots:
                    try:
                        await self._work(ticket)
                    except Exception:  # noqa: BLE001 — a bug, or a full disk: others must go on
                        _log.exception("build %s could not be worked", ticket.head.build_id)
                        await ticket.over(answered=False)
                if not lane.waiting:
                    return
                lane.current = lane.waiting.popleft()
        finally:
            del self._lanes[lane.current.head.workspace_id]

    def _call_off(self, current: Ticket, newer: Ticket) -> None:
        """End a build whose workspace is to be deleted."""
        if (
            newer.head.transition is Transition.DELETE
            and current.head.build_number < newer.head.build_number
        ):
            current.called_off.set()
