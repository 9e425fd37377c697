"""The worker: pulls events, applies a batch in one transaction, publishes the results, and acks."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from msgspec import structs

from bus import Backoff, Bus, BusError, Delivery, Message, Unavailable, subjects
from bus.streams import Tuning
from handlers.access.disconnect import SupersededAgents
from handlers.runtime import clock
from handlers.runtime.supervise import cancel_and_wait, run_until_one_ends
from handlers.worker.acked_events import AckedEvents
from handlers.worker.alarms import Bell, ChatAlarm, Ringing
from handlers.worker.batch import Applied, Noticed, apply, asks
from handlers.worker.call_limits import LoadSampler, WaitingLimits
from handlers.worker.clock_skew import ClockSkew
from handlers.worker.committer import (
    LONGEST_DELAY,
    NOTICE_SECONDS,
    CommitResult,
    Committer,
    Problems,
    Read,
)
from handlers.worker.deliveries import Item, read
from handlers.worker.publications import Lane
from handlers.worker.publish_gate import PublishGate
from handlers.worker.recovery.republisher import FACT_STREAMS, Republisher
from handlers.worker.recovery.restore import RestoreReconciler
from handlers.worker.recovery.stream_watch import StreamWatch
from handlers.worker.relay import Relay
from handlers.worker.remembered import Remembered
from statemachine.chat import Limits
from statemachine.step import PresenceExpired
from statemachine.store import Store, StoreUnavailableError

log = logging.getLogger(__name__)

BATCH: Final = 256
"""Maximum number of deliveries in a batch. Under light load, a batch has one."""
PREFETCH: Final = 2 * BATCH
"""How many deliveries may be on their way, so that the next batch arrives while the worker is busy with one."""
IN_HAND: Final = 3
"""How many batches are worked on: one is published while the next is committed, and one may wait between."""
Position = tuple[str, int]
"""The stream and the sequence of a delivery."""


@dataclass(frozen=True, slots=True)
class CommittedBatch:
    """A committed batch, and the messages to publish before its deliveries are acked."""

    deliveries: Sequence[Delivery]
    """To be acked."""
    result: CommitResult
    jobs_until: float
    """The time of `clock`, in seconds, until which its jobs may be published."""
    ringing: Ringing
    """Its alarms, which are deleted when all is published."""
    again: Sequence[Delivery] = ()
    """Messages to be delivered again, because more alarms are due."""


@dataclass(slots=True)
class Worker:
    """Applies events to chats.

    Any number of workers may run. They share the work, and each may apply events to any chat.
    """

    store: Store
    bus: Bus
    limits: Limits
    tuning: Tuning = field(default_factory=Tuning)
    waiting_limits: WaitingLimits = field(default_factory=WaitingLimits)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    problems: Problems = field(default_factory=Problems)
    """The present problems that prevent the worker from working, as `/readyz` reports them."""
    dead_letters: int = 0
    """The number of dead letters that this worker has published."""
    noticed: Noticed = field(default_factory=Noticed)
    gate: PublishGate = field(init=False)
    skew: ClockSkew = field(init=False)
    relay: Relay = field(init=False)
    watch: StreamWatch = field(init=False)
    republisher: Republisher = field(init=False)
    load: LoadSampler = field(init=False)
    preparation_due: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when streams may be lost or different, so that `Republisher.prepare` has to run."""
    postponing: set[asyncio.Task[None]] = field(default_factory=set)
    """Tasks that will nak postponed deliveries."""
    acked_events: AckedEvents = field(init=False)
    _superseded_agents: SupersededAgents = field(init=False)
    _committer: Committer = field(init=False)
    _bell: Bell = field(init=False)
    _remembered: Remembered = field(init=False)
    _prepared: asyncio.Event = field(default_factory=asyncio.Event)
    _free_hands: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(IN_HAND))
    _committing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Batches are committed in the order in which they arrived."""
    _in_hand: set[Position] = field(default_factory=set)
    """The messages of the batches that are being committed or published."""
    _failures: int = 0
    """How many batches could not be published."""

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
        self.acked_events = AckedEvents(store, bus, self.tuning, self.problems)
        self._superseded_agents = SupersededAgents(store, bus)
        self._committer = Committer(store, self.problems)
        self._bell = Bell(store)
        self._remembered = Remembered(store)

    async def run(self) -> None:
        """Work until cancelled."""
        self.bus.on_reconnect(self.relay.forget)
        self.bus.on_reconnect(self.gate.close)
        self.bus.on_reconnect(self.acked_events.forget)
        self.bus.on_reconnect(self.preparation_due.set)
        self.preparation_due.set()
        try:
            await run_until_one_ends(
                self._keep_prepared(),
                self._pull(),
                self._delete_acked_events(),
                self._superseded_agents.run(),
            )
        finally:
            await cancel_and_wait(*self.postponing)
            await self.load.close()

    async def _keep_prepared(self) -> None:
        """Create streams, consumers and alarms at the start and whenever `preparation_due` is set.

        The worker continues to apply events meanwhile.
        """
        backoff, asking = Backoff(), asyncio.create_task(_nothing())
        try:
            while True:
                await self.preparation_due.wait()
                self.preparation_due.clear()
                # Stop asking the senders: the streams may be different now. A loss stays recorded
                # until all senders were asked.
                asking.cancel()
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

    async def _delete_acked_events(self) -> None:
        await self._prepared.wait()
        await self.acked_events.run()

    async def _pull(self) -> None:
        await self._prepared.wait()
        await self._respond_to_changes()
        async with (
            self.bus.pull(*self.tuning.consumers(), prefetch=PREFETCH) as pull,
            asyncio.TaskGroup() as group,
        ):
            self.ready.set()
            log.info("worker is ready")
            backoff, previous = Backoff(), group.create_task(_nothing())
            while True:
                try:
                    deliveries = await pull.next(BATCH)
                except Unavailable as error:  # the servers are unreachable, or were replaced
                    log.warning("pulling failed, trying again: %s", error)
                    self.preparation_due.set()
                    await backoff.wait()
                    continue
                backoff.reset()
                await self._free_hands.acquire()
                await self.gate.opened.wait()
                # Skip a redelivered message whose batch is still in hand: it will soon be acked.
                new = [d for d in deliveries if _position(d) not in self._in_hand]
                self._in_hand |= {_position(delivery) for delivery in new}
                previous = group.create_task(self._handle(new, previous, self._failures))

    async def _handle(
        self, deliveries: Sequence[Delivery], previous: asyncio.Task[None], failures: int
    ) -> None:
        """Commit a batch, and publish it after the previous one.

        If a batch can't be published, neither are the batches that had begun by then, and NATS redelivers them all in
        order. `failures`: the value of `_failures` when this batch began.
        """
        positions = {_position(delivery) for delivery in deliveries}
        try:
            batch = await self.commit(deliveries)
            committed = batch.deliveries if batch is not None else ()
            done = {_position(d) for d in committed if not isinstance(d, ChatAlarm)}
            self._in_hand -= positions - done  # these are delivered again
            await previous
            if batch is None or self._failures != failures:
                return
            if not await self._publish_and_follow(batch):
                self._failures += 1
        finally:
            self._in_hand -= positions
            self._free_hands.release()

    async def _respond_to_changes(self) -> None:
        """Answer the requests that commands send after a push and after the change of a setting.

        Before the answer, the worker creates the consumer of the template's pool if it is missing, or lets a worker
        look at the workspaces that rest.
        """

        async def prepare_pools(message: Message) -> bytes:
            del message
            await self.relay.ensure_pools(await self.store.templates.pools())
            return b"{}"

        async def look_at_rests(message: Message) -> bytes:
            del message
            await self.republisher.ring(await self.store.now())
            return b"{}"

        backoff = Backoff()
        while True:
            try:
                await self.bus.respond(subjects.WORKER_POOLS, "workers", prepare_pools)
                return await self.bus.respond(subjects.WORKER_SETTINGS, "workers", look_at_rests)
            except Unavailable as error:
                log.warning("lost NATS at the start, trying again: %s", error)
            await backoff.wait()

    async def commit(self, deliveries: Sequence[Delivery]) -> CommittedBatch | None:
        """Decode deliveries, apply them and commit the changes.

        Return None if NATS or the database is unavailable; then NATS redelivers the deliveries.
        """
        now, jobs_until = datetime.now(UTC), clock() + self.tuning.duplicate_window
        items = [(delivery, read(delivery, now, self.watch.unsure)) for delivery in deliveries]
        async with self._committing:  # the batches before this one come first
            return await self._commit_in_turn(items, jobs_until)

    async def _commit_in_turn(
        self, items: Sequence[Read], jobs_until: float
    ) -> CommittedBatch | None:
        try:
            items = [(delivery, await self._confirm_absence(item)) for delivery, item in items]
            ringing = await self._bell.ring(items)
            rang = list(ringing.rang)
            result = await self._commit([i for i in items if i[0] not in rang] + ringing.items())
        except Unavailable as error:
            self._bus_is_away(error)
        except StoreUnavailableError as error:
            self._database_is_away(error)
        else:
            self._superseded_agents.disconnect_later(self.noticed.superseded)
            self._set_alarms(ringing, result)
            return self._batch(result, jobs_until, ringing)
        return None

    def _batch(self, result: CommitResult, jobs_until: float, ringing: Ringing) -> CommittedBatch:
        """Return a committed batch; decide which alarm messages are acknowledged, and which are needed again."""
        postponed = any(isinstance(delivery, ChatAlarm) for delivery in result.postponed)
        self._bell.postpone(result)
        if ringing.has_more:
            return CommittedBatch(result.deliveries, result, jobs_until, ringing, ringing.rang)
        if ringing.left_out or postponed:
            self._nak_after_a_delay(ringing.rang)
            return CommittedBatch(result.deliveries, result, jobs_until, ringing)
        done = [*result.deliveries, *ringing.rang]
        return CommittedBatch(done, result, jobs_until, ringing)

    async def _commit(self, items: Sequence[tuple[Delivery, Item]]) -> CommitResult:
        load = self.load.load(sample=any(asks(item) for _, item in items))

        async def apply_items(some: Sequence[Item]) -> Applied:
            return await apply(
                some, self._remembered, self.limits, os.urandom(16), load, self.noticed
            )

        result = await self._committer.commit(items, apply_items)
        if result.postponed:
            self._nak_after_a_delay(result.postponed)
        return result

    def _nak_after_a_delay(self, deliveries: Sequence[Delivery]) -> None:
        task = asyncio.create_task(self._nak_later(deliveries))
        self.postponing.add(task)
        task.add_done_callback(self.postponing.discard)

    async def _nak_later(self, deliveries: Sequence[Delivery]) -> None:
        """Nak postponed deliveries after a delay that is shorter than their ack wait."""
        await Backoff(LONGEST_DELAY, LONGEST_DELAY).wait()
        for delivery in deliveries:
            await delivery.nak()

    async def _confirm_absence(self, item: Item) -> Item:
        """Check whether an agent whose presence message expired is still absent.

        The agent's highest sequence is read before the check. If the agent reports another fact
        later, the loss is not recorded, or it is undone. So no transaction is needed during the
        request to NATS. Raises BusError, StoreUnavailableError.
        """
        if not isinstance(item, PresenceExpired):
            return item
        try:
            chat = await self.store.chats.get(item.chat_id)
            facts = chat.agent_facts_of_any_workspace(item.agent_id) if chat is not None else None
        except StoreUnavailableError:
            raise
        except Exception:
            # Applying the item will fail for the same reason, and only this item becomes a dead
            # letter.
            log.exception("the snapshot of chat %s can't be read", item.chat_id)
            return item
        if facts is None or not facts.connected:
            return item
        if not await self.relay.is_absent(item.chat_id, item.agent_id):
            return item
        return structs.replace(item, highest_sequence=facts.highest_sequence)

    async def publish(self, batch: CommittedBatch) -> bool:
        """Publish the messages of a batch, then ack its deliveries.

        Return False if a message could not be published; then NATS redelivers the deliveries.
        """
        try:
            await self._check_clocks()
            result = batch.result
            # States first of all: an answer that is published again must not overtake one that never was.
            await self.republisher.publish_missing(result.repeated)
            newer = await self.relay.publish(result.messages, jobs_until=batch.jobs_until)
            await self.republisher.publish_missing_answers(result.repeated)
            if jobs := [m.build_id for m in result.messages if m.lane is Lane.JOB]:
                await self.republisher.mark_published(jobs)
            if canceled := {m.chat_id for m in result.messages if m.lane is Lane.CANCEL}:
                await self.republisher.take_back_jobs(sorted(canceled))
            await self.relay.publish_dead_letters(result.buried)
            self.problems.clear("nats")
            if await self.republisher.check_for_restore(newer):
                self.preparation_due.set()
            # Before the ack: after it, the message is not redelivered, so the alarms would stay.
            await batch.ringing.delete(result, self.store)
        except Unavailable as error:
            self._bus_is_away(error)
            return False
        except BusError as error:
            log.error(  # noqa: TRY400 — the server's message suffices
                "NATS refuses a message, which is published again later: %s; check the permissions and the "
                "size limits",
                error,
            )
            self._report(error)
            return False
        except StoreUnavailableError as error:
            self._database_is_away(error)
            return False
        if result.buried:
            self.dead_letters += len(result.buried)
            log.warning("dead letters since this worker started: %d", self.dead_letters)
        self.acked_events.add([delivery for delivery in batch.deliveries if await delivery.ack()])
        for delivery in batch.again:
            await delivery.nak()
        return True

    async def _publish_and_follow(self, batch: CommittedBatch) -> bool:
        """Publish a batch, then pass its last position in the streams to the stream watch."""
        if not await self.publish(batch):
            return False
        if batch.deliveries:
            try:
                await self.watch.follow(batch.deliveries)
            except StoreUnavailableError as error:
                log.info("the positions of streams are not recorded: %s", error)
        return True

    async def _check_clocks(self) -> None:
        """Measure the difference between the clocks if an alarm rang early or a timer took effect very late.

        A timer can also be late because of a backlog. But if a clock was changed, all alarms have
        to be set again. Raises BusError, StoreUnavailableError.
        """
        early, late = self.noticed.early, self.noticed.late
        if not self.skew.needs_check(early=early, late=late):
            return
        changed = await self.skew.check()
        self.noticed.early = self.noticed.late = False
        if changed:
            self.preparation_due.set()

    def _set_alarms(self, ringing: Ringing, result: CommitResult) -> None:
        """Set alarms again that rang before their time, and the next one."""
        for alarm in ringing.early:
            self.relay.forget_alarm(alarm)
        self.noticed.early |= bool(ringing.early)
        result.messages += [*ringing.early, *ringing.next]

    def _database_is_away(self, error: StoreUnavailableError) -> None:
        log.warning("the database is away, the batch is redelivered: %s", error)
        self._report(error)

    def _bus_is_away(self, error: Unavailable) -> None:
        log.warning("NATS is away, unpublished messages are published later: %s", error)
        self._report(error)
        self.preparation_due.set()

    def _report(self, error: BusError | StoreUnavailableError) -> None:
        """Report a problem to `/readyz`, which checks the connection to NATS itself."""
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
    """Do nothing, in place of a task that is not needed yet."""


def _position(delivery: Delivery) -> Position:
    return delivery.stream, delivery.sequence
