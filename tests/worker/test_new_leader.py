"""A new leader in a cluster shows too short a stream until it has applied all messages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus import StreamInfo
from bus.streams import STATE, Stream, Tuning
from handlers.worker.recovery.stream_watch import LOOKS, StreamWatch
from tests.doubles.memory_bus import MemoryBus
from tests.worker.messages import Senders
from tests.worker.rig import Rig


class LaggingBus(MemoryBus):
    """A bus that omits the last message of the STATE stream from the first `looks` replies."""

    looks = 0

    async def ensure_stream(self, stream: Stream) -> StreamInfo:
        info = await super().ensure_stream(stream)
        if stream.name != STATE.name or not self.looks:
            return info
        self.looks -= 1
        return replace(info, last=info.last - 1)


async def find_losses_of_lagging_leader(
    rig: Rig, send: Senders, chat: str, lagging: int
) -> frozenset[str]:
    """Store a state, then look for losses as a worker does after a reconnect; return them."""
    bus = LaggingBus(rig.server)
    hand = rig.hand(bus)
    watch = StreamWatch(rig.store, bus, hand.worker.gate, Tuning(replicas=3))
    await watch.find_losses()
    await watch.accept()
    await send.create(chat)
    await hand.pump()
    bus.looks = lagging
    return await watch.find_losses()


async def test_a_new_leader_that_catches_up_has_lost_nothing(
    rig: Rig, send: Senders, chat: str
) -> None:
    assert await find_losses_of_lagging_leader(rig, send, chat, lagging=1) == frozenset()


async def test_a_new_leader_that_never_catches_up_has_lost_the_end(
    rig: Rig, send: Senders, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.worker.recovery.stream_watch.LOOKS", 2)

    assert LOOKS > 2
    assert await find_losses_of_lagging_leader(rig, send, chat, lagging=3) == {STATE.name}
