"""The parts of the store in PostgreSQL that need no transaction: each is composed of named statements."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
from typing_extensions import override

from statemachine.calls import Answered, Call, StoredCall, call_from_json
from statemachine.chat import Chat, chat_from_json
from statemachine.lookups import Lookups
from statemachine.messages import LogEntry
from statemachine.store import (
    CONNECTIONS_PER_KEY,
    BuildTimes,
    CallKey,
    Chats,
    CheckedCredential,
    ClientConnection,
    Credential,
    Credentials,
    DatabaseOrigin,
    DatabaseServer,
    KnownCall,
    ListedCredential,
    LookedUp,
    PushedVersion,
    Recovery,
    SeenServer,
    Statistics,
    StoredJob,
    StreamPosition,
    Templates,
    Token,
    Tokens,
    WaitingCalls,
    chat_columns,
    log_entry,
    rest_columns,
)
from statemachine.store.database import Fetch
from statemachine.templates import Catalog, Manifest, Template, Version

_ENCODER: Final = msgspec.json.Encoder()
NO_ROWS: Final = "[]"
_REMEMBERED_VERSIONS: Final = 256
_LOG_PAGE: Final = 250
"""Log entries that are read at once."""
_LOWEST_ID: Final = "00000000-0000-0000-0000-000000000000"


# -- rows -----------------------------------------------------------------------------------------


def chat_from_row(row: Mapping[str, Any]) -> Chat:
    """Return the chat of a row with the column `snapshot`."""
    return chat_from_json(row["snapshot"])


def json_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as the JSON array that `json_to_recordset` takes: much cheaper than an array for each column."""
    return _ENCODER.encode(rows).decode() if rows else NO_ROWS


def chat_rows(chats: Sequence[Chat], row_versions: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the rows of chats without snapshots, each with the version of the row that it replaces, or None."""
    return [
        {
            "chat_id": chat.chat_id,
            **chat_columns(chat),
            **rest_columns(chat),
            "row_version": row_versions.get(chat.chat_id),
        }
        for chat in chats
    ]


def columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Turn rows into the arrays that `unnest` takes."""
    return [[row[n] for row in rows] for n in range(width)]


def call_from_row(row: Mapping[str, Any]) -> StoredCall:
    """Return the call of a row of `call`, with its answer if it has one."""
    answer = row["result"] and Answered(json.loads(row["result"]), row["is_error"])
    return StoredCall(call_from_json(row["body"]), answer or None)


def _entry_from_row(row: Mapping[str, Any]) -> LogEntry:
    cause = row["cause"]
    return log_entry(row, json.loads(row["event"]), None if cause is None else json.loads(cause))


def _credential_from_row(row: Mapping[str, Any]) -> Credential:
    return Credential(
        row["kind"],
        tuple(row["chat_ids"]),
        row["expires_at"],
        workspace_id=row["workspace_id"],
        build_id=row["build_id"],
        agent_id=row["agent_id"],
        name=row["name"],
        pool=row["pool"],
        exec=row["exec"],
        revoked_at=row["revoked_at"],
    )


def _version_from_row(row: Mapping[str, Any]) -> Version:
    manifest = Manifest.model_validate_json(row["manifest"])
    return Version(
        row["id"], row["belongs_to"], manifest, row["readme"] or None, row["sha256"], row["size"]
    )


async def look_up(
    fetch: Fetch,
    remembered: dict[str, Version],
    wanted: Lookups,
    workspace_ids: AbstractSet[str] = frozenset(),
) -> LookedUp:
    """Implement `Store.look_up`.

    `remembered` has versions that were read before, and gets those that are read now. Versions never change,
    so a remembered one is not read again.
    """
    versions = {
        key: version
        for key, version in remembered.items()
        if key in wanted.versions or version.template_id in wanted.templates
    }
    heads: list[Mapping[str, Any]] = []
    names: dict[str, set[str]] = {owner: set() for owner in wanted.owners}
    found = LookedUp(Catalog({}, versions), {}, names, set(), call_key=b"")
    settings: dict[str, str] = {}
    for row in await fetch(
        "look_up",
        list(wanted.organizations),
        list(wanted.templates),
        list(wanted.versions),
        list(versions),
        list(wanted.owners),
        list(workspace_ids),
    ):
        match row["kind"]:
            case "template":
                heads.append(row)
            case "version":
                versions[row["id"]] = remembered[row["id"]] = _version_from_row(row)
            case "name":
                found.names[row["belongs_to"]].add(row["value"].lower())  # not as a locale does
            case "current":
                found.current.add(row["id"])
            case "call_key":
                found = found._replace(call_key=bytes.fromhex(row["value"]))
            case _:
                settings[row["id"]] = row["value"]
    while len(remembered) > _REMEMBERED_VERSIONS:
        del remembered[next(iter(remembered))]
    templates = {
        row["id"]: Template(row["id"], row["belongs_to"], versions[row["value"]]) for row in heads
    }
    return found._replace(catalog=Catalog(templates, versions), settings=settings)


# -- parts of the port ----------------------------------------------------------------------------


class PostgresChats(Chats):
    """`Chats` in PostgreSQL; the port describes the methods."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    @override
    async def get(self, chat_id: str) -> Chat | None:
        rows = await self._fetch("chat", chat_id)
        return chat_from_row(rows[0]) if rows else None

    @override
    async def get_many(self, chat_ids: Sequence[str]) -> list[Chat]:
        return [chat_from_row(row) for row in await self._fetch("chats_by_id", list(chat_ids))]

    @override
    async def find(
        self,
        *,
        organization_id: str | None = None,
        owner_id: str | None = None,
        states: Sequence[str] | None = None,
        after: str | None = None,
        limit: int = 100,
        template_id: str | None = None,
        query: str | None = None,
    ) -> list[Chat]:
        rows = await self._fetch(
            "chats", organization_id, owner_id, states, after, limit, template_id, query
        )
        return [chat_from_row(row) for row in rows]

    @override
    async def with_previous(self, *, after: str | None = None, limit: int = 100) -> list[Chat]:
        rows = await self._fetch("chats_with_previous", after, limit)
        return [chat_from_row(row) for row in rows]

    @override
    async def current_workspaces(self, workspace_ids: AbstractSet[str]) -> set[str]:
        if not workspace_ids:
            return set()
        return {
            row["workspace_id"]
            for row in await self._fetch("current_workspaces", list(workspace_ids))
        }

    @override
    async def open_calls(self, chat_id: str) -> list[Call]:
        rows = await self._fetch("open_calls", chat_id)
        return [call_from_json(row["body"]) for row in rows]

    @override
    async def count_open_calls(self, limit: int) -> int:
        return int((await self._fetch("count_open_calls", limit))[0]["count"])

    @override
    async def known_call(self, chat_id: str, call_id: str) -> KnownCall | None:
        rows = await self._fetch("known_call", chat_id, call_id)
        return KnownCall(**rows[0]) if rows else None

    @override
    async def is_answered(self, chat_id: str, call_id: str) -> bool:
        return bool(await self._fetch("is_answered", chat_id, call_id))

    @override
    async def log(self, chat_id: str, *, after: int = 0, limit: int = 100) -> list[LogEntry]:
        return [_entry_from_row(row) for row in await self._fetch("log", chat_id, after, limit)]


class PostgresTemplates(Templates):
    """`Templates` in PostgreSQL; the port describes the methods."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    @override
    async def push(self, organization_id: str, version: Version, archive: bytes) -> None:
        await self._fetch(
            "push_version",
            version.id,
            version.template_id,
            version.manifest.model_dump_json(),  # with its defaults: a stored manifest never changes
            version.readme,
            version.sha256,
            archive,
            organization_id,
            version.manifest.name,
        )

    @override
    async def activate(self, version_id: str) -> str | None:
        rows = await self._fetch("activate", version_id)
        return rows[0]["template_id"] if rows else None

    @override
    async def catalog(self, organization_id: str) -> Catalog:
        found = await look_up(self._fetch, {}, Lookups(organizations=frozenset({organization_id})))
        return found.catalog

    @override
    async def versions(self, template_id: str) -> list[PushedVersion]:
        return [PushedVersion(**row) for row in await self._fetch("template_versions", template_id)]

    @override
    async def read_archive(self, version_id: str, offset: int, size: int) -> bytes | None:
        rows = await self._fetch("read_archive", version_id, offset, size)
        return rows[0]["piece"] if rows else None

    @override
    async def pools(self) -> set[str]:
        return {row["pool"] for row in await self._fetch("pools")}


class PostgresStatistics(Statistics):
    """`Statistics` in PostgreSQL; the port describes the methods."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    @override
    async def server(self) -> DatabaseServer:
        return DatabaseServer(**(await self._fetch("database_server"))[0])

    @override
    async def waiting_calls(self, limit: int) -> WaitingCalls:
        return WaitingCalls(**(await self._fetch("waiting_calls", limit))[0])

    @override
    async def open_calls(
        self, *, chat_id: str | None = None, after: CallKey | None = None, limit: int = 100
    ) -> list[Call]:
        rows = await self._fetch("open_calls_of_all", chat_id, *(after or (None, None)), limit)
        return [call_from_json(row["body"]) for row in rows]

    @override
    async def pools(self) -> set[str]:
        return {row["pool"] for row in await self._fetch("active_pools")}

    @override
    async def build_times(
        self, since: datetime, until: datetime, *, limit: int
    ) -> tuple[int, list[BuildTimes]]:
        rows = await self._fetch("build_times", since, until, limit)
        found = [BuildTimes(**row) for row in rows]
        return sum(one.count for one in found), found


class PostgresCredentials(Credentials):
    """`Credentials` in PostgreSQL; the port describes the methods."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    @override
    async def issue(self, public_key: str, credential: Credential) -> None:
        await self._fetch(
            "issue_credential",
            public_key,
            credential.kind,
            list(credential.chat_ids),
            credential.workspace_id,
            credential.build_id,
            credential.agent_id,
            credential.expires_at,
            credential.name,
            credential.pool,
            credential.exec,
        )

    @override
    async def get(self, public_key: str) -> CheckedCredential | None:
        rows = await self._fetch("credential", public_key)
        return CheckedCredential(_credential_from_row(rows[0]), rows[0]["denial"]) if rows else None

    @override
    async def find(
        self, *, include_expired: bool = False, after: str | None = None, limit: int = 100
    ) -> list[ListedCredential]:
        return [
            ListedCredential(
                row["public_key"],
                _credential_from_row(row),
                row["issued_at"],
                row["connections"],
                row["superseded"],
            )
            for row in await self._fetch("credentials", include_expired, after, limit)
        ]

    @override
    async def revoke(self, public_key: str) -> bool:
        return bool(await self._fetch("revoke_credential", public_key))

    @override
    async def bind_provisioner(self, name: str, pool: str) -> str:
        rows: Sequence[Mapping[str, Any]] = ()
        while not rows:  # another transaction is binding it: the next look finds its row
            rows = await self._fetch("bind_provisioner", name, pool)
        return str(rows[0]["pool"])

    @override
    async def record_connection(
        self, public_key: str, at: ClientConnection, server_name: str, credential: Credential
    ) -> list[ClientConnection]:
        rows = await self._fetch(
            "record_connection",
            *at,
            server_name,
            public_key,
            credential.chat_ids[0] if credential.kind == "agent" else None,
            credential.expires_at,
            CONNECTIONS_PER_KEY,
        )
        return [ClientConnection(**row) for row in rows]

    @override
    async def invalid_connections(
        self,
        *,
        chat_ids: AbstractSet[str] | None = None,
        public_key: str | None = None,
        after: ClientConnection | None = None,
        limit: int = 500,
    ) -> list[ClientConnection]:
        chats = None if chat_ids is None else list(chat_ids)
        rows = await self._fetch(
            "invalid_connections", chats, public_key, *(after or (None, None)), limit
        )
        return [ClientConnection(**row) for row in rows]

    @override
    async def forget_connections(self, connections: Sequence[ClientConnection]) -> None:
        await self._fetch(
            "forget_connections", [c.server for c in connections], [c.client for c in connections]
        )

    @override
    async def forget_earlier_server(self, server_name: str, server: str) -> None:
        await self._fetch("forget_earlier_server", server_name, server)


class PostgresTokens(Tokens):
    """`Tokens` in PostgreSQL; the port describes the methods."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    @override
    async def issue(self, digest: bytes, token: Token) -> None:
        await self._fetch(
            "issue_token",
            token.id,
            digest,
            token.role,
            list(token.chat_ids),
            token.organization_id,
            token.owner_id,
            token.owner_name,
            token.exec,
            token.expires_at,
        )

    @override
    async def find(self, digest: bytes) -> Token | None:
        rows = await self._fetch("token", digest)
        return _token_from_row(rows[0]) if rows else None

    @override
    async def page(
        self, roles: Sequence[str], *, after: str | None = None, limit: int = 100
    ) -> list[Token]:
        rows = await self._fetch("tokens", list(roles), after, limit)
        return [_token_from_row(row) for row in rows]

    @override
    async def exchange(self, digest: bytes, other: bytes, expires_at: datetime) -> Token | None:
        rows = await self._fetch("exchange_token", digest, other, expires_at)
        return _token_from_row(rows[0]) if rows else None

    @override
    async def revoke(self, token_id: str, roles: Sequence[str]) -> bool:
        return bool(await self._fetch("revoke_token", token_id, list(roles)))


def _token_from_row(row: Mapping[str, Any]) -> Token:
    return Token(**{**row, "chat_ids": tuple(row["chat_ids"])})


class PostgresRecovery(Recovery):
    """`Recovery` in PostgreSQL; the port describes the methods."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    @override
    async def origin(self) -> DatabaseOrigin:
        (row,) = await self._fetch("origin")
        return DatabaseOrigin(row["here"], row["noted"])

    @override
    async def record_origin(self, current: str) -> None:
        await self._fetch("record_origin", current)

    @override
    async def stream_positions(self) -> dict[str, StreamPosition]:
        rows = await self._fetch("stream_positions")
        return {row["stream"]: StreamPosition(row["created"], row["last"]) for row in rows}

    @override
    async def advance_positions(
        self, positions: Mapping[str, StreamPosition], server_id: str | None
    ) -> None:
        await self._fetch("advance_positions", *_position_columns(positions), server_id)

    @override
    async def reset_positions(self, positions: Mapping[str, StreamPosition]) -> None:
        await self._fetch("reset_positions", *_position_columns(positions))

    @override
    async def seen_server(self) -> SeenServer | None:
        rows = await self._fetch("nats_server")
        return SeenServer(rows[0]["id"], rows[0]["seen_at"]) if rows else None

    @override
    async def record_server(self, server_id: str) -> None:
        await self._fetch("record_server", server_id)

    @override
    async def mark_lost(self, before: Mapping[str, StreamPosition | None], token: str) -> None:
        mark, seen = StreamPosition.lost(token), list(before.values())
        created, last = [s and s.created for s in seen], [s and s.last for s in seen]
        await self._fetch("mark_lost", list(before), created, last, mark.created, mark.last)

    @override
    async def alarm_times(
        self, *, after: datetime | None = None, limit: int = 1000
    ) -> list[datetime]:
        return [row["at"] for row in await self._fetch("alarm_times", after, limit)]

    @override
    async def published_chats(self, *, after: str | None = None, limit: int = 500) -> list[Chat]:
        return [chat_from_row(row) for row in await self._fetch("published_chats", after, limit)]

    @override
    async def changed_chats(
        self, since: datetime, *, after: str | None = None, limit: int = 200
    ) -> list[Chat]:
        rows = await self._fetch("changed_chats", after, limit, since)
        return [chat_from_row(row) for row in rows]

    @override
    async def chats_with_agents(self, *, after: str | None = None, limit: int = 500) -> list[Chat]:
        return [chat_from_row(row) for row in await self._fetch("chats_with_agents", after, limit)]

    @override
    async def jobs(
        self, *, after: str | None = None, limit: int = 100
    ) -> list[tuple[StoredJob, Chat]]:
        rows = [dict(row) for row in await self._fetch("jobs", after, limit)]
        chats = [chat_from_json(row.pop("snapshot")) for row in rows]
        return [(StoredJob(**row), chat) for row, chat in zip(rows, chats, strict=True)]

    @override
    async def unpublished_jobs(self, chat_ids: Sequence[str]) -> list[StoredJob]:
        return [StoredJob(**row) for row in await self._fetch("unpublished_jobs", list(chat_ids))]

    @override
    async def mark_published(self, sequences: Mapping[str, int | None]) -> set[str]:
        rows = await self._fetch("mark_published", list(sequences), list(sequences.values()))
        return {row["chat_id"] for row in rows if row["unneeded"]}

    @override
    async def unneeded_jobs(self, chat_ids: Sequence[str]) -> list[StoredJob]:
        return [StoredJob(**row) for row in await self._fetch("unneeded_jobs", list(chat_ids))]

    @override
    async def mark_taken_back(self, build_ids: Sequence[str]) -> None:
        await self._fetch("mark_taken_back", list(build_ids))

    @override
    async def answered_calls(
        self, *, after: CallKey | None = None, limit: int = 500
    ) -> list[StoredCall]:
        rows = await self._fetch("answered_calls", *(after or (None, None)), limit)
        return [call_from_row(row) for row in rows]

    @override
    async def answers_of(
        self, chat_ids: Sequence[str], since: datetime | None = None
    ) -> list[StoredCall]:
        rows = await self._fetch("answers_of", list(chat_ids), since)
        return [call_from_row(row) for row in rows]


def _position_columns(positions: Mapping[str, StreamPosition]) -> list[list[Any]]:
    seen = list(positions.values())
    return [list(positions), [s.created for s in seen], [s.last for s in seen]]


# -- audit: PostgreSQL only, because memory does not outlive the process ----------------------------


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A chat's row as it is stored, to be compared with what its event log folds to."""

    chat_id: str
    snapshot: str
    """JSON; it may be damaged."""
    columns: Mapping[str, Any]
    """The columns of `chat_columns`."""
    last: int
    """The sequence of the last log entry."""
    open_calls: int
    row_version: int


class PostgresAudit:
    """Reads rows and logs for `workspaced replay`."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    async def chat_rows(
        self, *, after: str | None = None, only: Sequence[str] | None = None, limit: int = 200
    ) -> list[ChatRow]:
        """Return a page of the rows of all chats, or of those in `only`, sorted by chat id."""
        names = chat_columns(Chat(chat_id=_LOWEST_ID))
        return [
            ChatRow(
                row["chat_id"],
                row["snapshot"],
                {name: row[name] for name in names},
                row["last"],
                row["open_calls"],
                row["row_version"],
            )
            for row in await self._fetch("chat_rows", after, only, limit)
        ]

    async def rebuild(self, chats: Sequence[Chat], row_versions: Mapping[str, int]) -> set[str]:
        """Replace snapshots; return the ids of the chats whose rows had not changed since `chat_rows`."""
        rows = zip(chat_rows(chats, row_versions), chats, strict=True)
        arguments = json_rows([{**row, "snapshot": chat} for row, chat in rows])
        rebuilt = await self._fetch("rebuild_chats", arguments)
        return {row["chat_id"] for row in rebuilt}

    async def logs(
        self, first: str | None = None, last: str | None = None, *, after: int = 0
    ) -> AsyncIterator[tuple[str, LogEntry]]:
        """Yield (chat id, entry) of the logs of the chats from `first` to `last`, chat by chat.

        Of the chat `first`, entries up to sequence `after` are left out.
        """
        position = (first or _LOWEST_ID, after)
        while True:
            rows = await self._fetch("log_of_many", *position, last, _LOG_PAGE)
            for row in rows:
                yield row["chat_id"], _entry_from_row(row)
            if len(rows) < _LOG_PAGE:
                return
            position = (rows[-1]["chat_id"], rows[-1]["seq"])
