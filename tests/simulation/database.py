"""The database of a run: a store in this process, with round trips, row locks and timeouts.

It treats slow, paused and killed workers as PostgreSQL does: it rolls back a transaction after
`LONGEST`, or when the connection closes. The confirmation of a commit may be lost.
"""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from statemachine.chat import Chat, chat_from_json
from statemachine.store import (
    CallKey,
    Changes,
    OutboxMessage,
    Prefetched,
    StoreUnavailableError,
    TransientError,
)
from tests.doubles.memory_store import MemoryStore
from tests.doubles.memory_transaction import MemoryTransaction
from tests.simulation.loop import Process, SeededLoop, process_here, resolve

LONGEST: Final = 5.0
"""Seconds after which the database ends a transaction."""


class Database:
    """The state that all simulated stores of a run share."""

    def __init__(self, loop: SeededLoop, behind: float) -> None:
        self.loop = loop
        self.store = MemoryStore(lambda: self.now)
        self.behind = timedelta(seconds=behind)
        """How far the database's clock is behind the clock of the bus."""
        self.up = True
        self.loses_word: Callable[[], bool] = lambda: False
        """Decides whether the confirmation of this commit is lost."""
        self.ended = 0
        """Number of transactions that the database ended because they took too long."""
        self.on_commit: Callable[[Process | None], None] = lambda _process: None
        self.note: Callable[[str], None] = lambda _words: None
        self.held: dict[str, SimulatedTransaction] = {}
        """Locked rows, each with the transaction that holds it."""
        self.queues: dict[str, deque[tuple[SimulatedTransaction, Future[None]]]] = {}
        self.open: dict[SimulatedTransaction, None] = {}

    @property
    def now(self) -> datetime:
        """The time by the database's clock."""
        return datetime.fromtimestamp(self.loop.now, UTC) - self.behind

    async def turn(self) -> None:
        """Take the time of one message to or from the database. Raises StoreUnavailableError."""
        turn: Future[None] = self.loop.create_future()
        random = self.loop.random.random
        delay = 0.0 if random() < 0.7 else random() ** 4 * 0.3
        self.loop.later(delay, resolve, turn)
        await turn
        self.check_up()

    def check_up(self) -> None:
        """Raise StoreUnavailableError while the database is down."""
        if not self.up:
            raise StoreUnavailableError("the database is away")

    def stop(self) -> None:
        """Go down, and roll back all open transactions."""
        self.up = False
        for transaction in list(self.open):
            transaction.end(StoreUnavailableError("the database went away"))

    def start(self) -> None:
        """Come up again."""
        self.up = True

    def closed(self, process: Process) -> None:
        """Roll back the open transactions of a process that has ended."""
        for transaction in list(self.open):
            if transaction.process is process:
                transaction.end(StoreUnavailableError("the connection was closed"))

    def free(self, transaction: SimulatedTransaction) -> None:
        """Release the transaction's rows, each to the transaction that has waited longest."""
        self.open.pop(transaction, None)
        for row in [row for row, holder in self.held.items() if holder is transaction]:
            del self.held[row]
            self._next(row)

    def _next(self, row: str) -> None:
        waiting = self.queues.get(row)
        while waiting:
            transaction, turn = waiting.popleft()
            if transaction in self.open and not turn.done():
                self.held[row] = transaction
                turn.set_result(None)
                return


class _RemotePart:
    """A part of the store, such as `chats`, whose methods take round trips."""

    def __init__(self, part: Any, remote: Callable[[Any], Any]) -> None:
        self._part, self._remote = part, remote

    def __getattr__(self, name: str) -> Any:
        return self._remote(getattr(self._part, name))


class SimulatedStore:
    """One process's connection to the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write_unchanged(
        self, changes: Changes, row_versions: Mapping[str, int]
    ) -> tuple[list[OutboxMessage], set[str]]:
        """Write the changes of those chats that have not changed since `look`."""
        async with self.transaction() as transaction:
            return await transaction.write_unchanged(changes, row_versions)

    async def delete_published(self, ids: Sequence[int]) -> None:
        """Delete published rows of the outbox."""
        await self._database.turn()
        await self._database.store.delete_published(ids)
        self._database.note(f"{process_here()} has published {ids}")
        await self._database.turn()

    def __getattr__(self, name: str) -> Any:
        part = getattr(self._database.store, name)
        return self._remote(part) if callable(part) else _RemotePart(part, self._remote)

    def _remote(self, method: Any) -> Any:
        async def over_the_wire(*args: Any, **more: Any) -> Any:
            await self._database.turn()
            found = await method(*args, **more)
            await self._database.turn()
            return found

        return over_the_wire

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SimulatedTransaction]:
        """Commit at the end of the block; roll back if it raises."""
        await self._database.turn()
        transaction = SimulatedTransaction(self._database)
        try:
            yield transaction
            await transaction.commit_now()
        finally:
            transaction.end(TransientError("rolled back"))


class SimulatedTransaction(MemoryTransaction):
    """A transaction that runs concurrently with others."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.store)
        self._database = database
        self._ended: Exception | None = None
        self._waits: Future[None] | None = None
        self.process = process_here()
        database.open[self] = None
        self._limit = database.loop.later(LONGEST, self._late)

    def _late(self) -> None:
        self._database.ended += 1
        self.end(TransientError("the transaction took too long"))

    def end(self, why: Exception) -> None:
        """Roll back; the next query, or the present wait for a row, raises `why`."""
        if self not in self._database.open:
            return
        self._ended = why
        self._limit.cancel()
        self._database.free(self)
        if self._waits is not None and not self._waits.done():
            self._waits.set_exception(why)

    async def query(self) -> None:
        """Take the time of a query's message. Raises TransientError, StoreUnavailableError."""
        if self._ended is not None:
            raise self._ended
        await self._database.turn()
        if self._ended is not None:
            raise self._ended

    async def _hold(self, row: str) -> None:
        if self._ended is not None:
            raise self._ended
        if self._database.held.setdefault(row, self) is self:
            return
        turn: Future[None] = self._database.loop.create_future()
        self._database.queues.setdefault(row, deque()).append((self, turn))
        self._waits = turn
        await turn

    async def lock(
        self, chat_ids: AbstractSet[str], *, creating: AbstractSet[str] | None = None
    ) -> dict[str, Chat]:
        await self.query()
        for chat_id in sorted(chat_ids):
            await self._hold(chat_id)
        self.now = self._database.now
        found = await super().lock(chat_ids, creating=creating)
        await self.query()
        return found

    async def prefetch(
        self,
        identities: Sequence[tuple[str, bytes]],
        keys: AbstractSet[CallKey],
        waiting_of: AbstractSet[str],
        provisioners: AbstractSet[str] = frozenset(),
    ) -> Prefetched:
        await self.query()
        found = await super().prefetch(identities, keys, waiting_of, provisioners)
        await self.query()
        return found

    async def workspace_names(self, owner_ids: AbstractSet[str]) -> dict[str, set[str]]:
        for owner_id in sorted(owner_ids):
            await self._hold(f"owner {owner_id}")
        await self.query()
        return await super().workspace_names(owner_ids)

    async def write(self, changes: Changes) -> list[OutboxMessage]:
        await self.query()
        return await super().write(changes)

    async def write_unchanged(
        self, changes: Changes, row_versions: Mapping[str, int]
    ) -> tuple[list[OutboxMessage], set[str]]:
        await self.query()
        for chat_id in sorted(chat.chat_id for chat in changes.chats):
            await self._hold(chat_id)
        return await super().write_unchanged(changes, row_versions)

    async def commit_now(self) -> None:
        """Commit and wait for the confirmation. Raises TransientError, StoreUnavailableError."""
        await self.query()
        self.commit()
        self._tell()
        self._database.free(self)
        self._limit.cancel()
        if self._database.loses_word():
            raise StoreUnavailableError("the connection broke; it may have been committed")
        await self._database.turn()

    def _tell(self) -> None:
        changes = self._changes
        if changes is not None:
            what = [(chat_id[:4], e.event.data.name, e.outcome) for chat_id, e in changes.entries]
            rows = [(row.id, row.subject.split(".", 1)[1][:17]) for row in changes.outbox]
            self._database.on_commit(self.process)
            self._database.note(f"{self.process} commits {what} {rows}")


def rests_at(store: MemoryStore, chat_id: str) -> Chat | None:
    """Read a snapshot without the delay of a round trip, for the checks only."""
    text = store.snapshots.get(chat_id)
    return None if text is None else _read(text)


@lru_cache(maxsize=16)
def _read(text: str) -> Chat:
    return chat_from_json(text)
