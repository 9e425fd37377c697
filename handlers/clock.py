"""Time: a clock that suspension does not stop, and durations as people write them."""

from __future__ import annotations

import re
import time
from typing import Final

_UNITS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_PARTS: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
MAX_DURATION: Final = 100 * 365 * 24 * _UNITS["h"]
"""Milliseconds; times that lie further ahead may be beyond the calendar of Python and PostgreSQL."""


def clock() -> float:
    """Return seconds of a monotonic clock that also runs while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def milliseconds(text: str) -> int:
    """Read a duration like `45s`, `2h` or `1h30m`. Raises ValueError."""
    if not text or _PARTS.sub("", text):
        raise ValueError(f"{text!r} is not a duration: write it like 45s, 2h or 1h30m")
    total = sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(text))
    if total > MAX_DURATION:
        raise ValueError(f"{text!r} is longer than {MAX_DURATION // _UNITS['h']}h")
    return int(total)
