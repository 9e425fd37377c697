"""What is read and kept outside of a chat's transactions: for the gateway, operators and templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any, Final

import asyncpg

from statemachine.calls import Call
from statemachine.codec import timestamp
from statemachine.store import Credential, Pushed
from statemachine.store.losses import Session, borrowed, said
from statemachine.store.sql import queries
from statemachine.templates import Catalog, Manifest, Template, Version
from statemachine.workspace import Workspace

Q: Final = queries()


@lru_cache(maxsize=256)
def _version(
    version_id: str, template_id: str, manifest: str, readme: str, sha: str, size: int
) -> Version:
    """Parse a version once: it is immutable."""
    return Version(
        version_id, template_id, Manifest.model_validate_json(manifest), readme or None, sha, size
    )


async def catalog_of(
    db: Session,
    organization_ids: AbstractSet[str],
    template_ids: AbstractSet[str],
    version_ids: AbstractSet[str],
) -> Catalog:
    """Return the templates of these organizations and ids, and these versions."""
    heads = await db.fetch(Q["templates"], list(organization_ids), list(template_ids))
    wanted = {row["version_id"] for row in heads} | set(version_ids)
    rows = await db.fetch(Q["versions"], list(wanted)) if wanted else []
    versions = {
        row["version_id"]: _version(
            row["version_id"],
            row["template_id"],
            row["manifest"],
            row["readme"] or "",
            row["sha256"],
            row["size"],
        )
        for row in rows
    }
    templates = {
        row["template_id"]: Template(
            row["template_id"], row["organization_id"], versions[row["version_id"]]
        )
        for row in heads
    }
    return Catalog(templates, versions)


class Reading:
    """The part of the port that needs no lock."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    async def _fetch(self, name: str, *args: object) -> Sequence[Mapping[str, Any]]:
        with said():
            async with borrowed(self._pool) as db:
                return await db.fetch(Q[name], *args)

    async def published(self, ids: Sequence[int]) -> None:
        """Drop outbox rows that the bus has stored."""
        await self._fetch("delete_outbox", ids)

    async def chat(self, chat_id: str) -> Workspace | None:
        """Return a snapshot, without lock."""
        rows = await self._fetch("chat", chat_id)
        return Workspace.model_validate_json(rows[0]["snapshot"]) if rows else None

    async def chats(
        self,
        *,
        organization_id: str | None = None,
        owner_id: str | None = None,
        states: Sequence[str] | None = None,
        after: str | None = None,
        most: int = 100,
    ) -> list[Workspace]:
        """Return snapshots by chat id, after `after`."""
        rows = await self._fetch("chats", organization_id, owner_id, states, after, most)
        return [Workspace.model_validate_json(row["snapshot"]) for row in rows]

    async def waiting(self, chat_id: str) -> list[Call]:
        """Return a chat's open calls."""
        rows = await self._fetch("calls_waiting", chat_id)
        return [Call.model_validate_json(row["body"]) for row in rows]

    async def answered(self, chat_id: str, call_id: str) -> bool:
        """Say whether a call is known and over."""
        return bool(await self._fetch("answered", chat_id, call_id))

    async def log(
        self, chat_id: str, *, after: int = 0, most: int = 100
    ) -> list[Mapping[str, Any]]:
        """Return log entries as `read_events` shows them, plus `at`."""
        return [
            {**row, "event": json.loads(row["event"]), "at": timestamp(row["at"])}
            for row in map(dict, await self._fetch("log", chat_id, after, most))
        ]

    async def waking(self, *, after: str | None = None, most: int = 1000) -> list[Workspace]:
        """Return the chats that a timer is set for, by chat id, after `after`."""
        rows = await self._fetch("waking", after, most)
        return [Workspace.model_validate_json(row["snapshot"]) for row in rows]

    async def orphaned(self, *, after: str | None = None, most: int = 100) -> list[Workspace]:
        """Return the chats that remember orphans, by chat id, after `after`."""
        rows = await self._fetch("orphaned", after, most)
        return [Workspace.model_validate_json(row["snapshot"]) for row in rows]

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
        with said():
            async with borrowed(self._pool) as db:
                return await catalog_of(db, {organization_id}, set(), set())

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

    async def issue(self, public_key: str, credential: Credential) -> None:
        """Keep what a public key may be used for."""
        await self._fetch(
            "issue_credential",
            public_key,
            credential.kind,
            list(credential.chat_ids),
            credential.workspace_id,
            credential.build_id,
            credential.agent_id,
            credential.expires_at,
        )

    async def credential(self, public_key: str) -> tuple[Credential, Workspace | None] | None:
        """Return what a public key may be used for, with its (first) chat."""
        rows = await self._fetch("credential", public_key)
        if not rows:
            return None
        row = rows[0]
        credential = Credential(
            row["kind"],
            tuple(row["chat_ids"]),
            row["expires_at"],
            workspace_id=row["workspace_id"],
            build_id=row["build_id"],
            agent_id=row["agent_id"],
        )
        chat = row["snapshot"]
        return credential, None if chat is None else Workspace.model_validate_json(chat)
