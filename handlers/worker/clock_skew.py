"""The difference between the clocks of NATS and the database.

The database's clock decides when a limit has passed, but NATS rings alarms by its own. Workers measure the
difference when they start or reconnect, and when an alarm rings early or a timer takes effect very late. The relay
adds it to the time of each alarm.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from bus import Bus
from bus.streams import TIMER
from handlers.runtime import clock
from statemachine.store import Store

log = logging.getLogger(__name__)

LATE: Final = timedelta(seconds=5)
"""The alarm of a timer that takes effect so late may have been set before a clock was set."""
TOLERANCE: Final = timedelta(seconds=1)
"""For a smaller change of the difference, alarms are not set again."""
TRIES: Final = 5
"""How often clocks are read again because it took longer than `TOLERANCE`."""
MEASURE_INTERVAL: Final = 60.0
"""Seconds at least between two measurements for late timers: a backlog makes timers late, too."""


class Clocks(NamedTuple):
    """Both clocks at one moment."""

    now: datetime
    """The database's time."""
    ahead: timedelta
    """How far NATS's clock is ahead of the database's; negative if it is behind."""


@dataclass(slots=True)
class ClockSkew:
    """How far NATS's clock is ahead of the database's."""

    store: Store
    bus: Bus
    ahead: timedelta = field(default=timedelta(0))
    _checked_at: float = -math.inf

    async def measure(self) -> datetime:
        """Measure the difference; return the database's time. Raises BusError, StoreUnavailableError."""
        now, self.ahead = await read_clocks(self.store, self.bus)
        return now

    def needs_check(self, *, early: bool, late: bool) -> bool:
        """Say whether to measure again, because an alarm rang early, or late and the last check was long ago."""
        return early or (late and clock() - self._checked_at > MEASURE_INTERVAL)

    async def check(self) -> bool:
        """Measure again; return whether the difference changed, which means that somebody set a clock.

        Raises BusError, StoreUnavailableError.
        """
        before = self.ahead
        await self.measure()
        self._checked_at = clock()
        if abs(self.ahead - before) <= TOLERANCE:
            return False
        log.warning(
            "NATS's clock is %+.1f s ahead of the database's, which decides when limits have passed",
            self.ahead.total_seconds(),
        )
        return True


async def read_clocks(store: Store, bus: Bus) -> Clocks:
    """Read both clocks. Raises BusError, StoreUnavailableError.

    NATS's clock is read before and after the database's. If the database's time lies between them, the clocks
    count as equal. Otherwise the difference is rounded up, so that it makes no timer fire too early.
    """
    before = await bus.server_time(TIMER.name)
    for _ in range(TRIES):
        now = await store.now()
        after = await bus.server_time(TIMER.name)
        if after - before <= TOLERANCE:
            break
        before = after  # the worker was paused, or the servers were slow: the difference would be too large
    return Clocks(now, timedelta(0) if before <= now <= after else after - now)
