"""What NATS lost is published again from the database: it carries, PostgreSQL is the truth.

What a worker had in hand is void by then: the bus drops acks for a server that was replaced. Only
requests that NATS had taken and no worker had applied are lost; callers ask again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from bus import Bus, BusError, subjects
from bus.backoff import Backoff
from bus.streams import IN, JOB, PRESENCE, RESULT, STATE, STREAMS, TIMER
from handlers.clock import clock
from handlers.worker import effects
from handlers.worker.chat import FARTHEST
from handlers.worker.clocks import read_clocks
from handlers.worker.effects import Lane
from handlers.worker.relay import ABSENT, Relay
from handlers.worker.restore import Reconciliation
from handlers.worker.stream_watch import Watch
from statemachine.chat import Chat, Limits
from statemachine.store import CallKey, OutboxMessage, Store, StoreUnavailableError
from statemachine.timers import TimerKind, open_timer

log = logging.getLogger(__name__)

CARRIERS: Final = frozenset({IN.name, JOB.name, STATE.name, RESULT.name, TIMER.name})
"""Streams whose loss means that senders must be asked what they had said.

Presence is kept in memory, so it is lost with each restart; the log may lose its tail.
"""
FORGOTTEN: Final = frozenset({IN.name, JOB.name})
"""Streams of which a restored database has forgotten what it had taken from them, or given them."""
ASKED: Final = 4
"""How often senders are asked: who finds NATS again later than we do would miss it."""
RECONNECTS: Final = 2.0
"""Seconds that others may take to find NATS again; doubled from one asking to the next."""
_CARRIES: Final = {
    Lane.STATE: STATE.name,
    Lane.JOB: JOB.name,
    Lane.TIMER: TIMER.name,
    Lane.RESULT: RESULT.name,
    Lane.PRESENCE: PRESENCE.name,
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Recovery:
    """Publishes from the database what streams lost; done twice, or by several, it does no harm."""

    store: Store
    bus: Bus
    relay: Relay
    limits: Limits
    watch: Watch

    async def prepare(
        self, *, restored: bool = False, made: Callable[[], None] = lambda: None
    ) -> frozenset[str]:
        """Make streams, consumers and timers as the database has them, and what was lost again.

        `restored`: a chat has shown that the database went back. `made` is called as soon as there
        is what to work with: what is published again takes its time, and nobody needs to wait for it.
        Returns the streams that lost something, be it to the bus or to the database.
        Raises BusError, StoreUnavailableError.
        """
        lost = await self.watch.look()
        await self.relay.ensure_pools(await self.store.templates.pools())
        origin, more = await self.store.recovery.origin(), ""
        if restored or origin.differs:
            await self.reconciliation.run()
            lost |= FORGOTTEN
            more = f":{origin.current}"
        made()
        clocks = await read_clocks(self.store, self.bus)
        self.relay.ahead = clocks.ahead
        await self._arm(clocks.now)
        if lost:
            await self._recover({name: self.watch.token(name) + more for name in lost})
        # Of the requests it is in doubt until senders were asked: who dies meanwhile leaves that to others.
        if lost & CARRIERS:
            await self.watch.accept(*(s.name for s in STREAMS if s is not IN))
        else:
            await self.watch.accept()
        if origin.differs:
            await self.store.recovery.record_origin(origin.current)
        return lost

    @property
    def reconciliation(self) -> Reconciliation:
        """What is done when the database went back."""
        return Reconciliation(self.store, self.bus, self.relay, self.limits, self.watch)

    async def ask(self) -> None:
        """Have all senders publish their newest facts again, and note that they were asked."""
        backoff = Backoff(first=RECONNECTS, limit=8 * RECONNECTS)
        for _ in range(ASKED):
            try:
                for subject in (subjects.RESEND_PROVISIONER, subjects.RESEND_AGENT):
                    await self.bus.send(subject, b"{}")
            except BusError as bad:
                log.warning("senders could not be asked for their facts: %s", bad)
            await backoff.wait()
        try:
            await self.watch.accept(IN.name)
        except StoreUnavailableError as bad:
            log.warning("that senders were asked is not noted, they will be again: %s", bad)

    async def _recover(self, lost: Mapping[str, str]) -> None:
        """Publish what `lost` streams held, under names that they don't know for their tokens."""
        counts = {
            "states": await self._states(lost[STATE.name]) if STATE.name in lost else 0,
            "jobs": await self._jobs(lost[JOB.name]) if JOB.name in lost else 0,
            "answers": await self._answers(lost[RESULT.name]) if RESULT.name in lost else 0,
            "agents to show themselves": await self._agents() if PRESENCE.name in lost else 0,
            # What brought these would have come again, if it was not lost.
            "left over": await self._left_over(lost) if lost.keys() & CARRIERS else 0,
        }
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        log.info("published again from the database: %s", told or "nothing")

    async def _arm(self, now: datetime) -> None:
        async for chats in _pages(self.store.chats.with_timers, _chat_id):
            open_ = [
                (c.chat_id, p, open_timer(c, p, self.limits)) for c in chats for p in TimerKind
            ]
            await self.relay.publish(
                [
                    effects.timer(c, p, w.generation, min(w.at, now + FARTHEST))
                    for c, p, w in open_
                    if w
                ]
            )

    async def _states(self, token: str) -> int:
        count, now = 0, datetime.now(UTC)
        async for chats in _pages(self.store.recovery.published_chats, _chat_id):
            rows = [effects.state(chat, None, now) for chat in chats]
            await self.relay.again([_renamed(row, token) for row in rows])
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

    async def _answers(self, token: str) -> int:
        count, now = 0, datetime.now(UTC)
        async for calls in _pages(
            self.store.recovery.answered_calls, lambda s: CallKey(s.call.chat_id, s.call.call_id)
        ):
            rows = [
                effects.result(c.chat_id, c.call_id, c.tool, answer, None, now, _name(c))
                for c, answer in ((stored.call, stored.answer) for stored in calls)
                if answer is not None
            ]
            await self.relay.publish([_renamed(row, token) for row in rows])
            count += len(rows)
        return count

    async def _agents(self) -> int:
        count = 0
        async for chats in _pages(self.store.recovery.chats_with_agents, _chat_id):
            there = {(c.chat_id, facts.id) for c in chats for facts in c.agents if facts.connected}
            await self.relay.expect(there, ABSENT)
            count += len(there)
        return count

    async def _left_over(self, lost: Mapping[str, str]) -> int:
        count, until = 0, self._jobs_until()
        async for rows in _pages(self.store.recovery.outbox, lambda row: row.id):
            # Others may be publishing them right now: only a stream that lost something gets new
            # names, of jobs the same as from `_jobs`.
            named = [_renamed(row, lost.get(_CARRIES[Lane(row.lane)])) for row in rows]
            await self.relay.publish(named, jobs_until=until)
            await self.store.delete_published([row.id for row in rows])
            count, until = count + len(rows), self._jobs_until()
        return count

    def _jobs_until(self) -> float:
        """Return until when jobs may be published of what is read from now on, by `clock`."""
        return clock() + self.watch.tuning.duplicate_window


async def _pages(
    page: Callable[..., Awaitable[Sequence[T]]], key: Callable[[T], Any]
) -> AsyncIterator[Sequence[T]]:
    found = await page()
    while found:
        yield found
        found = await page(after=key(found[-1]))


def _chat_id(chat: Chat) -> str:
    return chat.chat_id


def _name(call: Any) -> str:
    return f"{call.chat_id}:{call.call_id}"


def _renamed(row: OutboxMessage, token: str | None) -> OutboxMessage:
    """Return a row under a name that the duplicate window doesn't know, if its stream lost something."""
    return row if token is None else replace(row, message_id=f"{row.message_id}:{token}")
