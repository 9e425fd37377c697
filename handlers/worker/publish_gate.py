"""Holds publishing back between a reconnect and the next check whether NATS lost messages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime

from bus import BatchMessage, Bus, PubAck, Unavailable


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

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str],
        message_id: str,
        expected_last: int | None = None,
    ) -> PubAck:
        """Publish as `Bus.publish` does. Raises BusError; Unavailable while the gate is closed."""
        self._check()
        ack = await self._bus.publish(
            subject, data, headers=headers, message_id=message_id, expected_last=expected_last
        )
        self._record(ack)
        return ack

    async def publish_batch(self, messages: Sequence[BatchMessage]) -> Sequence[PubAck] | None:
        """Publish as `Bus.publish_batch` does. Raises BusError; Unavailable while the gate is closed."""
        self._check()
        acks = await self._bus.publish_batch(messages)
        if acks is not None:
            self._record(acks[-1])
        return acks

    async def schedule(self, subject: str, target: str, at: datetime, data: bytes) -> None:
        """Schedule as `Bus.schedule` does. Raises BusError; Unavailable while the gate is closed."""
        self._check()
        self._record(await self._bus.schedule(subject, target, at, data))

    def _check(self) -> None:
        if not self.opened.is_set():
            raise Unavailable("the connection was lost meanwhile")

    def _record(self, ack: PubAck) -> None:
        self.positions[ack.stream] = max(self.positions.get(ack.stream, 0), ack.sequence)
