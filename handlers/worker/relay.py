"""The relay: publishes what was committed, so that being late or twice does no harm.

STATE carries the expected last sequence, so an older state never stands over a newer one; jobs and
results repeat under the same name with the same data; timers have their generation in the subject.
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
from datetime import timedelta
from typing import Final

from bus import (
    BATCH_LIMIT,
    BATCH_WORTHWHILE,
    CLOUDEVENT,
    Bus,
    Conflict,
    PubAck,
    Refused,
    Scheduled,
    StoredMessage,
    Unavailable,
    subjects,
)
from bus import BatchMessage as Message
from bus.streams import PRESENCE, STATE, pool_consumer
from handlers.clock import clock
from handlers.worker import effects
from handlers.worker.chains import chains_of, parts_of
from handlers.worker.dead_letters import headers_of
from handlers.worker.deliveries import Dead
from handlers.worker.effects import Lane
from handlers.worker.publish_gate import Certainty
from statemachine.store import OutboxMessage

log = logging.getLogger(__name__)

ABSENT: Final = 30.0
"""Seconds within which an agent that workers believe to be there must show itself."""
_REMEMBERED: Final = 10_000


class Relay:
    """Publishes over one connection."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._last: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Version and place of the last state, by subject, as far as this relay knows."""
        self._pools: set[str] = set()
        self.places: dict[str, int] = {}
        """The last place that each stream has told."""
        self.certainty = Certainty()
        self.ahead = timedelta(0)
        """What the bus's clock shows more than the database's."""

    async def publish(
        self, rows: Sequence[OutboxMessage], *, jobs_until: float = math.inf
    ) -> set[str]:
        """Publish `rows`, kind by kind; all are stored when this returns. Raises BusError.

        Jobs until then by `clock`: later nobody would know another's by its message id.
        Returns the chats of which a state stood there that was not older than one of `rows`.
        """
        lanes: dict[int, list[OutboxMessage]] = {}
        for row in rows:
            lanes.setdefault(row.lane, []).append(row)
        newer: set[str] = set()
        await _all(
            [
                self._states(lanes.get(Lane.STATE, []), newer),
                self._many([self._by_the_bus(r) for r in lanes.get(Lane.TIMER, [])], self._timer),
            ]
        )
        # Who has a job or an answer never reads an older state.
        await _all(
            [
                self._jobs(lanes.get(Lane.JOB, []), jobs_until),
                self._many(lanes.get(Lane.RESULT, []), self._result),
                *(self._expect(row.subject, ABSENT) for row in lanes.get(Lane.PRESENCE, [])),
            ]
        )
        return newer

    async def again(self, states: Sequence[OutboxMessage]) -> None:
        """Publish states that their stream may have lost. Raises BusError."""
        for row in states:  # nothing stands there; where something does, it is looked at
            self._last[row.subject] = 0, 0
        await self._states(states, set())

    async def expect(self, agents: Iterable[tuple[str, str]], patience: float) -> None:
        """Put a sign of life for each (chat, agent) that shows none, good for `patience` seconds.

        So its absence is noticed. Raises BusError.
        """
        await _all(self._expect(subjects.presence(*agent), patience) for agent in agents)

    async def bury(self, dead: Iterable[Dead]) -> None:
        """Publish dead letters: the body as it was, and why. Raises BusError."""
        await _all(self._dead(letter) for letter in dead)

    async def ensure_pools(self, pools: Iterable[str]) -> None:
        """Make the consumers that provisioners of `pools` take their jobs from. Raises BusError."""
        for pool in set(pools) - self._pools:
            await self._bus.ensure_consumer(pool_consumer(pool))
            self._pools.add(pool)

    async def silent(self, chat_id: str, agent_id: str) -> bool:
        """Say whether nothing shows that the agent lives. Raises BusError."""
        last = await self._bus.get_last(PRESENCE.name, subjects.presence(chat_id, agent_id))
        return last is None or last.is_delete_marker

    def forget(self) -> None:
        """Drop what is remembered of the streams: they may be others after a reconnect."""
        self._last.clear()
        self._pools.clear()

    async def _jobs(self, rows: Sequence[OutboxMessage], until: float) -> None:
        if not rows:
            return
        await self.ensure_pools({_pool(row) for row in rows})
        if clock() > until:
            raise Unavailable("paused over builds to be asked for: others may have asked meanwhile")
        await self._many(rows, self._job)

    async def _states(self, rows: Sequence[OutboxMessage], newer: set[str]) -> None:
        """Publish versions, each chat's oldest first: many chats at once, or each by itself.

        Adds to `newer` the chats of which a state stood there that was not older.
        """
        alone: list[Sequence[OutboxMessage]] = []
        many: list[list[OutboxMessage]] = []
        for chain in chains_of(rows):
            follows = self._expected(chain[0]) is not None and len(chain) <= BATCH_LIMIT
            (many if follows else alone).append(chain)
        for part in parts_of(many):
            if sum(map(len, part)) < BATCH_WORTHWHILE or not await self._chains_together(part):
                alone += part
        await _all(self._chain(chain, newer) for chain in alone)

    async def _chains_together(self, chains: Sequence[Sequence[OutboxMessage]]) -> bool:
        """Publish versions of many chats at once, each first one where it is expected to follow."""
        self.certainty.check()
        places = [self._expected(chain[0]) for chain in chains]
        if None in places:  # forgotten meanwhile
            return False
        acks = await self._bus.publish_batch(
            [
                _message(row, place if row is chain[0] else None)
                for chain, place in zip(chains, places, strict=True)
                for row in chain
            ]
        )
        if acks is None:
            return False
        for row, ack in zip((row for chain in chains for row in chain), acks, strict=True):
            self._remember(row.subject, row.version or 0, ack.sequence)
        self._placed(acks[-1])
        return True

    def _expected(self, row: OutboxMessage) -> int | None:
        """Return the place of the state that `row` follows, if it is known and older."""
        version, place = self._last.get(row.subject, (0, 0 if row.version == 1 else None))
        return place if version < (row.version or 0) else None

    async def _many(
        self, rows: Sequence[OutboxMessage], one: Callable[[OutboxMessage], Awaitable[None]]
    ) -> None:
        """Publish rows of one stream: many at once, or each by itself."""
        for start in range(0, len(rows), BATCH_LIMIT):
            part = rows[start : start + BATCH_LIMIT]
            acks = None
            self.certainty.check()
            if len(part) >= BATCH_WORTHWHILE:
                acks = await self._bus.publish_batch([_message(row) for row in part])
            if acks is None:
                await _all(one(row) for row in part)
            else:
                self._placed(acks[-1])

    async def _chain(self, chain: Sequence[OutboxMessage], newer: set[str]) -> None:
        for row in chain:
            if not await self._state(row):
                newer.add(row.chat_id)

    async def _state(self, row: OutboxMessage) -> bool:
        """Publish a state, unless one that is not older stands there; say whether."""
        version = row.version or 0
        newest, expected = self._last.get(row.subject, (0, 0 if version == 1 else None))
        while True:
            if expected is None:
                last = await self._bus.get_last(STATE.name, row.subject)
                newest, expected = (_version(last), last.sequence) if last else (0, 0)
                self._remember(row.subject, newest, expected)
            if newest >= version:  # left over by who died, or the database was restored
                return False
            self.certainty.check()
            try:
                ack = await self._bus.publish(
                    row.subject,
                    row.payload,
                    headers=CLOUDEVENT,
                    message_id=row.message_id,
                    expected_last=expected,
                )
            except Conflict:
                expected = None
                continue
            self._placed(ack)
            self._remember(row.subject, version, ack.sequence)
            return True

    def _remember(self, subject: str, version: int, sequence: int) -> None:
        self._last[subject] = version, sequence
        self._last.move_to_end(subject)
        if len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)

    def _by_the_bus(self, row: OutboxMessage) -> OutboxMessage:
        """Return a timer's row with the time that the bus's clock shows when it is to fire."""
        if row.due is None:
            return row
        return replace(row, due=effects.in_milliseconds(row.due + self.ahead))

    async def _timer(self, row: OutboxMessage) -> None:
        if row.due is None:
            raise ValueError(f"timer {row.subject} has no time")
        fires_on = subjects.fires_on(row.subject)
        self.certainty.check()
        self._placed(await self._bus.schedule(row.subject, fires_on, row.due, row.payload))

    async def _expect(self, subject: str, patience: float) -> None:
        last = await self._bus.get_last(PRESENCE.name, subject)
        if last is not None and not last.is_delete_marker:
            return
        with suppress(Conflict):  # it has just shown itself
            place = last.sequence if last is not None else 0
            await self._bus.publish(subject, b"{}", ttl=patience, expected_last=place)

    async def _job(self, row: OutboxMessage) -> None:
        try:
            await self._plain(row)
        except Refused as no:  # again and again it would hold up its neighbours; the limit answers
            log.error(  # noqa: TRY400 — the server's words are all there is to say
                "build %s of chat %s can't be asked for: %s", row.message_id, row.chat_id, no
            )

    async def _result(self, row: OutboxMessage) -> None:
        try:
            await self._plain(row)
        except Refused as no:
            log.error("answer %s is not taken: %s", row.message_id, no)  # noqa: TRY400
            body = effects.instead(row.payload, f"the answer can't be sent: {no}")
            await self._plain(replace(row, payload=body, message_id=f"{row.message_id}:instead"))

    async def _plain(self, row: OutboxMessage) -> None:
        self.certainty.check()
        ack = await self._bus.publish(
            row.subject, row.payload, headers=CLOUDEVENT, message_id=row.message_id
        )
        self._placed(ack)

    def _placed(self, ack: PubAck) -> None:
        self.places[ack.stream] = max(self.places.get(ack.stream, 0), ack.sequence)

    async def _dead(self, letter: Dead) -> None:
        log.warning(
            "dead letter of %s: %s: %s",
            letter.subject,
            letter.rejected.reason,
            letter.rejected.detail,
            extra={"chat_id": letter.chat_id},
        )
        subject = subjects.dead(letter.kind)
        await self._bus.publish(subject, letter.data, headers=headers_of(letter))


def _message(row: OutboxMessage, expected: int | None = None) -> Message:
    """Return a row as the bus takes it."""
    if row.due is None:
        return Message(row.subject, row.payload, CLOUDEVENT, row.message_id, expected)
    fires = Scheduled(subjects.fires_on(row.subject), row.due)
    return Message(row.subject, row.payload, scheduled=fires)


def _pool(row: OutboxMessage) -> str:
    return row.subject.rsplit(".", 1)[1]


def _version(last: StoredMessage) -> int:
    """Read the version of a published state; anything else that stands there is older."""
    try:
        return int(json.loads(last.data)["data"]["version"])
    except (ValueError, KeyError, TypeError):
        return 0


async def _all(jobs: Iterable[Awaitable[None]]) -> None:
    """Run all to their end, then raise the first error: nothing goes on behind the caller's back."""
    pending = list(jobs)
    if len(pending) == 1:
        await pending[0]
        return
    for result in await asyncio.gather(*pending, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
