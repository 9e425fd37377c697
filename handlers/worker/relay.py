"""Publishes the outbox rows of committed transactions. A row may be published late or twice.

A state is published with the expected last sequence of its subject, so an older state never
replaces a newer one. Jobs and results have the same message id and data when they are published
again. The subject of a timer contains its generation, so an outdated timer is recognized.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

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
from bus.streams import PRESENCE, RESULT, STATE, pool_consumer
from handlers.runtime import clock
from handlers.worker import publications
from handlers.worker.clock_skew import ClockSkew
from handlers.worker.deliveries import Dead, dead_letter_headers
from handlers.worker.publications import Lane
from handlers.worker.publish_gate import PublishGate
from statemachine.store import OutboxMessage

log = logging.getLogger(__name__)

PRESENCE_TIMEOUT: Final = 30.0
"""Seconds within which an agent that counts as connected must renew its presence message."""
_INSTEAD: Final = ":instead"
"""The end of the message id of an error that replaces an answer."""
_REMEMBERED_STATES: Final = 10_000
"""Maximum number of subjects whose last state a relay remembers."""


class Relay:
    """Publishes outbox rows over one NATS connection."""

    def __init__(self, bus: Bus, gate: PublishGate, skew: ClockSkew) -> None:
        self._bus, self._gate, self._skew = bus, gate, skew
        self._last: OrderedDict[str, tuple[int, int | None]] = OrderedDict()
        """Subject -> version and sequence of its last state, as far as this relay knows them.

        Without a sequence, the state has to be read.
        """
        self._pools: set[str] = set()
        """The pools whose consumers exist."""

    async def publish(
        self, rows: Sequence[OutboxMessage], *, jobs_until: float = math.inf
    ) -> set[str]:
        """Publish `rows` lane by lane. When this returns, NATS has stored all of them.

        `jobs_until` is a time of `clock` in seconds. Until then NATS discards a job that another
        worker has already published, because it has the same message id. After it, no job is
        published. Return the ids of the chats for which the stream already had a state that is not
        older than one of `rows`. Raises BusError, in particular Unavailable if there are jobs to
        publish after `jobs_until`.
        """
        lanes: dict[int, list[OutboxMessage]] = {}
        for row in rows:
            lanes.setdefault(row.lane, []).append(row)
        timers = [self._timer(row) for row in lanes.get(Lane.TIMER, ())]
        newer = await self._states(lanes.get(Lane.STATE, ()), timers)
        # Publish jobs and answers after the states, so that their receivers never read an older
        # state.
        jobs, answers = lanes.get(Lane.JOB, ()), lanes.get(Lane.RESULT, ())
        await self._jobs_and_answers(jobs, answers, jobs_until)
        await wait_for_all(
            self._expect_presence(row.subject, PRESENCE_TIMEOUT)
            for row in lanes.get(Lane.PRESENCE, ())
        )
        return newer

    async def publish_lost_states(self, states: Sequence[OutboxMessage]) -> None:
        """Publish states that the stream may have lost. Raises BusError."""
        for row in states:  # first expect an empty subject; after a conflict `_states` reads it
            self._last[row.subject] = 0, 0
        await self._states(states)

    async def missing_answers(self, answers: Sequence[OutboxMessage]) -> list[OutboxMessage]:
        """Return those of the answers whose subject has none in the stream. Raises BusError."""
        missing: list[OutboxMessage] = []

        async def look(row: OutboxMessage) -> None:
            if await self._bus.get_last(RESULT.name, row.subject) is None:
                missing.append(row)

        await wait_for_all(look(row) for row in answers)
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

    def forget(self) -> None:
        """Clear the cache of streams and consumers: after a reconnect they may be different."""
        self._last.clear()
        self._pools.clear()

    async def _states(
        self, states: Iterable[OutboxMessage], others: Sequence[Outbound] = ()
    ) -> set[str]:
        """Publish states, and other messages beside them.

        The states of one chat are published one after another, those of different chats side by side. Return the
        ids of the chats for which the stream already had a state that is not older.
        """
        newer: set[str] = set()
        for rows in publications.rounds_of(states) or [[]]:
            todo: Sequence[OutboxMessage] = rows
            while todo or others:
                known = await self._last_of(todo)
                newer |= {row.chat_id for row in todo if known[row.subject][0] >= _version(row)}
                todo = [row for row in todo if known[row.subject][0] < _version(row)]
                messages = [_message(row, known[row.subject][1]) for row in todo]
                results = await self._gate.publish_many([*messages, *others])
                todo, others = self._conflicting(todo, results), ()
        return newer

    def _conflicting(
        self, states: Sequence[OutboxMessage], results: Sequence[PubAck | BusError]
    ) -> list[OutboxMessage]:
        """Remember the published states; return those whose subject has another state than expected.

        Raises BusError if a message was not published for another reason.
        """
        conflicting: list[OutboxMessage] = []
        for row, result in zip(states, results, strict=False):
            if isinstance(result, PubAck):
                self._remember(row.subject, _version(row), result.sequence)
            elif isinstance(result, Conflict):
                self._last[row.subject] = 0, None
                conflicting.append(row)
        raise_first(result for result in results if not isinstance(result, Conflict))
        return conflicting

    async def _last_of(self, states: Sequence[OutboxMessage]) -> dict[str, tuple[int, int]]:
        """Return version and sequence of the last state of each chat. Read those that are not known."""
        known: dict[str, tuple[int, int]] = {}

        async def read(subject: str) -> None:
            last = await self._bus.get_last(STATE.name, subject)
            known[subject] = (_published_version(last), last.sequence) if last else (0, 0)
            self._remember(subject, *known[subject])

        unknown: list[str] = []
        for row in states:
            version, sequence = self._last.get(row.subject, (0, 0 if row.version == 1 else None))
            if sequence is None:
                unknown.append(row.subject)
            else:
                known[row.subject] = version, sequence
        await wait_for_all(read(subject) for subject in unknown)
        return known

    def _remember(self, subject: str, version: int, sequence: int) -> None:
        self._last[subject] = version, sequence
        self._last.move_to_end(subject)
        if len(self._last) > _REMEMBERED_STATES:
            self._last.popitem(last=False)

    def _timer(self, row: OutboxMessage) -> Outbound:
        """Return the message that arms a timer, at a time of the clock of NATS."""
        if row.due is None:
            raise ValueError(f"timer {row.subject} has no time")
        due = publications.in_milliseconds(row.due + self._skew.ahead)
        schedule = Schedule(subjects.fires_on(row.subject), due)
        return Outbound(row.subject, row.payload, schedule=schedule)

    async def _expect_presence(self, subject: str, timeout: float) -> None:  # noqa: ASYNC109
        last = await self._bus.get_last(PRESENCE.name, subject)
        if last is not None and not last.is_delete_marker:
            return
        with suppress(Conflict):  # the agent has just renewed it
            expected = last.sequence if last is not None else 0
            await self._bus.publish(subject, b"{}", ttl=timeout, expected_last=expected)

    async def _jobs_and_answers(
        self, jobs: Sequence[OutboxMessage], answers: Sequence[OutboxMessage], jobs_until: float
    ) -> None:
        if jobs:
            await self.ensure_pools({_pool(row) for row in jobs})
            if clock() > jobs_until:
                raise Unavailable(
                    "paused before publishing jobs: others may have published them meanwhile"
                )
        rows = [*jobs, *answers]
        while rows:
            results = await self._gate.publish_many([_message(row) for row in rows])
            raise_first(result for result in results if not isinstance(result, Refused))
            refused = [(r, e) for r, e in zip(rows, results, strict=True) if isinstance(e, Refused)]
            rows = [other for row, error in refused if (other := _instead(row, error)) is not None]

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


def _message(row: OutboxMessage, expected_last: int | None = None) -> Outbound:
    return Outbound(row.subject, row.payload, CLOUDEVENT, row.message_id, expected_last)


def _instead(row: OutboxMessage, error: Refused) -> OutboxMessage | None:
    """Return what to publish instead of a job or an answer that NATS refuses; None: nothing.

    Retrying would block the other rows. The limit of a build without a job ends its wait. Raises the error if NATS
    refuses what was to be published instead.
    """
    if row.lane == Lane.JOB:
        log.error(
            "the job of build %s of chat %s can't be published: %s",
            row.message_id,
            row.chat_id,
            error,
        )
        return None
    if row.message_id.endswith(_INSTEAD):
        raise error
    log.error("NATS refuses answer %s: %s", row.message_id, error)
    body = publications.instead(row.payload, f"the answer can't be sent: {error}")
    return replace(row, payload=body, message_id=f"{row.message_id}{_INSTEAD}")


def _version(row: OutboxMessage) -> int:
    return row.version or 0


def _pool(row: OutboxMessage) -> str:
    return row.subject.rsplit(".", 1)[1]


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
