"""A transaction of the store in this process: reads under the lock, and one write at its end."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from statemachine.chat import Chat, chat_to_json
from statemachine.codec import envelope_of
from statemachine.store import Changes, Entry, Found, Key, Outgoing, StoredCall, Terms
from statemachine.store.entries import shown
from statemachine.store.recovery import JOB_KEPT

if TYPE_CHECKING:
    from tests.doubles.memory_store import MemoryStore


class MemoryTransaction:
    """Reads under the lock, and one write, done at the end."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._changes: Changes | None = None
        self._locked: set[str] = set()
        self.now = store.clock()

    async def lock(
        self, chat_ids: AbstractSet[str], *, creating: AbstractSet[str] | None = None
    ) -> dict[str, Chat]:
        """Return the snapshots; `creating` (all) may be new."""
        may_be_new = chat_ids if creating is None else creating
        found: dict[str, Chat] = {}
        for chat_id in sorted(chat_ids):
            chat = await self._store.chat(chat_id)
            if chat is not None or chat_id in may_be_new:
                found[chat_id] = chat or Chat(chat_id=chat_id)
        self._locked |= found.keys()
        return found

    async def found(
        self,
        identities: Sequence[tuple[str, bytes]],
        keys: AbstractSet[Key],
        waiting_of: AbstractSet[str],
        provisioners: AbstractSet[str] = frozenset(),
    ) -> Found:
        """Return what there is of events, calls by key, waiting calls by chat, pools by provisioner."""
        store, oldest = self._store, self.now - timedelta(minutes=10)
        return Found(
            store.identities.intersection(identities),
            await self.calls(keys),
            {chat_id: await store.waiting(chat_id) for chat_id in waiting_of},
            {key for key in keys if store.cancellations.get(key, oldest) > oldest},
            {name: store.bound[name] for name in provisioners if name in store.bound},
        )

    async def calls(self, keys: AbstractSet[Key]) -> dict[Key, StoredCall]:
        """Return the calls of these keys that exist."""
        return {key: self._store.calls[key] for key in keys if key in self._store.calls}

    async def names(self, owner_ids: AbstractSet[str]) -> dict[str, set[str]]:
        """Return the lower-case names in use by owner."""
        found: dict[str, set[str]] = {owner_id: set() for owner_id in owner_ids}
        for _, owner_id, name, deleted in self._store.names.values():
            if owner_id in found and not deleted:
                found[owner_id].add(name.lower())
        return found

    async def terms(
        self,
        organization_ids: AbstractSet[str],
        template_ids: AbstractSet[str],
        version_ids: AbstractSet[str],
    ) -> Terms:
        """Return the templates of these organizations and ids, these versions, and the settings."""
        found = self._store.catalog(organization_ids, template_ids, version_ids)
        return Terms(found, await self._store.settings())

    async def had(self, workspace_ids: AbstractSet[str]) -> set[str]:
        """Return those of `workspace_ids` that some chat has."""
        return await self._store.had(workspace_ids)

    async def unpublished(self, chat_ids: AbstractSet[str]) -> list[Outgoing]:
        """Return what these chats still have in the outbox."""
        return [row for row in self._store.outbox.values() if row.chat_id in chat_ids]

    async def write(self, changes: Changes) -> list[Outgoing]:
        """Keep the changes for the end; return the outgoing with their row ids."""
        first = self._store.rows + 1
        self._store.rows += len(changes.outgoing)
        changes.outgoing = [replace(o, id=first + n) for n, o in enumerate(changes.outgoing)]
        self._changes = changes
        return changes.outgoing

    def commit(self) -> None:
        """Apply what was written."""
        store, changes = self._store, self._changes
        for chat_id in self._locked:
            new = Chat(chat_id=chat_id)
            store.snapshots.setdefault(chat_id, chat_to_json(new))
        if changes is None:
            return
        for chat in changes.chats:
            store.snapshots[chat.chat_id] = chat_to_json(chat)
        for chat_id, entry in changes.entries:
            cause = entry.cause.model_dump() if entry.cause else None
            row = {name: getattr(entry, name) for name in Entry.__slots__}
            logged = shown(row, envelope_of(entry.event), cause)
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
        store.outbox |= {row.id: row for row in changes.outgoing}
        if changes.jobs:
            since = self.now - JOB_KEPT
            kept = {key: job for key, job in store.asked.items() if job.not_after >= since}
            store.asked = {job.build_id: job for job in changes.jobs} | kept

    def _keep(self, stored: StoredCall) -> None:
        key = Key(stored.call.chat_id, stored.call.call_id)
        if key in self._store.resolved:
            return
        self._store.calls[key] = stored
        if stored.answer is not None:
            self._store.resolved[key] = self.now
