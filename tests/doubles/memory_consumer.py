"""A durable consumer in this process: who gets which message, and which ones come again."""

from __future__ import annotations

from asyncio import Future, get_running_loop
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nats.js.api import RetentionPolicy

from bus import Delivery, NoConsumer, StoredMessage
from bus.streams import Consumer
from bus.subjects import matches
from bus.subscription import Timer
from tests.doubles.clock import Clock

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
        """When each comes again, the soonest first."""
        self._again: deque[int] = deque()
        self._waiting: deque[MemoryPull] = deque()
        self._timer: Timer | None = None

    def take(self) -> StoredMessage | None:
        """Hand out the next message: those that come again first."""
        if len(self._unacked) >= self.declared.max_ack_pending:
            return None
        message = self._next_again() or self._next_new()
        if message is not None:
            self._unacked[message.sequence] = self._clock.now() + self.declared.ack_wait
            self._watch()
        return message

    def num_pending(self) -> int:
        """Count the messages that nobody has taken yet."""
        wanted = self.declared.filter
        return sum(
            sequence >= self._next and (not wanted or matches(wanted, message.subject))
            for sequence, message in self._stream.messages.items()
        )

    def offer(self) -> None:
        """Hand out what is there to those who wait, in turn."""
        for _ in range(len(self._waiting)):
            if self._waiting[0].hungry:
                break
            self._waiting.rotate(-1)
        while self._waiting and self._waiting[0].hungry and (message := self.take()) is not None:
            self._waiting[0].put(self, message)
            self._waiting.rotate(-1)

    def wait(self, pull: MemoryPull) -> None:
        """Add one to those who wait."""
        self._waiting.append(pull)

    def wait_no_more(self, pull: MemoryPull) -> None:
        """Take one from those who wait."""
        self._waiting.remove(pull)

    def acked(self, sequence: int) -> None:
        """Never deliver it again."""
        if self._unacked.pop(sequence, None) is None:
            if sequence not in self._again:
                return
            self._again.remove(sequence)
        if self._stream.declared.retention is RetentionPolicy.WORK_QUEUE:
            self._stream.remove(sequence)
        self.offer()

    def given_back(self, sequence: int) -> None:
        """Deliver it again at once."""
        if self._unacked.pop(sequence, None) is not None:
            self._again.append(sequence)
            self._watch()
            self.offer()

    def in_progress(self, sequence: int) -> None:
        """Start its `ack_wait` anew."""
        if self._unacked.pop(sequence, None) is not None:
            self._unacked[sequence] = self._clock.now() + self.declared.ack_wait
            self._watch()

    def stopped(self, last: int) -> None:
        """Go on with a stream that now ends at `last`."""
        self._next = min(self._next, last + 1)
        self._again = deque(sequence for sequence in self._again if sequence <= last)
        self._unacked = {s: due for s, due in self._unacked.items() if s <= last}

    def _next_again(self) -> StoredMessage | None:
        while self._again:
            message = self._stream.messages.get(self._again.popleft())
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
            self._timer = self._clock.call_later(soonest - self._clock.now(), self._come_again)

    def _come_again(self) -> None:
        self._timer = None
        now = self._clock.now()
        for sequence, due in list(self._unacked.items()):
            if due > now:
                break
            del self._unacked[sequence]
            self._again.append(sequence)
        self._watch()
        self.offer()


class MemoryDelivery:
    """A message that a consumer in this process handed out."""

    reply = ""
    """No other process could say anything of it."""
    __slots__ = (
        "_bus",
        "_consumer",
        "_run",
        "data",
        "headers",
        "is_delete_marker",
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
        self.is_delete_marker: bool = message.is_delete_marker
        if consumer.declared.headers_only:
            self.headers = {**message.headers, "Nats-Msg-Size": str(len(message.data))}
            self.data = b""
        self._bus = bus
        self._consumer = consumer
        self._run = bus.run

    async def ack(self) -> None:
        """Done: never deliver it again."""
        if self._bus.connected and self._bus.run == self._run:
            self._consumer.acked(self.sequence)

    async def nak(self) -> None:
        """Let it come again at once."""
        if self._bus.connected and self._bus.run == self._run:
            self._consumer.given_back(self.sequence)

    async def in_progress(self) -> None:
        """Ask for another `ack_wait`."""
        if self._bus.connected and self._bus.run == self._run:
            self._consumer.in_progress(self.sequence)


class MemoryPull:
    """What several consumers handed out."""

    def __init__(self, bus: MemoryBus, consumers: Sequence[Consumer], prefetch: int) -> None:
        self._bus = bus
        self._declared = consumers
        self._prefetch = prefetch
        self._buffer: deque[MemoryDelivery] = deque()
        self._awaited: Future[None] | None = None
        self._open: list[MemoryConsumer] = []
        """Where the server has a request of ours for what comes next."""

    @property
    def hungry(self) -> bool:
        """Whether it takes more."""
        return len(self._buffer) < self._prefetch

    def put(self, consumer: MemoryConsumer, message: StoredMessage) -> None:
        """Add a message, and wake whoever awaits one."""
        self._buffer.append(MemoryDelivery(self._bus, consumer, message))
        self.wake()

    def void(self) -> None:
        """Forget what was not handed out, and have the server forget us: the connection is gone."""
        self._buffer.clear()
        self._withdraw()

    async def release(self) -> None:
        """Let what was not handed out go to whoever pulls next."""
        while self._buffer:
            await self._buffer.popleft().nak()

    def wake(self) -> None:
        """Let `next` look again."""
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)

    async def next(self, limit: int) -> Sequence[Delivery]:
        """Wait until something is there, then return what is there now: 1 to `limit`."""
        while True:
            self._bus.check_open()
            consumers = self._consumers() if self._bus.connected else []
            for consumer in consumers:
                while len(self._buffer) < limit and (message := consumer.take()) is not None:
                    self.put(consumer, message)
            if self._buffer:
                return [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
            self._awaited = get_running_loop().create_future()
            self._open = consumers
            for consumer in consumers:
                consumer.wait(self)
            try:
                await self._awaited
            finally:
                self._awaited = None
                self._withdraw()

    def _withdraw(self) -> None:
        for consumer in self._open:
            consumer.wait_no_more(self)
        self._open = []

    def _consumers(self) -> list[MemoryConsumer]:
        found = []
        for declared in self._declared:
            consumer = self._bus.consumer(declared)
            if consumer is None:
                raise NoConsumer(f"no consumer {declared.name} of {declared.stream}")
            found.append(consumer)
        return found
