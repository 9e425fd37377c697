"""The bus of a run: a server in this process, behind a network with delays and failures.

Messages of one client arrive in their order, possibly late. A paused client's publish arrives when
the client resumes. When a process is killed, its connection closes; a paused process keeps its
connection and its open pulls.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import tests.doubles.memory_server
from bus import BusError, Outbound, PubAck, StreamInfo, Unavailable
from bus.streams import JOB, Stream
from bus.subscription import Timer
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_server import MemoryServer
from tests.doubles.memory_stream import MemoryStream
from tests.simulation.loop import Process, SeededLoop, process_here, resolve

_SLOW: Final = 1.5


class WorldClock:
    """The server's clock; its callbacks run on behalf of the world, not of the calling process."""

    def __init__(self, loop: SeededLoop, ahead: float) -> None:
        self._loop, self._ahead = loop, ahead

    def now(self) -> float:
        return self._loop.now + self._ahead

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        return self._loop.later(delay, callback)


class Network(MemoryServer):
    """The server and the network between it and its clients."""

    def __init__(self, loop: SeededLoop, ahead: float, window: float | None) -> None:
        super().__init__(WorldClock(loop, ahead))
        self.loop = loop
        self.window = window
        """If set, an upper limit for the duplicate windows of all streams but JOB."""
        self.buses: dict[Process, SimulatedBus] = {}
        self.slow = 0.1
        """Share of messages that are delayed."""
        self.loses_word: Callable[[], bool] = lambda: False
        """Decides whether the confirmation of this message is lost."""
        self.on_stored: Callable[[str, str, bytes, int], None] = lambda *_: None
        """Called for each message that a stream stored: stream, subject, body, sequence."""

    async def turn(self) -> None:
        """Take a message's time on the network; it does not overtake messages sent before it."""
        turn: Future[None] = self.loop.create_future()
        process, random = process_here() or self.loop.world, self.loop.random.random
        delay = 0.0
        if random() < self.slow:
            delay = random() ** 4 * _SLOW
        process.sent = max(process.sent, self.loop.now + delay)
        self.loop.later(process.sent - self.loop.now, resolve, turn)
        await turn

    def connect(self) -> SimulatedBus:
        """Open a connection for the calling process. Raises Unavailable."""
        process = process_here() or self.loop.world
        made = self.buses[process] = SimulatedBus(self, process)

        def closed() -> None:
            self.buses.pop(process, None)
            made.end("the process is gone")

        process.at_end.append(closed)
        return made


class SimulatedBus(MemoryBus):
    """A connection that can be cut."""

    def __init__(self, server: Network, process: Process) -> None:
        self._process = process
        super().__init__(server)
        self._network = server
        self.cut = False

    @property
    def connected(self) -> bool:
        return super().connected and not self.cut

    def break_off(self) -> None:
        """Cut the connection; the server continues."""
        self.cut = True
        self.disconnected()

    def mend(self) -> None:
        """Restore the connection, unless its process is paused."""
        if self.cut and not self._process.paused:
            self.cut = False
            if self._server.up:
                self.reconnected()

    def reconnected(self) -> None:
        self.cut = self.cut or self._process.paused
        if not self.cut:
            super().reconnected()

    async def ensure_stream(self, stream: Stream) -> StreamInfo:
        window = self._network.window
        if window is not None and stream.name != JOB.name:
            stream = replace(stream, duplicate_window=min(window, stream.duplicate_window))
        return await super().ensure_stream(stream)

    async def publish_many(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
        results = await super().publish_many(messages)
        lost = Unavailable("no word that it is stored")
        return [lost if self._network.loses_word() else result for result in results]


class WatchedStream(MemoryStream):
    """A stream that reports the messages it stores to the network."""

    network: Network

    def store(self, subject: str, data: bytes, fields: Mapping[str, str]) -> PubAck:
        ack = super().store(subject, data, fields)
        if not ack.duplicate:
            self.network.on_stored(self.declared.name, subject, data, ack.sequence)
        return ack


def watch(network: Network) -> None:
    """Make all streams that are created from now on report to this network."""
    made: Any = type("Watched", (WatchedStream,), {"network": network})
    tests.doubles.memory_server.MemoryStream = made  # type: ignore[misc]
