"""How much waits already, sampled when requests come: what limits over all chats are held against."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final

from bus import Bus, BusError
from bus.streams import pool_consumer
from statemachine.calls import Load
from statemachine.store import Store, StoreUnavailableError

log = logging.getLogger(__name__)
FRESH: Final = 1.0
"""Seconds that a sample counts: so long the limits over all chats may be exceeded."""


@dataclass(frozen=True, slots=True)
class Room:
    """How much may wait."""

    calls_per_chat: int = 1_000
    calls: int = 100_000
    jobs: int = 1_000
    """A pool's."""


@dataclass(slots=True)
class Gauge:
    """Looks beside the work, so that nobody waits for it; without requests it does not look."""

    store: Store
    bus: Bus
    room: Room
    _load: Load = field(init=False)
    _looked: float | None = None
    _looking: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._load = Load(self.room.calls_per_chat)

    def load(self, *, look: bool) -> Load:
        """Return the latest sample; with `look` a new one is taken if it is old."""
        now = asyncio.get_running_loop().time()
        if look and (self._looked is None or now - self._looked > FRESH):
            self._looked = now
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self.look())
        return self._load

    async def look(self) -> None:
        """Take a sample; while something is away the last one stays."""
        try:
            full = await self.store.chats.count_open_calls(self.room.calls) >= self.room.calls
            pools = await self.store.templates.pools()
            crowded = [pool for pool in pools if await self._waiting(pool) >= self.room.jobs]
        except (BusError, StoreUnavailableError) as bad:
            log.info("how much waits can't be seen now: %s", bad)
            return
        load = Load(self.room.calls_per_chat, full, frozenset(crowded))
        if load != self._load:
            log.warning(
                "calls %s; pools with a full queue: %s",
                "are refused, too many wait" if full else "are accepted",
                ", ".join(sorted(crowded)) or "none",
            )
        self._load = load

    async def close(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _waiting(self, pool: str) -> int:
        return await self.bus.num_pending(pool_consumer(pool))
