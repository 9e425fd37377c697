"""Limits of calls that do not depend on their chat: the load of all chats, and the operators' settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from bus import Bus, BusError
from bus.streams import pool_consumer
from handlers.shared_settings import BUMP, RETENTION, TTL, allowlist, duration
from statemachine.calls import Load, Policy
from statemachine.store import Store, StoreUnavailableError

log = logging.getLogger(__name__)
SAMPLE_SECONDS: Final = 1.0
"""The shortest time that a sample counts. For that long the limits over all chats may be exceeded."""
SAMPLE_SHARE: Final = 0.05
"""The largest share of the time in which samples are taken: to count a million waiting calls takes 0.6 s."""
LONGEST_SECONDS: Final = 10.0
"""The longest time that a sample counts, for example one that waited for an unreachable server."""


@dataclass(frozen=True, slots=True)
class WaitingLimits:
    """How many calls and jobs may wait."""

    calls_per_chat: int = 1_000
    calls: int = 100_000
    jobs: int = 1_000
    """Of one pool."""


@dataclass(slots=True)
class LoadSampler:
    """Samples the load in the background while requests come in, so that no request waits for a sample."""

    store: Store
    bus: Bus
    limits: WaitingLimits
    _load: Load = field(init=False)
    _due_at: float = 0.0
    """The time of the event loop from which a new sample is needed."""
    _sampling: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._load = Load(self.limits.calls_per_chat)

    def load(self, *, sample: bool) -> Load:
        """Return the latest sample; with `sample`, start a new one if the latest is old."""
        running = self._sampling is not None and not self._sampling.done()
        if sample and not running and asyncio.get_running_loop().time() >= self._due_at:
            self._sampling = asyncio.create_task(self._sample_in_background())
        return self._load

    async def _sample_in_background(self) -> None:
        """Take a sample, and set when the next one is due."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self.sample()
        took = loop.time() - began
        self._due_at = began + min(max(SAMPLE_SECONDS, took / SAMPLE_SHARE), LONGEST_SECONDS)

    async def sample(self) -> None:
        """Take a sample; keep the last one while NATS or the database is away."""
        try:
            full = await self.store.chats.count_open_calls(self.limits.calls) >= self.limits.calls
            pools = await self.store.templates.pools()
            crowded = [p for p in pools if await self._untaken_jobs(p) >= self.limits.jobs]
        except (BusError, StoreUnavailableError) as error:
            log.info("the load can't be sampled now: %s", error)
            return
        load = Load(self.limits.calls_per_chat, full, frozenset(crowded))
        if load != self._load:
            log.warning(
                "calls are %s; pools with a full queue: %s",
                "refused, because too many wait" if full else "accepted",
                ", ".join(sorted(crowded)) or "none",
            )
        self._load = load

    async def close(self) -> None:
        """Stop sampling."""
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.gather(self._sampling, return_exceptions=True)

    async def _untaken_jobs(self, pool: str) -> int:
        return (await self.bus.consumer_state(pool_consumer(pool))).undelivered


def policy(settings: Mapping[str, str]) -> Policy:
    """Return what the operators' settings mean for calls; log and ignore a value that can't be read."""
    return Policy(
        ttl_ms=_duration(settings, TTL),
        bump_ms=_duration(settings, BUMP) or 0,
        retention_ms=_duration(settings, RETENTION),
        allowlist=allowlist(settings),
    )


def retention(settings: Mapping[str, str]) -> timedelta | None:
    """Return how long workspaces may rest; None: for ever."""
    found = _duration(settings, RETENTION)
    return None if found is None else timedelta(milliseconds=found)


def _duration(settings: Mapping[str, str], key: str) -> int | None:
    try:
        return duration(settings, key)
    except ValueError as error:
        log.warning("setting %s is ignored: %s", key, error)
        return duration({}, key)
