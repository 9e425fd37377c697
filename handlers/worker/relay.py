"""Publishes the messages of committed changes. A message may be published late or twice.

A state is published with the expected last sequence of its subject, so an older state never
replaces a newer one. Jobs and results have the same message id and data when they are published
again. An alarm that this worker has set is not set again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from msgspec import structs

from bus import (
    CLOUDEVENT,
    Bus,
    BusError,
    Conflict,
    Outbound,
    PubAck,
    Refused,
    Schedule,
    StoredMessage,
    Unavailable,
    subjects,
)
from bus.streams import JOB, PRESENCE, RESULT, STATE, pool_consumer
from handlers.runtime import clock
from handlers.worker import publications
from handlers.worker.clock_skew import ClockSkew
from handlers.worker.deliveries import Dead, dead_letter_headers
from handlers.worker.publications import Lane, Publication
from handlers.worker.publish_gate import PublishGate
from statemachine.store import StoredJob

log = logging.getLogger(__name__)

PRESENCE_TIMEOUT: Final = 30.0
"""Seconds within which an agent that counts as connected must renew its presence message."""
_REMEMBERED_ALARMS: Final = 50_000
"""Maximum number of alarms that a relay remembers to have scheduled."""
_SURELY_AHEAD: Final = 30.0
"""An alarm that is so many seconds ahead has not rung, even if it was published late or the clocks differ a little."""
_INSTEAD: Final = ":instead"
"""The end of the message id of an error that replaces an answer."""
_REMEMBERED_STATES: Final = 10_000
"""Maximum number of subjects whose last state a relay remembers."""


class Relay:
    """Publishes messages over one NATS connection."""

    def __init__(self, bus: Bus, gate: PublishGate, skew: ClockSkew) -> None:
        self._bus, self._gate, self._skew = bus, gate, skew
        self._last: OrderedDict[str, tuple[int, int | None]] = OrderedDict()
        """Subject -> version and sequence of its last state, as far as this relay knows them.

        Without a sequence, the state has to be read.
        """
        self.job_sequences: dict[str, int] = {}
        """Build id -> sequence in the stream of a job that was published and not yet recorded so."""
        self._pools: set[str] = set()
        """The pools whose consumers exist."""
        self._scheduled: OrderedDict[str, float] = OrderedDict()
        """Subject -> time of an alarm that this relay has set, in seconds of `clock`."""

    async def publish(
        self, messages: Sequence[Publication], *, jobs_until: float = math.inf
    ) -> set[str]:
        """Publish `messages` lane by lane. When this returns, NATS has stored all of them.

        `jobs_until` is a time of `clock` in seconds. Until then NATS discards a job that another
        worker has already published, because it has the same message id. After it, no job is
        published. Return the ids of the chats for which the stream already had a state that is not
        older than one of `messages`. Raises BusError, in particular Unavailable if there are jobs to
        publish after `jobs_until`.
        """
        lanes: dict[int, list[Publication]] = {}
        for message in messages:
            lanes.setdefault(message.lane, []).append(message)
        alarms = [alarm for alarm in lanes.get(Lane.ALARM, ()) if self._needs_schedule(alarm)]
        reconnects = self._gate.reconnects
        newer = await self._states(
            lanes.get(Lane.STATE, ()), [self._schedule(alarm) for alarm in alarms]
        )
        if self._gate.reconnects == reconnects:  # otherwise the server may have lost them
            self._remember_alarms(alarms)
        # Publish jobs and answers after the states, so that their receivers never read an older
        # state.
        after: list[Awaitable[None]] = []
        if jobs := lanes.get(Lane.JOB):
            after.append(self._publish_jobs(jobs, jobs_until))
        if answers := lanes.get(Lane.RESULT):
            after.append(self._publish_or_replace(answers))
        await wait_for_all(after)
        await wait_for_all(
            self._expect_presence(message.subject, PRESENCE_TIMEOUT)
            for message in lanes.get(Lane.PRESENCE, ())
        )
        for message in lanes.get(Lane.CANCEL, ()):
            await self._bus.send(message.subject, message.payload, headers=CLOUDEVENT)
        return newer

    async def publish_lost_states(self, states: Sequence[Publication]) -> None:
        """Publish states that the stream may have lost. Raises BusError."""
        for state in states:  # first expect an empty subject; after a conflict `_states` reads it
            self._last[state.subject] = 0, 0
        await self._states(states)

    async def missing_answers(self, answers: Sequence[Publication]) -> list[Publication]:
        """Return those of the answers that the stream does not hold. Raises BusError."""
        missing: list[Publication] = []

        async def look(answer: Publication) -> None:
            last = await self._bus.get_last(RESULT.name, answer.subject)
            if last is None or not publications.is_answered(answer.payload, last.data):
                missing.append(answer)

        await wait_for_all(look(answer) for answer in answers)
        return missing

    async def expect_presence(self, agents: Iterable[tuple[str, str]], timeout: float) -> None:  # noqa: ASYNC109
        """Publish a presence message for each (chat id, agent id) of `agents` that has none.

        The message expires after `timeout` seconds unless the agent renews it; its expiry shows
        that the agent is absent. Raises BusError.
        """
        await wait_for_all(
            self._expect_presence(subjects.presence(*agent), timeout) for agent in agents
        )

    async def publish_dead_letters(self, dead: Iterable[Dead]) -> None:
        """Publish dead letters, each with its unchanged body and the reason. Raises BusError."""
        await wait_for_all(self._dead_letter(letter) for letter in dead)

    async def ensure_pools(self, pools: Iterable[str]) -> None:
        """Create the consumers from which provisioners of `pools` pull jobs. Raises BusError."""
        for pool in set(pools) - self._pools:
            await self._bus.ensure_consumer(pool_consumer(pool))
            self._pools.add(pool)

    async def is_absent(self, chat_id: str, agent_id: str) -> bool:
        """Return whether an agent has no presence message. Raises BusError."""
        last = await self._bus.get_last(PRESENCE.name, subjects.presence(chat_id, agent_id))
        return last is None or last.is_delete_marker

    async def take_back_job(self, job: StoredJob) -> None:
        """Delete the job of a build that nobody needs any more from the stream, unless it is acked. Raises BusError."""
        if job.sequence is None:
            return
        found = await self._bus.get_next(JOB.name, job.subject, job.sequence - 1)
        # The stream may have been made anew since, with another message of that sequence.
        if found is not None and found.sequence == job.sequence and found.data == job.payload:
            await self._bus.delete_message(JOB.name, job.sequence)

    def forget(self) -> None:
        """Clear the cache of streams and consumers: after a reconnect they may be different."""
        self._last.clear()
        self._pools.clear()
        self._scheduled.clear()

    def forget_alarm(self, alarm: Publication) -> None:
        """Forget that an alarm was set: NATS rang it too early."""
        self._scheduled.pop(alarm.subject, None)

    async def _states(
        self, states: Iterable[Publication], others: Sequence[Outbound] = ()
    ) -> set[str]:
        """Publish states, and other messages beside them.

        The states of one chat are published one after another, those of different chats side by side. Return the
        ids of the chats for which the stream already had a state that is not older.
        """
        newer: set[str] = set()
        for round_ in publications.rounds_of(states) or [[]]:
            todo: Sequence[Publication] = round_
            while todo or others:
                known = await self._last_of(todo)
                newer |= {
                    state.chat_id for state in todo if known[state.subject][0] >= _version(state)
                }
                todo = [state for state in todo if known[state.subject][0] < _version(state)]
                outbound = [_outbound(state, known[state.subject][1]) for state in todo]
                results = await self._gate.publish_many([*outbound, *others])
                todo, others = self._conflicting(todo, results), ()
        return newer

    def _conflicting(
        self, states: Sequence[Publication], results: Sequence[PubAck | BusError]
    ) -> list[Publication]:
        """Remember the published states; return those whose subject has another state than expected.

        Raises BusError if a message was not published for another reason.
        """
        conflicting: list[Publication] = []
        for state, result in zip(states, results, strict=False):
            if isinstance(result, PubAck):
                self._remember(state.subject, _version(state), result.sequence)
            elif isinstance(result, Conflict):
                self._last[state.subject] = 0, None
                conflicting.append(state)
        raise_first(result for result in results if not isinstance(result, Conflict))
        return conflicting

    async def _last_of(self, states: Sequence[Publication]) -> dict[str, tuple[int, int]]:
        """Return version and sequence of the last state of each chat. Read those that are not known."""
        known: dict[str, tuple[int, int]] = {}

        async def read(subject: str) -> None:
            last = await self._bus.get_last(STATE.name, subject)
            known[subject] = (_published_version(last), last.sequence) if last else (0, 0)
            self._remember(subject, *known[subject])

        unknown: list[str] = []
        for state in states:
            version, sequence = self._last.get(
                state.subject, (0, 0 if state.version == 1 else None)
            )
            if sequence is None:
                unknown.append(state.subject)
            else:
                known[state.subject] = version, sequence
        await wait_for_all(read(subject) for subject in unknown)
        return known

    def _remember(self, subject: str, version: int, sequence: int) -> None:
        self._last[subject] = version, sequence
        self._last.move_to_end(subject)
        if len(self._last) > _REMEMBERED_STATES:
            self._last.popitem(last=False)

    def _needs_schedule(self, alarm: Publication) -> bool:
        """Return whether an alarm has to be scheduled: also one that this relay has scheduled and that may have rung."""
        return self._scheduled.get(alarm.subject, 0.0) < clock() + _SURELY_AHEAD

    def _remember_alarms(self, alarms: Iterable[Publication]) -> None:
        now = clock()
        for alarm in alarms:
            self._scheduled[alarm.subject] = now + alarm.lead
            self._scheduled.move_to_end(alarm.subject)
            if len(self._scheduled) > _REMEMBERED_ALARMS:
                self._scheduled.popitem(last=False)

    def _schedule(self, alarm: Publication) -> Outbound:
        """Return the message that schedules an alarm, at a time of the clock of NATS."""
        if alarm.due is None:
            raise ValueError(f"alarm {alarm.subject} has no time")
        due = publications.in_milliseconds(alarm.due + self._skew.ahead)
        return Outbound(alarm.subject, alarm.payload, schedule=Schedule(subjects.ALARM_RANG, due))

    async def _expect_presence(self, subject: str, timeout: float) -> None:  # noqa: ASYNC109
        last = await self._bus.get_last(PRESENCE.name, subject)
        if last is not None and not last.is_delete_marker:
            return
        with suppress(Conflict):  # the agent has just renewed it
            expected = last.sequence if last is not None else 0
            await self._bus.publish(subject, b"{}", ttl=timeout, expected_last=expected)

    async def _publish_jobs(self, jobs: Sequence[Publication], until: float) -> None:
        await self.ensure_pools({_pool(job) for job in jobs})
        if clock() > until:
            raise Unavailable(
                "paused before publishing jobs: others may have published them meanwhile"
            )
        await self._publish_or_replace(jobs, together=True)

    async def _publish_or_replace(
        self, messages: Sequence[Publication], *, together: bool = False
    ) -> None:
        """Publish messages; instead of those that NATS refuses, publish what `_instead` returns."""
        while messages:
            outbound = [_outbound(message) for message in messages]
            results = await self._gate.publish_many(outbound, together=together)
            self.job_sequences |= {
                message.build_id: ack.sequence
                for message, ack in zip(messages, results, strict=True)
                if message.lane == Lane.JOB and isinstance(ack, PubAck)
            }
            raise_first(result for result in results if not isinstance(result, Refused))
            refused = [
                (r, e) for r, e in zip(messages, results, strict=True) if isinstance(e, Refused)
            ]
            messages = [
                other
                for message, error in refused
                if (other := _instead(message, error)) is not None
            ]

    async def _dead_letter(self, letter: Dead) -> None:
        log.warning(
            "dead letter of %s: %s: %s",
            letter.subject,
            letter.rejected.reason,
            letter.rejected.detail,
            extra={"chat_id": letter.chat_id},
        )
        subject = subjects.dead(letter.kind)
        await self._bus.publish(subject, letter.data, headers=dead_letter_headers(letter))


def _outbound(message: Publication, expected_last: int | None = None) -> Outbound:
    return Outbound(message.subject, message.payload, CLOUDEVENT, message.message_id, expected_last)


def _instead(message: Publication, error: Refused) -> Publication | None:
    """Return what to publish instead of a job or an answer that NATS refuses; None: nothing.

    Retrying would block the other messages. The limit of a build without a job ends its wait. Raises the error if NATS
    refuses what was to be published instead.
    """
    if message.lane == Lane.JOB:
        log.error(
            "the job of build %s of chat %s can't be published: %s",
            message.message_id,
            message.chat_id,
            error,
        )
        return None
    if message.message_id.endswith(_INSTEAD):
        raise error
    log.error("NATS refuses answer %s: %s", message.message_id, error)
    body = publications.instead(message.payload, f"{publications.UNSENDABLE}: {error}")
    return structs.replace(message, payload=body, message_id=f"{message.message_id}{_INSTEAD}")


def _version(message: Publication) -> int:
    return message.version or 0


def _pool(message: Publication) -> str:
    return message.subject.rsplit(".", 1)[1]


def _published_version(last: StoredMessage) -> int:
    """Return the version of a published state, or 0 if the message is not a state."""
    try:
        return int(json.loads(last.data)["data"]["version"])
    except (ValueError, KeyError, TypeError):
        return 0


def raise_first(results: Iterable[PubAck | BusError]) -> None:
    """Raise the first error among the results of messages."""
    for result in results:
        if isinstance(result, BusError):
            raise result


async def wait_for_all(jobs: Iterable[Awaitable[None]]) -> None:
    """Wait until all `jobs` have ended, also after an error; then raise the first error."""
    pending = list(jobs)
    if len(pending) < 2:  # noqa: PLR2004
        for job in pending:
            await job
        return
    for result in await asyncio.gather(*pending, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
