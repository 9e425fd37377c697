"""The worker's loop: take what is there, apply it in one transaction, publish, ack."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from bus import Bus, BusError, Delivery, Message, Responder, Unavailable, subjects
from bus.backoff import Backoff
from bus.streams import Tuning
from handlers.access.disconnect import SupersededAgents
from handlers.clock import clock
from handlers.supervise import cancel_and_wait, run_until_one_ends
from handlers.worker.batch import Noticed, apply, asks
from handlers.worker.clocks import CHANGED, LOOKED_EVERY, read_clocks
from handlers.worker.committer import (
    LONGEST_DELAY,
    NOTICE_SECONDS,
    CommitResult,
    Committer,
    Problems,
)
from handlers.worker.deliveries import Dead, Item, Missed, read
from handlers.worker.load_sampler import Gauge, Room
from handlers.worker.recovery import CARRIERS, Recovery
from handlers.worker.relay import Relay
from handlers.worker.restore import behind
from handlers.worker.stream_watch import Watch
from handlers.worker.timer_events import looked_for
from statemachine.chat import Limits
from statemachine.store import OutboxMessage, Store, StoreUnavailableError

log = logging.getLogger(__name__)

BATCH: Final = 256
"""Deliveries a batch at most; under light load it is one."""
"""Asked when a template was pushed: the pools it names get their consumers before the answer."""

Place = tuple[str, int]
"""Stream and sequence of a delivery."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A batch that is in the database, and what must be published before it is acked."""

    deliveries: Sequence[Delivery]
    rows: Sequence[OutboxMessage]
    buried: Sequence[Dead]
    jobs_until: float
    """By `clock`."""


@dataclass(slots=True)
class Worker:
    """Applies events to chats, with any number of others doing the same."""

    store: Store
    bus: Bus
    limits: Limits
    tuning: Tuning = field(default_factory=Tuning)
    room: Room = field(default_factory=Room)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    dead_letters: int = 0
    """How many this worker has buried."""
    noticed: Noticed = field(default_factory=Noticed)
    _looked_at: float = -math.inf
    """When somebody last looked at the clocks, by `clock`."""
    _again: asyncio.Event = field(default_factory=asyncio.Event)
    """Streams may be gone, or others: to be looked at."""
    _prepared: asyncio.Event = field(default_factory=asyncio.Event)
    _restored: bool = False
    """A chat was found to be older than what was published of it."""
    problems: Problems = field(default_factory=Problems)
    """What keeps it from its work now."""
    _gauge: Gauge = field(init=False)
    _superseded_agents: SupersededAgents = field(init=False)
    _committer: Committer = field(init=False)
    _returning: set[asyncio.Task[None]] = field(default_factory=set)
    """Tasks that will give deliveries back."""

    def __post_init__(self) -> None:
        self._superseded_agents = SupersededAgents(self.store, self.bus)
        self._gauge = Gauge(self.store, self.bus, self.room)
        self._committer = Committer(self.store, self.problems)

    async def run(self) -> None:
        """Work until cancelled."""
        relay = Relay(self.bus)
        watch = Watch(self.store, self.bus, relay, self.tuning)
        recovery = Recovery(self.store, self.bus, relay, self.limits, watch)
        self.bus.on_reconnect(relay.forget)
        self.bus.on_reconnect(relay.certainty.lose)
        self.bus.on_reconnect(self._again.set)
        self._again.set()
        try:
            await run_until_one_ends(
                self._prepare(relay, recovery),
                self._pull(relay, watch),
                self._superseded_agents.run(),
            )
        finally:
            await cancel_and_wait(*self._returning)
            await self._gauge.close()

    async def _prepare(self, relay: Relay, recovery: Recovery) -> None:
        """Make streams, consumers and timers as the database has them: at first, and when told.

        It goes on beside the work: nothing that is applied meanwhile depends on it.
        """
        backoff, asking = Backoff(), asyncio.create_task(_nothing())
        try:
            while True:
                await self._again.wait()
                self._again.clear()
                asking.cancel()  # of streams that are others by now; who was not asked is found again
                relay.forget()
                restored, self._restored = self._restored, False
                try:
                    lost = await recovery.prepare(restored=restored, made=self._prepared.set)
                except (Unavailable, StoreUnavailableError) as bad:
                    log.warning("not prepared yet, trying again: %s", bad)
                    self._note(bad)
                    self._restored |= restored
                    self._again.set()
                    await backoff.wait()
                    continue
                self.problems.clear("nats")
                self.problems.clear("database")
                if lost & CARRIERS:
                    asking = asyncio.create_task(recovery.ask())
                backoff.reset()
        finally:
            await cancel_and_wait(asking)

    async def _pull(self, relay: Relay, watch: Watch) -> None:
        await self._prepared.wait()
        await self._answer(relay)
        async with (
            self.bus.pull(*self.tuning.consumers(), prefetch=BATCH) as pull,
            asyncio.TaskGroup() as group,
        ):
            self.ready.set()
            log.info("worker is ready")
            backoff, before, leaving = Backoff(), group.create_task(_well()), set[Place]()
            while True:
                try:
                    deliveries = await pull.next(BATCH)
                except Unavailable as bad:  # the servers are away, or others: begin anew
                    log.warning("nothing can be pulled, trying again: %s", bad)
                    self._again.set()
                    await backoff.wait()
                    continue
                backoff.reset()
                await relay.certainty.there.wait()
                # One batch is applied while the one before it is published, never ahead of it; what
                # follows on one that was not published is left to come again behind it.
                # What is just being published and comes again is passed over: its ack is near.
                new = [d for d in deliveries if (d.stream, d.sequence) not in leaving]
                committed = await self._commit(new, relay)
                if await before and committed is not None:
                    before = group.create_task(self._publish(committed, relay, watch))
                    leaving = {(d.stream, d.sequence) for d in committed.deliveries}
                else:
                    before, leaving = group.create_task(_well()), set()

    async def _note_places(self, watch: Watch, newest: Delivery) -> None:
        try:
            await watch.note(newest)
        except StoreUnavailableError as bad:
            log.info("how far the streams are is not noted: %s", bad)

    async def _answer(self, relay: Relay) -> None:
        """Answer those who have pushed a template, from now on."""
        backoff = Backoff()
        while True:
            try:
                return await self.bus.respond(subjects.WORKER_POOLS, "workers", self._pools(relay))
            except Unavailable as gone:
                log.warning("lost NATS while beginning, trying again: %s", gone)
            await backoff.wait()

    def _pools(self, relay: Relay) -> Responder:
        async def respond(message: Message) -> bytes:
            del message
            await relay.ensure_pools(await self.store.templates.pools())
            return b"{}"

        return respond

    async def _commit(self, deliveries: Sequence[Delivery], relay: Relay) -> Committed | None:
        """Read and apply deliveries; None: a server is away, they come again."""
        now, jobs_until = datetime.now(UTC), clock() + self.tuning.duplicate_window
        items = [(delivery, read(delivery, now)) for delivery in deliveries]
        try:
            items = [(delivery, await self._looked_for(item, relay)) for delivery, item in items]
            taken = await self._take(items)
        except Unavailable as bad:
            self._bus_is_away(bad)
        except StoreUnavailableError as bad:
            self._database_is_away(bad)
        else:
            self._superseded_agents.disconnect_later(self.noticed.superseded)
            return Committed(taken.deliveries, taken.rows, taken.buried, jobs_until)
        return None

    async def _publish(
        self, committed: Committed, relay: Relay, watch: Watch | None = None
    ) -> bool:
        """Publish what a batch has led to, then ack it; say whether that was done."""
        rows, buried = committed.rows, committed.buried
        try:
            await self._look_at_clocks(relay)
            newer = await relay.publish(rows, jobs_until=committed.jobs_until)
            await relay.bury(buried)
            self.problems.clear("nats")
            await self._compare(newer)
            # Dropped before the ack: what an ack has let go nobody would look for in the outbox.
            if ids := [row.id for row in rows if row.id]:
                await self.store.delete_published(ids)
        except Unavailable as bad:
            self._bus_is_away(bad)
            return False
        except BusError as bad:
            log.error(  # noqa: TRY400 — the server's words are all there is to say
                "the bus refuses what must be published, it comes again: %s; see who may publish "
                "where, and how large",
                bad,
            )
            self._note(bad)
            return False
        except StoreUnavailableError as bad:
            self._database_is_away(bad)
            return False
        if buried:
            self.dead_letters += len(buried)
            log.warning("dead letters since this worker began: %d", self.dead_letters)
        for delivery in committed.deliveries:
            await delivery.ack()
        if watch is not None and committed.deliveries:
            await self._note_places(watch, committed.deliveries[-1])
        return True

    def _database_is_away(self, bad: StoreUnavailableError) -> None:
        log.warning("the database is away, the batch comes again: %s", bad)
        self._note(bad)

    def _bus_is_away(self, bad: Unavailable) -> None:
        log.warning("the bus is away, what is not published comes again: %s", bad)
        self._note(bad)
        self._again.set()

    def _note(self, bad: BusError | StoreUnavailableError) -> None:
        """Note what went wrong, for those who ask after our health; a lost connection shows by itself."""
        if isinstance(bad, StoreUnavailableError):
            words = f"the database does not take changes: {bad}"
            self.problems.report("database", words, seconds=NOTICE_SECONDS)
        elif self.bus.connected:
            words = (
                f"NATS does not store what must be published: {bad}; if its disk was full, make room "
                "there and start it again"
            )
            self.problems.report("nats", words, seconds=NOTICE_SECONDS)

    async def _look_at_clocks(self, relay: Relay) -> None:
        """Learn how far the bus's clock is ahead if a timer fired early, or very late.

        Late is what a backlog leaves, too; but if a clock was set, all timers are armed again.
        Raises BusError, StoreUnavailableError.
        """
        noticed = self.noticed
        late = noticed.late and clock() - self._looked_at > LOOKED_EVERY
        if not (noticed.early or late):
            return
        ahead = (await read_clocks(self.store, self.bus)).ahead
        noticed.early = noticed.late = False
        self._looked_at = clock()
        if late and abs(ahead - relay.ahead) > CHANGED:
            self._again.set()
        if abs(ahead - relay.ahead) > CHANGED:
            log.warning(
                "NATS's clock is %+.1f s off the database's, by which limits are counted",
                ahead.total_seconds(),
            )
        relay.ahead = ahead

    async def _compare(self, newer: AbstractSet[str]) -> None:
        """Have all chats looked at if one of these is older than what was published of it."""
        if newer and await behind(self.store, self.bus, newer):
            log.error("a published state is newer than the database: it was restored")
            self._restored = True
            self._again.set()

    async def _looked_for(self, item: Item, relay: Relay) -> Item:
        """Look whether a missed agent is still absent. Raises BusError, StoreUnavailableError."""
        if not isinstance(item, Missed):
            return item
        try:
            return await looked_for(item, self.store, relay)
        except (BusError, StoreUnavailableError):
            raise
        except Exception:
            # The chat can't be read. Applying the item fails for the same reason, and only it is buried.
            log.exception("chat %s can't be read", item.chat_id)
            return item

    async def _take(self, items: Sequence[tuple[Delivery, Item]]) -> CommitResult:
        load = self._gauge.load(look=any(asks(item) for _, item in items))

        async def applied(some: Sequence[Item]) -> list[OutboxMessage]:
            return await apply(some, self.store, self.limits, os.urandom(16), load, self.noticed)

        taken = await self._committer.commit(items, applied)
        if taken.postponed:
            task = asyncio.create_task(self._give_back(taken.postponed))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)
        return taken

    async def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Let what the database did not take come again after a while, sooner than it would by itself."""
        await Backoff(LONGEST_DELAY, LONGEST_DELAY).wait()
        for delivery in deliveries:
            await delivery.nak()


async def _nothing() -> None:
    """Ask nobody."""


async def _well() -> bool:
    """Stand where no batch is on its way."""
    return True
