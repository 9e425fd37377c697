"""The store in PostgreSQL, over asyncpg: opening it, its transactions, and how changes become rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import asyncpg
from pydantic_core import to_json

from statemachine import codec
from statemachine.calls import Answered, Call, StoredCall, call_from_json, call_to_json
from statemachine.chat import JOINED_STATES, Chat, chat_from_json, chat_to_json
from statemachine.events import DeleteRequested, Event, event_digest
from statemachine.lookups import Lookups
from statemachine.step import Entry, WorkspaceName
from statemachine.store import (
    NO_ROW,
    Alarm,
    CallKey,
    Changes,
    DueAlarms,
    Look,
    LookedUp,
    StoredJob,
    StoreUnavailableError,
    Wanted,
    Written,
)
from statemachine.store.connection import open_connection, read_url, translate_connect_errors
from statemachine.store.database import QUERIES, RESPONSE_TIMEOUT, Database, Rows
from statemachine.store.postgres_queries import (
    NO_ROWS,
    PostgresAudit,
    PostgresChats,
    PostgresCredentials,
    PostgresRecovery,
    PostgresStatistics,
    PostgresTemplates,
    PostgresTokens,
    call_from_row,
    chat_rows,
    columns,
    json_rows,
    look_up,
)
from statemachine.templates import Version

TIMEOUTS: Final = {"transaction_timeout": "5s", "idle_in_transaction_session_timeout": "5s"}
"""A paused worker must not hold rows: the server ends its transaction."""
REQUIRED_TABLES: Final = [
    "chat",
    "event_log",
    "event_identity",
    "call",
    "call_key",
    "cancellation",
    "workspace",
    "alarm",
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
_JOINED: Final = sorted(map(str, JOINED_STATES))
_OF_FACTS: Final = 10
"""How many of the arguments of `write` belong to `write_facts` too."""
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
        yield PostgresStore(Database(pool))
    finally:
        pool.terminate()


class PostgresStore:
    """Implements `Store`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._versions: dict[str, Version] = {}
        """Template versions that `look_up` has read."""
        fetch = self._fetch = database.fetch
        self.chats = PostgresChats(fetch)
        self.templates = PostgresTemplates(fetch)
        self.credentials = PostgresCredentials(fetch)
        self.tokens = PostgresTokens(fetch)
        self.statistics = PostgresStatistics(fetch)
        self.recovery = PostgresRecovery(fetch)
        self.audit = PostgresAudit(fetch)

    async def now(self) -> datetime:
        """Return the database's time."""
        found: datetime = (await self._fetch("now"))[0]["now"]
        return found

    @asynccontextmanager
    async def locked(self, name: str) -> AsyncIterator[None]:
        """Hold the lock of that name."""
        async with self._database.transaction() as session:
            await session.fetch(QUERIES["lock"], name)
            yield

    async def look(self, wanted: Wanted) -> Look:
        """Read what a batch needs to know about its chats, all as of one moment."""
        arguments = [
            *columns(wanted.identities, 2),
            list(wanted.waiting),
            list(wanted.chats),
            list(wanted.provisioners),
        ]
        if wanted.calls or wanted.waiting_unless_joined:
            arguments += columns(list(wanted.calls), 2)
            arguments += [list(wanted.waiting_unless_joined), _JOINED]
            rows = await self._fetch("look", *arguments)
        else:
            rows = await self._fetch("look_facts", *arguments)
        return _look_from_rows(rows, wanted.chats)

    async def look_up(
        self, wanted: Lookups, workspace_ids: AbstractSet[str] = frozenset()
    ) -> LookedUp:
        """Return templates, versions, names, settings and current workspaces."""
        return await look_up(self._fetch, self._versions, wanted, workspace_ids)

    async def write(self, changes: Changes) -> Written:
        """Write and commit everything; skip the chats that have changed."""
        arguments = _write_arguments(changes)
        if any(rows != NO_ROWS for rows in arguments[_OF_FACTS:]):
            rows = await self._fetch("write", *arguments)
        else:
            rows = await self._fetch("write_facts", *arguments[:_OF_FACTS])
        if changes.cancellations:
            # The changes are committed. If this fails, the next cancellation makes up for it.
            with suppress(StoreUnavailableError):
                await self._fetch("forget_cancellations")
        (of_all,) = (row for row in rows if row["chat_id"] is None)
        skipped = {row["chat_id"] for row in rows if row["skipped"]}
        repeated = {row["chat_id"] for row in rows if row["skipped"] is False}
        return Written(skipped, repeated, of_all["now"], of_all["row_version"])

    async def due_alarms(
        self,
        limit: int,
        *,
        without: Sequence[str] = (),
        publishing: float = 0.0,
        retention: timedelta | None = None,
    ) -> DueAlarms:
        """Return the first alarms whose time has come."""
        if retention is not None:
            await self._fetch("ripen", limit, retention, list(without))
        rows = await self._fetch("due_alarms", limit, list(without), publishing, retention)
        alarms: dict[str, list[Alarm]] = {}
        for row in rows:
            if row["at"] is not None:
                alarm = Alarm(row["at"], row["chat_id"])
                alarms.setdefault(alarm.chat_id, []).append(alarm)
        handled = {row["chat_id"] for row in rows if row["handled"]}
        (now, found, busy, later, *_) = rows[0].values()
        return DueAlarms(now, alarms, handled, found == limit, busy, later)

    async def first_rest(self, retention: timedelta) -> datetime | None:
        """Return when the first workspace that rests has rested for so long; None if none does."""
        since: datetime | None = (await self._fetch("first_rest", retention))[0]["since"]
        return None if since is None else since + retention

    async def delete_alarms(self, alarms: Sequence[Alarm], *, unhandled: bool = False) -> None:
        """Delete alarms that were handled; with `unhandled`, also those that were not."""
        await self._fetch("delete_alarms", *columns(alarms, 2), unhandled)

    async def settings(self) -> dict[str, str]:
        """Return the operators' settings by name."""
        return {row["key"]: row["value"] for row in await self._fetch("settings")}

    async def put_setting(self, key: str, value: str) -> None:
        """Change a setting."""
        await self._fetch("put_setting", key, value)

    async def unset_setting(self, key: str) -> None:
        """Remove a setting."""
        await self._fetch("unset_setting", key)

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
            async with self._database.transaction() as session:
                sample = _sample_changes(str(uuid4()))
                await session.fetch(QUERIES["write"], *_write_arguments(sample))
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


# -- rows -----------------------------------------------------------------------------------------


def _look_from_rows(rows: Rows, chat_ids: AbstractSet[str]) -> Look:
    """Return what the statement `look` found."""
    (now,) = (row["now"] for row in rows if row["kind"] == "now")
    look = Look(now, row_versions=dict.fromkeys(chat_ids, NO_ROW))
    for row in rows:
        match row["kind"]:
            case "now":
                pass
            case "chat":
                chat = chat_from_json(row["body"])
                look.chats[chat.chat_id] = chat
                look.row_versions[chat.chat_id] = row["row_version"]
            case "known":
                look.known.add((row["chat_id"], row["digest"]))
            case "waiting":
                call = call_from_json(row["body"])
                look.waiting.setdefault(call.chat_id, []).append(call)
            case "canceled":
                look.canceled.add(CallKey(row["chat_id"], row["call_id"]))
            case "bound":
                look.pools[row["call_id"]] = row["chat_id"]
            case _:
                stored = call_from_row(row)
                look.calls[CallKey(stored.call.chat_id, stored.call.call_id)] = stored
    for calls in look.waiting.values():
        calls.sort(key=lambda call: call.order)
    return look


# -- changes as rows ------------------------------------------------------------------------------


def _write_arguments(changes: Changes) -> list[Any]:
    """Return the arguments of `write`: for each table its rows as JSON, and their documents as further arguments."""
    versions = changes.row_versions
    chats = chat_rows(changes.chats, versions)
    chats += [{"chat_id": c, "row_version": versions.get(c)} for c in changes.unchanged]
    entries = [
        {
            "chat_id": chat_id,
            "seq": entry.seq,
            "outcome": entry.outcome,
            "state_before": entry.state_before,
            "state_after": entry.state_after,
            "version": entry.version,
            "at": entry.at,
            "cause": entry.cause,
            "deadline": entry.deadline,
        }
        for chat_id, entry in changes.entries
    ]
    identities = [
        {"chat_id": chat_id, "digest": digest.hex()} for chat_id, digest in changes.identities
    ]
    calls = [
        {
            "chat_id": stored.call.chat_id,
            "call_id": stored.call.call_id,
            "ord": stored.call.order,
            "asked_at": stored.call.asked_at,
            "is_error": stored.answer.is_error if stored.answer else None,
        }
        for stored in changes.calls
    ]
    jobs = [
        {
            "build_id": job.build_id,
            "chat_id": job.chat_id,
            "subject": job.subject,
            "payload": job.payload.decode(),
            "not_after": job.not_after,
            "unneeded": job.unneeded,
        }
        for job in changes.jobs
    ]
    freed, alarms = set(changes.freed), set(changes.alarms)
    names = [
        {**name._asdict(), "deleted": (name.workspace_id, name.chat_id) in freed}
        for name in changes.names
    ]
    return [
        json_rows(chats),
        [*map(chat_to_json, changes.chats), *[None] * len(changes.unchanged)],
        json_rows(entries),
        [codec.written(entry.event).decode() for _, entry in changes.entries],
        json_rows(identities),
        json_rows(calls),
        [call_to_json(stored.call) for stored in changes.calls],
        [_result_to_json(stored.answer) for stored in changes.calls],
        json_rows([alarm._asdict() for alarm in changes.alarms]),
        list(changes.unbound),
        json_rows([alarm._asdict() for alarm in changes.handled if alarm not in alarms]),
        json_rows(names),
        json_rows([{"workspace_id": w, "chat_id": chat} for w, chat in changes.freed]),
        json_rows(jobs),
        json_rows([key._asdict() for key in changes.cancellations]),
        json_rows([{"build_id": b, "chat_id": chat} for b, chat in changes.unneeded_jobs]),
    ]


def _result_to_json(answer: Answered | None) -> str | None:
    return None if answer is None else to_json(answer.result, inf_nan_mode="null").decode()


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
    return Changes(
        chats=[chat],
        entries=[(chat_id, Entry(1, event, "moved", "none", "none", 1, now))],
        identities=[(chat_id, event_digest(event.source, event.id))],
        calls=[StoredCall(call, Answered({"error": "sample"}, is_error=True))],
        cancellations=[CallKey(chat_id, "canceled")],
        names=[WorkspaceName(workspace_id, chat_id, owner_id, "sample", requested=True)],
        freed=[(workspace_id, chat_id)],
        jobs=[StoredJob(str(uuid4()), chat_id, "sample", b"{}", now)],
        unneeded_jobs=[(str(uuid4()), chat_id)],
        alarms=[Alarm(now, chat_id)],
        handled=[Alarm(now, chat_id)],
    )
