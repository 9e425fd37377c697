"""Detects that NATS lost a stream or the end of one, by comparing it with the positions in the database.

On a single server, NATS acknowledges states, answers and alarms before it writes them to the disk. A crash of the
server may take the newest of them, and that is no loss: when workers find another server process than the one that
is recorded, they publish again what changed since a time shortly before that process was last seen.

After a reconnect nothing may be published before that comparison: a new message at the end of a shortened
stream would hide the loss. The `PublishGate` holds publishing back until `StreamWatch` has compared.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from nats.js.api import PersistMode

from bus import Backoff, Bus, Delivery, StreamInfo, Unavailable
from bus.streams import DEAD, EXEC, IN, LOG, STREAMS, Stream, Tuning
from handlers.worker.publish_gate import PublishGate
from statemachine.store import Store, StreamPosition

log = logging.getLogger(__name__)

RECORD_INTERVAL: Final = 1.0
"""Seconds at least between two records of the positions, and only while there is work. If all workers and the
end of a stream are lost together, the loss of this much may stay unnoticed."""
UNWRITTEN: Final = timedelta(minutes=3)
"""For how long at most a NATS server keeps acknowledged messages in memory: two minutes, its default of
`sync_interval`, and one for transactions that took long and for clocks that were set."""
LOOKS: Final = 8
"""How often a cluster is asked again, some 4 s in all, before a missing end of a stream counts as lost."""
_EXPENDABLE: Final = frozenset({LOG.name, DEAD.name, EXEC.name})
"""Streams that nothing can be published again of; the log may lose its end in every crash."""
_UNWRITTEN_STREAMS: Final = frozenset(
    s.name for s in STREAMS if s.persist_mode is PersistMode.ASYNC
)
"""Streams of which a single server that crashes loses the newest messages, by design."""
_IN_MEMORY: Final = frozenset(stream.name for stream in STREAMS if stream.in_memory)
"""Streams that a single server loses when it restarts, by design. A cluster should keep them."""


@dataclass(slots=True)
class StreamWatch:
    """Creates the streams and consumers, and finds out which streams lost messages."""

    store: Store
    bus: Bus
    gate: PublishGate
    tuning: Tuning
    _positions: dict[str, StreamPosition] = field(default_factory=dict)
    """How far the streams are, as this worker knows."""
    _tokens: dict[str, str] = field(default_factory=dict)
    """The names of the losses, by stream."""
    _recorded_at: float = 0.0
    _server_id: str = ""
    """The server process that was connected at the last check."""
    _checked_at: float = 0.0
    """The time of the last check, in seconds of the monotonic clock."""
    unsure: int = 0
    """The last sequence of events at the last check. Of events up to it, a server that crashed may have forgotten that it
    delivered them."""
    suspect_since: datetime | None = None
    """Since when the server may have lost messages unnoticed; None if it may not, as of the last check."""

    async def find_losses(self) -> frozenset[str]:
        """Create streams and consumers, open the gate, and return the streams that lost messages.

        A loss stays marked in the database until `accept`: the worker that finds it may die before everything
        is published again, and what it did publish would hide the loss.
        Raises BusError, StoreUnavailableError.
        """
        reconnects, self._server_id = self.gate.reconnects, self.bus.server_id
        # First of all: what is published from here on is newer than the positions that are read below.
        self._advance(self.gate.positions)
        self.gate.positions.clear()
        # Before the positions, because workers record the positions before they record a server process.
        seen = await self.store.recovery.seen_server() if self.tuning.replicas == 1 else None
        # The recorded positions are read before the streams, which grow meanwhile: that must not look like a loss.
        recorded = await self.store.recovery.stream_positions()
        before = dict(recorded)
        for name, position in self._positions.items():  # newer than what is recorded
            if name in before and before[name].created == position.created:
                before[name] = max(before[name], position, key=lambda p: p.last)
        found = await self._ensure_streams(before)
        lost = {name for name, info in found.items() if _differs(before.get(name), info)}
        shorter: set[str] = set()
        # If a stream that is on the disk lost something too, the files of all streams may be older ones.
        if seen is not None and lost <= _UNWRITTEN_STREAMS | _IN_MEMORY:
            shorter = {n for n in lost & _UNWRITTEN_STREAMS if _is_shorter(before.get(n), found[n])}
            lost -= shorter
        if new := {n for n in lost - _EXPENDABLE if n in before and before[n].loss_token is None}:
            _log_losses(new, self.tuning.replicas)
        positions = {name: StreamPosition(info.created, info.last) for name, info in found.items()}
        losses = frozenset(lost - _EXPENDABLE)
        tokens = await self._mark_lost(losses, recorded, _token(positions)) if losses else {}
        if self.gate.reconnects != reconnects:
            raise Unavailable("the connection was lost while streams were checked for losses")
        # Only now: a worker that could not mark the loss must find it again.
        self._positions, self._tokens = positions, tokens
        self._checked_at = time.monotonic()
        # In a cluster, a server that dies takes what it has not told the others; workers may not notice.
        self.unsure = found[IN.name].last if self.tuning.replicas == 1 else sys.maxsize
        suspect = seen is not None and (shorter or seen.id != self._server_id)
        self.suspect_since = seen.at - self._margin if seen is not None and suspect else None
        self.gate.opened.set()
        return losses

    async def _ensure_streams(self, before: Mapping[str, StreamPosition]) -> dict[str, StreamInfo]:
        streams = self.tuning.streams()
        found = {s.name: await self.bus.ensure_stream(s) for s in streams}
        for consumer in self.tuning.consumers():
            await self.bus.ensure_consumer(consumer)
        if self.tuning.replicas > 1:
            for stream in streams:
                info = found[stream.name]
                found[stream.name] = await self._caught_up(stream, info, before.get(stream.name))
        return found

    async def _caught_up(
        self, stream: Stream, info: StreamInfo, before: StreamPosition | None
    ) -> StreamInfo:
        """Ask again while the end seems lost: a new leader first applies what a majority holds."""
        backoff = Backoff(first=0.1, limit=1.0)
        for _ in range(LOOKS):
            if not _is_shorter(before, info):
                break
            await backoff.wait()
            info = await self.bus.ensure_stream(stream)
        return info

    async def _mark_lost(
        self, lost: AbstractSet[str], recorded: Mapping[str, StreamPosition], token: str
    ) -> dict[str, str]:
        """Mark the losses; return their tokens, which are the same for all workers that find them.

        Raises Unavailable when another worker has just published again what this one still misses.
        """
        unmarked = {
            name: recorded.get(name)
            for name in lost
            if name not in recorded or recorded[name].loss_token is None
        }
        await self.store.recovery.mark_lost(unmarked, token)
        marked = await self.store.recovery.stream_positions()
        tokens = {
            name: found
            for name in lost
            if name in marked and (found := marked[name].loss_token) is not None
        }
        if tokens.keys() != lost:
            raise Unavailable("another worker was publishing again what streams lost")
        return tokens

    @property
    def _margin(self) -> timedelta:
        """How long before a server was last seen a change may be that the server had not written to the disk.

        Its publication may be late: if a worker dies after the commit, its events are redelivered first.
        """
        return UNWRITTEN + timedelta(seconds=self.tuning.ack_wait)

    async def record_server(self) -> None:
        """Record that everything has been published to the server process of the last check.

        Raises StoreUnavailableError.
        """
        await self.store.recovery.record_server(self._server_id)

    def token(self, stream: str) -> str:
        """Return the token of a stream's loss; if it lost nothing, one that names the last check."""
        return self._tokens.get(stream) or _token(self._positions)

    def last_sequence(self, stream: str) -> int:
        """Return the last sequence of a stream, as far as this worker knows."""
        return self._positions[stream].last

    async def accept(self, *streams: str) -> None:
        """Record the positions of streams (none named: all), which ends their losses.

        Raises StoreUnavailableError.
        """
        self._advance(self.gate.positions)
        accepted = {n: p for n, p in self._positions.items() if not streams or n in streams}
        await self.store.recovery.reset_positions(accepted)

    async def follow(self, deliveries: Iterable[Delivery]) -> None:
        """Take the positions of deliveries into account; record positions now and then.

        Raises StoreUnavailableError.
        """
        for delivery in deliveries:
            self._advance({delivery.stream: delivery.sequence})
        if (now := time.monotonic()) - self._recorded_at >= RECORD_INTERVAL:
            self._recorded_at = now
            self._advance(self.gate.positions)
            # Until NATS has written what was published again after a crash, another crash may take it.
            is_written = now - self._checked_at >= UNWRITTEN.total_seconds()
            server_id = self._server_id if is_written else None
            await self.store.recovery.advance_positions(self._positions, server_id)

    def _advance(self, sequences: Mapping[str, int]) -> None:
        for stream, sequence in sequences.items():
            known = self._positions.get(stream)
            if known is not None and known.last < sequence:
                self._positions[stream] = StreamPosition(known.created, sequence)


def _token(positions: Mapping[str, StreamPosition]) -> str:
    newest = max((position.created for position in positions.values()), default="")
    return f"{newest}:{sum(position.last for position in positions.values())}"


def _log_losses(lost: AbstractSet[str], replicas: int) -> None:
    if replicas == 1 and lost <= _IN_MEMORY:
        log.info(
            "NATS has restarted and lost the presence messages, which it keeps only in memory; "
            "agents are asked to publish theirs again"
        )
    else:
        log.warning("NATS lost streams, or the end of them: %s", ", ".join(sorted(lost)))


def _differs(before: StreamPosition | None, now: StreamInfo) -> bool:
    return before is None or before.created != now.created or _is_shorter(before, now)


def _is_shorter(before: StreamPosition | None, now: StreamInfo) -> bool:
    return before is not None and before.created == now.created and now.last < before.last
