"""What is read and kept outside of a chat's transactions: for the gateway, operators and templates."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import timedelta
from typing import Any, Final

import asyncpg

from statemachine.calls import Answered, Call, call_from_json
from statemachine.chat import Chat, chat_from_json
from statemachine.messages import LogEntry
from statemachine.store import (
    Job,
    Key,
    Origin,
    Outgoing,
    Pushed,
    Seen,
    StoredCall,
    StoreUnavailableError,
    Terms,
)
from statemachine.store.audit import Auditing, entry_in
from statemachine.store.errors import borrowed, of_the_session, said
from statemachine.store.postgres_credentials import PostgresAdmitting
from statemachine.store.sql import queries
from statemachine.templates import Catalog, Manifest, Template, Version

Q: Final = queries()


READ_ONLY: Final = "the database takes no changes now: it is read-only"
TABLES: Final = [
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
"""Tables without which events can't be applied."""
_REMEMBERED: Final = 256
"""Versions that a process keeps."""
Fetch = Callable[..., Awaitable[Sequence[Mapping[str, Any]]]]
"""Returns the rows of a named statement."""


def _version(row: Mapping[str, Any]) -> Version:
    manifest = Manifest.model_validate_json(row["manifest"])
    return Version(
        row["id"], row["belongs_to"], manifest, row["readme"] or None, row["sha256"], row["size"]
    )


async def terms_of(
    fetch: Fetch,
    remembered: dict[str, Version],
    organization_ids: AbstractSet[str],
    template_ids: AbstractSet[str],
    version_ids: AbstractSet[str],
) -> Terms:
    """Return the templates of these organizations and ids, these versions, and the settings.

    `remembered`: versions read before. They never change, and are not read again.
    """
    versions = {
        key: version
        for key, version in remembered.items()
        if key in version_ids or version.template_id in template_ids
    }
    heads, settings = [], {}
    for row in await fetch(
        "terms", list(organization_ids), list(template_ids), list(version_ids), list(versions)
    ):
        match row["kind"]:
            case "template":
                heads.append(row)
            case "version":
                versions[row["id"]] = remembered[row["id"]] = _version(row)
            case _:
                settings[row["id"]] = row["value"]
    while len(remembered) > _REMEMBERED:
        del remembered[next(iter(remembered))]
    templates = {
        row["id"]: Template(row["id"], row["belongs_to"], versions[row["value"]]) for row in heads
    }
    return Terms(Catalog(templates, versions), settings)


def call_of(row: Mapping[str, Any]) -> StoredCall:
    """Read a call and its answer, if it has one."""
    answer = row["result"] and Answered(json.loads(row["result"]), row["is_error"])
    return StoredCall(call_from_json(row["body"]), answer or None)


class Reading(Auditing, PostgresAdmitting):
    """The part of the port that needs no lock."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    async def _fetch(self, name: str, *args: object) -> Sequence[Mapping[str, Any]]:
        with said():
            try:
                return await self._fetched(name, *args)
            except asyncpg.PostgresError as no:
                if not of_the_session(no):
                    raise
            return await self._fetched(name, *args)  # in another session

    async def _fetched(self, name: str, *args: object) -> Sequence[Mapping[str, Any]]:
        async with borrowed(self._pool) as db:
            return await db.fetch(Q[name], *args)

    async def published(self, ids: Sequence[int]) -> None:
        """Drop outbox rows that the bus has stored."""
        await self._fetch("delete_outbox", ids)

    async def chat(self, chat_id: str) -> Chat | None:
        """Return a snapshot, without lock."""
        rows = await self._fetch("chat", chat_id)
        return chat_from_json(rows[0]["snapshot"]) if rows else None

    async def chats(
        self,
        *,
        organization_id: str | None = None,
        owner_id: str | None = None,
        states: Sequence[str] | None = None,
        after: str | None = None,
        most: int = 100,
    ) -> list[Chat]:
        """Return snapshots by chat id, after `after`."""
        rows = await self._fetch("chats", organization_id, owner_id, states, after, most)
        return [chat_from_json(row["snapshot"]) for row in rows]

    async def waiting(self, chat_id: str) -> list[Call]:
        """Return a chat's open calls."""
        rows = await self._fetch("calls_waiting", chat_id)
        return [call_from_json(row["body"]) for row in rows]

    async def waiting_in_all(self, most: int) -> int:
        """Count the open calls of all chats, up to `most`."""
        return int((await self._fetch("count_open_calls", most))[0]["count"])

    async def answered(self, chat_id: str, call_id: str) -> bool:
        """Say whether a call is known and over."""
        return bool(await self._fetch("answered", chat_id, call_id))

    async def log(self, chat_id: str, *, after: int = 0, most: int = 100) -> list[LogEntry]:
        """Return log entries as `read_events` shows them, plus `at`."""
        return [entry_in(row) for row in await self._fetch("log", chat_id, after, most)]

    async def waking(self, *, after: str | None = None, most: int = 1000) -> list[Chat]:
        """Return the chats that a timer is set for, by chat id, after `after`."""
        rows = await self._fetch("waking", after, most)
        return [chat_from_json(row["snapshot"]) for row in rows]

    async def orphaned(self, *, after: str | None = None, most: int = 100) -> list[Chat]:
        """Return the chats that remember orphans, by chat id, after `after`."""
        rows = await self._fetch("orphaned", after, most)
        return [chat_from_json(row["snapshot"]) for row in rows]

    async def had(self, workspace_ids: AbstractSet[str]) -> set[str]:
        """Return those of `workspace_ids` that some chat has."""
        return {row["workspace_id"] for row in await self._fetch("had", list(workspace_ids))}

    async def pools(self) -> set[str]:
        """Return the pools that templates name."""
        return {row["pool"] for row in await self._fetch("pools")}

    async def archive(self, version_id: str, offset: int, size: int) -> bytes | None:
        """Return a piece of a template version's tar.gz, or None when there is no such version."""
        rows = await self._fetch("archive", version_id, offset, size)
        return rows[0]["piece"] if rows else None

    async def push(self, organization_id: str, version: Version, archive: bytes) -> None:
        """Keep a template version and make it the active one."""
        manifest = version.manifest.model_dump_json()  # with its defaults: it never changes
        with said():
            async with borrowed(self._pool) as db, db.transaction():
                await db.execute(
                    Q["push_version"],
                    version.id,
                    version.template_id,
                    manifest,
                    version.readme,
                    version.sha256,
                    archive,
                )
                await db.execute(
                    Q["activate"],
                    version.template_id,
                    organization_id,
                    version.manifest.name,
                    version.id,
                )

    async def templates(self, organization_id: str) -> Catalog:
        """Return an organization's templates."""
        return (await terms_of(self._fetch, {}, {organization_id}, set(), set())).catalog

    async def history(self, template_id: str) -> list[Pushed]:
        """Return a template's versions in the order they were first pushed."""
        return [Pushed(**row) for row in await self._fetch("history", template_id)]

    async def activate(self, version_id: str) -> str | None:
        """Make a version its template's active one; return the template's id, if there is such."""
        rows = await self._fetch("activate_again", version_id)
        return rows[0]["template_id"] if rows else None

    async def settings(self) -> dict[str, str]:
        """Return the settings."""
        return {row["key"]: row["value"] for row in await self._fetch("settings")}

    async def put_setting(self, key: str, value: str) -> None:
        """Change a setting, for all workers at once."""
        await self._fetch("put_setting", key, value)

    async def check(self) -> None:
        """Return if the database can take changes now. Raises StoreUnavailableError with what is wrong."""
        (found,) = await self._fetch("usable", TABLES)
        if found["read_only"] or found["missing"]:
            # Another session may find another server, or the tables.
            await self._pool.expire_connections()
            (found,) = await self._fetch("usable", TABLES)
        if found["read_only"]:
            raise StoreUnavailableError(READ_ONLY)
        if found["missing"]:
            raise StoreUnavailableError(
                f"the database has no table {', '.join(found['missing'])}: was it renamed, or does "
                "search_path name another schema?"
            )

    async def hold_up(self, chat_ids: AbstractSet[str], words: str, seconds: float) -> None:
        """Note for so many seconds why events of these chats are not taken."""
        await self._fetch("hold_up", sorted(chat_ids), words, timedelta(seconds=seconds))

    async def held_up(self, chat_ids: AbstractSet[str]) -> dict[str, str]:
        """Return why events are not taken now, by chat: as noted, or because the database takes no changes."""
        rows = await self._fetch("held_up", list(chat_ids), TABLES)
        noted = {row["chat_id"]: row["words"] for row in rows if row["chat_id"] is not None}
        if len(noted) < len(rows):
            try:
                await self.check()
            except StoreUnavailableError as bad:
                return dict.fromkeys(chat_ids, str(bad)) | noted
        return noted

    async def origin(self) -> Origin:
        """Return which database this is, and which one the rows were written in."""
        (row,) = await self._fetch("origin")
        return Origin(row["here"], row["noted"])

    async def settle(self, here: str) -> None:
        """Note that the rows are at home in this database."""
        await self._fetch("settle", here)

    async def streams_seen(self) -> dict[str, Seen]:
        """Return the streams that were noted, by name."""
        rows = await self._fetch("streams_seen")
        return {row["stream"]: Seen(row["created"], row["last"]) for row in rows}

    async def doubt_streams(self, before: Mapping[str, Seen | None], token: str) -> None:
        """Mark streams as having lost something, each only where it is still noted as in `before`."""
        mark, seen = Seen.lost(token), list(before.values())
        created, last = [s and s.created for s in seen], [s and s.last for s in seen]
        await self._fetch("doubt_streams", list(before), created, last, mark.created, mark.last)

    async def see_streams(self, seen: Mapping[str, Seen], *, anew: bool = False) -> None:
        """Note how far streams are. Only `anew` puts one in the place of another, or goes back."""
        columns = [list(seen), [s.created for s in seen.values()], [s.last for s in seen.values()]]
        if anew:
            await self._fetch("see_streams", *columns)
        else:
            await self._fetch("note_streams", *columns)

    async def published_states(self, *, after: str | None = None, most: int = 500) -> list[Chat]:
        """Return the chats that have a version, by chat id."""
        rows = await self._fetch("published_states", after, most)
        return [chat_from_json(row["snapshot"]) for row in rows]

    async def jobs(self, *, after: str | None = None, most: int = 100) -> list[tuple[Job, Chat]]:
        """Return the jobs that are to be answered with their chats, by build id."""
        rows = [dict(row) for row in await self._fetch("jobs", after, most)]
        chats = [chat_from_json(row.pop("snapshot")) for row in rows]
        return [(Job(**row), chat) for row, chat in zip(rows, chats, strict=True)]

    async def answers(self, *, after: Key | None = None, most: int = 500) -> list[StoredCall]:
        """Return the calls that were answered within the last day, by key."""
        return [
            call_of(row) for row in await self._fetch("answers", *(after or (None, None)), most)
        ]

    async def inhabited(self, *, after: str | None = None, most: int = 500) -> list[Chat]:
        """Return the chats with agents that are connected, by chat id."""
        rows = await self._fetch("inhabited", after, most)
        return [chat_from_json(row["snapshot"]) for row in rows]

    async def left_over(self, *, after: int = 0, most: int = 500) -> list[Outgoing]:
        """Return what is in the outbox, by row."""
        return [Outgoing(**row) for row in await self._fetch("left_over", after, most)]
