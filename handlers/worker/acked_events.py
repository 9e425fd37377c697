"""Deletes from WORKSPACED_IN the events that workers have acknowledged.

One purge deletes everything up to the consumer's ack floor: the sequence up to which workers have acknowledged every
event. So any number of workers may purge, and a purge with an outdated floor deletes less, never
more. A worker purges soon after it acknowledged events, because nothing else moves the floor.

An event that no worker can acknowledge holds the floor. That is reported, and the events above it are then deleted
one by one, each by the worker that acknowledged it, so that they do not fill the stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from nats.js.api import RetentionPolicy

from bus import Backoff, Bus, BusError, Delivery, StreamInfo, Unavailable
from bus.streams import IN, WORKER_IN, Tuning
from handlers.runtime import clock
from handlers.worker.committer import NOTICE_SECONDS, Problems
from handlers.worker.relay import wait_for_all
from statemachine.store import Store, StoreUnavailableError

log = logging.getLogger(__name__)

PURGE_DELAY: Final = 1.0
"""Seconds between an acknowledgement and the purge."""
URGENT_SHARE: Final = 8
"""A worker purges at once when it has acknowledged this part of the stream's size since the last purge (1/8)."""
FULL_SHARE: Final = 2
"""Above this part of its size (1/2) the stream is relieved without waiting for the floor."""
PATIENCE: Final = 3.0
"""How many ack waits the floor may stand still: a worker that was killed holds it for one."""
REPLACING_SECONDS: Final = 2.0
"""Within this time after it began, a transaction surely still holds its locks."""
_DELETES_AT_ONCE: Final = 256
_ABOUT: Final = "ack floor"


class AckedEvents:
    """The events that one worker has acknowledged and that are not known to be deleted."""

    def __init__(self, store: Store, bus: Bus, tuning: Tuning, problems: Problems) -> None:
        self._store, self._bus, self._problems = store, bus, problems
        (self._stream,) = (stream for stream in tuning.streams() if stream.name == IN.name)
        self._patience = PATIENCE * tuning.ack_wait
        self._acked: set[int] = set()
        """Sequences."""
        self._size = 0
        """Bytes of the events acknowledged since the last purge."""
        self._held: tuple[int, float] | None = None
        """The floor that holds acknowledged events, and since when."""
        self._due, self._urgent = asyncio.Event(), asyncio.Event()

    def forget(self) -> None:
        """Forget all sequences: after a reconnect, the stream may have assigned them to other events."""
        self._acked.clear()
        self._held = None
        self._due.set()

    def add(self, deliveries: Iterable[Delivery]) -> None:
        """Record deliveries whose acknowledgement was sent."""
        for delivery in deliveries:
            if delivery.stream == IN.name:
                self._acked.add(delivery.sequence)
                self._size += len(delivery.data)
        if self._acked:
            self._due.set()
        if self._size * URGENT_SHARE > self._stream.max_bytes:
            self._urgent.set()

    async def run(self) -> None:
        """Delete acknowledged events until cancelled."""
        backoff = Backoff()
        self._due.set()  # a worker that ended may have left acknowledged events
        while True:
            await self._due.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(PURGE_DELAY):
                    await self._urgent.wait()
            self._due.clear()
            self._urgent.clear()
            try:
                await self.delete()
            except (BusError, StoreUnavailableError) as error:
                log.info("acknowledged events are deleted later: %s", error)
                self._due.set()
                await backoff.wait()
            else:
                backoff.reset()

    async def delete(self) -> None:
        """Delete what has been acknowledged. Raises BusError, StoreUnavailableError."""
        self._size = 0
        info = await self._bus.stream_info(IN.name)
        if info.retention is not self._stream.retention:
            await self._replace(info)
            return
        floor = (await self._bus.consumer_state(WORKER_IN)).ack_floor
        if floor >= info.first > 0:
            await self._bus.purge(IN.name, floor)
        self._acked = {sequence for sequence in self._acked if sequence > floor}
        still = self._stands_still(floor)
        if self._acked and (still or info.size * FULL_SHARE > info.max_size > 0):
            await self._delete_one_by_one()

    def _stands_still(self, floor: int) -> bool:
        """Return whether the floor has held acknowledged events for too long, and report it."""
        now = clock()
        if self._held is not None and self._held[0] != floor:
            self._held = None
            self._problems.clear("nats", _ABOUT)
        if not self._acked:
            return False
        if self._held is None:
            self._held = floor, now
        seconds = now - self._held[1]
        if seconds <= self._patience:
            return False
        message = (
            f"an event of {IN.name} above sequence {floor} has not been acknowledged for {seconds:.0f} s; later "
            "events are deleted one by one, which is slow: see the log of the workers for its error"
        )
        log.warning("%s", message)
        self._problems.report("nats", message, about=_ABOUT, seconds=NOTICE_SECONDS)
        return True

    async def _delete_one_by_one(self) -> None:
        sequences = sorted(self._acked)
        for start in range(0, len(sequences), _DELETES_AT_ONCE):
            part = sequences[start : start + _DELETES_AT_ONCE]
            await wait_for_all(self._bus.delete_message(IN.name, sequence) for sequence in part)
            self._acked.difference_update(part)

    async def _replace(self, info: StreamInfo) -> None:
        """Recreate the stream if it is a work queue of an earlier version, and empty.

        Until then it takes no new events; their senders try again. Afterwards it counts as lost, so senders are
        also asked for their facts. Raises Unavailable while it is not empty.
        """
        if info.retention is not RetentionPolicy.WORK_QUEUE:
            raise Unavailable(f"{IN.name} has an unexpected retention: {info.retention}")
        until = asyncio.get_running_loop().time() + REPLACING_SECONDS
        async with self._store.locked(IN.name):
            replaced = await self._bus.replace_stream(self._stream, until=until)
        if not replaced:
            raise Unavailable(
                f"{IN.name} is of an earlier version and has to be empty before it is recreated; it holds "
                f"{info.messages} events and takes no new ones"
            )
        log.warning("%s was of an earlier version and was recreated", IN.name)
