"""The relay: publishes what was committed, so that being late or twice does no harm.

STATE carries the expected last sequence, so an older state never stands over a newer one; jobs and
results repeat under the same name with the same data; timers have their generation in the subject.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from bus import CLOUDEVENT, Bus, Conflict, Refused, Stored, subjects
from bus.streams import PRESENCE, STATE, pool_consumer
from handlers.worker import effects
from handlers.worker.effects import Lane
from handlers.worker.inbox import DETAIL_LIMIT, Dead
from statemachine.store import Outgoing

log = logging.getLogger(__name__)
_REMEMBERED: Final = 10_000
LETTER_LIMIT: Final = 1_000_000
"""Bytes of a dead letter's body and the headers that came with it: the server takes 1 MiB."""


class Relay:
    """Publishes over one connection."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._last: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Version and place of the last state, by subject, as far as this relay knows."""
        self._pools: set[str] = set()

    async def publish(self, rows: Sequence[Outgoing]) -> None:
        """Publish `rows`, kind by kind; all are stored when this returns. Raises BusError."""
        states: dict[str, list[Outgoing]] = {}
        for row in rows:
            if row.lane == Lane.STATE:
                states.setdefault(row.chat_id, []).append(row)
        await _all(self._states(chain) for chain in states.values())
        await _all(
            self._timer(row) if row.lane == Lane.TIMER else self._job(row)
            for row in rows
            if row.lane in (Lane.JOB, Lane.TIMER)
        )
        await _all(self._result(row) for row in rows if row.lane == Lane.RESULT)

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
        last = await self._bus.last(PRESENCE.name, subjects.presence(chat_id, agent_id))
        return last is None or last.expired

    def forget(self) -> None:
        """Drop what is remembered of the streams: they may be others after a reconnect."""
        self._last.clear()
        self._pools.clear()

    async def _states(self, chain: Sequence[Outgoing]) -> None:
        """Publish the versions of one chat, oldest first."""
        for row in sorted(chain, key=lambda row: row.version or 0):
            await self._state(row)

    async def _state(self, row: Outgoing) -> None:
        version = row.version or 0
        newest, expected = self._last.get(row.subject, (0, 0 if version == 1 else None))
        while True:
            if expected is None:
                last = await self._bus.last(STATE.name, row.subject)
                newest, expected = (_version(last), last.sequence) if last else (0, 0)
                self._remember(row.subject, newest, expected)
            if newest >= version:
                return  # left over by who died: a newer state stands there
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
            self._remember(row.subject, version, ack.sequence)
            return

    def _remember(self, subject: str, version: int, sequence: int) -> None:
        self._last[subject] = version, sequence
        self._last.move_to_end(subject)
        if len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)

    async def _timer(self, row: Outgoing) -> None:
        if row.due is None:
            raise ValueError(f"timer {row.subject} has no time")
        _, _, _, chat_id, purpose, _ = row.subject.split(".")
        await self._bus.schedule(
            row.subject, subjects.timer_fired(chat_id, purpose), row.due, row.payload
        )

    async def _job(self, row: Outgoing) -> None:
        await self.ensure_pools([row.subject.rsplit(".", 1)[1]])
        try:
            await self._plain(row)
        except Refused as no:  # again and again it would hold up its neighbours; the limit answers
            log.error(  # noqa: TRY400 — the server's words are all there is to say
                "build %s of chat %s can't be asked for: %s", row.message_id, row.chat_id, no
            )

    async def _result(self, row: Outgoing) -> None:
        try:
            await self._plain(row)
        except Refused as no:
            log.error("answer %s is not taken: %s", row.message_id, no)  # noqa: TRY400
            body = effects.instead(row.payload, f"the answer can't be sent: {no}")
            await self._plain(replace(row, payload=body, message_id=f"{row.message_id}:instead"))

    async def _plain(self, row: Outgoing) -> None:
        await self._bus.publish(
            row.subject, row.payload, headers=CLOUDEVENT, message_id=row.message_id
        )

    async def _dead(self, letter: Dead) -> None:
        reason, detail = letter.rejected.reason, letter.rejected.detail
        log.warning(
            "dead letter of %s: %s: %s",
            letter.subject,
            reason,
            detail,
            extra={"chat_id": letter.chat_id},
        )
        headers = {
            "Workspaced-Subject": letter.subject,
            "Workspaced-Reason": str(reason),
            "Workspaced-Detail": detail[:DETAIL_LIMIT],
            "Workspaced-Headers": _fitting(letter.headers, LETTER_LIMIT - len(letter.data)),
        }
        await self._bus.publish(subjects.dead(letter.kind), letter.data, headers=headers)


def _fitting(headers: Mapping[str, str], room: int) -> str:
    """Write headers as JSON; what would make the letter larger than any message may be is left out."""
    kept: dict[str, str] = {}
    for name, value in headers.items():
        size = len(json.dumps({name: value}, ensure_ascii=False).encode())
        if size <= room:
            kept[name] = value
            room -= size
    return json.dumps(kept, ensure_ascii=False)


def _version(last: Stored) -> int:
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
