"""Brings a database that was restored from a backup up to what NATS still knows.

Versions of chats continue above the published ones, and answered calls stay answered. What happened to the
workspaces meanwhile, provisioners and agents report when they are asked for their facts (`Republisher`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from msgspec.structs import replace

from bus import Bus, StoredMessage, subjects
from bus.streams import RESULT, STATE, Stream
from handlers.worker.batch import apply
from handlers.worker.recovery.stream_watch import StreamWatch
from handlers.worker.relay import Relay
from statemachine.calls import Answered, Call, StoredCall
from statemachine.chat import Chat, Limits
from statemachine.mask import MASK
from statemachine.naming import is_canonical
from statemachine.step import PublishedState, differs_from_published
from statemachine.store import CallKey, Changes, Store, Wanted

log = logging.getLogger(__name__)

PAGE: Final = 100
"""Maximum number of chats in one statement."""
UNKNOWN_ID: Final = "00000000-0000-0000-0000-000000000000"
"""Organization and owner of a chat that the database does not know."""
T = TypeVar("T")


class PublishedAnswer(NamedTuple):
    """An answer in the stream of results."""

    key: CallKey
    tool: str
    answer: Answered
    conflict: bool
    ignored: tuple[str, ...]
    """The keys of the request's arguments that the tool does not have."""


@dataclass(frozen=True, slots=True)
class RestoreReconciler:
    """Brings the database up to what was published. Repeating it, also concurrently, does no harm."""

    store: Store
    bus: Bus
    relay: Relay
    limits: Limits
    watch: StreamWatch

    async def run(self, publish_missing: Callable[[AbstractSet[str]], Awaitable[None]]) -> None:
        """Compare the database with all published states and answers. Raises BusError, StoreUnavailableError.

        `publish_missing` gets the chats whose state is newer than the published one.
        """
        chats = calls = 0
        async for states in self._pages(STATE, subjects.state("*"), _read_state):
            behind: list[PublishedState] = states
            while behind:
                applied = await apply(behind, self.store, self.limits, os.urandom(16))
                await self.relay.publish(applied.messages)
                await publish_missing(applied.repeated)
                chats += len({message.chat_id for message in applied.messages})
                behind = [state for state in behind if state.chat_id in applied.again]
        async for answers in self._pages(RESULT, subjects.result("*", "*"), _read_answer):
            calls += await self._keep(answers)
        if chats or calls:
            log.warning(
                "the database was restored: newer states published for %d of its chats, answers for %d of its open "
                "calls; senders are asked for their facts",
                chats,
                calls,
            )

    async def is_behind(self, chat_ids: Iterable[str]) -> bool:
        """Return whether one of the chats is older in the database than its published state.

        A state is published after its commit, so the database must have been restored. Raises BusError,
        StoreUnavailableError.
        """
        for chat_id in chat_ids:
            last = await self.bus.get_last(STATE.name, subjects.state(chat_id))
            published = _read_state(last) if last is not None else None
            kept = await self.store.chats.get(chat_id) or Chat(chat_id=chat_id)
            if published is not None and differs_from_published(kept, published):
                return True
        return False

    async def _keep(self, given: Sequence[PublishedAnswer]) -> int:
        """Store the answers that the database does not know; return how many."""
        count = 0
        while given:
            chat_ids = frozenset(one.key.chat_id for one in given)
            look = await self.store.look(Wanted(chat_ids, calls={one.key for one in given}))
            changes = Changes(row_versions=look.row_versions)
            chats = {
                chat_id: look.chats.get(chat_id, Chat(chat_id=chat_id)) for chat_id in chat_ids
            }
            for one in given:
                stored, chat = look.calls.get(one.key), chats[one.key.chat_id]
                # An unknown call that was answered with an error may be corrected and repeated.
                if stored is None and not one.answer.is_error:
                    changes.calls.append(StoredCall(_call(one, chat, look.now), one.answer))
                elif stored is not None and stored.answer is None:
                    conflict = one.conflict or stored.call.conflict
                    call = replace(stored.call, conflict=conflict)
                    changes.calls.append(StoredCall(call, one.answer))
                    chats[chat.chat_id] = replace(chat, open_calls=chat.open_calls - 1)
            kept = {stored.call.chat_id for stored in changes.calls}
            changes.chats = [chats[chat_id] for chat_id in kept]
            skipped = (await self.store.write(changes)).skipped if kept else set[str]()
            count += sum(stored.call.chat_id not in skipped for stored in changes.calls)
            given = [one for one in given if one.key.chat_id in skipped]
        return count

    async def _pages(
        self, stream: Stream, subject: str, read: Callable[[StoredMessage], T | None]
    ) -> AsyncIterator[list[T]]:
        """Yield what the stream held when it was checked for losses, page by page."""
        last, place = self.watch.last_sequence(stream.name), 0
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


def _read_state(found: StoredMessage) -> PublishedState | None:
    """Return a published state; None for a message that is not one."""
    data, chat_id = _data(found), found.subject.rsplit(".", 1)[1]
    if data is None or not isinstance(data.get("version"), int) or not is_canonical(chat_id):
        return None
    return PublishedState(chat_id, data)


def _read_answer(found: StoredMessage) -> PublishedAnswer | None:
    data, (*_, chat_id, call_id) = _data(found), found.subject.split(".")
    if data is None or not isinstance(data.get("result"), dict) or not is_canonical(chat_id):
        return None
    answer = Answered(data["result"], is_error=bool(data.get("is_error")))
    return PublishedAnswer(
        CallKey(chat_id, call_id),
        str(data.get("tool")),
        answer,
        conflict=bool(data.get("conflict")),
        ignored=tuple(map(str, data.get("ignored") or ())),
    )


def _data(found: StoredMessage) -> dict[str, Any] | None:
    try:
        data = json.loads(found.data)["data"]
    except (ValueError, KeyError, TypeError):
        return None
    return data if isinstance(data, dict) else None


def _call(given: PublishedAnswer, chat: Chat, at: datetime) -> Call:
    """Return a call for an answer whose request is not known."""
    return Call(
        chat_id=given.key.chat_id,
        call_id=given.key.call_id,
        tool=given.tool,
        args=dict.fromkeys(given.ignored, MASK),  # the other arguments are not known any more
        organization_id=chat.organization_id or UNKNOWN_ID,
        owner_id=chat.owner_id or UNKNOWN_ID,
        owner_name=chat.owner_name or "",
        asked_at=at,
        order=chat.seq,
        conflict=given.conflict,
    )
