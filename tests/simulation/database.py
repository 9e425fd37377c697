"""The database of a run: a store in this process, with round trips.

A worker may be paused or killed between what it reads and what it writes. The confirmation of a commit
may be lost, and so may the statement.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from statemachine.chat import Chat, chat_from_json
from statemachine.store import Alarm, Changes, StoreUnavailableError, Written
from tests.doubles.memory_store import MemoryStore
from tests.simulation.loop import Process, SeededLoop, process_here, resolve


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
        self.skipped = 0
        """Number of chats that were not written because they had changed."""
        self.on_commit: Callable[[Process | None], None] = lambda _process: None
        self.note: Callable[[str], None] = lambda _words: None

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
        """Go down."""
        self.up = False

    def start(self) -> None:
        """Come up again."""
        self.up = True


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

    def locked(self, name: str) -> AbstractAsyncContextManager[None]:
        """Hold the lock of that name."""
        return self._database.store.locked(name)

    async def write(self, changes: Changes) -> Written:
        """Write and commit. Raises TransientError, StoreUnavailableError."""
        database, process = self._database, process_here()
        await database.turn()
        written = await database.store.write(changes)
        database.skipped += len(written.skipped)
        what = [(chat_id[:4], e.event.data.name, e.outcome) for chat_id, e in changes.entries]
        alarms = sorted({alarm.at.timestamp() for alarm in changes.alarms})
        database.on_commit(process)
        database.note(f"{process} commits {what}, sets {alarms}, skips {sorted(written.skipped)}")
        if database.loses_word():
            raise StoreUnavailableError("the connection broke; it may have been committed")
        await database.turn()
        return written

    async def delete_alarms(self, alarms: Sequence[Alarm], *, unhandled: bool = False) -> None:
        """Delete alarms whose changes are published."""
        await self._database.turn()
        await self._database.store.delete_alarms(alarms, unhandled=unhandled)
        self._database.note(f"{process_here()} has published what {alarms} led to")
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


def rests_at(store: MemoryStore, chat_id: str) -> Chat | None:
    """Read a snapshot without the delay of a round trip, for the checks only."""
    text = store.snapshots.get(chat_id)
    return None if text is None else _read(text)


@lru_cache(maxsize=16)
def _read(text: str) -> Chat:
    return chat_from_json(text)
