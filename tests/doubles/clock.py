"""Clocks for the in-memory bus: the event loop's, or one that a test advances."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count
from typing import Protocol

from bus.subscription import Timer


class Clock(Protocol):
    """Tells the time, and calls functions later."""

    def now(self) -> float:
        """Return the seconds since 1970."""
        ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` after `delay` seconds."""
        ...


class LoopClock:
    """Real time, on the running event loop."""

    def now(self) -> float:
        return time.time()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback)


class VirtualClock:
    """Time that stands still until a test advances it; timers that fall due are called in order."""

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self._now = now
        self._order = count()
        self._due: list[tuple[float, int, _VirtualTimer]] = []

    def now(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = _VirtualTimer(callback)
        heapq.heappush(self._due, (self._now + max(0.0, delay), next(self._order), timer))
        return timer

    @property
    def next_due(self) -> float | None:
        """The time of the next timer, or None."""
        while self._due and self._due[0][2].callback is None:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def advance(self, seconds: float) -> None:
        """Move time forward, and call the timers that fall due on the way."""
        until = self._now + seconds
        while (due := self.next_due) is not None and due <= until:
            self._now = due
            timer = heapq.heappop(self._due)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
        self._now = until


class _VirtualTimer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None
