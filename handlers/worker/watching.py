"""How a worker notices that NATS lost a stream, or its tail: it compares with what the database holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from bus import Bus, Delivery, StreamInfo, Unavailable
from bus.streams import DEAD, LOG, Stream, Tuning
from handlers.sending.backoff import Backoff
from handlers.worker.relay import Relay
from statemachine.store import Seen, Store

log = logging.getLogger(__name__)

NOTED_EVERY: Final = 1.0
"""Seconds at least between two notes, and only while there is work: how much of a tail may go unmissed
when all workers died with it."""
LOOKS: Final = 8
"""How often a cluster is asked again, some 4 s in all, until the end of a stream counts as lost."""
_EXPENDABLE: Final = frozenset({LOG.name, DEAD.name})
"""Nothing of these can be published again; the log may lose its tail with every crash."""
_UNKNOWN: Final = Seen("", 0)


@dataclass(slots=True)
class Watch:
    """Makes the streams, and tells which of them lost something."""

    store: Store
    bus: Bus
    relay: Relay
    tuning: Tuning
    _there: dict[str, Seen] = field(default_factory=dict)
    _noted: float = 0.0

    async def look(self) -> frozenset[str]:
        """Make streams and consumers; return the names of those that lost something.

        They stay in doubt for all workers until one accepts them: who finds the loss may die before
        all is published again, and what it had published would hide the loss.
        Raises BusError, StoreUnavailableError.
        """
        certainty = self.relay.certainty
        reconnects = certainty.lost
        # First of all: what is published while we look is newer than what we find.
        self._follow(self.relay.places)
        self.relay.places.clear()
        # What was seen is read next: streams grow meanwhile, and that must not look like a loss.
        before = await self.store.streams_seen()
        for name, seen in self._there.items():  # newer than what was noted
            if name in before and before[name].created == seen.created:
                before[name] = max(before[name], seen, key=lambda s: s.last)
        streams = self.tuning.streams()
        found = {s.name: await self.bus.ensure_stream(s) for s in streams}
        for consumer in self.tuning.consumers():
            await self.bus.ensure_consumer(consumer)
        if self.tuning.replicas > 1:
            for stream in streams:
                found[stream.name] = await self._applied(stream, found[stream.name], before)
        lost = {name for name, info in found.items() if _differs(before.get(name), info)}
        if fresh := {n for n in lost - _EXPENDABLE if before.get(n, _UNKNOWN) != _UNKNOWN}:
            log.warning("NATS lost streams, or the end of them: %s", ", ".join(sorted(fresh)))
        doubted = frozenset(lost - _EXPENDABLE)
        await self.store.see_streams(dict.fromkeys(doubted, _UNKNOWN), anew=True)
        if certainty.lost != reconnects:
            raise Unavailable("the connection was lost while it was looked what streams lost")
        # Only now: who could not note it must find it again.
        self._there = {name: Seen(info.created, info.last) for name, info in found.items()}
        certainty.there.set()
        return doubted

    async def _applied(
        self, stream: Stream, info: StreamInfo, before: Mapping[str, Seen]
    ) -> StreamInfo:
        """Ask again where the end seems lost: a new leader first applies what a majority holds."""
        backoff, seen = Backoff(first=0.1, most=1.0), before.get(stream.name)
        for _ in range(LOOKS):
            if not _is_shorter(seen, info):
                break
            await backoff.wait()
            info = await self.bus.ensure_stream(stream)
        return info

    def token(self) -> str:
        """Return what names this look: equal for all workers who find the same streams made anew."""
        there = self._there.values()
        newest = max((seen.created for seen in there), default="")
        return f"{newest}:{sum(seen.last for seen in there)}"

    def reached(self, stream: str) -> int:
        """Return how far a stream was when it was looked at."""
        return self._there[stream].last

    async def accept(self, *streams: str) -> None:
        """Note streams (all) as they are, with what was published since the look.

        Raises StoreUnavailableError.
        """
        self._follow(self.relay.places)
        there = {name: s for name, s in self._there.items() if not streams or name in streams}
        await self.store.see_streams(there, anew=True)

    async def note(self, newest: Delivery) -> None:
        """Note now and then how far streams are. Raises StoreUnavailableError."""
        self._follow({newest.stream: newest.sequence})
        if (now := time.monotonic()) - self._noted >= NOTED_EVERY:
            self._noted = now
            self._follow(self.relay.places)
            await self.store.see_streams(self._there)

    def _follow(self, places: Mapping[str, int]) -> None:
        for stream, place in places.items():
            seen = self._there.get(stream)
            if seen is not None and seen.last < place:
                self._there[stream] = Seen(seen.created, place)


def _differs(before: Seen | None, now: StreamInfo) -> bool:
    return before is None or before.created != now.created or _is_shorter(before, now)


def _is_shorter(before: Seen | None, now: StreamInfo) -> bool:
    return before is not None and before.created == now.created and now.last < before.last
