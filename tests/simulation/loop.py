"""An event loop that runs many simulated processes in one thread, in virtual time.

Each process has its own queue of callbacks, first in, first out, as with an event loop of its own.
The seed decides which process runs next. Between any two callbacks a process may be paused, or
killed: then none of its code runs any more, not even a `finally`. A context variable holds the
current process: tasks and callbacks belong to the process that created them.
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
"""Number of callbacks after which a run counts as endless."""


class Process:
    """One process of the simulation: alive, paused, or dead."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.ready: deque[Handle] = deque()
        self.paused = self.dead = False
        self.at_end: list[Callable[[], None]] = []
        """Called when the process ends, for the effects on others, such as closed connections."""
        self.sent = self.heard = 0.0
        """Until when messages are under way, by direction; later ones do not overtake them."""

    def __repr__(self) -> str:
        return self.name


PROCESS: ContextVar[Process] = ContextVar("process")


class Circles(Exception):
    """The run does not end."""


class SeededLoop(asyncio.BaseEventLoop):
    """Runs the callbacks of all processes in an order that the seed decides."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random
        self.now = EPOCH
        self.steps = 0
        self.before_step: Callable[[], None] = lambda: None
        """Called between two callbacks, once `patience` callbacks have run."""
        self.patience = MOST_STEPS
        self.picks = bytearray()
        """The sequence of chosen processes, to compare two runs."""
        self.tasks: list[tuple[Task[Any], Process]] = []
        """All tasks, so that a dead process's tasks are not garbage-collected during the run."""
        self._timed: list[tuple[float, int, TimerHandle]] = []
        self._numbers = count()
        self._runnable: list[Process] = []
        self._graveyard: list[Handle] = []
        self._over = False
        self.set_task_factory(_kept)
        self.world = Process("world", "world")
        """Owner of everything that can't be killed: servers, the network, callers."""
        self._world_context = copy_context()
        self._world_context.run(PROCESS.set, self.world)

    # -- processes ------------------------------------------------------------------------------

    def spawn(self, process: Process, main: Coroutine[Any, Any, Any]) -> Task[Any]:
        """Run `main` as a task of that process."""
        context = self._world_context.copy()
        context.run(PROCESS.set, process)
        return self.create_task(main, context=context)

    def outside(self, callback: Callable[..., Any], *args: Any) -> Any:
        """Call the function now, on behalf of the world instead of the running process."""
        return self._world_context.copy().run(callback, *args)

    def later(self, delay: float, callback: Callable[..., Any], *args: Any) -> TimerHandle:
        """Call the function after a delay, on behalf of the world."""
        return self.call_at(
            self.now + max(0.0, delay), callback, *args, context=self._world_context
        )

    def kill(self, process: Process) -> None:
        """Kill the process at once; others notice only that its connections close."""
        process.dead = True
        self._rest(process)
        self._graveyard.extend(process.ready)
        process.ready.clear()
        for notice in process.at_end:
            self.outside(notice)

    def pause(self, process: Process) -> None:
        """Pause the process; its callbacks wait."""
        process.paused = True
        self._rest(process)

    def wake(self, process: Process) -> None:
        """Resume the process if it is paused."""
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
        """Do nothing: the loop skips a cancelled timer when its time comes."""

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
        """After the run, end all tasks, including those of dead processes, so that none remains."""
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
    """Return the process whose code is running."""
    return PROCESS.get(None)


def resolve(future: Future[Any], value: Any = None) -> None:
    """Set the result of a future that is not done."""
    if not future.done():
        future.set_result(value)
