"""An event loop of one thread for many processes: seeded, in virtual time, with no selector.

Each process has a queue of its own, first in first out, as its own loop would have; whose turn it is
falls to the seed. Between any two callbacks a process may be killed (nothing of it runs any more, not
even a `finally`) or paused. A process is a context: what is started in it belongs to it.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import Future, Handle, Task, TimerHandle
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from itertools import count
from random import Random
from typing import Any, Final

EPOCH: Final = 1_900_000_000.0
_ROUNDS: Final = 20
MOST_STEPS: Final = 400_000
"""Callbacks after which a run is taken to go round in circles."""


class Process:
    """One process of the simulation: alive, paused, or gone."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.ready: deque[Handle] = deque()
        self.paused = self.dead = False
        self.at_end: list[Callable[[], None]] = []
        """What the rest of the world notices of its end: closed connections."""
        self.sent = self.heard = 0.0
        """Until when its connection is busy each way: what comes later does not overtake."""

    def __repr__(self) -> str:
        return self.name


PROCESS: ContextVar[Process] = ContextVar("process")


class Circles(Exception):
    """A run does not come to an end."""


class SeededLoop(asyncio.BaseEventLoop):
    """Runs callbacks of processes, in an order that the seed decides."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random
        self.now = EPOCH
        self.steps = 0
        self.before_step: Callable[[], None] = lambda: None
        """Called between two callbacks when `patience` of them have run."""
        self.patience = MOST_STEPS
        self.picks = bytearray()
        """Whose turn it was, for comparing two runs."""
        self.tasks: list[tuple[Task[Any], Process]] = []
        """All of them, so that none of a dead process is tidied away while the run lasts."""
        self._timed: list[tuple[float, int, TimerHandle]] = []
        self._numbers = count()
        self._runnable: list[Process] = []
        self._graveyard: list[Handle] = []
        self._over = False
        self.set_task_factory(_kept)
        self.world = Process("world", "world")
        """What is no process that may die: servers, the network, callers."""
        self._world_context = copy_context()
        self._world_context.run(PROCESS.set, self.world)

    # -- processes ------------------------------------------------------------------------------

    def spawn(self, process: Process, main: Coroutine[Any, Any, Any]) -> Task[Any]:
        """Run `main` as that process."""
        context = self._world_context.copy()
        context.run(PROCESS.set, process)
        return self.create_task(main, context=context)

    def outside(self, callback: Callable[..., Any], *args: Any) -> Any:
        """Call now, as the world and not as whoever runs."""
        return self._world_context.copy().run(callback, *args)

    def later(self, delay: float, callback: Callable[..., Any], *args: Any) -> TimerHandle:
        """Call in a while, as the world."""
        return self.call_at(
            self.now + max(0.0, delay), callback, *args, context=self._world_context
        )

    def kill(self, process: Process) -> None:
        """End the process here and now; of what it held others learn by its closed connections."""
        process.dead = True
        self._rest(process)
        self._graveyard.extend(process.ready)
        process.ready.clear()
        for notice in process.at_end:
            self.outside(notice)

    def pause(self, process: Process) -> None:
        """Let the process stand still; what comes for it waits."""
        process.paused = True
        self._rest(process)

    def wake(self, process: Process) -> None:
        """Let it go on, if it stands still."""
        if process.paused and process.ready:
            self._runnable.append(process)
        process.paused = False

    def _rest(self, process: Process) -> None:
        if process in self._runnable:
            self._runnable.remove(process)

    # -- asyncio's side -------------------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        handle = Handle(callback, args, self, context or copy_context())
        self._put(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> TimerHandle:
        handle = TimerHandle(when, callback, args, self, context or copy_context())
        heapq.heappush(self._timed, (when, next(self._numbers), handle))
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        """Cancelled ones are skipped when they come up."""

    def _put(self, handle: Handle) -> None:
        process = handle._context.get(PROCESS, self.world)  # type: ignore[attr-defined]
        if process.dead and not self._over:
            self._graveyard.append(handle)
            return
        if not process.ready and not process.paused:
            self._runnable.append(process)
        process.ready.append(handle)

    def _run_once(self) -> None:
        runnable, timed, random = self._runnable, self._timed, self.random.random
        while not self._stopping:  # type: ignore[attr-defined]
            while timed and timed[0][0] <= self.now:
                handle: Handle = heapq.heappop(timed)[2]
                if not handle._cancelled:  # type: ignore[attr-defined]
                    self._put(handle)
            if not runnable:
                if not timed:
                    raise Circles("nothing will ever happen again")
                self.now = max(self.now, timed[0][0])
                continue
            at = int(random() * len(runnable))
            process = runnable[at]
            handle = process.ready.popleft()
            if not process.ready:
                runnable[at] = runnable[-1]
                runnable.pop()
            if handle._cancelled:  # type: ignore[attr-defined]
                continue
            self.steps += 1
            self.picks.append(at)
            handle._run()  # type: ignore[attr-defined]
            self.patience -= 1
            if self.patience <= 0:
                self.before_step()
            if self.steps > MOST_STEPS:
                raise Circles(f"{MOST_STEPS} callbacks and no end")

    # -- the end --------------------------------------------------------------------------------

    def bury(self) -> None:
        """After the run: let all tasks end, also of the dead, so that nothing of it is left."""
        self.steps, self.patience = 0, 10 * MOST_STEPS
        self._over = True
        for task, process in self.tasks:
            task.cancel()
            self.wake(process)
        for handle in self._graveyard:
            self._put(handle)

        async def over() -> None:
            for _ in range(_ROUNDS):
                pending = self._pending() - {asyncio.current_task()}
                for task in pending:
                    task.cancel()
                if pending:
                    await asyncio.wait(pending, timeout=1)

        try:
            with suppress(Circles):
                self.run_until_complete(over())
        finally:
            for task, _ in self.tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                if task.done() and not task.cancelled():
                    task.exception()
            self.close()

    def _pending(self) -> set[Task[Any] | None]:
        return {task for task, _ in self.tasks if not task.done()}


def _kept(loop: Any, coroutine: Any, context: Context | None = None) -> Task[Any]:
    task: Task[Any] = Task(coroutine, loop=loop, context=context)
    process = PROCESS.get(loop.world) if context is None else context.get(PROCESS, loop.world)
    loop.tasks.append((task, process))
    return task


def process_here() -> Process | None:
    """Return the process whose code runs."""
    return PROCESS.get(None)


def resolve(future: Future[Any], value: Any = None) -> None:
    """Settle a future unless somebody has."""
    if not future.done():
        future.set_result(value)
