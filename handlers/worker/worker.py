"""The worker: pulls events, applies a batch in one transaction, publishes what follows from it, and acks."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from bus import Bus, BusError, Delivery, Message, Unavailable, subjects
from bus.backoff import Backoff
from bus.streams import Tuning
from handlers.access.disconnect import SupersededAgents
from handlers.clock import clock
from handlers.supervise import cancel_and_wait, run_until_one_ends
from handlers.worker.batch import Noticed, apply, asks
from handlers.worker.call_limits import LoadSampler, WaitingLimits
from handlers.worker.clock_skew import ClockSkew
from handlers.worker.committer import (
    LONGEST_DELAY,
    NOTICE_SECONDS,
    CommitResult,
    Committer,
    Problems,
)
from handlers.worker.deliveries import Dead, Item, Missed, read
from handlers.worker.recovery.republisher import FACT_STREAMS, Republisher
from handlers.worker.recovery.restore import RestoreReconciler
from handlers.worker.recovery.stream_watch import PublishGate, StreamWatch
from handlers.worker.relay import Relay
from statemachine.chat import Limits
from statemachine.store import OutboxMessage, Store, StoreUnavailableError

log = logging.getLogger(__name__)

BATCH: Final = 256
"""Deliveries in a batch at most; under light load it has one."""
Position = tuple[str, int]
"""Stream and sequence of a delivery."""


@dataclass(frozen=True, slots=True)
class CommittedBatch:
    """A batch that is in the database, and what must be published before it is acked."""

    deliveries: Sequence[Delivery]
    rows: Sequence[OutboxMessage]
    dead: Sequence[Dead]
    jobs_until: float
    """Until when its jobs may be published, by `clock`."""


@dataclass(slots=True)
class Worker:
    """Applies events to chats. Any number of workers share the work; none of them owns a chat."""

    store: Store
    bus: Bus
    limits: Limits
    tuning: Tuning = field(default_factory=Tuning)
    waiting_limits: WaitingLimits = field(default_factory=WaitingLimits)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    problems: Problems = field(default_factory=Problems)
    """What keeps it from its work now."""
    dead_letters: int = 0
    """How many dead letters it has published."""
    noticed: Noticed = field(default_factory=Noticed)
    gate: PublishGate = field(init=False)
    skew: ClockSkew = field(init=False)
    relay: Relay = field(init=False)
    watch: StreamWatch = field(init=False)
    republisher: Republisher = field(init=False)
    load: LoadSampler = field(init=False)
    preparation_due: asyncio.Event = field(default_factory=asyncio.Event)
    """Streams may be gone or different: `Republisher.prepare` has to run."""
    postponing: set[asyncio.Task[None]] = field(default_factory=set)
    """Tasks that will nak deliveries."""
    _superseded_agents: SupersededAgents = field(init=False)
    _committer: Committer = field(init=False)
    _prepared: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        store, bus = self.store, self.bus
        self.gate, self.skew = PublishGate(bus), ClockSkew(store, bus)
        self.relay = Relay(bus, self.gate, self.skew)
        self.watch = StreamWatch(store, bus, self.gate, self.tuning)
        reconciler = RestoreReconciler(store, bus, self.relay, self.limits, self.watch)
        self.republisher = Republisher(
            store, bus, self.relay, self.limits, self.watch, reconciler, self.skew
        )
        self.load = LoadSampler(store, bus, self.waiting_limits)
        self._superseded_agents = SupersededAgents(store, bus)
        self._committer = Committer(store, self.problems)

    async def run(self) -> None:
        """Work until cancelled."""
        self.bus.on_reconnect(self.relay.forget)
        self.bus.on_reconnect(self.gate.close)
        self.bus.on_reconnect(self.preparation_due.set)
        self.preparation_due.set()
        try:
            await run_until_one_ends(
                self._keep_prepared(), self._pull(), self._superseded_agents.run()
            )
        finally:
            await cancel_and_wait(*self.postponing)
            await self.load.close()

    async def _keep_prepared(self) -> None:
        """Create streams, consumers and timers at the start, and again whenever that is due.

        The work goes on meanwhile: nothing that is applied depends on it.
        """
        backoff, asking = Backoff(), asyncio.create_task(_nothing())
        try:
            while True:
                await self.preparation_due.wait()
                self.preparation_due.clear()
                asking.cancel()  # the streams may be different now; losses that were not asked for stay marked
                self.relay.forget()
                try:
                    lost = await self.republisher.prepare(made=self._prepared.set)
                except (Unavailable, StoreUnavailableError) as error:
                    log.warning("preparing failed, trying again: %s", error)
                    self._report(error)
                    self.preparation_due.set()
                    await backoff.wait()
                    continue
                self.problems.clear("nats")
                self.problems.clear("database")
                if lost & FACT_STREAMS:
                    asking = asyncio.create_task(self.republisher.ask_senders())
                backoff.reset()
        finally:
            await cancel_and_wait(asking)

    async def _pull(self) -> None:
        await self._prepared.wait()
        await self._respond_to_pushes()
        async with (
            self.bus.pull(*self.tuning.consumers(), prefetch=BATCH) as pull,
            asyncio.TaskGroup() as group,
        ):
            self.ready.set()
            log.info("worker is ready")
            backoff = Backoff()
            publishing, in_hand = group.create_task(_published()), set[Position]()
            while True:
                try:
                    deliveries = await pull.next(BATCH)
                except Unavailable as error:  # the servers are away, or others
                    log.warning("pulling failed, trying again: %s", error)
                    self.preparation_due.set()
                    await backoff.wait()
                    continue
                backoff.reset()
                await self.gate.opened.wait()
                # One batch is committed while the one before it is published, but it is never published first.
                # If the one before was not published, this one isn't either, and both are redelivered in order.
                # A redelivered message whose batch is being published is skipped: its ack is near.
                new = [d for d in deliveries if (d.stream, d.sequence) not in in_hand]
                batch = await self.commit(new)
                if await publishing and batch is not None:
                    publishing = group.create_task(self._publish_and_follow(batch))
                    in_hand = {(d.stream, d.sequence) for d in batch.deliveries}
                else:
                    publishing, in_hand = group.create_task(_published()), set()

    async def _respond_to_pushes(self) -> None:
        """Answer the request that follows a pushed template: its pool's consumer exists by then."""

        async def respond(message: Message) -> bytes:
            del message
            await self.relay.ensure_pools(await self.store.templates.pools())
            return b"{}"

        backoff = Backoff()
        while True:
            try:
                return await self.bus.respond(subjects.WORKER_POOLS, "workers", respond)
            except Unavailable as error:
                log.warning("lost NATS at the start, trying again: %s", error)
            await backoff.wait()

    async def commit(self, deliveries: Sequence[Delivery]) -> CommittedBatch | None:
        """Decode deliveries and apply them; None if NATS or the database is away: they are redelivered."""
        now, jobs_until = datetime.now(UTC), clock() + self.tuning.duplicate_window
        items = [(delivery, read(delivery, now)) for delivery in deliveries]
        try:
            items = [(delivery, await self._confirm_absence(item)) for delivery, item in items]
            result = await self._commit(items)
        except Unavailable as error:
            self._bus_is_away(error)
        except StoreUnavailableError as error:
            self._database_is_away(error)
        else:
            self._superseded_agents.disconnect_later(self.noticed.superseded)
            return CommittedBatch(result.deliveries, result.rows, result.buried, jobs_until)
        return None

    async def _commit(self, items: Sequence[tuple[Delivery, Item]]) -> CommitResult:
        load = self.load.load(sample=any(asks(item) for _, item in items))

        async def apply_items(some: Sequence[Item]) -> list[OutboxMessage]:
            return await apply(some, self.store, self.limits, os.urandom(16), load, self.noticed)

        result = await self._committer.commit(items, apply_items)
        if result.postponed:
            task = asyncio.create_task(self._nak_later(result.postponed))
            self.postponing.add(task)
            task.add_done_callback(self.postponing.discard)
        return result

    async def _nak_later(self, deliveries: Sequence[Delivery]) -> None:
        """Have postponed deliveries redelivered after a while, which is before their ack wait ends."""
        await Backoff(LONGEST_DELAY, LONGEST_DELAY).wait()
        for delivery in deliveries:
            await delivery.nak()

    async def _confirm_absence(self, item: Item) -> Item:
        """Look whether an agent whose presence expired is still absent.

        What the agent reported is read first. If it reports more after the look, the loss is not recorded, or
        undone. So no transaction is open while NATS is asked. Raises BusError, StoreUnavailableError.
        """
        if not isinstance(item, Missed):
            return item
        try:
            chat = await self.store.chats.get(item.chat_id)
            facts = chat.heard_from(item.agent_id) if chat is not None else None
        except StoreUnavailableError:
            raise
        except Exception:
            # Applying the item will fail for the same reason, and make only this item a dead letter.
            log.exception("the snapshot of chat %s can't be read", item.chat_id)
            return item
        if facts is None or not facts.connected:
            return item
        if not await self.relay.is_absent(item.chat_id, item.agent_id):
            return item
        return replace(item, highest=facts.highest)

    async def publish(self, batch: CommittedBatch) -> bool:
        """Publish what follows from a batch, then ack it; return False if that failed: it is redelivered."""
        try:
            await self._check_clocks()
            newer = await self.relay.publish(batch.rows, jobs_until=batch.jobs_until)
            await self.relay.publish_dead_letters(batch.dead)
            self.problems.clear("nats")
            if await self.republisher.check_for_restore(newer):
                self.preparation_due.set()
            # Deleted before the ack: after it, nobody would look for the rows.
            if ids := [row.id for row in batch.rows if row.id]:
                await self.store.delete_published(ids)
        except Unavailable as error:
            self._bus_is_away(error)
            return False
        except BusError as error:
            log.error(  # noqa: TRY400 — the server's message says it all
                "NATS refuses a message, which is published again later: %s; check the permissions and the "
                "size limits",
                error,
            )
            self._report(error)
            return False
        except StoreUnavailableError as error:
            self._database_is_away(error)
            return False
        if batch.dead:
            self.dead_letters += len(batch.dead)
            log.warning("dead letters since this worker started: %d", self.dead_letters)
        for delivery in batch.deliveries:
            await delivery.ack()
        return True

    async def _publish_and_follow(self, batch: CommittedBatch) -> bool:
        """Publish a batch, and take its position in the streams into account."""
        if not await self.publish(batch):
            return False
        if batch.deliveries:
            try:
                await self.watch.follow(batch.deliveries[-1])
            except StoreUnavailableError as error:
                log.info("the positions of streams are not recorded: %s", error)
        return True

    async def _check_clocks(self) -> None:
        """Measure the clocks' difference if a timer fired early or very late.

        A backlog makes timers late, too. But if a clock was set, all timers have to be armed again. Raises
        BusError, StoreUnavailableError.
        """
        early, late = self.noticed.early, self.noticed.late
        if not self.skew.needs_check(early=early, late=late):
            return
        changed = await self.skew.check()
        self.noticed.early = self.noticed.late = False
        if changed and late:
            self.preparation_due.set()

    def _database_is_away(self, error: StoreUnavailableError) -> None:
        log.warning("the database is away, the batch is redelivered: %s", error)
        self._report(error)

    def _bus_is_away(self, error: Unavailable) -> None:
        log.warning("NATS is away, unpublished messages are published later: %s", error)
        self._report(error)
        self.preparation_due.set()

    def _report(self, error: BusError | StoreUnavailableError) -> None:
        """Report a problem for `/readyz`, which sees a lost connection to NATS by itself."""
        if isinstance(error, StoreUnavailableError):
            message = f"the database does not take changes: {error}"
            self.problems.report("database", message, seconds=NOTICE_SECONDS)
        elif self.bus.connected:
            message = (
                f"NATS does not store what must be published: {error}; if its disk was full, make room "
                "there and start it again"
            )
            self.problems.report("nats", message, seconds=NOTICE_SECONDS)


async def _nothing() -> None:
    """Stand for a task that was not needed yet."""


async def _published() -> bool:
    """Stand for the batch before the first one."""
    return True
