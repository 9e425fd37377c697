"""After a restore: what NATS still knows of the time that the database forgot.

Chats go on above the versions that were published, and calls that were answered stay answered. What
became of their workspaces the senders tell, who are asked for their facts (`recovery`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from msgspec.structs import replace

from bus import Bus, StoredMessage, subjects
from bus.streams import RESULT, STATE, Stream
from handlers.worker import timer_events
from handlers.worker.batch import apply
from handlers.worker.deliveries import Published
from handlers.worker.relay import Relay
from handlers.worker.stream_watch import Watch
from statemachine.calls import Answered, Call
from statemachine.chat import Chat, Limits
from statemachine.ids import is_canonical
from statemachine.store import CallKey, Changes, Store, StoredCall

log = logging.getLogger(__name__)

PAGE: Final = 100
"""Chats that one transaction holds at most."""
UNKNOWN: Final = "00000000-0000-0000-0000-000000000000"
"""Whose a chat is of which the database has only heard from the bus."""
T = TypeVar("T")


class Given(NamedTuple):
    """An answer that stands on the bus."""

    key: CallKey
    tool: str
    answer: Answered


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Brings the database up to what was published; done twice, or by several, it does no harm."""

    store: Store
    bus: Bus
    relay: Relay
    limits: Limits
    watch: Watch

    async def run(self) -> None:
        """Compare all that stands on the bus. Raises BusError, StoreUnavailableError."""
        chats = calls = 0
        async for states in self._pages(STATE, subjects.state("*"), published_in):
            rows = await apply(states, self.store, self.limits, os.urandom(16))
            await self.relay.publish(rows)
            await self.store.delete_published([row.id for row in rows])
            chats += len({row.chat_id for row in rows})
        async for answers in self._pages(RESULT, subjects.result("*", "*"), _given_in):
            calls += await self._take(answers)
        if chats or calls:
            log.warning(
                "the database was restored: %d chats had been further, %d calls had been answered; "
                "senders are asked for their facts",
                chats,
                calls,
            )

    async def _take(self, given: Sequence[Given]) -> int:
        """Keep answers that the database does not know; return how many."""
        changes = Changes()
        async with self.store.transaction() as tx:
            chats = await tx.lock({one.key.chat_id for one in given})
            known = await tx.calls({one.key for one in given})
            for one in given:
                stored, chat = known.get(one.key), chats[one.key.chat_id]
                if (
                    stored is None and not one.answer.is_error
                ):  # it may be corrected, and come again
                    changes.calls.append(StoredCall(_call(one, chat, tx.now), one.answer))
                elif stored is not None and stored.answer is None:
                    changes.calls.append(StoredCall(stored.call, one.answer))
                    chats[chat.chat_id] = replace(chat, open_calls=chat.open_calls - 1)
            changes.chats = list(chats.values())
            await tx.write(changes)
        return len(changes.calls)

    async def _pages(
        self, stream: Stream, subject: str, read: Callable[[StoredMessage], T | None]
    ) -> AsyncIterator[list[T]]:
        """Yield what stands on a stream now; what comes later is of a database that knows it."""
        last, place = self.watch.reached(stream.name), 0
        page: list[T] = []
        while place < last and (found := await self.bus.get_next(stream.name, subject, place)):
            place = found.sequence
            if (one := read(found)) is not None:
                page.append(one)
            if len(page) == PAGE:
                yield page
                page = []
        if page:
            yield page


async def behind(store: Store, bus: Bus, chat_ids: Iterable[str]) -> bool:
    """Say whether one of the chats is older than what was published of it.

    What is published was committed before, so the database went back. Raises BusError,
    StoreUnavailableError.
    """
    for chat_id in chat_ids:
        last = await bus.get_last(STATE.name, subjects.state(chat_id))
        found = published_in(last) if last is not None else None
        kept = await store.chats.get(chat_id) or Chat(chat_id=chat_id)
        if found is not None and timer_events.went_back(kept, found):
            return True
    return False


def published_in(found: StoredMessage) -> Published | None:
    """Read a state that was published, or None for what is none."""
    data, chat_id = _data(found), found.subject.rsplit(".", 1)[1]
    if data is None or not isinstance(data.get("version"), int) or not is_canonical(chat_id):
        return None
    return Published(chat_id, data)


def _given_in(found: StoredMessage) -> Given | None:
    data, (*_, chat_id, call_id) = _data(found), found.subject.split(".")
    if data is None or not isinstance(data.get("result"), dict) or not is_canonical(chat_id):
        return None
    answer = Answered(data["result"], is_error=bool(data.get("is_error")))
    return Given(CallKey(chat_id, call_id), str(data.get("tool")), answer)


def _data(found: StoredMessage) -> dict[str, Any] | None:
    try:
        data = json.loads(found.data)["data"]
    except (ValueError, KeyError, TypeError):
        return None
    return data if isinstance(data, dict) else None


def _call(given: Given, chat: Chat, at: datetime) -> Call:
    """Return a call of which only the answer is known."""
    return Call(
        chat_id=given.key.chat_id,
        call_id=given.key.call_id,
        tool=given.tool,
        args={},
        organization_id=chat.organization_id or UNKNOWN,
        owner_id=chat.owner_id or UNKNOWN,
        owner_name=chat.owner_name or "",
        asked_at=at,
        order=chat.seq,
    )
