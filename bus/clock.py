"""Time for the bus in this process: the loop's own, or one that a test moves on by hand."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count
from typing import Protocol


class Timer(Protocol):
    """Something that will happen, unless cancelled."""

    def cancel(self) -> None:
        """Let it not happen."""
        ...


class Clock(Protocol):
    """Tells the time, and calls when it has come."""

    def now(self) -> float:
        """Return the seconds since 1970."""
        ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call after so many seconds."""
        ...


class LoopClock:
    """Real time, on the running loop."""

    def now(self) -> float:
        """Return the seconds since 1970."""
        return time.time()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call after so many seconds."""
        return asyncio.get_running_loop().call_later(delay, callback)


class VirtualClock:
    """Time that stands still until it is advanced; what falls due is called in order, at once."""

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self._now = now
        self._order = count()
        self._due: list[tuple[float, int, _VirtualTimer]] = []

    def now(self) -> float:
        """Return the seconds since 1970."""
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call when time has been advanced by so many seconds."""
        timer = _VirtualTimer(callback)
        heapq.heappush(self._due, (self._now + max(0.0, delay), next(self._order), timer))
        return timer

    @property
    def next_due(self) -> float | None:
        """When something happens next, if ever."""
        while self._due and self._due[0][2].callback is None:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def advance(self, seconds: float) -> None:
        """Let so much time pass."""
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
