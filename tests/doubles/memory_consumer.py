"""A durable consumer in memory: delivery, acks and redelivery."""

from __future__ import annotations

from asyncio import Future, get_running_loop
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nats.js.api import RetentionPolicy
from typing_extensions import override

from bus import ConsumerState, Delivery, NoConsumer, Pull, StoredMessage
from bus.streams import Consumer
from bus.subscription import Timer
from tests.doubles.clock import Clock
from tests.doubles.subjects import matches

if TYPE_CHECKING:
    from tests.doubles.memory_bus import MemoryBus
    from tests.doubles.memory_stream import MemoryStream


class MemoryConsumer:
    """One durable consumer, and the pulls that wait for its messages."""

    def __init__(self, declared: Consumer, stream: MemoryStream, clock: Clock) -> None:
        self.declared = declared
        self._stream = stream
        self._clock = clock
        self._next = 1
        self._unacked: dict[int, float] = {}
        """When to redeliver each sequence, in order of time."""
        self._to_redeliver: deque[int] = deque()
        self._deliveries: dict[int, int] = {}
        """How often each message was delivered."""
        self._waiting: deque[MemoryPull] = deque()
        self._timer: Timer | None = None

    def take(self) -> StoredMessage | None:
        """Return the next message, first those to redeliver, or None."""
        if len(self._unacked) >= self.declared.max_ack_pending:
            return None
        message = self._next_redelivery() or self._next_new()
        if message is not None:
            self._unacked[message.sequence] = self._clock.now() + self.declared.ack_wait
            self._deliveries[message.sequence] = self._deliveries.get(message.sequence, 0) + 1
            self._watch()
        return message

    def was_delivered(self, sequence: int) -> bool:
        """Return whether a message that was just taken had been delivered before."""
        return self._deliveries.get(sequence, 0) > 1

    def forget_deliveries(self) -> None:
        """Forget which messages were delivered: the server crashed before it wrote that."""
        self._deliveries.clear()

    def state(self) -> ConsumerState:
        """Return how far the consumer is."""
        wanted, unacked = self.declared.filter, [*self._unacked, *self._to_redeliver]
        undelivered = sum(
            sequence >= self._next and (not wanted or matches(wanted, message.subject))
            for sequence, message in self._stream.messages.items()
        )
        return ConsumerState(
            undelivered,
            len(unacked),
            min(unacked, default=self._next) - 1,
            delivered=self._next - 1,
        )

    def offer(self) -> None:
        """Give available messages to the waiting pulls, in turn."""
        for _ in range(len(self._waiting)):
            if self._waiting[0].hungry:
                break
            self._waiting.rotate(-1)
        while self._waiting and self._waiting[0].hungry and (message := self.take()) is not None:
            self._waiting[0].put(self, message)
            self._waiting.rotate(-1)

    def wait(self, pull: MemoryPull) -> None:
        """Add a waiting pull."""
        self._waiting.append(pull)

    def stop_waiting(self, pull: MemoryPull) -> None:
        """Remove a waiting pull."""
        self._waiting.remove(pull)

    def ack(self, sequence: int) -> None:
        """Process an ack."""
        if self._unacked.pop(sequence, None) is None:
            if sequence not in self._to_redeliver:
                return
            self._to_redeliver.remove(sequence)
        if self._stream.declared.retention is RetentionPolicy.WORK_QUEUE:
            self._stream.remove(sequence)
        self.offer()

    def nak(self, sequence: int) -> None:
        """Process a nak: redeliver immediately."""
        if self._unacked.pop(sequence, None) is not None:
            self._to_redeliver.append(sequence)
            self._watch()
            self.offer()

    def in_progress(self, sequence: int) -> None:
        """Restart the `ack_wait` of a message."""
        if self._unacked.pop(sequence, None) is not None:
            self._unacked[sequence] = self._clock.now() + self.declared.ack_wait
            self._watch()

    def forget(self, last: int) -> None:
        """Treat all messages up to that sequence as acknowledged: they were purged."""
        self._next = max(self._next, last + 1)
        for sequence in [s for s in self._unacked if s <= last]:
            del self._unacked[sequence]
        self._to_redeliver = deque(s for s in self._to_redeliver if s > last)
        self._watch()

    def truncate(self, last: int) -> None:
        """Forget messages after sequence `last`, where the stream now ends."""
        self._next = min(self._next, last + 1)
        self._to_redeliver = deque(sequence for sequence in self._to_redeliver if sequence <= last)
        self._unacked = {s: due for s, due in self._unacked.items() if s <= last}
        self._deliveries = {s: count for s, count in self._deliveries.items() if s <= last}

    def _next_redelivery(self) -> StoredMessage | None:
        while self._to_redeliver:
            message = self._stream.messages.get(self._to_redeliver.popleft())
            if message is not None:
                return message
        return None

    def _next_new(self) -> StoredMessage | None:
        while self._next <= self._stream.last_sequence:
            message = self._stream.messages.get(self._next)
            self._next += 1
            wanted = self.declared.filter
            if message is not None and (not wanted or matches(wanted, message.subject)):
                return message
        return None

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unacked:
            soonest = next(iter(self._unacked.values()))
            self._timer = self._clock.call_later(soonest - self._clock.now(), self._redeliver)

    def _redeliver(self) -> None:
        self._timer = None
        now = self._clock.now()
        for sequence, due in list(self._unacked.items()):
            if due > now:
                break
            del self._unacked[sequence]
            self._to_redeliver.append(sequence)
        self._watch()
        self.offer()


class MemoryDelivery:
    """A message that an in-memory consumer delivered."""

    reply = ""
    """Empty: no other process can acknowledge it."""
    __slots__ = (
        "_bus",
        "_consumer",
        "_run",
        "data",
        "headers",
        "is_delete_marker",
        "redelivered",
        "sequence",
        "stream",
        "subject",
    )

    def __init__(self, bus: MemoryBus, consumer: MemoryConsumer, message: StoredMessage) -> None:
        self.subject: str = message.subject
        self.data: bytes = message.data
        self.headers: Mapping[str, str] = message.headers
        self.stream: str = consumer.declared.stream
        self.sequence: int = message.sequence
        self.redelivered: bool = consumer.was_delivered(message.sequence)
        self.is_delete_marker: bool = message.is_delete_marker
        if consumer.declared.headers_only:
            self.headers = {**message.headers, "Nats-Msg-Size": str(len(message.data))}
            self.data = b""
        self._bus = bus
        self._consumer = consumer
        self._run = bus.run

    async def ack(self) -> bool:
        if not self._bus.connected or self._bus.run != self._run:
            return False
        self._consumer.ack(self.sequence)
        return True

    async def nak(self) -> None:
        if self._bus.connected and self._bus.run == self._run:
            self._consumer.nak(self.sequence)

    async def in_progress(self) -> None:
        if self._bus.connected and self._bus.run == self._run:
            self._consumer.in_progress(self.sequence)


class MemoryPull(Pull):
    """A pull from several consumers; see `bus.Pull`."""

    def __init__(self, bus: MemoryBus, consumers: Sequence[Consumer], prefetch: int) -> None:
        self._bus = bus
        self._declared = consumers
        self._prefetch = prefetch
        self._buffer: deque[MemoryDelivery] = deque()
        self._waiter: Future[None] | None = None
        self._open: list[MemoryConsumer] = []
        """The consumers at which this pull waits."""

    @property
    def hungry(self) -> bool:
        """Whether there is room in the buffer."""
        return len(self._buffer) < self._prefetch

    def put(self, consumer: MemoryConsumer, message: StoredMessage) -> None:
        """Add a message to the buffer and wake `next`."""
        self._buffer.append(MemoryDelivery(self._bus, consumer, message))
        self.wake()

    def reset(self) -> None:
        """Drop the buffer and the requests, because the connection was lost."""
        self._buffer.clear()
        self._withdraw()

    async def release(self) -> None:
        """Nak the buffered messages."""
        while self._buffer:
            await self._buffer.popleft().nak()

    def wake(self) -> None:
        """Make `next` look for messages again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @override
    async def next(self, limit: int) -> Sequence[Delivery]:
        while True:
            self._bus.raise_if_closed()
            consumers = self._consumers() if self._bus.connected else []
            for consumer in consumers:
                while len(self._buffer) < limit and (message := consumer.take()) is not None:
                    self.put(consumer, message)
            if self._buffer:
                return [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
            self._waiter = get_running_loop().create_future()
            self._open = consumers
            for consumer in consumers:
                consumer.wait(self)
            try:
                await self._waiter
            finally:
                self._waiter = None
                self._withdraw()

    def _withdraw(self) -> None:
        for consumer in self._open:
            consumer.stop_waiting(self)
        self._open = []

    def _consumers(self) -> list[MemoryConsumer]:
        found = []
        for declared in self._declared:
            consumer = self._bus.consumer(declared)
            if consumer is None:
                raise NoConsumer(f"no consumer {declared.name} of {declared.stream}")
            found.append(consumer)
        return found
