"""The store in PostgreSQL, over asyncpg: opening it, its transactions, and how changes become rows."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import asyncpg
import msgspec
from pydantic_core import to_json

from statemachine import codec
from statemachine.calls import Answered, Call, StoredCall, call_from_json, call_to_json
from statemachine.chat import Chat, chat_from_json, chat_to_json
from statemachine.events import DeleteRequested, Event, event_digest
from statemachine.step import Entry
from statemachine.store import (
    CallKey,
    CatalogAndSettings,
    Changes,
    Look,
    OutboxMessage,
    Prefetched,
    StoredJob,
    StoreUnavailableError,
    chat_columns,
)
from statemachine.store.connection import open_connection, read_url, translate_connect_errors
from statemachine.store.database import QUERIES, RESPONSE_TIMEOUT, Database, Rows, Session
from statemachine.store.postgres_queries import (
    PostgresAudit,
    PostgresChats,
    PostgresCredentials,
    PostgresRecovery,
    PostgresTemplates,
    call_from_row,
    chat_from_row,
    read_catalog_and_settings,
)
from statemachine.templates import Version

TIMEOUTS: Final = {"transaction_timeout": "5s", "idle_in_transaction_session_timeout": "5s"}
"""A paused worker must not hold rows: the server ends its transaction."""
REQUIRED_TABLES: Final = [
    "chat",
    "event_log",
    "event_identity",
    "call",
    "cancellation",
    "workspace",
    "outbox",
    "job",
    "template",
    "template_version",
    "setting",
    "credential",
    "provisioner_name",
    "stream_seen",
]
"""Tables that events can't be applied without."""
PLANS: Final = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
"""Settings for sessions that apply batches: each statement looks up a few rows among many.

Plans are made once per session, and use indexes. By default the server would plan a statement again for each
execution, which takes longer than the statement itself, and a plan that was made while a table was small would
stay in use when it is large.
"""
_SETTINGS: Final = (
    "select set_config(name, value, false) from unnest($1::text[], $2::text[]) as l(name, value)"
)
"""Sets what a new connection asked for, in case a pooler left it out."""


def timeouts(seconds: float) -> Mapping[str, str]:
    """Return `TIMEOUTS` of so many seconds."""
    return dict.fromkeys(TIMEOUTS, f"{round(seconds * 1000)}ms")


@asynccontextmanager
async def connect(
    url: str, *, connections: int = 4, limits: Mapping[str, str] | None = None
) -> AsyncIterator[PostgresStore]:
    """Open the store at `url`, with at most so many connections.

    `limits`: the settings of each session, `TIMEOUTS` by default. Raises StoreUnavailableError.
    """
    limits = TIMEOUTS if limits is None else limits
    address = read_url(url)
    async with open_connection(address) as first:
        pooled = first.pooled  # poolers refuse settings that they don't know, or leave them out

    async def keep(connection: Any) -> None:
        """Save the round trip of a reset: nothing here changes a session."""

    async def configure(connection: Any) -> None:
        await connection.execute(_SETTINGS, list(limits), list(limits.values()))

    with translate_connect_errors(address, limits):
        pool = await asyncpg.create_pool(
            address.url,
            min_size=1,
            max_size=connections,
            reset=keep,
            **({"init": configure} if pooled else {"server_settings": dict(limits)}),
            timeout=address.timeout,
            command_timeout=RESPONSE_TIMEOUT,
            **address.options,
        )
    try:
        yield PostgresStore(Database(pool, _shortest(limits)))
    finally:
        pool.terminate()


def _shortest(limits: Mapping[str, str]) -> float:
    """Return the seconds after which the first of `limits` ends a transaction."""
    found = [
        int(match[1]) * {"ms": 0.001, "s": 1.0}[match[2]]
        for name in TIMEOUTS
        if (match := re.fullmatch(r"(\d+)(ms|s)", limits.get(name, "")))
    ]
    return min(found, default=math.inf)


class PostgresStore:
    """Implements `Store`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._versions: dict[str, Version] = {}
        """Template versions that transactions have read."""
        fetch = self._fetch = database.fetch
        self.chats = PostgresChats(fetch)
        self.templates = PostgresTemplates(fetch)
        self.credentials = PostgresCredentials(fetch)
        self.recovery = PostgresRecovery(fetch)
        self.audit = PostgresAudit(fetch)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresTransaction]:
        """Commit at the end of the block, roll back when it raises."""
        transaction = PostgresTransaction(self._versions)
        async with self._database.transaction(lambda: transaction.locked) as session:
            transaction.begin(session)
            yield transaction

    async def look(
        self,
        chat_ids: AbstractSet[str],
        identities: Sequence[tuple[str, bytes]],
        provisioners: AbstractSet[str],
    ) -> Look:
        """Read chats with their open calls, events and pools; lock nothing."""
        some, named = list(chat_ids), _columns(identities, 2)
        rows = await self._fetch("prefetch", *named, [], [], some, list(provisioners), some)
        return _look_from_rows(rows)

    async def write_unchanged(
        self, changes: Changes, row_versions: Mapping[str, int]
    ) -> tuple[list[OutboxMessage], set[str]]:
        """Write and commit the changes of those chats that have not changed since `look`."""
        if changes.concern_other_tables:
            raise ValueError("these changes need a transaction")
        rows = await self._fetch("write", *_written_arrays(changes, row_versions))
        return _written_messages(changes, rows)

    async def delete_published(self, ids: Sequence[int]) -> None:
        """Delete outbox rows whose messages NATS has stored."""
        await self._fetch("delete_outbox", ids)

    async def settings(self) -> dict[str, str]:
        """Return the operators' settings by name."""
        return {row["key"]: row["value"] for row in await self._fetch("settings")}

    async def put_setting(self, key: str, value: str) -> None:
        """Change a setting."""
        await self._fetch("put_setting", key, value)

    async def check_writable(self) -> None:
        """Return if the database accepts changes now. Raises StoreUnavailableError."""
        (found,) = await self._fetch("writable", REQUIRED_TABLES)
        if found["read_only"] or found["missing"]:
            # A new session may reach another server, or see the tables.
            await self._database.expire_sessions()
            (found,) = await self._fetch("writable", REQUIRED_TABLES)
        if found["read_only"]:
            raise StoreUnavailableError("the database takes no changes now: it is read-only")
        if found["missing"]:
            raise StoreUnavailableError(
                f"the database has no table {', '.join(found['missing'])}: was it renamed, or does "
                "search_path name another schema?"
            )
        if found["locked"]:
            raise StoreUnavailableError(
                f"another session of the database has locked table {', '.join(found['locked'])} (see "
                "pg_locks): nothing can be written until it commits or ends"
            )

    async def probe_write(self) -> None:
        """Write sample rows and roll back. Raises StoreUnavailableError if they are not accepted."""
        try:
            async with self.transaction() as transaction:
                changes = _sample_changes(str(uuid4()))
                await transaction.lock({chat.chat_id for chat in changes.chats})
                await transaction.write(changes)
                raise _RollBackError
        except _RollBackError:
            return
        except StoreUnavailableError:
            raise
        except Exception as error:
            raise StoreUnavailableError(
                f"the database does not accept a valid sample event: {error}"
            ) from error

    async def note_blocked(self, chat_ids: AbstractSet[str], reason: str, seconds: float) -> None:
        """Record for so many seconds why events of these chats can't be applied."""
        await self._fetch("note_blocked", sorted(chat_ids), reason, timedelta(seconds=seconds))

    async def blocked(self, chat_ids: AbstractSet[str]) -> dict[str, str]:
        """Return the reasons why events of these chats can't be applied now, by chat."""
        rows = await self._fetch("blocked", list(chat_ids), REQUIRED_TABLES)
        noted = {row["chat_id"]: row["words"] for row in rows if row["chat_id"] is not None}
        if len(noted) < len(rows):
            try:
                await self.check_writable()
            except StoreUnavailableError as error:
                return dict.fromkeys(chat_ids, str(error)) | noted
        return noted


class PostgresTransaction:
    """Implements `Transaction`."""

    def __init__(self, versions: dict[str, Version]) -> None:
        self._versions = versions
        self._now: datetime | None = None
        self._session: Session | None = None
        self.audit = PostgresAudit(self._fetch)

    def begin(self, session: Session) -> None:
        """Run in this session, which has begun a transaction."""
        self._session = session

    async def _fetch(self, name: str, *args: object) -> Rows:
        if self._session is None:
            raise RuntimeError("the transaction has not begun")
        return await self._session.fetch(QUERIES[name], *args)

    @property
    def locked(self) -> bool:
        """Whether it holds chats."""
        return self._now is not None

    @property
    def now(self) -> datetime:
        """The database's time when `lock` had locked the chats."""
        if self._now is None:
            raise RuntimeError("call lock() first: it reads the time")
        return self._now

    async def lock(
        self, chat_ids: AbstractSet[str], *, creating: AbstractSet[str] | None = None
    ) -> dict[str, Chat]:
        """Lock chats until the end of the transaction and return their snapshots by id."""
        wanted, new = sorted(chat_ids), sorted(chat_ids if creating is None else creating)
        rows: Rows = ()
        while not rows or not {row["chat_id"] for row in rows} >= set(new):
            rows = await self._fetch("lock_chats", wanted, new)
            if not new:
                break
        self._now = (rows or await self._fetch("now"))[-1]["now"]
        return {row["chat_id"]: chat_from_row(row) for row in rows}

    async def lock_damaged(self, chat_ids: AbstractSet[str]) -> None:
        """Lock chats without reading their snapshots, which may be damaged."""
        rows = await self._fetch("lock_chats", sorted(chat_ids), [])
        self._now = rows[-1]["now"] if rows else None

    async def prefetch(
        self,
        identities: Sequence[tuple[str, bytes]],
        keys: AbstractSet[CallKey],
        waiting_of: AbstractSet[str],
        provisioners: AbstractSet[str] = frozenset(),
    ) -> Prefetched:
        """Look up events, calls, open calls and pools."""
        named = _columns(identities, 2) + _columns(list(keys), 2)
        rows = await self._fetch("prefetch", *named, list(waiting_of), list(provisioners), [])
        found = _look_from_rows(rows).found
        return found._replace(waiting={c: found.waiting.get(c, []) for c in waiting_of})

    async def calls(self, keys: AbstractSet[CallKey]) -> dict[CallKey, StoredCall]:
        """Return those of the calls that exist."""
        if not keys:
            return {}
        stored = [call_from_row(r) for r in await self._fetch("calls", *_columns(list(keys), 2))]
        return {CallKey(item.call.chat_id, item.call.call_id): item for item in stored}

    async def workspace_names(self, owner_ids: AbstractSet[str]) -> dict[str, set[str]]:
        """Return the names in use by owner, and keep other transactions from giving out more."""
        found: dict[str, set[str]] = {owner_id: set() for owner_id in owner_ids}
        if owner_ids:
            await self._fetch("lock_owners", sorted(owner_ids))
            for row in await self._fetch("workspace_names", list(owner_ids)):
                found[row["owner_id"]].add(row["name"])
        return found

    async def catalog_and_settings(
        self,
        organization_ids: AbstractSet[str],
        template_ids: AbstractSet[str],
        version_ids: AbstractSet[str],
    ) -> CatalogAndSettings:
        """Return the templates and the settings by which calls are evaluated."""
        return await read_catalog_and_settings(
            self._fetch, self._versions, organization_ids, template_ids, version_ids
        )

    async def current_workspaces(self, workspace_ids: AbstractSet[str]) -> set[str]:
        """Return those of the workspaces that are the current workspace of a chat."""
        return await PostgresChats(self._fetch).current_workspaces(workspace_ids)

    async def lock_stream(self, name: str) -> None:
        """Let other transactions that lock the stream `name` wait until the end of this one."""
        await self._fetch("lock_stream", name)

    async def unpublished(self, chat_ids: AbstractSet[str]) -> list[OutboxMessage]:
        """Return the outbox rows of these chats."""
        if not chat_ids:
            return []
        return [OutboxMessage(**row) for row in await self._fetch("unpublished", list(chat_ids))]

    async def write(self, changes: Changes) -> list[OutboxMessage]:
        """Write everything; return `changes.outbox` with the numbers of the rows."""
        messages, _ = _written_messages(
            changes, await self._fetch("write", *_written_arrays(changes, {}))
        )
        for name, rows in _rare_rows(changes):
            if rows:
                await self._fetch(name, *_columns(rows, len(rows[0])))
        if changes.cancellations:
            await self._fetch("forget_cancellations")
        return messages


# -- rows -----------------------------------------------------------------------------------------


def _look_from_rows(rows: Rows) -> Look:
    """Return what the statement `prefetch` found."""
    look = Look({}, {}, Prefetched(set(), {}, {}, set(), {}), None)
    found = look.found
    for row in rows:
        match row["kind"]:
            case "known":
                found.known.add((row["chat_id"], row["digest"]))
            case "canceled":
                found.canceled.add(CallKey(row["chat_id"], row["call_id"]))
            case "bound":
                found.pools[row["call_id"]] = row["chat_id"]
            case "waiting":
                call = call_from_json(row["body"])
                found.waiting.setdefault(call.chat_id, []).append(call)
            case "chat":
                chat = chat_from_json(row["body"])
                look.chats[chat.chat_id] = chat
                look.row_versions[chat.chat_id] = row["row_version"]
                look = look._replace(now=row["now"])
            case _:
                stored = call_from_row(row)
                found.calls[CallKey(stored.call.chat_id, stored.call.call_id)] = stored
    for calls in found.waiting.values():
        calls.sort(key=lambda call: call.order)
    return look


def _written_messages(changes: Changes, rows: Rows) -> tuple[list[OutboxMessage], set[str]]:
    """Return the messages that the statement `write` put into the outbox, and the chats that it skipped."""
    skipped = {row["skipped"] for row in rows if row["skipped"] is not None}
    written = [message for message in changes.outbox if message.chat_id not in skipped]
    ids = [row["id"] for row in rows if row["id"] is not None]
    return [replace(m, id=row) for m, row in zip(written, ids, strict=True)], skipped


# -- changes as rows ------------------------------------------------------------------------------


def _written_arrays(changes: Changes, row_versions: Mapping[str, int]) -> list[list[Any]]:
    """Return the arguments of the statement `write`: the columns of the five tables that it writes.

    A chat that `row_versions` names is written only if its row still has that version.
    """
    chats = [
        (
            chat.chat_id,
            *chat_columns(chat).values(),
            chat_to_json(chat),
            row_versions.get(chat.chat_id),
        )
        for chat in changes.chats
    ]
    entries = [
        (
            chat_id,
            entry.seq,
            codec.written(entry.event).decode(),
            entry.outcome,
            entry.state_before,
            entry.state_after,
            entry.version,
            entry.at.astimezone(UTC),
            msgspec.json.encode(entry.cause).decode() if entry.cause else None,
            entry.deadline,
        )
        for chat_id, entry in changes.entries
    ]
    calls = [
        (
            stored.call.chat_id,
            stored.call.call_id,
            stored.call.order,
            call_to_json(stored.call),
            stored.call.asked_at,
            stored.answer.is_error if stored.answer else None,
            to_json(stored.answer.result).decode() if stored.answer else None,
        )
        for stored in changes.calls
    ]
    outbox = [
        (o.chat_id, o.lane, o.subject, o.message_id, o.version, o.due, o.payload)
        for o in changes.outbox
    ]
    tables = ((chats, 9), (entries, 10), (changes.identities, 2), (calls, 7), (outbox, 7))
    return [column for rows, width in tables for column in _columns(rows, width)]


def _rare_rows(changes: Changes) -> list[tuple[str, Sequence[tuple[Any, ...]]]]:
    """Return (statement, rows) for the tables that few batches write."""
    return [
        (
            "write_jobs",
            [
                (job.build_id, job.chat_id, job.subject, job.payload, job.not_after)
                for job in changes.jobs
            ],
        ),
        ("write_cancellations", changes.cancellations),
        ("write_names", changes.names),
        ("free_names", changes.freed),
    ]


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Turn rows into the arrays that `unnest` takes."""
    return [[row[n] for row in rows] for n in range(width)]


# -- the sample of `probe_write` ------------------------------------------------------------------


class _RollBackError(Exception):
    """Ends the probe's transaction."""


def _sample_changes(chat_id: str) -> Changes:
    """Return valid rows for every table that a batch writes, of a chat that does not exist."""
    now = datetime.now(UTC)
    workspace_id, owner_id = str(uuid4()), str(uuid4())
    chat = Chat(chat_id=chat_id, organization_id=str(uuid4()), owner_id=owner_id, version=1, seq=1)
    event = Event(
        source="/workspaced",
        id=str(uuid4()),
        chat_id=chat_id,
        time=now,
        data=DeleteRequested(reason="sample"),
    )
    call = Call(
        chat_id=chat_id,
        call_id="sample",
        tool="list_templates",
        args={},
        organization_id=str(uuid4()),
        owner_id=owner_id,
        owner_name="sample",
        asked_at=now,
        order=1,
    )
    message = OutboxMessage(chat_id, 0, "sample", "sample", b"{}", version=1)
    return Changes(
        chats=[chat],
        entries=[(chat_id, Entry(1, event, "moved", "none", "none", 1, now))],
        identities=[(chat_id, event_digest(event.source, event.id))],
        calls=[StoredCall(call, Answered({"error": "sample"}, is_error=True))],
        cancellations=[CallKey(chat_id, "canceled")],
        names=[(workspace_id, chat_id, owner_id, "sample")],
        freed=[(workspace_id, chat_id)],
        outbox=[message],
        jobs=[StoredJob(str(uuid4()), chat_id, "sample", b"{}", now)],
    )
