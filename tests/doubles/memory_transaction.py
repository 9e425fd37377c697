"""A transaction of the in-memory store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from statemachine.calls import StoredCall
from statemachine.chat import Chat
from statemachine.codec import written
from statemachine.step import Entry
from statemachine.store import (
    JOB_RETENTION,
    CallKey,
    CatalogAndSettings,
    Changes,
    OutboxMessage,
    Prefetched,
    log_entry,
)

if TYPE_CHECKING:
    from tests.doubles.memory_store import MemoryStore


class MemoryTransaction:
    """Implements `Transaction`: writes when it commits."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._changes: Changes | None = None
        self._locked: set[str] = set()
        self.now = store.clock()

    async def lock(
        self, chat_ids: AbstractSet[str], *, creating: AbstractSet[str] | None = None
    ) -> dict[str, Chat]:
        """Lock chats; return the snapshots of those that exist or may be created."""
        may_be_new = chat_ids if creating is None else creating
        found: dict[str, Chat] = {}
        for chat_id in sorted(chat_ids):
            chat = await self._store.chats.get(chat_id)
            if chat is not None or chat_id in may_be_new:
                found[chat_id] = chat or Chat(chat_id=chat_id)
        self._locked |= found.keys()
        return found

    async def prefetch(
        self,
        identities: Sequence[tuple[str, bytes]],
        keys: AbstractSet[CallKey],
        waiting_of: AbstractSet[str],
        provisioners: AbstractSet[str] = frozenset(),
    ) -> Prefetched:
        """Look up events, calls, open calls and pools."""
        store, bound = self._store, self._store.credentials.bound
        oldest = self.now - timedelta(minutes=10)
        return Prefetched(
            store.identities.intersection(identities),
            await self.calls(keys),
            {chat_id: await store.chats.open_calls(chat_id) for chat_id in waiting_of},
            {key for key in keys if store.cancellations.get(key, oldest) > oldest},
            {name: bound[name] for name in provisioners if name in bound},
        )

    async def calls(self, keys: AbstractSet[CallKey]) -> dict[CallKey, StoredCall]:
        """Return those of the calls that exist."""
        return {key: self._store.calls[key] for key in keys if key in self._store.calls}

    async def workspace_names(self, owner_ids: AbstractSet[str]) -> dict[str, set[str]]:
        """Return the names in use, by owner."""
        found: dict[str, set[str]] = {owner_id: set() for owner_id in owner_ids}
        for _, owner_id, name, deleted in self._store.names.values():
            if owner_id in found and not deleted:
                found[owner_id].add(name.lower())
        return found

    async def catalog_and_settings(
        self,
        organization_ids: AbstractSet[str],
        template_ids: AbstractSet[str],
        version_ids: AbstractSet[str],
    ) -> CatalogAndSettings:
        """Return the templates and the settings that calls are judged by."""
        found = self._store.templates.select(organization_ids, template_ids, version_ids)
        return CatalogAndSettings(found, await self._store.settings())

    async def current_workspaces(self, workspace_ids: AbstractSet[str]) -> set[str]:
        """Return those of the workspaces that are the current workspace of a chat."""
        return await self._store.chats.current_workspaces(workspace_ids)

    async def lock_stream(self, name: str) -> None:
        """Do nothing, because there is only one transaction at a time."""

    async def unpublished(self, chat_ids: AbstractSet[str]) -> list[OutboxMessage]:
        """Return the outbox rows of these chats."""
        return [row for row in self._store.outbox.values() if row.chat_id in chat_ids]

    async def write(self, changes: Changes) -> list[OutboxMessage]:
        """Keep the changes for the commit; return `changes.outbox` with the rows' numbers."""
        first = self._store.rows + 1
        self._store.rows += len(changes.outbox)
        changes.outbox = [replace(o, id=first + n) for n, o in enumerate(changes.outbox)]
        self._changes = changes
        return changes.outbox

    async def write_unchanged(
        self, changes: Changes, row_versions: Mapping[str, int]
    ) -> tuple[list[OutboxMessage], set[str]]:
        """Keep the changes of those chats whose rows still have these versions."""
        if changes.concern_other_tables:
            raise ValueError("these changes need a transaction")
        skipped = self.changed_rows(changes, row_versions)
        kept = Changes(
            [chat for chat in changes.chats if chat.chat_id not in skipped],
            [entry for entry in changes.entries if entry[0] not in skipped],
            [identity for identity in changes.identities if identity[0] not in skipped],
            [stored for stored in changes.calls if stored.call.chat_id not in skipped],
            outbox=[message for message in changes.outbox if message.chat_id not in skipped],
        )
        return await self.write(kept), skipped

    def changed_rows(self, changes: Changes, row_versions: Mapping[str, int]) -> set[str]:
        """Return the chats of `changes` whose rows have other versions."""
        now = self._store.row_versions
        return {c.chat_id for c in changes.chats if now.get(c.chat_id) != row_versions[c.chat_id]}

    def commit(self) -> None:
        """Apply the changes that were passed to `write`."""
        store, changes = self._store, self._changes
        for chat_id in self._locked - store.snapshots.keys():
            store.put_snapshot(Chat(chat_id=chat_id))
        if changes is None:
            return
        for chat in changes.chats:
            store.put_snapshot(chat)
        for chat_id, entry in changes.entries:
            cause = msgspec.to_builtins(entry.cause) if entry.cause else None
            row = {name: getattr(entry, name) for name in Entry.__slots__}
            logged = log_entry(row, json.loads(written(entry.event)), cause)
            store.entries.setdefault(chat_id, []).append(logged)
        store.identities.update(changes.identities)
        for stored in changes.calls:
            self._keep(stored)
        store.cancellations |= dict.fromkeys(changes.cancellations, self.now)
        for workspace_id, chat_id, owner_id, name in changes.names:
            store.names.setdefault(workspace_id, (chat_id, owner_id, name, False))
        for workspace_id, chat_id in changes.freed:
            if (known := store.names.get(workspace_id)) and known[0] == chat_id:
                store.names[workspace_id] = (*known[:3], True)
        store.outbox |= {row.id: row for row in changes.outbox}
        if changes.jobs:
            since = self.now - JOB_RETENTION
            kept = {key: job for key, job in store.jobs.items() if job.not_after >= since}
            store.jobs = {job.build_id: job for job in changes.jobs} | kept

    def _keep(self, stored: StoredCall) -> None:
        key = CallKey(stored.call.chat_id, stored.call.call_id)
        if key in self._store.answered_at:
            return
        self._store.calls[key] = stored
        if stored.answer is not None:
            self._store.answered_at[key] = self.now
