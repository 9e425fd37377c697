"""Publishes again, from the database, what NATS lost: PostgreSQL holds the truth, NATS only transports it.

After a loss the worker drops what it had in hand, because acks do not reach a server that was replaced. Only
requests that NATS had stored and no worker had applied are lost for good; their callers repeat them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar

from bus import Backoff, Bus, BusError, subjects
from bus.streams import IN, JOB, PRESENCE, RESULT, STATE, STREAMS, TIMER
from handlers.runtime import clock
from handlers.worker import publications
from handlers.worker.clock_skew import ClockSkew
from handlers.worker.publications import Lane
from handlers.worker.recovery.restore import RestoreReconciler
from handlers.worker.recovery.stream_watch import StreamWatch
from handlers.worker.relay import PRESENCE_TIMEOUT, Relay
from statemachine.chat import Chat, Limits
from statemachine.step import FARTHEST
from statemachine.store import CallKey, OutboxMessage, Store, StoreUnavailableError
from statemachine.timers import TimerKind, open_timer

log = logging.getLogger(__name__)

FACT_STREAMS: Final = frozenset({IN.name, JOB.name, STATE.name, RESULT.name, TIMER.name})
"""Streams whose loss means that senders have to publish their facts again.

Presence is not among them: it is kept in memory, and lost in every restart. The log may lose its end.
"""
RESTORE_STREAMS: Final = frozenset({IN.name, JOB.name})
"""Streams that count as lost after a restore: the database forgot what it took from them or put there."""
ASK_COUNT: Final = 4
"""How often senders are asked: one that reconnects later than this worker would miss a single request."""
RECONNECT_SECONDS: Final = 2.0
"""The time that senders have to reconnect before they are asked the second time; it doubles each time."""
_STREAM_OF_LANE: Final = {
    Lane.STATE: STATE.name,
    Lane.JOB: JOB.name,
    Lane.TIMER: TIMER.name,
    Lane.RESULT: RESULT.name,
    Lane.PRESENCE: PRESENCE.name,
}
T = TypeVar("T")


@dataclass(slots=True)
class Republisher:
    """Publishes from the database what streams lost. Repeating it, also concurrently, does no harm."""

    store: Store
    bus: Bus
    relay: Relay
    limits: Limits
    watch: StreamWatch
    reconciler: RestoreReconciler
    skew: ClockSkew
    _restored: bool = field(default=False)
    """A chat in the database was found to be older than its published state."""

    async def prepare(self, *, made: Callable[[], None] = lambda: None) -> frozenset[str]:
        """Create streams, consumers and timers as the database has them, and publish again what was lost.

        Calls `made` as soon as the worker can begin: publishing again may take long, and nothing waits for it.
        Returns the streams that lost something, in NATS or by a restore of the database.
        Raises BusError, StoreUnavailableError; then it has to be called again.
        """
        restored, self._restored = self._restored, False
        try:
            return await self._prepare(made, restored=restored)
        except BaseException:
            self._restored |= restored
            raise

    async def _prepare(self, made: Callable[[], None], *, restored: bool) -> frozenset[str]:
        lost = await self.watch.find_losses()
        await self.relay.ensure_pools(await self.store.templates.pools())
        origin, suffix = await self.store.recovery.origin(), ""
        if restored or origin.differs:
            await self.reconciler.run()
            lost |= RESTORE_STREAMS
            suffix = f":{origin.current}"
        made()
        await self._arm_timers(await self.skew.measure())
        suspect_since = self.watch.suspect_since
        if lost:
            await self._publish_again({name: self.watch.token(name) + suffix for name in lost})
        if suspect_since is not None:
            await self._publish_missing(suspect_since, lost)
        # The loss of requests stays marked until senders were asked: if this worker dies, others ask them.
        if lost & FACT_STREAMS:
            await self.watch.accept(*(s.name for s in STREAMS if s is not IN))
        else:
            await self.watch.accept()
        await self.watch.record_server()
        if origin.differs:
            await self.store.recovery.record_origin(origin.current)
        return lost

    async def check_for_restore(self, chat_ids: frozenset[str] | set[str]) -> bool:
        """Return whether one of the chats is older than its published state; `prepare` then mends that.

        Raises BusError, StoreUnavailableError.
        """
        if not chat_ids or not await self.reconciler.is_behind(chat_ids):
            return False
        log.error("a published state is newer than the database: the database was restored")
        self._restored = True
        return True

    async def ask_senders(self) -> None:
        """Ask all provisioners and agents for their newest facts, and record that they were asked."""
        backoff = Backoff(first=RECONNECT_SECONDS, limit=8 * RECONNECT_SECONDS)
        for _ in range(ASK_COUNT):
            try:
                for subject in (subjects.RESEND_PROVISIONER, subjects.RESEND_AGENT):
                    await self.bus.send(subject, b"{}")
            except BusError as error:
                log.warning("senders could not be asked for their facts: %s", error)
            await backoff.wait()
        try:
            await self.watch.accept(IN.name)
        except StoreUnavailableError as error:
            log.warning("not recorded that senders were asked; they will be asked again: %s", error)

    async def _publish_again(self, lost: Mapping[str, str]) -> None:
        """Publish what the streams held, under message ids that end with the token of the stream's loss."""
        counts = {
            "states": await self._states(lost[STATE.name]) if STATE.name in lost else 0,
            "jobs": await self._jobs(lost[JOB.name]) if JOB.name in lost else 0,
            "answers": await self._answers(lost[RESULT.name]) if RESULT.name in lost else 0,
            "presence messages": await self._agents() if PRESENCE.name in lost else 0,
            # The events that led to these rows would have been redelivered, but may be lost.
            "outbox rows": await self._outbox(lost) if lost.keys() & FACT_STREAMS else 0,
        }
        summary = ", ".join(f"{what}: {count}" for what, count in counts.items() if count)
        log.info("published again from the database: %s", summary or "nothing")

    async def _publish_missing(self, since: datetime, lost: AbstractSet[str]) -> None:
        """Publish what changed since a time and the streams do not hold, after NATS was started again.

        Streams in `lost` were published again completely. Timers are armed again in any case. Jobs and events are
        written to the disk before NATS acknowledges them.
        """
        states = answers = 0
        if STATE.name not in lost:
            states = await self._states(self.watch.token(STATE.name), since=since)
        if RESULT.name not in lost:
            answers = await self._answers(self.watch.token(RESULT.name), since=since)
        log.info(
            "NATS was started again: checked the states of %d chats and %d answers since %s",
            states,
            answers,
            since.isoformat(timespec="seconds"),
        )

    async def _arm_timers(self, now: datetime) -> None:
        async for chats in _pages(self.store.chats.with_timers, _chat_id):
            timers = [
                (c.chat_id, k, open_timer(c, k, self.limits)) for c in chats for k in TimerKind
            ]
            await self.relay.publish(
                [
                    publications.timer(
                        chat_id, kind, timer.generation, min(timer.at, now + FARTHEST)
                    )
                    for chat_id, kind, timer in timers
                    if timer
                ]
            )

    async def _states(self, token: str, *, since: datetime | None = None) -> int:
        count, now = 0, datetime.now(UTC)
        async for chats in _pages(
            partial(self.store.recovery.published_chats, since=since), _chat_id
        ):
            rows = [publications.state(chat, None, now) for chat in chats]
            renamed = [_renamed(row, token) for row in rows]
            if since is None:
                await self.relay.publish_lost_states(renamed)
            else:  # most are there: read before publishing
                await self.relay.publish(renamed)
            count += len(chats)
        return count

    async def _jobs(self, token: str) -> int:
        count, until = 0, self._jobs_until()
        async for jobs in _pages(self.store.recovery.jobs, lambda job: job[0].build_id):
            rows = [
                OutboxMessage(job.chat_id, Lane.JOB, job.subject, job.build_id, job.payload)
                for job, chat in jobs
                if chat.expects_end_of(job.build_id)
            ]
            await self.relay.publish([_renamed(row, token) for row in rows], jobs_until=until)
            count, until = count + len(rows), self._jobs_until()
        return count

    async def _answers(self, token: str, *, since: datetime | None = None) -> int:
        count, now = 0, datetime.now(UTC)
        async for calls in _pages(
            partial(self.store.recovery.answered_calls, since=since),
            lambda stored: CallKey(stored.call.chat_id, stored.call.call_id),
        ):
            rows = [
                publications.result(
                    c.chat_id, c.call_id, c.tool, answer, None, now, f"{c.chat_id}:{c.call_id}"
                )
                for c, answer in ((stored.call, stored.answer) for stored in calls)
                if answer is not None
            ]
            missing = rows if since is None else await self.relay.missing_answers(rows)
            await self.relay.publish([_renamed(row, token) for row in missing])
            count += len(rows)
        return count

    async def _agents(self) -> int:
        count = 0
        async for chats in _pages(self.store.recovery.chats_with_agents, _chat_id):
            agents = {(c.chat_id, facts.id) for c in chats for facts in c.agents if facts.connected}
            await self.relay.expect_presence(agents, PRESENCE_TIMEOUT)
            count += len(agents)
        return count

    async def _outbox(self, lost: Mapping[str, str]) -> int:
        count, until = 0, self._jobs_until()
        async for rows in _pages(self.store.recovery.outbox, lambda row: row.id):
            # Other workers may be publishing these rows now. So a row gets a new message id only if its stream
            # lost something; that of a job is then the same as in `_jobs`.
            renamed = [_renamed(row, lost.get(_STREAM_OF_LANE[Lane(row.lane)])) for row in rows]
            await self.relay.publish(renamed, jobs_until=until)
            await self.store.delete_published([row.id for row in rows])
            count, until = count + len(rows), self._jobs_until()
        return count

    def _jobs_until(self) -> float:
        """Return until when jobs that are read from now on may be published, by `clock`."""
        return clock() + self.watch.tuning.duplicate_window


async def _pages(
    page: Callable[..., Awaitable[Sequence[T]]], key: Callable[[T], Any]
) -> AsyncIterator[Sequence[T]]:
    """Yield all pages of a list in the store; `key` is what the method sorts by."""
    found = await page()
    while found:
        yield found
        found = await page(after=key(found[-1]))


def _chat_id(chat: Chat) -> str:
    return chat.chat_id


def _renamed(row: OutboxMessage, token: str | None) -> OutboxMessage:
    """Return a row under a message id that the stream has not seen, if the stream lost something."""
    return row if token is None else replace(row, message_id=f"{row.message_id}:{token}")
