"""Time as it passes for others, also while this process is paused."""

from __future__ import annotations

import time


def clock() -> float:
    """Return the seconds since some moment, those included in which nothing ran here."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
