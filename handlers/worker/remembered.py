"""The memory of a worker: it remembers chats, and does not look them up for each fact.

A worker decides a fact on the snapshot that it read or wrote last. It may be wrong about that: another worker may have
written the chat or applied the same event, or a provisioner's name was bound to a pool. `Store.write` compares all
three, and skips the chats that differ; then they are looked up. So a wrong memory costs a second try and nothing else.
With several workers, most of what each remembers is out of date. Then it is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from handlers.runtime import clock
from statemachine.calls import Call, StoredCall
from statemachine.chat import Chat
from statemachine.store import NO_ROW, Changes, Look, Store, Wanted, Written

MOST: Final = 2_000
"""How many chats are remembered: about 3 KB each. Most facts are about chats whose build was requested lately; any other
costs one look."""
MOST_PARTS: Final = 16
"""How many open calls, earlier workspaces and agents a chat may have to be remembered. Most have one or two."""
MOST_NAMES: Final = 1_000
"""How many names of provisioners are remembered."""
LONGEST: Final = 10.0
"""Seconds for which the database's time is calculated and not read: clocks run differently."""
TOLERATED: Final = 0.1
"""The share of remembered chats that may turn out to be out of date. Above it, every batch looks."""
_WEIGHT: Final = 1 / 64
"""The weight of one remembered chat in the moving average of that share."""


class _Chat(Struct, frozen=True):
    """A chat as it was read or written last."""

    snapshot: Chat
    row_version: int
    waiting: Mapping[str, Call]
    """All its open calls by id, in the order of their arrival."""


class Remembered:
    """The store as batches use it, with a memory of the chats that were read or written last."""

    def __init__(self, store: Store, clock: Callable[[], float] = clock) -> None:
        self._store, self._clock = store, clock
        self.look_up, self.settings = store.look_up, store.settings
        self.first_rest = store.first_rest
        self._forget()
        self._out_of_date = 0.0
        """The share of remembered chats that turned out to be out of date, as a moving average."""

    def _forget(self) -> None:
        self._chats: dict[str, _Chat] = {}
        """By id; the one that was read or written last is the last one."""
        self._pools: dict[str, str] = {}
        """By the name of the provisioner that is bound to it. A binding never changes."""
        self._unbound: set[str] = set()
        """Names of provisioners that were not bound to a pool when they were looked up."""
        self._used: set[str] = set()
        """Chats that the batch took from here."""
        self._assumed: AbstractSet[str] = frozenset()
        """Those of `_unbound` that the batch did not look up."""
        self._time: tuple[datetime, float] | None = None
        """The database's time at a time of the clock."""

    async def look(self, wanted: Wanted) -> Look:
        """Return what a batch needs to know about its chats: what is remembered, and the rest from the database.

        Raises what the store raises.
        """
        found, rest = self._remembered(wanted), wanted
        if found is not None:
            ids, names = found.chats.keys(), wanted.provisioners
            rest = Wanted(
                wanted.chats - ids,
                [event for event in wanted.identities if event[0] not in ids],
                wanted.calls,
                wanted.waiting - ids,
                wanted.waiting_unless_joined - ids,
                names - self._pools.keys() - self._unbound,
                wanted.facts_only - ids,
            )
            self._used, self._assumed = {*ids}, names & self._unbound
            if not (rest.chats or rest.calls or rest.provisioners):
                return found
        look = await self._store.look(rest)
        self._read(rest, look)
        if found is not None:
            look.chats |= found.chats
            look.row_versions |= found.row_versions
            look.waiting |= found.waiting
            look.pools |= found.pools
        return look

    async def write(self, changes: Changes) -> Written:
        """Write and commit everything, except the chats of which something else is true than was assumed.

        Raises what the store raises.
        """
        changes.unbound = self._assumed
        try:
            written = await self._store.write(changes)
        except BaseException:
            self._forget()  # the next statement may reach another database
            raise
        self._wrote(changes, written)
        return written

    def _remembered(self, wanted: Wanted) -> Look | None:
        self._used, self._assumed = set(), frozenset()
        if self._time is None or self._out_of_date > TOLERATED:
            return None
        now, at = self._time
        if not 0 <= (passed := self._clock() - at) <= LONGEST:
            return None
        chats = {c: chat for c in wanted.facts_only if (chat := self._chats.get(c)) is not None}
        if not chats:
            return None
        return Look(
            now + timedelta(seconds=passed),
            {chat_id: chat.snapshot for chat_id, chat in chats.items()},
            {chat_id: chat.row_version for chat_id, chat in chats.items()},
            waiting={chat_id: [*chat.waiting.values()] for chat_id, chat in chats.items()},
            pools={name: self._pools[name] for name in wanted.provisioners & self._pools.keys()},
        )

    def _read(self, wanted: Wanted, look: Look) -> None:
        """Remember what was read."""
        self._time = look.now, self._clock()
        for chat_id, snapshot in look.chats.items():
            row_version, before = look.row_versions[chat_id], self._chats.get(chat_id)
            if before is not None:
                self._count(out_of_date=before.row_version != row_version)
            if before is None or before.row_version != row_version:
                calls = {call.call_id: call for call in look.waiting.get(chat_id, ())}
                self._keep(_Chat(snapshot, row_version, calls))
        for name in wanted.provisioners - look.pools.keys():
            self._pools.pop(name, None)
            self._unbound.add(name)
        self._pools |= look.pools
        self._unbound -= look.pools.keys()

    def _wrote(self, changes: Changes, written: Written) -> None:
        """Remember what was written."""
        self._time = written.now, self._clock()
        for chat_id in self._used:
            self._count(out_of_date=chat_id in written.skipped)
        if written.skipped:
            self._unbound -= self._assumed  # that one of them is bound now may be the reason
            for chat_id in written.skipped:
                self._chats.pop(chat_id, None)
        for names in (self._pools, self._unbound):
            if len(names) > MOST_NAMES:
                names.clear()
        calls: dict[str, list[StoredCall]] = {}
        for stored in changes.calls:
            calls.setdefault(stored.call.chat_id, []).append(stored)
        for snapshot in changes.chats:
            chat_id = snapshot.chat_id
            before = self._chats.pop(chat_id, None)
            waiting = self._waiting(before, changes.row_versions.get(chat_id))
            if waiting is not None and chat_id not in written.skipped:
                after = _after(waiting, calls.get(chat_id, ()))
                self._keep(_Chat(snapshot, written.row_version, after))

    @staticmethod
    def _waiting(before: _Chat | None, row_version: int | None) -> Mapping[str, Call] | None:
        """Return the open calls of a chat whose row had this version; None if they are not known."""
        if row_version == NO_ROW:
            return {}
        return before.waiting if before is not None and before.row_version == row_version else None

    def _keep(self, chat: _Chat) -> None:
        snapshot = chat.snapshot
        self._chats.pop(snapshot.chat_id, None)
        complete = len(chat.waiting) == snapshot.open_calls  # a batch may not need the open calls
        parts = len(chat.waiting) + len(snapshot.previous) + len(snapshot.agents)
        if complete and parts <= MOST_PARTS and snapshot.current is not None:
            self._chats[snapshot.chat_id] = chat
            if len(self._chats) > MOST:
                del self._chats[next(iter(self._chats))]

    def _count(self, *, out_of_date: bool) -> None:
        self._out_of_date += (out_of_date - self._out_of_date) * _WEIGHT


def _after(waiting: Mapping[str, Call], calls: Iterable[StoredCall]) -> Mapping[str, Call]:
    """Return the open calls after some were stored."""
    after = {**waiting}
    for stored in calls:
        if stored.answer is None:
            after[stored.call.call_id] = stored.call
        else:
            after.pop(stored.call.call_id, None)
    return after
