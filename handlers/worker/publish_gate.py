"""Holds publishing back between a reconnect and the next check whether NATS lost messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from bus import Bus, BusError, Outbound, PubAck, Unavailable

WORTH_A_BATCH: Final = 32
"""How many messages are published together rather than side by side.

On one server with `sync_interval: always`, that is twice as fast with 32 messages, and five times with 256.
"""


class PublishGate:
    """Publishes to streams, except between a reconnect and the next check for losses.

    It also records the last sequence that each stream acknowledged.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.opened = asyncio.Event()
        """Set while publishing is allowed."""
        self.opened.set()
        self.reconnects = 0
        self.positions: dict[str, int] = {}
        """The last acknowledged sequence, by stream."""

    def close(self) -> None:
        """Hold publishing back: the connection was made again."""
        self.reconnects += 1
        self.opened.clear()

    async def publish_many(
        self, messages: Sequence[Outbound], *, together: bool = False
    ) -> Sequence[PubAck | BusError]:
        """Publish as `Bus.publish_many` does, or `Bus.publish_together` if that is faster.

        `together`: the stream of the messages permits that. Raises Unavailable while the gate is closed.
        """
        if not self.opened.is_set():
            raise Unavailable("the connection was lost meanwhile")
        if together and len(messages) >= WORTH_A_BATCH:
            results = await self._bus.publish_together(messages)
        else:
            results = await self._bus.publish_many(messages)
        for ack in results:
            if isinstance(ack, PubAck) and self.positions.get(ack.stream, 0) < ack.sequence:
                self.positions[ack.stream] = ack.sequence
        return results
