"""How the bus's clock differs from the database's, by which all limits are counted.

The server fires timers by its own clock. Workers learn the difference when they start or reconnect, and
when a timer fires early or very late; the relay adds it to the time that a timer is armed for.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple

from bus import Bus
from bus.streams import TIMER
from statemachine.store import Store

LATE: Final = timedelta(seconds=5)
"""A timer that fires so late may have been armed for a clock that was set since then."""
CHANGED: Final = timedelta(seconds=1)
"""A smaller change of the difference is not worth arming all timers again."""
LOOKED_EVERY: Final = 60.0
"""Seconds at least between two looks for the lateness of timers: a backlog makes them late, too."""
SAME: Final = timedelta(0)


class Clocks(NamedTuple):
    """Both clocks at one moment."""

    now: datetime
    """By the database."""
    ahead: timedelta
    """What the bus's clock shows more than the database's; negative when it shows less."""


async def read_clocks(store: Store, bus: Bus) -> Clocks:
    """Read both clocks. Raises BusError, StoreUnavailableError.

    The database's is read between two looks at the bus's. If the clocks can be equal by that, they count
    as equal; else the difference is rounded up, so that no timer fires too early for it.
    """
    before = await bus.server_time(TIMER.name)
    async with store.transaction() as tx:
        await tx.lock(set())
        now = tx.now
    after = await bus.server_time(TIMER.name)
    return Clocks(now, SAME if before <= now <= after else after - now)
