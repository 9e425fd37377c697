"""The store in PostgreSQL, over asyncpg: transactions. Reads beside them are in `reading`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import asyncpg

from statemachine.calls import call_from_json
from statemachine.chat import Chat, chat_from_json
from statemachine.store import (
    Changes,
    Found,
    Key,
    Outgoing,
    StoredCall,
    Terms,
)
from statemachine.store.audit import Auditing
from statemachine.store.connection import opened, opening, read_url
from statemachine.store.errors import ANSWER_WITHIN, Block, Session, borrowed, said, shortest
from statemachine.store.postgres_reads import Reading, call_of, terms_of
from statemachine.store.rows import arrays_of, columns, seldom
from statemachine.store.sql import queries
from statemachine.templates import Version

LIMITS: Final = {"transaction_timeout": "5s", "idle_in_transaction_session_timeout": "5s"}
"""A paused worker must not hold rows: the server ends its transaction."""

_SET: Final = (
    "select set_config(name, value, false) from unnest($1::text[], $2::text[]) as l(name, value)"
)
"""Sets what a connection asked for when it was opened, if something between left that out."""
Q: Final = queries()


def limits_of(seconds: float) -> Mapping[str, str]:
    """Return `LIMITS` of so many seconds."""
    return dict.fromkeys(LIMITS, f"{round(seconds * 1000)}ms")


@asynccontextmanager
async def connect(
    url: str, *, connections: int = 4, limits: Mapping[str, str] | None = None
) -> AsyncIterator[PostgresStore]:
    """Open the store at `url`, with `LIMITS` or others. Raises StoreUnavailableError."""
    limits = LIMITS if limits is None else limits
    address = read_url(url)
    async with opened(address) as first:
        pooled = first.pooled  # poolers refuse settings that they don't know, or leave them out

    async def keep(connection: Any) -> None:
        """Spare a round trip: nothing here changes a session."""

    async def begin(connection: Any) -> None:
        await connection.execute(_SET, list(limits), list(limits.values()))

    with opening(address, limits):
        pool = await asyncpg.create_pool(
            address.url,
            min_size=1,
            max_size=connections,
            reset=keep,
            **({"init": begin} if pooled else {"server_settings": dict(limits)}),
            timeout=address.timeout,
            command_timeout=ANSWER_WITHIN,
            **address.options,
        )
    try:
        yield PostgresStore(pool, shortest(limits))
    finally:
        pool.terminate()


@asynccontextmanager
async def _begun(connection: Session) -> AsyncIterator[None]:
    """Commit at the end, roll back what raises; beginning takes one round trip, settings included."""
    await connection.execute(Q["begin"])
    try:
        yield
    except BaseException:
        await connection.execute(Q["rollback"])
        raise
    await connection.execute(Q["commit"])


class PostgresStore(Reading):
    """The port over a pool of connections."""

    def __init__(self, pool: asyncpg.Pool[Any], longest: float) -> None:
        super().__init__(pool)
        self._versions: dict[str, Version] = {}
        self._longest = longest
        """Seconds after which the server ends a transaction."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresTransaction]:
        """Commit at the end of the block, roll back when it raises."""
        block = Block(self._longest)
        with said(), block.told_apart():
            async with borrowed(self._pool) as connection, _begun(connection):
                transaction = PostgresTransaction(connection, self._versions)
                block.begun(lambda: transaction.locked)
                try:
                    yield transaction
                except TimeoutError:
                    block.silent = True
                    connection.terminate()  # else the rollback would wait as long again
                    raise


class PostgresTransaction(Auditing):
    """Reads under lock, and one write."""

    def __init__(self, connection: Session, versions: dict[str, Version]) -> None:
        self._db = connection
        self._versions = versions
        self._now: datetime | None = None

    async def _fetch(self, name: str, *args: object) -> Sequence[Mapping[str, Any]]:
        return await self._db.fetch(Q[name], *args)

    async def hold(self, chat_ids: AbstractSet[str]) -> None:
        """Lock chats whose snapshots may be damaged."""
        rows = await self._fetch("lock_chats", sorted(chat_ids), [])
        self._now = rows[-1]["now"] if rows else None

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
    ) -> dict[str, Chat]:
        """Lock the chats until the end and return their snapshots; `creating` (all) may be new."""
        wanted, new = sorted(chat_ids), sorted(chat_ids if creating is None else creating)
        rows: Sequence[Mapping[str, Any]] = ()
        while not rows or not {row["chat_id"] for row in rows} >= set(new):
            rows = await self._fetch("lock_chats", wanted, new)
            if not new:
                break
        self._now = rows[-1]["now"] if rows else await self._db.fetchval(Q["now"])
        return {row["chat_id"]: chat_from_json(row["snapshot"]) for row in rows}

    async def found(
        self,
        identities: Sequence[tuple[str, bytes]],
        keys: AbstractSet[Key],
        waiting_of: AbstractSet[str],
        provisioners: AbstractSet[str] = frozenset(),
    ) -> Found:
        """Return what there is of events, calls by key, waiting calls by chat, pools by provisioner."""
        found = Found(set(), {}, {chat_id: [] for chat_id in waiting_of}, set(), {})
        named = columns(identities, 2) + columns(list(keys), 2)
        for row in await self._fetch("found", *named, list(waiting_of), list(provisioners)):
            match row["kind"]:
                case "known":
                    found.known.add((row["chat_id"], row["digest"]))
                case "canceled":
                    found.canceled.add(Key(row["chat_id"], row["call_id"]))
                case "bound":
                    found.pools[row["call_id"]] = row["chat_id"]
                case "waiting":
                    call = call_from_json(row["body"])
                    found.waiting[call.chat_id].append(call)
                case _:
                    stored = call_of(row)
                    found.calls[Key(stored.call.chat_id, stored.call.call_id)] = stored
        for calls in found.waiting.values():
            calls.sort(key=lambda call: call.order)
        return found

    async def calls(self, keys: AbstractSet[Key]) -> dict[Key, StoredCall]:
        """Return the calls of these keys that exist."""
        if not keys:
            return {}
        rows = await self._db.fetch(Q["calls"], *columns(list(keys), 2))
        stored = [call_of(row) for row in rows]
        return {Key(item.call.chat_id, item.call.call_id): item for item in stored}

    async def names(self, owner_ids: AbstractSet[str]) -> dict[str, set[str]]:
        """Return the lower-case names in use by owner; nobody else gives out names meanwhile."""
        found: dict[str, set[str]] = {owner_id: set() for owner_id in owner_ids}
        if owner_ids:
            await self._db.execute(Q["lock_owners"], sorted(owner_ids))
            for row in await self._db.fetch(Q["names"], list(owner_ids)):
                found[row["owner_id"]].add(row["name"])
        return found

    async def terms(
        self,
        organization_ids: AbstractSet[str],
        template_ids: AbstractSet[str],
        version_ids: AbstractSet[str],
    ) -> Terms:
        """Return the templates of these organizations and ids, these versions, and the settings."""
        return await terms_of(
            self._fetch, self._versions, organization_ids, template_ids, version_ids
        )

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
        ids = [row["id"] for row in await self._fetch("write", *arrays_of(changes))]
        for name, rows in seldom(changes):
            if rows:
                await self._db.execute(Q[name], *columns(rows, len(rows[0])))
        if changes.cancellations:
            await self._db.execute(Q["forget_cancellations"])
        return [replace(o, id=row) for o, row in zip(changes.outgoing, ids, strict=True)]
