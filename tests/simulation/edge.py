"""Replaces the real world's inputs to a run: the seed determines time, chance and names.

A process of simulations installs this once and never removes it, because it runs nothing else.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from tests.simulation.loop import EPOCH, SeededLoop

_PRODUCT: Final = ("bus", "handlers", "statemachine", "tests.worker", "workspaced")


class _Current:
    """The run whose clock and random numbers are in use."""

    loop: SeededLoop | None = None
    chance = random.Random(0)


class _AnyDatetime(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, dt.datetime)


class VirtualDatetime(dt.datetime, metaclass=_AnyDatetime):
    """A `datetime` whose `now` returns the time of the run."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
        return dt.datetime.fromtimestamp(now(), tz)


def now() -> float:
    """Return the run's time in seconds since 1970."""
    return _Current.loop.now if _Current.loop else EPOCH


def _bytes(size: int) -> bytes:
    return _Current.chance.randbytes(size)


def use(loop: SeededLoop, seed: int) -> None:
    """Use the clock and the random numbers of this run."""
    _Current.loop = loop
    _Current.chance = random.Random(f"names {seed}")
    random.seed(f"back-off {seed}")


def leave() -> None:
    """Stop using the run's clock; time stands still until the next run."""
    _Current.loop = None


def install() -> None:
    """Replace the real clock and random numbers by virtual ones, permanently."""
    os.urandom = _bytes
    time.time = now
    time.monotonic = now
    time.time_ns = lambda: int(now() * 1e9)
    time.clock_gettime = lambda _clock: now()
    for name, module in list(sys.modules.items()):
        if name.startswith(_PRODUCT) and getattr(module, "datetime", None) is dt.datetime:
            module.datetime = VirtualDatetime  # type: ignore[attr-defined]


def replaced(target: Any, name: str, by: Any) -> Callable[[], None]:
    """Set an attribute; return a function that restores its previous value."""
    before = getattr(target, name)
    setattr(target, name, by)
    return lambda: setattr(target, name, before)
