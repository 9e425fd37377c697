"""How a worker notices that NATS lost a stream, or its tail: it compares with what the database holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from bus import Bus, Delivery, StreamInfo, Unavailable
from bus.backoff import Backoff
from bus.streams import DEAD, LOG, STREAMS, Stream, Tuning
from handlers.worker.relay import Relay
from statemachine.store import Store, StreamPosition

log = logging.getLogger(__name__)

NOTED_EVERY: Final = 1.0
"""Seconds at least between two notes, and only while there is work: how much of a tail may go unmissed
when all workers died with it."""
LOOKS: Final = 8
"""How often a cluster is asked again, some 4 s in all, until the end of a stream counts as lost."""
_EXPENDABLE: Final = frozenset({LOG.name, DEAD.name})
"""Nothing of these can be published again; the log may lose its tail with every crash."""
_IN_MEMORY: Final = frozenset(stream.name for stream in STREAMS if stream.in_memory)
"""What ends with its server, by design; with several of them it should not."""


@dataclass(slots=True)
class Watch:
    """Makes the streams, and tells which of them lost something."""

    store: Store
    bus: Bus
    relay: Relay
    tuning: Tuning
    _there: dict[str, StreamPosition] = field(default_factory=dict)
    _tokens: dict[str, str] = field(default_factory=dict)
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
        noted = await self.store.recovery.stream_positions()
        before = dict(noted)
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
        if fresh := {n for n in lost - _EXPENDABLE if n in before and before[n].loss_token is None}:
            _tell(fresh, self.tuning.replicas)
        there = {name: StreamPosition(info.created, info.last) for name, info in found.items()}
        doubted = frozenset(lost - _EXPENDABLE)
        tokens = await self._doubt(doubted, noted, _token(there)) if doubted else {}
        if certainty.lost != reconnects:
            raise Unavailable("the connection was lost while it was looked what streams lost")
        # Only now: who could not note it must find it again.
        self._there, self._tokens = there, tokens
        certainty.there.set()
        return doubted

    async def _applied(
        self, stream: Stream, info: StreamInfo, before: Mapping[str, StreamPosition]
    ) -> StreamInfo:
        """Ask again where the end seems lost: a new leader first applies what a majority holds."""
        backoff, seen = Backoff(first=0.1, limit=1.0), before.get(stream.name)
        for _ in range(LOOKS):
            if not _is_shorter(seen, info):
                break
            await backoff.wait()
            info = await self.bus.ensure_stream(stream)
        return info

    async def _doubt(
        self, lost: AbstractSet[str], noted: Mapping[str, StreamPosition], token: str
    ) -> dict[str, str]:
        """Mark what is lost, and return what names each loss: equal for all workers who find it.

        Raises Unavailable when another worker has just published again what we still miss.
        """
        await self.store.recovery.mark_lost(
            {n: noted.get(n) for n in lost if n not in noted or noted[n].loss_token is None}, token
        )
        stands = await self.store.recovery.stream_positions()
        tokens = {name: stands[name].loss_token for name in lost if name in stands}
        named = {name: token for name, token in tokens.items() if token is not None}
        if named.keys() != lost:
            raise Unavailable("another worker was publishing again what streams lost")
        return named

    def token(self, stream: str) -> str:
        """Return what names the loss of a stream, or this look if it lost nothing."""
        return self._tokens.get(stream) or _token(self._there)

    def reached(self, stream: str) -> int:
        """Return how far a stream was when it was looked at."""
        return self._there[stream].last

    async def accept(self, *streams: str) -> None:
        """Note streams (all) as they are, with what was published since the look.

        Raises StoreUnavailableError.
        """
        self._follow(self.relay.places)
        there = {name: s for name, s in self._there.items() if not streams or name in streams}
        await self.store.recovery.record_positions(there, reset=True)

    async def note(self, newest: Delivery) -> None:
        """Note now and then how far streams are. Raises StoreUnavailableError."""
        self._follow({newest.stream: newest.sequence})
        if (now := time.monotonic()) - self._noted >= NOTED_EVERY:
            self._noted = now
            self._follow(self.relay.places)
            await self.store.recovery.record_positions(self._there)

    def _follow(self, places: Mapping[str, int]) -> None:
        for stream, place in places.items():
            seen = self._there.get(stream)
            if seen is not None and seen.last < place:
                self._there[stream] = StreamPosition(seen.created, place)


def _token(there: Mapping[str, StreamPosition]) -> str:
    newest = max((seen.created for seen in there.values()), default="")
    return f"{newest}:{sum(seen.last for seen in there.values())}"


def _tell(lost: AbstractSet[str], replicas: int) -> None:
    if replicas == 1 and lost <= _IN_MEMORY:
        log.info("signs of life went with NATS's restart; agents are asked")
    else:
        log.warning("NATS lost streams, or the end of them: %s", ", ".join(sorted(lost)))


def _differs(before: StreamPosition | None, now: StreamInfo) -> bool:
    return before is None or before.created != now.created or _is_shorter(before, now)


def _is_shorter(before: StreamPosition | None, now: StreamInfo) -> bool:
    return before is not None and before.created == now.created and now.last < before.last
