"""The store in this process: what simulation and the fast tests run on.

A transaction holds the one lock and writes at its end in one step, so a block that raises leaves
nothing behind. Documents pass through JSON, as in the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from statemachine.calls import Call
from statemachine.chat import Chat, chat_from_json
from statemachine.messages import LogEntry
from statemachine.previous_workspaces import orphans
from statemachine.store import Job, Key, Origin, Outgoing, Pushed, Seen, StoredCall
from statemachine.store.recovery import JOB_KEPT
from statemachine.templates import Catalog, Template, Version
from statemachine.timers import rests
from tests.doubles.memory_credentials import MemoryAdmitting
from tests.doubles.memory_transaction import MemoryTransaction


class MemoryStore(MemoryAdmitting):
    """The port over dictionaries."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        super().__init__(clock)
        self.lock = asyncio.Lock()
        self.snapshots: dict[str, str] = {}
        self.entries: dict[str, list[LogEntry]] = {}
        self.identities: set[tuple[str, bytes]] = set()
        self.calls: dict[Key, StoredCall] = {}
        self.cancellations: dict[Key, datetime] = {}
        self.names: dict[str, tuple[str, str, str, bool]] = {}
        self.outbox: dict[int, Outgoing] = {}
        self.versions: dict[str, tuple[Version, bytes]] = {}
        self.pushed: dict[str, datetime] = {}
        self.active: dict[str, tuple[str, str]] = {}
        self.values: dict[str, str] = {}
        self.notes: dict[str, tuple[str, datetime]] = {}
        """Why events of a chat are not taken, and until when that is said."""
        self.rows = 0
        self.name = "memory"
        self.noted: str | None = None
        self.asked: dict[str, Job] = {}
        self.streams: dict[str, Seen] = {}
        self.resolved: dict[Key, datetime] = {}

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[MemoryTransaction]:
        """Commit at the end of the block, roll back when it raises."""
        async with self.lock:
            transaction = MemoryTransaction(self)
            yield transaction
            transaction.commit()

    async def published(self, ids: Sequence[int]) -> None:
        """Drop outbox rows that the bus has stored."""
        for row in ids:
            self.outbox.pop(row, None)

    async def chat(self, chat_id: str) -> Chat | None:
        """Return a snapshot, without lock."""
        text = self.snapshots.get(chat_id)
        return None if text is None else chat_from_json(text)

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
        found = [
            chat
            for chat_id in sorted(self.snapshots)
            if after is None or chat_id > after
            for chat in [chat_from_json(self.snapshots[chat_id])]
            if organization_id in (None, chat.organization_id)
            and owner_id in (None, chat.owner_id)
            and (states is None or chat.state in states)
        ]
        return found[:most]

    async def waiting(self, chat_id: str) -> list[Call]:
        """Return a chat's open calls."""
        return sorted(
            (
                s.call
                for key, s in self.calls.items()
                if key.chat_id == chat_id and s.answer is None
            ),
            key=lambda call: call.order,
        )

    async def waiting_in_all(self, most: int) -> int:
        """Count the open calls of all chats, up to `most`."""
        return min(most, sum(stored.answer is None for stored in self.calls.values()))

    async def answered(self, chat_id: str, call_id: str) -> bool:
        """Say whether a call is known and over."""
        stored = self.calls.get(Key(chat_id, call_id))
        return stored is not None and stored.answer is not None

    async def log(self, chat_id: str, *, after: int = 0, most: int = 100) -> list[LogEntry]:
        """Return log entries as `read_events` shows them, plus `at`."""
        return [e for e in self.entries.get(chat_id, []) if e["seq"] > after][:most]

    async def waking(self, *, after: str | None = None, most: int = 1000) -> list[Chat]:
        """Return the chats that a timer is set for, by chat id, after `after`."""
        return [c for c in await self._all() if not rests(c) and c.chat_id > (after or "")][:most]

    async def orphaned(self, *, after: str | None = None, most: int = 100) -> list[Chat]:
        """Return the chats that remember orphans, by chat id, after `after`."""
        return [c for c in await self._all() if orphans(c) and c.chat_id > (after or "")][:most]

    async def had(self, workspace_ids: AbstractSet[str]) -> set[str]:
        """Return those of `workspace_ids` that some chat has."""
        return {c.ref.id for c in await self._all() if c.ref and c.ref.id in workspace_ids}

    async def _all(self) -> list[Chat]:
        return [chat_from_json(text) for _, text in sorted(self.snapshots.items())]

    async def pools(self) -> set[str]:
        """Return the pools that templates name."""
        return {version.manifest.pool for version, _ in self.versions.values()}

    async def archive(self, version_id: str, offset: int, size: int) -> bytes | None:
        """Return a piece of a template version's tar.gz, or None when there is no such version."""
        found = self.versions.get(version_id)
        return None if found is None else found[1][offset : offset + size]

    async def push(self, organization_id: str, version: Version, archive: bytes) -> None:
        """Keep a template version and make it the active one."""
        self.versions.setdefault(version.id, (version, archive))
        self.pushed.setdefault(version.id, self.clock())
        self.active[version.template_id] = (organization_id, version.id)

    async def templates(self, organization_id: str) -> Catalog:
        """Return an organization's templates."""
        return self.catalog({organization_id}, set(), set())

    async def history(self, template_id: str) -> list[Pushed]:
        """Return a template's versions in the order they were first pushed."""
        _, active = self.active.get(template_id, (None, None))
        return [
            Pushed(v.id, self.pushed[v.id], len(archive), v.id == active)
            for v, archive in self.versions.values()
            if v.template_id == template_id
        ]

    async def activate(self, version_id: str) -> str | None:
        """Make a version its template's active one; return the template's id, if there is such."""
        if version_id not in self.versions:
            return None
        template_id = self.versions[version_id][0].template_id
        self.active[template_id] = (self.active[template_id][0], version_id)
        return template_id

    async def settings(self) -> dict[str, str]:
        """Return the settings."""
        return dict(self.values)

    async def put_setting(self, key: str, value: str) -> None:
        """Change a setting, for all workers at once."""
        self.values[key] = value

    async def check(self) -> None:
        """Return: this store takes changes whenever it is there."""

    async def hold_up(self, chat_ids: AbstractSet[str], words: str, seconds: float) -> None:
        """Note for so many seconds why events of these chats are not taken."""
        until = self.clock() + timedelta(seconds=seconds)
        self.notes |= dict.fromkeys(chat_ids, (words, until))

    async def held_up(self, chat_ids: AbstractSet[str]) -> dict[str, str]:
        """Return why events are not taken now, by chat."""
        now = self.clock()
        return {
            chat_id: words
            for chat_id, (words, until) in self.notes.items()
            if chat_id in chat_ids and until > now
        }

    def catalog(
        self,
        organization_ids: AbstractSet[str],
        template_ids: AbstractSet[str],
        version_ids: AbstractSet[str],
    ) -> Catalog:
        """Return the templates of these organizations and ids, and these versions."""
        templates = {
            template_id: Template(template_id, organization_id, self.versions[version_id][0])
            for template_id, (organization_id, version_id) in self.active.items()
            if organization_id in organization_ids or template_id in template_ids
        }
        wanted = {template.active.id for template in templates.values()} | set(version_ids)
        return Catalog(templates, {v: self.versions[v][0] for v in wanted if v in self.versions})

    async def streams_seen(self) -> dict[str, Seen]:
        """Return the streams that were noted, by name."""
        return dict(self.streams)

    async def origin(self) -> Origin:
        """Return which store this is, and which one the rows were written in."""
        return Origin(self.name, self.noted)

    async def settle(self, here: str) -> None:
        """Note that the rows are at home in this store."""
        self.noted = here

    async def doubt_streams(self, before: Mapping[str, Seen | None], token: str) -> None:
        """Mark streams as having lost something, each only where it is still noted as in `before`."""
        for name, seen in before.items():
            if self.streams.get(name) == seen:
                self.streams[name] = Seen.lost(token)

    async def see_streams(self, seen: Mapping[str, Seen], *, anew: bool = False) -> None:
        """Note how far streams are. Only `anew` puts one in the place of another, or goes back."""
        for name, new in seen.items():
            known = self.streams.setdefault(name, new)
            if anew or (known.created == new.created and known.last < new.last):
                self.streams[name] = new

    async def published_states(self, *, after: str | None = None, most: int = 500) -> list[Chat]:
        """Return the chats that have a version, by chat id."""
        return [c for c in await self._all() if c.version and c.chat_id > (after or "")][:most]

    async def jobs(self, *, after: str | None = None, most: int = 100) -> list[tuple[Job, Chat]]:
        """Return the jobs that are to be answered with their chats, by build id."""
        now, chats = self.clock(), {chat.chat_id: chat for chat in await self._all()}
        return [
            (job, chats[job.chat_id])
            for build_id, job in sorted(self.asked.items())
            if build_id > (after or "") and job.not_after > now - JOB_KEPT
        ][:most]

    async def answers(self, *, after: Key | None = None, most: int = 500) -> list[StoredCall]:
        """Return the calls that were answered within the last day, by key."""
        since = self.clock() - timedelta(hours=24)
        return [
            self.calls[key]
            for key, at in sorted(self.resolved.items())
            if at > since and (after is None or key > after)
        ][:most]

    async def inhabited(self, *, after: str | None = None, most: int = 500) -> list[Chat]:
        """Return the chats with agents that are connected, by chat id."""
        return [
            chat
            for chat in await self._all()
            if any(facts.connected for facts in chat.agents) and chat.chat_id > (after or "")
        ][:most]

    async def left_over(self, *, after: int = 0, most: int = 500) -> list[Outgoing]:
        """Return what is in the outbox, by row."""
        return [row for key, row in sorted(self.outbox.items()) if key > after][:most]
