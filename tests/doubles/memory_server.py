"""The in-memory counterpart of nats-server: streams, subscriptions, and simulated outages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import count
from typing import Protocol

from bus import ConsumerState, Message, Unavailable
from bus.streams import Consumer, Stream
from tests.doubles.clock import Clock, LoopClock
from tests.doubles.memory_stream import MemoryStream
from tests.doubles.subjects import matches


class Interest:
    """A subscription, or one member of a queue group."""

    __slots__ = ("queue", "subject", "take")

    def __init__(self, subject: str, queue: str, take: Callable[[Message], None]) -> None:
        self.subject = subject
        self.queue = queue
        self.take = take


class Connection(Protocol):
    """Methods that the server calls on each connected bus."""

    def disconnected(self) -> None:
        """Called when the server stops."""
        ...

    def reconnected(self) -> None:
        """Called when the server has started again."""
        ...

    def wake_pulls(self) -> None:
        """Called when a consumer was deleted."""
        ...


class MemoryServer:
    """Shared by all buses of a test."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or LoopClock()
        self.streams: dict[str, MemoryStream] = {}
        self.up = True
        self.run = 1
        """The number of the current start."""
        self.numbers = count(1)
        self.interests: list[Interest] = []
        self._buses: list[Connection] = []

    def attach(self, bus: Connection) -> None:
        """Connect a bus. Raises Unavailable while stopped."""
        if not self.up:
            raise Unavailable("the server is stopped")
        self._buses.append(bus)

    def detach(self, bus: Connection) -> None:
        """Disconnect a bus that was closed."""
        self._buses.remove(bus)

    async def turn(self) -> None:
        """Let other tasks run, as a round trip to a server would."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        handle = loop.call_soon(turn.set_result, None)
        try:
            await turn
        finally:
            handle.cancel()

    def stop(self, *, lose: bool = False, tails: Mapping[str, int] | None = None) -> None:
        """Stop as if killed. Memory streams are lost, and with `lose` all other streams too.

        `tails` maps a stream to the number of last messages that it loses as if not yet on disk.
        """
        self.up = False
        self.streams = {
            name: stream
            for name, stream in self.streams.items()
            if not (lose or stream.declared.in_memory)
        }
        for name, stream in self.streams.items():
            stream.lose_tail((tails or {}).get(name, 0))
            for consumer in stream.consumers.values():
                consumer.forget_deliveries()
        for bus in list(self._buses):
            bus.disconnected()

    def start(self) -> None:
        """Start again and reconnect the buses."""
        self.up = True
        self.run += 1
        for bus in list(self._buses):
            bus.reconnected()

    def add_stream(self, declared: Stream, *, after: int = 0) -> MemoryStream:
        """Create a stream whose sequences begin after that one."""
        created = f"{self.clock.now()}/{next(self.numbers)}"
        stream = MemoryStream(declared, self.clock, created, self.deliver, last=after)
        self.streams[declared.name] = stream
        return stream

    def delete_stream(self, name: str) -> None:
        """Delete a stream with its consumers, and wake the pulls that wait for them."""
        if self.streams.pop(name, None) is not None:
            for bus in self._buses:
                bus.wake_pulls()

    def delete_consumer(self, consumer: Consumer) -> None:
        """Delete the consumer, and wake the pulls that wait for it."""
        stream = self.streams.get(consumer.stream)
        if stream is not None and stream.consumers.pop(consumer.name, None) is not None:
            for bus in self._buses:
                bus.wake_pulls()

    def consumer_state(self, consumer: Consumer) -> ConsumerState:
        """Return how far the consumer is. Raises Unavailable without the consumer."""
        there = self.stream(consumer.stream).consumers.get(consumer.name)
        if there is None:
            raise Unavailable(f"{consumer.name} of {consumer.stream}: consumer not found")
        return there.state()

    def stream(self, name: str) -> MemoryStream:
        """Return the stream. Raises Unavailable if it does not exist."""
        if name not in self.streams:
            raise Unavailable(f"{name}: stream not found")
        return self.streams[name]

    def stream_of(self, subject: str) -> MemoryStream | None:
        """Return the stream that stores messages of that subject."""
        return next((s for s in self.streams.values() if s.takes(subject)), None)

    def deliver(self, message: Message) -> bool:
        """Deliver to all subscriptions and one of each queue group; return whether any exists."""
        reached = False
        queues: set[str] = set()
        for interest in list(self.interests):
            if not matches(interest.subject, message.subject) or interest.queue in queues:
                continue
            if interest.queue:
                queues.add(interest.queue)
                # Move it to the end: another member gets the next message.
                self.interests.remove(interest)
                self.interests.append(interest)
            reached = True
            interest.take(message)
        return reached
