"""What all buses of this process share: streams, subscriptions, and whether it is up at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import count
from typing import Protocol

from bus import Message, Unavailable
from bus.streams import Consumer
from bus.subjects import matches
from tests.doubles.clock import Clock, LoopClock
from tests.doubles.memory_stream import MemoryStream


class Interest:
    """A subscription, or one member of a queue group."""

    __slots__ = ("queue", "subject", "take")

    def __init__(self, subject: str, queue: str, take: Callable[[Message], None]) -> None:
        self.subject = subject
        self.queue = queue
        self.take = take


class Attached(Protocol):
    """What the server tells each bus."""

    def lost(self) -> None:
        """Hear that the server has gone."""
        ...

    def back(self) -> None:
        """Hear that it is there again."""
        ...

    def look_again(self) -> None:
        """Hear that a consumer has gone."""
        ...


class MemoryServer:
    """What any number of buses in this process share."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or LoopClock()
        self.streams: dict[str, MemoryStream] = {}
        self.up = True
        self.run = 1
        """Counts the server's starts."""
        self.numbers = count(1)
        self.interests: list[Interest] = []
        self._buses: list[Attached] = []

    def attach(self, bus: Attached) -> None:
        """Add one more bus. Raises Unavailable while stopped."""
        if not self.up:
            raise Unavailable("the server is stopped")
        self._buses.append(bus)

    def detach(self, bus: Attached) -> None:
        """Forget a bus that was closed."""
        self._buses.remove(bus)

    async def turn(self) -> None:
        """Let everybody else have a turn, as a round trip would."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        handle = loop.call_soon(turn.set_result, None)
        try:
            await turn
        finally:
            handle.cancel()

    def stop(self, *, lose: bool = False, tails: Mapping[str, int] | None = None) -> None:
        """Go away, as when killed: memory streams are gone, and with `lose` all others too.

        `tails`: how many of their last messages streams lose that had not reached the disk.
        """
        self.up = False
        self.streams = {
            name: stream
            for name, stream in self.streams.items()
            if not (lose or stream.declared.in_memory)
        }
        for name, stream in self.streams.items():
            stream.lose_tail((tails or {}).get(name, 0))
        for bus in list(self._buses):
            bus.lost()

    def start(self) -> None:
        """Come back, to the buses that were attached."""
        self.up = True
        self.run += 1
        for bus in list(self._buses):
            bus.back()

    def delete_consumer(self, consumer: Consumer) -> None:
        """Forget the consumer, and let those who pulled from it know."""
        stream = self.streams.get(consumer.stream)
        if stream is not None and stream.consumers.pop(consumer.name, None) is not None:
            for bus in self._buses:
                bus.look_again()

    def num_pending(self, consumer: Consumer) -> int:
        """Count a consumer's messages that nobody has taken. Raises Unavailable without it."""
        there = self.stream(consumer.stream).consumers.get(consumer.name)
        if there is None:
            raise Unavailable(f"{consumer.name} of {consumer.stream}: consumer not found")
        return there.num_pending()

    def stream(self, name: str) -> MemoryStream:
        """Return the stream. Raises Unavailable when there is none."""
        if name not in self.streams:
            raise Unavailable(f"{name}: stream not found")
        return self.streams[name]

    def stream_of(self, subject: str) -> MemoryStream | None:
        """Return the stream that stores messages of that subject."""
        return next((s for s in self.streams.values() if s.takes(subject)), None)

    def deliver(self, message: Message) -> bool:
        """Hand a message to all who are subscribed, one of each queue; tell whether any is."""
        reached = False
        queues: set[str] = set()
        for interest in list(self.interests):
            if not matches(interest.subject, message.subject) or interest.queue in queues:
                continue
            if interest.queue:
                queues.add(interest.queue)
                # To the end of the line: the next one is somebody else's.
                self.interests.remove(interest)
                self.interests.append(interest)
            reached = True
            interest.take(message)
        return reached
