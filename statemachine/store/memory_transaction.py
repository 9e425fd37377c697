"""A transaction of the store in this process: reads under the lock, and one write at its end."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from statemachine.calls import Call
from statemachine.codec import envelope_of, timestamp
from statemachine.store import Changes, Key, Outgoing, StoredCall
from statemachine.templates import Catalog
from statemachine.workspace import Workspace

if TYPE_CHECKING:
    from statemachine.store.memory import MemoryStore


class MemoryTransaction:
    """Reads under the lock, and one write, done at the end."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._changes: Changes | None = None
        self._locked: set[str] = set()
        self.now = store.clock()

    async def lock(
        self, chat_ids: AbstractSet[str], *, creating: AbstractSet[str] | None = None
    ) -> dict[str, Workspace]:
        """Return the snapshots; `creating` (all) may be new."""
        may_be_new = chat_ids if creating is None else creating
        found: dict[str, Workspace] = {}
        for chat_id in sorted(chat_ids):
            chat = await self._store.chat(chat_id)
            if chat is not None or chat_id in may_be_new:
                found[chat_id] = chat or Workspace(chat_id=chat_id)
        self._locked |= found.keys()
        return found

    async def known(self, identities: Sequence[tuple[str, bytes]]) -> set[tuple[str, bytes]]:
        """Return those of `identities` (chat id, digest) that were applied before."""
        return self._store.identities.intersection(identities)

    async def calls(self, keys: AbstractSet[Key]) -> dict[Key, StoredCall]:
        """Return the calls of these keys that exist."""
        return {key: self._store.calls[key] for key in keys if key in self._store.calls}

    async def open_calls(self, chat_ids: AbstractSet[str]) -> dict[str, list[Call]]:
        """Return the waiting calls by chat, in the order they came."""
        return {chat_id: await self._store.waiting(chat_id) for chat_id in chat_ids}

    async def cancellations(self, keys: AbstractSet[Key]) -> set[Key]:
        """Return those of `keys` whose cancellation came before them."""
        oldest = self.now - timedelta(minutes=10)
        kept = self._store.cancellations
        return {key for key in keys if key in kept and kept[key] > oldest}

    async def names(self, owner_ids: AbstractSet[str]) -> dict[str, set[str]]:
        """Return the lower-case names in use by owner."""
        found: dict[str, set[str]] = {owner_id: set() for owner_id in owner_ids}
        for _, owner_id, name, deleted in self._store.names.values():
            if owner_id in found and not deleted:
                found[owner_id].add(name.lower())
        return found

    async def catalog(
        self,
        organization_ids: AbstractSet[str],
        template_ids: AbstractSet[str],
        version_ids: AbstractSet[str],
    ) -> Catalog:
        """Return the templates of these organizations and ids, and these versions."""
        return self._store.catalog(organization_ids, template_ids, version_ids)

    async def settings(self) -> dict[str, str]:
        """Return the settings as they are now."""
        return await self._store.settings()

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
            new = Workspace(chat_id=chat_id)
            store.snapshots.setdefault(chat_id, new.model_dump_json(exclude_defaults=True))
        if changes is None:
            return
        for chat in changes.chats:
            store.snapshots[chat.chat_id] = chat.model_dump_json(exclude_defaults=True)
        for chat_id, entry in changes.entries:
            store.entries.setdefault(chat_id, []).append(
                {
                    "seq": entry.seq,
                    "event": envelope_of(entry.event),
                    "outcome": entry.outcome,
                    "state_before": entry.state_before,
                    "state_after": entry.state_after,
                    "version": entry.version,
                    "at": timestamp(entry.at),
                }
            )
        store.identities.update(changes.identities)
        for stored in changes.calls:
            key = Key(stored.call.chat_id, stored.call.call_id)
            if key not in store.calls or store.calls[key].answer is None:
                store.calls[key] = stored
        store.cancellations |= dict.fromkeys(changes.cancellations, self.now)
        for workspace_id, chat_id, owner_id, name in changes.names:
            store.names.setdefault(workspace_id, (chat_id, owner_id, name, False))
        for workspace_id, chat_id in changes.freed:
            if (known := store.names.get(workspace_id)) and known[0] == chat_id:
                store.names[workspace_id] = (*known[:3], True)
        store.outbox |= {row.id: row for row in changes.outgoing}
