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
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from bus import (
    BATCH_LIMIT,
    BATCH_WORTHWHILE,
    CLOUDEVENT,
    Bus,
    Conflict,
    Refused,
    Scheduled,
    StoredMessage,
    Unavailable,
    subjects,
)
from bus import BatchMessage as Message
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
_REMEMBERED_STATES: Final = 10_000
"""Maximum number of subjects whose last state a relay remembers."""


class Relay:
    """Publishes outbox rows over one NATS connection."""

    def __init__(self, bus: Bus, gate: PublishGate, skew: ClockSkew) -> None:
        self._bus, self._gate, self._skew = bus, gate, skew
        self._last: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Subject -> version and sequence of its last state, as far as this relay knows them."""
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
        newer: set[str] = set()
        await wait_for_all(
            [
                self._states(lanes.get(Lane.STATE, []), newer),
                self._many([self._in_bus_time(r) for r in lanes.get(Lane.TIMER, [])], self._timer),
            ]
        )
        # Publish jobs and answers after the states, so that their receivers never read an older
        # state.
        await wait_for_all(
            [
                self._jobs(lanes.get(Lane.JOB, []), jobs_until),
                self._many(lanes.get(Lane.RESULT, []), self._result),
                *(
                    self._expect_presence(row.subject, PRESENCE_TIMEOUT)
                    for row in lanes.get(Lane.PRESENCE, [])
                ),
            ]
        )
        return newer

    async def publish_lost_states(self, states: Sequence[OutboxMessage]) -> None:
        """Publish states that the stream may have lost. Raises BusError."""
        for row in states:  # first expect an empty subject; after a conflict `_state` reads it
            self._last[row.subject] = 0, 0
        await self._states(states, set())

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

    async def _jobs(self, rows: Sequence[OutboxMessage], until: float) -> None:
        if not rows:
            return
        await self.ensure_pools({_pool(row) for row in rows})
        if clock() > until:
            raise Unavailable(
                "paused before publishing jobs: others may have published them meanwhile"
            )
        await self._many(rows, self._job)

    async def _states(self, rows: Sequence[OutboxMessage], newer: set[str]) -> None:
        """Publish states, for each chat the oldest first: many chats in one batch, or each alone.

        Add to `newer` the ids of the chats for which the stream already had a state that is not
        older.
        """
        alone: list[Sequence[OutboxMessage]] = []
        many: list[list[OutboxMessage]] = []
        for chain in publications.chains_of(rows):
            follows = self._expected(chain[0]) is not None and len(chain) <= BATCH_LIMIT
            (many if follows else alone).append(chain)
        for part in publications.parts_of(many):
            if sum(map(len, part)) < BATCH_WORTHWHILE or not await self._publish_chains(part):
                alone += part
        await wait_for_all(self._chain(chain, newer) for chain in alone)

    async def _publish_chains(self, chains: Sequence[Sequence[OutboxMessage]]) -> bool:
        """Publish states of many chats in one batch; return False if none of them was stored."""
        expected = [self._expected(chain[0]) for chain in chains]
        if None in expected:  # `forget` was called after a reconnect
            return False
        acks = await self._gate.publish_batch(
            [
                _message(row, sequence if row is chain[0] else None)
                for chain, sequence in zip(chains, expected, strict=True)
                for row in chain
            ]
        )
        if acks is None:
            return False
        for row, ack in zip((row for chain in chains for row in chain), acks, strict=True):
            self._remember(row.subject, row.version or 0, ack.sequence)
        return True

    def _expected(self, row: OutboxMessage) -> int | None:
        """Return the sequence of the subject's last state if it is known and older than `row`."""
        version, sequence = self._last.get(row.subject, (0, 0 if row.version == 1 else None))
        return sequence if version < (row.version or 0) else None

    async def _many(
        self, rows: Sequence[OutboxMessage], one: Callable[[OutboxMessage], Awaitable[None]]
    ) -> None:
        """Publish rows of one stream: in batches, or each alone with `one`."""
        for start in range(0, len(rows), BATCH_LIMIT):
            part = rows[start : start + BATCH_LIMIT]
            acks = None
            if len(part) >= BATCH_WORTHWHILE:
                acks = await self._gate.publish_batch([_message(row) for row in part])
            if acks is None:
                await wait_for_all(one(row) for row in part)

    async def _chain(self, chain: Sequence[OutboxMessage], newer: set[str]) -> None:
        for row in chain:
            if not await self._state(row):
                newer.add(row.chat_id)

    async def _state(self, row: OutboxMessage) -> bool:
        """Publish a state; return False if its subject already has one that is not older."""
        version = row.version or 0
        newest, expected = self._last.get(row.subject, (0, 0 if version == 1 else None))
        while True:
            if expected is None:
                last = await self._bus.get_last(STATE.name, row.subject)
                newest, expected = (_version(last), last.sequence) if last else (0, 0)
                self._remember(row.subject, newest, expected)
            if newest >= version:  # published by a worker that then stopped, or before a restore
                return False
            try:
                ack = await self._gate.publish(
                    row.subject,
                    row.payload,
                    headers=CLOUDEVENT,
                    message_id=row.message_id,
                    expected_last=expected,
                )
            except Conflict:
                expected = None
                continue
            self._remember(row.subject, version, ack.sequence)
            return True

    def _remember(self, subject: str, version: int, sequence: int) -> None:
        self._last[subject] = version, sequence
        self._last.move_to_end(subject)
        if len(self._last) > _REMEMBERED_STATES:
            self._last.popitem(last=False)

    def _in_bus_time(self, row: OutboxMessage) -> OutboxMessage:
        """Return a timer's row with its time converted to the clock of NATS."""
        if row.due is None:
            return row
        return replace(row, due=publications.in_milliseconds(row.due + self._skew.ahead))

    async def _timer(self, row: OutboxMessage) -> None:
        if row.due is None:
            raise ValueError(f"timer {row.subject} has no time")
        await self._gate.schedule(row.subject, subjects.fires_on(row.subject), row.due, row.payload)

    async def _expect_presence(self, subject: str, timeout: float) -> None:  # noqa: ASYNC109
        last = await self._bus.get_last(PRESENCE.name, subject)
        if last is not None and not last.is_delete_marker:
            return
        with suppress(Conflict):  # the agent has just renewed it
            expected = last.sequence if last is not None else 0
            await self._bus.publish(subject, b"{}", ttl=timeout, expected_last=expected)

    async def _job(self, row: OutboxMessage) -> None:
        try:
            await self._plain(row)
        except Refused as error:  # retrying would block the other rows; the limit ends the build
            log.error(  # noqa: TRY400 — the server's message suffices
                "the job of build %s of chat %s can't be published: %s",
                row.message_id,
                row.chat_id,
                error,
            )

    async def _result(self, row: OutboxMessage) -> None:
        try:
            await self._plain(row)
        except Refused as error:
            log.error("NATS refuses answer %s: %s", row.message_id, error)  # noqa: TRY400
            body = publications.instead(row.payload, f"the answer can't be sent: {error}")
            await self._plain(replace(row, payload=body, message_id=f"{row.message_id}:instead"))

    async def _plain(self, row: OutboxMessage) -> None:
        await self._gate.publish(
            row.subject, row.payload, headers=CLOUDEVENT, message_id=row.message_id
        )

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


def _message(row: OutboxMessage, expected: int | None = None) -> Message:
    """Return the message of a row for a batch; `expected` is the expected last sequence."""
    if row.due is None:
        return Message(row.subject, row.payload, CLOUDEVENT, row.message_id, expected)
    fires = Scheduled(subjects.fires_on(row.subject), row.due)
    return Message(row.subject, row.payload, scheduled=fires)


def _pool(row: OutboxMessage) -> str:
    return row.subject.rsplit(".", 1)[1]


def _version(last: StoredMessage) -> int:
    """Return the version of a published state, or 0 if the message is not a state."""
    try:
        return int(json.loads(last.data)["data"]["version"])
    except (ValueError, KeyError, TypeError):
        return 0


async def wait_for_all(jobs: Iterable[Awaitable[None]]) -> None:
    """Wait until all `jobs` have ended, also after an error; then raise the first error."""
    pending = list(jobs)
    if len(pending) == 1:
        await pending[0]
        return
    for result in await asyncio.gather(*pending, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
