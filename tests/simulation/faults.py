"""What goes wrong around a worker: its bus breaks, its store is away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bus import Bus, PubAck, Unavailable
from statemachine.store import StoreUnavailableError
from tests.doubles.memory_store import MemoryStore


class Flaky:
    """The workers' bus: the connection breaks at the wanted publish, before or after it was stored."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.breaks_in: int | None = None
        self.after = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish(self, subject: str, data: bytes, **more: Any) -> PubAck:
        return await self._through(self._bus.publish(subject, data, **more))

    async def schedule(self, *args: Any, **more: Any) -> PubAck:
        return await self._through(self._bus.schedule(*args, **more))

    async def _through(self, publishing: Any) -> PubAck:
        if self.breaks_in is not None:
            self.breaks_in -= 1
            if self.breaks_in < 0:
                self.breaks_in = None
                if self.after:
                    await publishing
                else:
                    publishing.close()
                raise Unavailable("the connection broke")
        ack: PubAck = await publishing
        return ack


class Forgetful(MemoryStore):
    """A store that may be away when effects were published."""

    away = False

    async def delete_published(self, ids: Sequence[int]) -> None:
        if self.away:
            raise StoreUnavailableError("away")
        await super().delete_published(ids)
