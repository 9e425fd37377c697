"""The store in PostgreSQL, over asyncpg: transactions. Reads beside them are in `reading`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg

from statemachine import codec
from statemachine.calls import Answered, Call
from statemachine.store import Changes, Key, Outgoing, StoredCall, StoreUnavailableError
from statemachine.store.losses import (
    ANSWER_WITHIN,
    CONNECTION_ERRORS,
    Block,
    Session,
    borrowed,
    said,
    shortest,
)
from statemachine.store.reading import Reading, catalog_of
from statemachine.store.sql import queries
from statemachine.templates import Catalog
from statemachine.wakes import rests
from statemachine.workspace import Workspace

LIMITS: Final = {"transaction_timeout": "5s", "idle_in_transaction_session_timeout": "5s"}
"""A paused worker must not hold rows: the server ends its transaction."""
_REFUSED_LIMITS: Final = (
    asyncpg.UndefinedObjectError,
    asyncpg.CantChangeRuntimeParamError,
    asyncpg.ProtocolViolationError,
)
"""What a server or a pooler raises that doesn't know `LIMITS`."""
Q: Final = queries()


@asynccontextmanager
async def connect(url: str, *, connections: int = 4) -> AsyncIterator[PostgresStore]:
    """Open the store at `url`. Raises StoreUnavailableError."""

    async def keep(connection: Any) -> None:
        """Spare a round trip: nothing here changes a session."""

    try:
        pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=connections,
            reset=keep,
            server_settings=LIMITS,
            timeout=ANSWER_WITHIN,
            command_timeout=ANSWER_WITHIN,
        )
    except _REFUSED_LIMITS as bad:
        raise StoreUnavailableError(
            f"PostgreSQL 17 or later is needed, and no pooler between that refuses "
            f"{' and '.join(LIMITS)}: {bad}"
        ) from bad
    except (*CONNECTION_ERRORS, ValueError) as bad:
        raise StoreUnavailableError(
            f"can't open the database: {str(bad) or type(bad).__name__}"
        ) from bad
    try:
        yield PostgresStore(pool, shortest(LIMITS))
    finally:
        pool.terminate()


class PostgresStore(Reading):
    """The port over a pool of connections."""

    def __init__(self, pool: asyncpg.Pool[Any], longest: float) -> None:
        super().__init__(pool)
        self._longest = longest
        """Seconds after which the server ends a transaction."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresTransaction]:
        """Commit at the end of the block, roll back when it raises."""
        block = Block(self._longest)
        with said(), block.told_apart():
            async with borrowed(self._pool) as connection, connection.transaction():
                transaction = PostgresTransaction(connection)
                block.begun(lambda: transaction.locked)
                try:
                    yield transaction
                except TimeoutError:
                    block.silent = True
                    connection.terminate()  # else the rollback would wait as long again
                    raise


class PostgresTransaction:
    """Reads under lock, and one write."""

    def __init__(self, connection: Session) -> None:
        self._db = connection
        self._now: datetime | None = None

    @property
    def locked(self) -> bool:
        """Whether it holds chats."""
        return self._now is not None

    @property
    def now(self) -> datetime:
        """The database's clock when the chats were locked."""
        if self._now is None:
            raise RuntimeError("lock() gives the time")
        return self._now

    async def lock(
        self, chat_ids: AbstractSet[str], *, creating: AbstractSet[str] | None = None
    ) -> dict[str, Workspace]:
        """Lock the chats until the end and return their snapshots; `creating` (all) may be new."""
        wanted = sorted(chat_ids)
        rows = await self._db.fetch(Q["lock_chats"], wanted)
        new = (chat_ids if creating is None else creating) - {row["chat_id"] for row in rows}
        if new:
            await self._db.execute(Q["insert_chats"], sorted(new))
            rows = await self._db.fetch(Q["lock_chats"], wanted)
        self._now = rows[-1]["now"] if rows else await self._db.fetchval(Q["now"])
        return {row["chat_id"]: Workspace.model_validate_json(row["snapshot"]) for row in rows}

    async def known(self, identities: Sequence[tuple[str, bytes]]) -> set[tuple[str, bytes]]:
        """Return those of `identities` (chat id, digest) that were applied before."""
        rows = await self._db.fetch(
            Q["known_identities"],
            list({chat_id for chat_id, _ in identities}),
            [digest for _, digest in identities],
        )
        return {(row["chat_id"], row["digest"]) for row in rows}

    async def calls(self, keys: AbstractSet[Key]) -> dict[Key, StoredCall]:
        """Return the calls of these keys that exist."""
        if not keys:
            return {}
        rows = await self._db.fetch(Q["calls"], *_columns(list(keys), 2))
        stored = [
            StoredCall(
                Call.model_validate_json(row["body"]),
                None
                if row["result"] is None
                else Answered(json.loads(row["result"]), row["is_error"]),
            )
            for row in rows
        ]
        return {Key(item.call.chat_id, item.call.call_id): item for item in stored}

    async def open_calls(self, chat_ids: AbstractSet[str]) -> dict[str, list[Call]]:
        """Return the waiting calls by chat, in the order they came."""
        found: dict[str, list[Call]] = {chat_id: [] for chat_id in chat_ids}
        if chat_ids:
            for row in await self._db.fetch(Q["open_calls"], list(chat_ids)):
                call = Call.model_validate_json(row["body"])
                found[call.chat_id].append(call)
        return found

    async def cancellations(self, keys: AbstractSet[Key]) -> set[Key]:
        """Return those of `keys` whose cancellation came before them."""
        if not keys:
            return set()
        rows = await self._db.fetch(Q["cancellations"], *_columns(list(keys), 2))
        return {Key(row["chat_id"], row["call_id"]) for row in rows}

    async def names(self, owner_ids: AbstractSet[str]) -> dict[str, set[str]]:
        """Return the lower-case names in use by owner; nobody else gives out names meanwhile."""
        found: dict[str, set[str]] = {owner_id: set() for owner_id in owner_ids}
        if owner_ids:
            await self._db.execute(Q["lock_owners"], sorted(owner_ids))
            for row in await self._db.fetch(Q["names"], list(owner_ids)):
                found[row["owner_id"]].add(row["name"])
        return found

    async def catalog(
        self,
        organization_ids: AbstractSet[str],
        template_ids: AbstractSet[str],
        version_ids: AbstractSet[str],
    ) -> Catalog:
        """Return the templates of these organizations and ids, and these versions."""
        return await catalog_of(self._db, organization_ids, template_ids, version_ids)

    async def settings(self) -> dict[str, str]:
        """Return the settings as they are now."""
        return {row["key"]: row["value"] for row in await self._db.fetch(Q["settings"])}

    async def had(self, workspace_ids: AbstractSet[str]) -> set[str]:
        """Return those of `workspace_ids` that some chat has."""
        if not workspace_ids:
            return set()
        rows = await self._db.fetch(Q["had"], list(workspace_ids))
        return {row["workspace_id"] for row in rows}

    async def unpublished(self, chat_ids: AbstractSet[str]) -> list[Outgoing]:
        """Return what these chats still have in the outbox."""
        if not chat_ids:
            return []
        return [Outgoing(**row) for row in await self._db.fetch(Q["outbox_of"], list(chat_ids))]

    async def write(self, changes: Changes) -> list[Outgoing]:
        """Write everything; return the outgoing with their row ids."""
        for name, rows in _rows(changes):
            if rows:
                await self._db.execute(Q[name], *_columns(rows, len(rows[0])))
        if changes.cancellations:
            await self._db.execute(Q["forget_cancellations"])
        if not changes.outgoing:
            return []
        columns = _columns(
            [
                (o.chat_id, o.lane, o.subject, o.message_id, o.version, o.due, o.payload)
                for o in changes.outgoing
            ],
            7,
        )
        ids = [row["id"] for row in await self._db.fetch(Q["write_outbox"], *columns)]
        return [
            Outgoing(o.chat_id, o.lane, o.subject, o.message_id, o.payload, o.version, o.due, row)
            for o, row in zip(changes.outgoing, ids, strict=True)
        ]


def _rows(changes: Changes) -> list[tuple[str, Sequence[tuple[Any, ...]]]]:
    """Return (statement, rows) for each table; a chat's row first, which others refer to."""
    return [
        (
            "write_chats",
            [
                (
                    chat.chat_id,
                    chat.version,
                    chat.state,
                    chat.organization_id,
                    chat.owner_id,
                    chat.ref.id if chat.ref else None,
                    not rests(chat),
                    chat.model_dump_json(exclude_defaults=True),
                )
                for chat in changes.chats
            ],
        ),
        (
            "write_log",
            [
                (
                    chat_id,
                    entry.seq,
                    json.dumps(codec.envelope_of(entry.event), ensure_ascii=False),
                    entry.outcome,
                    entry.state_before,
                    entry.state_after,
                    entry.version,
                    entry.at.astimezone(UTC),
                )
                for chat_id, entry in changes.entries
            ],
        ),
        ("write_identities", changes.identities),
        (
            "write_calls",
            [
                (
                    stored.call.chat_id,
                    stored.call.call_id,
                    stored.call.order,
                    stored.call.model_dump_json(),
                    stored.call.asked_at,
                    stored.answer.is_error if stored.answer else None,
                    json.dumps(stored.answer.result, ensure_ascii=False) if stored.answer else None,
                )
                for stored in changes.calls
            ],
        ),
        ("write_cancellations", changes.cancellations),
        ("write_names", changes.names),
        ("free_names", changes.freed),
    ]


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Turn rows into the arrays that `unnest` takes."""
    return [[row[n] for row in rows] for n in range(width)]
