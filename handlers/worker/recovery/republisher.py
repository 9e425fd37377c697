"""Publishes again, from the database, what NATS lost: PostgreSQL holds the truth, NATS only transports it.

After a loss the worker drops what it had in hand, because acks do not reach a server that was replaced. Only
requests that NATS had stored and no worker had applied are lost for good; their callers repeat them.
"""

from __future__ import annotations

import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

from msgspec import structs

from bus import Backoff, Bus, BusError, subjects
from bus.streams import IN, JOB, PRESENCE, RESULT, STATE, STREAMS, TIMER
from handlers.runtime import clock
from handlers.worker import publications
from handlers.worker.call_limits import retention
from handlers.worker.clock_skew import ClockSkew
from handlers.worker.publications import Lane, Publication
from handlers.worker.recovery.restore import RestoreReconciler
from handlers.worker.recovery.stream_watch import UNWRITTEN, StreamWatch
from handlers.worker.relay import PRESENCE_TIMEOUT, Relay
from statemachine.calls import StoredCall
from statemachine.chat import Chat, Limits
from statemachine.step import canceled_builds
from statemachine.store import CallKey, Store, StoredJob, StoreUnavailableError
from statemachine.timers import alarm_time, timers_of
from statemachine.workspace import Build

log = logging.getLogger(__name__)

FACT_STREAMS: Final = frozenset({IN.name, JOB.name, STATE.name, RESULT.name, TIMER.name})
"""Streams whose loss means that senders have to publish their facts again.

Presence is not among them: it is kept in memory, and lost in every restart. The log may lose its end.
"""
RESTORE_STREAMS: Final = frozenset({IN.name, JOB.name})
"""Streams that count as lost after a restore: the database forgot what it took from them or put there."""
ASK_COUNT: Final = 4
"""How often senders are asked: one that reconnects later than this worker would miss a single request."""
WRITING: Final = timedelta(seconds=10)
"""Longer than a worker takes from reading the settings to the end of its transaction."""
RECONNECT_SECONDS: Final = 2.0
"""The time that senders have to reconnect before they are asked the second time; it doubles each time."""
MISSING_PAGE: Final = 32
"""Number of chats whose messages are compared with NATS at once: each may have many answers."""
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
        """Create streams, consumers and alarms as the database has them, and publish again what was lost.

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
            await self.reconciler.run(self._publish_all_missing)
            lost |= RESTORE_STREAMS
            suffix = f":{origin.current}"
        made()
        now = await self.skew.measure()
        await self._set_alarms(now)
        tokens = {name: self.watch.token(name) + suffix for name in lost}
        # Job messages that were published before a restore have ids that NATS knows: they need new ones.
        jobs_token = tokens.get(JOB.name) if suffix else None
        if lost:
            await self._publish_again(tokens, jobs_token)
        since = self.watch.suspect_since
        if since is None and lost & FACT_STREAMS:
            since = now - UNWRITTEN  # what was committed, and not published when its event was lost
        if since is not None:
            await self._publish_missing_since(since, jobs_token)
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

    async def _publish_again(self, lost: Mapping[str, str], jobs_token: str | None = None) -> None:
        """Publish what the streams held, under message ids that end with the token of the stream's loss.

        Recent jobs end with `jobs_token`, or keep their ids: see `_jobs`.
        """
        counts = {
            "states": await self._states(lost[STATE.name]) if STATE.name in lost else 0,
            "jobs": await self._jobs(lost[JOB.name], jobs_token) if JOB.name in lost else 0,
            "answers": await self._answers(lost[RESULT.name]) if RESULT.name in lost else 0,
            "presence messages": await self._agents() if PRESENCE.name in lost else 0,
        }
        summary = ", ".join(f"{what}: {count}" for what, count in counts.items() if count)
        log.info("published again from the database: %s", summary or "nothing")

    async def _publish_missing_since(self, since: datetime, jobs_token: str | None) -> None:
        """Publish what follows from the chats that changed since a time, and NATS does not hold."""
        count = 0
        page = partial(self.store.recovery.changed_chats, since)
        async for chats in _pages(page, _chat_id):
            await self._publish_missing(chats, jobs_token)
            await self._publish_missing_answers([chat.chat_id for chat in chats], since)
            count += len(chats)
        log.info("checked %d chats, which changed since %s", count, since.isoformat(" ", "seconds"))

    async def publish_missing(self, chat_ids: AbstractSet[str]) -> None:
        """Publish what chats stand for and NATS does not hold, but for answers.

        Raises BusError, StoreUnavailableError.
        """
        for page in _slices(sorted(chat_ids)):
            await self._publish_missing(await self.store.chats.get_many(page))

    async def publish_missing_answers(self, chat_ids: AbstractSet[str]) -> None:
        """Publish answers to calls of chats that NATS does not hold, after `publish_missing`. Raises as that does."""
        for page in _slices(sorted(chat_ids)):
            await self._publish_missing_answers(page)

    async def _publish_all_missing(self, chat_ids: AbstractSet[str]) -> None:
        await self.publish_missing(chat_ids)
        await self.publish_missing_answers(chat_ids)

    async def _publish_missing(self, chats: Sequence[Chat], jobs_token: str | None = None) -> None:
        """Publish what chats stand for, as far as NATS does not hold it.

        That is the state of each chat, its next alarms, the presence of its agents, and the jobs of builds that nobody
        has begun.
        """
        now = await self.store.now()
        messages = _state_messages(chats, now)
        due = {alarm_time(at, now) for c in chats for at in timers_of(c, self.limits).values()}
        messages += [publications.alarm(at, now) for at in due]
        await self.relay.publish(messages)
        await self._expect_agents(chats)
        await self._publish_unpublished_jobs(chats, jobs_token)
        if canceled := [(chat.chat_id, one) for chat in chats for one in canceled_builds(chat)]:
            await self.take_back_jobs([chat_id for chat_id, _ in canceled])
            await self.relay.publish([publications.cancel(*one, now) for one in canceled])

    async def take_back_jobs(self, chat_ids: Sequence[str]) -> None:
        """Delete the jobs of chats' builds that were canceled before they began. Raises BusError, StoreUnavailableError.

        A provisioner that has one already learns of the cancel.
        """
        jobs = await self.store.recovery.unneeded_jobs(chat_ids)
        for job in jobs:
            await self.relay.take_back_job(job)
        if jobs:
            await self.store.recovery.mark_taken_back([job.build_id for job in jobs])

    async def mark_published(self, build_ids: Sequence[str]) -> None:
        """Record that jobs are published, and take back those that became unneeded meanwhile.

        Raises BusError, StoreUnavailableError.
        """
        sequences = {
            build_id: self.relay.job_sequences.pop(build_id, None) for build_id in build_ids
        }
        if unneeded := await self.store.recovery.mark_published(sequences):
            await self.take_back_jobs(sorted(unneeded))

    async def _publish_missing_answers(
        self, chat_ids: Sequence[str], since: datetime | None = None
    ) -> None:
        answers = await self.store.recovery.answers_of(chat_ids, since)
        shown = _answer_messages(answers, datetime.now(UTC))
        await self._publish_after_states(await self.relay.missing_answers(shown))

    async def _publish_after_states(self, answers: Sequence[Publication]) -> None:
        """Publish answers that were read from the database, each after the present state of its chat.

        Another batch may have committed an answer together with a newer state than the one published before.
        """
        if answers:
            chats = await self.store.chats.get_many(sorted({one.chat_id for one in answers}))
            await self.relay.publish([*_state_messages(chats, datetime.now(UTC)), *answers])

    async def _publish_unpublished_jobs(self, chats: Sequence[Chat], token: str | None) -> None:
        """Publish jobs that are not known to be published, of builds that nobody has begun."""
        until = self._jobs_until()
        open_ = {
            build.id
            for chat in chats
            for build in chat.builds()
            if build.begun_at is None and chat.may_begin(build.id)
        }
        found = await self.store.recovery.unpublished_jobs([chat.chat_id for chat in chats])
        if jobs := _job_messages(job for job in found if job.build_id in open_):
            await self.relay.publish([_renamed(job, token) for job in jobs], jobs_until=until)
            await self.mark_published([job.build_id for job in jobs])

    async def _set_alarms(self, now: datetime) -> None:
        async for times in _pages(self.store.recovery.alarm_times, lambda at: at):
            past, future = [at for at in times if at <= now], [at for at in times if at > now]
            # One message is enough for all that are due.
            await self.relay.publish([publications.alarm(at, now) for at in past[-1:] + future])
        await self.ring(now)

    async def ring(self, now: datetime) -> None:
        """Let a worker look now at the workspaces that rest, if they do not rest for ever. Raises as `prepare`.

        It looks once more later, because others may just be writing that a workspace rests: they do not know of a
        setting that was changed meanwhile.
        """
        if retention(await self.store.settings()) is None:
            return
        times = {alarm_time(at, now) for at in (now, now + WRITING)}
        await self.relay.publish([publications.alarm(at, now) for at in times])

    async def _states(self, token: str) -> int:
        count, now = 0, datetime.now(UTC)
        async for chats in _pages(self.store.recovery.published_chats, _chat_id):
            states = [_renamed(state, token) for state in _state_messages(chats, now)]
            await self.relay.publish_lost_states(states)
            count += len(chats)
        return count

    def _remembered(self, build: Build, now: datetime) -> timedelta:
        """Return how long NATS discards a build's job if it has stored it under the same message id.

        Not at all, if the clock was set back since the build was requested.
        """
        window = timedelta(seconds=self.watch.tuning.duplicate_window)
        left = build.started_at + window - now
        return left if left <= window else timedelta(0)

    async def _jobs(self, token: str, recent_token: str | None) -> int:
        """Publish the jobs of all open builds.

        Those of recent builds get `recent_token`, as `_publish_unpublished_jobs` publishes them too: NATS discards
        the second message.
        """
        count, until, now = 0, self._jobs_until(), await self.store.now()
        async for jobs in _pages(self.store.recovery.jobs, lambda job: job[0].build_id):
            open_ = [(job, chat) for job, chat in jobs if chat.may_begin(job.build_id)]
            recent = {
                build.id
                for _, chat in open_
                for build in chat.builds()
                if self._remembered(build, now) > timedelta(0)
            }
            messages = [
                _renamed(job, recent_token if job.message_id in recent else token)
                for job in _job_messages(job for job, _ in open_)
            ]
            await self.relay.publish(messages, jobs_until=until)
            await self.mark_published([job.build_id for job, _ in open_])
            count, until = count + len(messages), self._jobs_until()
        return count

    async def _answers(self, token: str) -> int:
        count, now = 0, datetime.now(UTC)
        async for calls in _pages(
            self.store.recovery.answered_calls,
            lambda stored: CallKey(stored.call.chat_id, stored.call.call_id),
        ):
            answers = _answer_messages(calls, now)
            await self._publish_after_states([_renamed(answer, token) for answer in answers])
            count += len(answers)
        return count

    async def _agents(self) -> int:
        count = 0
        async for chats in _pages(self.store.recovery.chats_with_agents, _chat_id):
            count += await self._expect_agents(chats)
        return count

    async def _expect_agents(self, chats: Sequence[Chat]) -> int:
        agents = {(c.chat_id, facts.id) for c in chats for facts in c.agents if facts.connected}
        await self.relay.expect_presence(agents, PRESENCE_TIMEOUT)
        return len(agents)

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


def _slices(chat_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(chat_ids), MISSING_PAGE):
        yield chat_ids[start : start + MISSING_PAGE]


def _chat_id(chat: Chat) -> str:
    return chat.chat_id


def _state_messages(chats: Iterable[Chat], now: datetime) -> list[Publication]:
    return [publications.state(chat, None, now) for chat in chats if chat.version]


def _job_messages(jobs: Iterable[StoredJob]) -> list[Publication]:
    return [Publication(j.chat_id, Lane.JOB, j.subject, j.build_id, j.payload) for j in jobs]


def _answer_messages(calls: Iterable[StoredCall], now: datetime) -> list[Publication]:
    return [
        publications.answered_again(stored.call, stored.answer, now)
        for stored in calls
        if stored.answer is not None
    ]


def _renamed(message: Publication, token: str | None) -> Publication:
    """Return a message under an id that the stream has not seen, if the stream lost something."""
    return (
        message
        if token is None
        else structs.replace(message, message_id=f"{message.message_id}:{token}")
    )
