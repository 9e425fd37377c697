"""The parts that the processes of all roles share: tasks, listeners, health checks, a clock."""

from __future__ import annotations

import time


def clock() -> float:
    """Return seconds of a monotonic clock that also runs while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
