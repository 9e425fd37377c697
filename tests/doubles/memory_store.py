"""The in-memory store, for the simulation and for fast tests.

`write` writes everything at once, or nothing. Snapshots are converted to JSON and back, as in the database.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import msgspec

from statemachine.calls import Call, StoredCall
from statemachine.chat import Chat, chat_from_json, chat_to_json
from statemachine.codec import written
from statemachine.lifetimes import rests_since
from statemachine.lookups import Lookups
from statemachine.messages import LogEntry
from statemachine.step import Entry, WorkspaceName
from statemachine.store import (
    JOB_RETENTION,
    NO_ROW,
    Alarm,
    BuildTimes,
    CallKey,
    Changes,
    DatabaseOrigin,
    DatabaseServer,
    DueAlarms,
    KnownCall,
    Look,
    LookedUp,
    PushedVersion,
    SeenServer,
    StoredJob,
    StreamPosition,
    TransientError,
    WaitingCalls,
    Wanted,
    Written,
    log_entry,
)
from statemachine.templates import Catalog, Template, Version
from statemachine.timers import alarm_time, needs_no_timer
from tests.doubles.memory_credentials import MemoryCredentials, MemoryTokens

Backup = list[dict[str, Any]]
CALL_KEY = bytes(range(32))


class MemoryStore:
    """Implements `Store`; the port documents the methods."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.clock = clock
        self.snapshots: dict[str, str] = {}
        self.row_versions: dict[str, int] = {}
        self._row_version = count(1)
        self.entries: dict[str, list[LogEntry]] = {}
        self.identities: set[tuple[str, bytes]] = set()
        self.calls: dict[CallKey, StoredCall] = {}
        self.answered_at: dict[CallKey, datetime] = {}
        self.changed_at: dict[str, datetime] = {}
        """When each chat was written last."""
        self.cancellations: dict[CallKey, datetime] = {}
        self.names: dict[str, tuple[WorkspaceName, bool]] = {}
        """(name, deleted) by workspace id."""
        self.alarms: dict[Alarm, datetime | None] = {}
        """When each alarm was handled."""
        self.jobs: dict[str, StoredJob] = {}
        self.unpublished: set[str] = set()
        """The builds whose jobs are not marked as published."""
        self.setting_values: dict[str, str] = {}
        self.block_notes: dict[str, tuple[str, datetime]] = {}
        """(reason, until) by chat id."""
        self._locks: dict[str, asyncio.Lock] = {}
        self.chats = MemoryChats(self)
        self.templates = MemoryTemplates(clock)
        self.credentials = MemoryCredentials(clock, self.chats.get)
        self.tokens = MemoryTokens(clock)
        self.statistics = MemoryStatistics(self)
        self.recovery = MemoryRecovery(self)

    async def now(self) -> datetime:
        return self.clock()

    def locked(self, name: str) -> AbstractAsyncContextManager[None]:
        return self._locks.setdefault(name, asyncio.Lock())

    async def look(self, wanted: Wanted) -> Look:
        now, bound = self.clock(), self.credentials.bound
        found = {chat_id: await self.chats.get(chat_id) for chat_id in wanted.chats}
        chats = {chat_id: chat for chat_id, chat in found.items() if chat is not None}
        waiting = wanted.waiting | {
            chat_id
            for chat_id in wanted.waiting_unless_joined
            if chat_id in chats and not chats[chat_id].calls_only_join
        }
        oldest = now - timedelta(minutes=10)
        return Look(
            now,
            chats,
            {chat_id: self.row_versions.get(chat_id, NO_ROW) for chat_id in wanted.chats},
            self.identities.intersection(wanted.identities),
            {key: self.calls[key] for key in wanted.calls if key in self.calls},
            {c: calls for c in waiting if (calls := await self.chats.open_calls(c))},
            {key for key in wanted.calls if self.cancellations.get(key, oldest) > oldest},
            {name: bound[name] for name in wanted.provisioners if name in bound},
        )

    async def look_up(
        self, wanted: Lookups, workspace_ids: AbstractSet[str] = frozenset()
    ) -> LookedUp:
        names: dict[str, set[str]] = {owner_id: set() for owner_id in wanted.owners}
        for name, deleted in self.names.values():
            if name.owner_id in names and not deleted:
                names[name.owner_id].add(name.name.lower())
        catalog = self.templates.select(wanted.organizations, wanted.templates, wanted.versions)
        current = await self.chats.current_workspaces(workspace_ids)
        return LookedUp(catalog, await self.settings(), names, current, CALL_KEY)

    async def write(self, changes: Changes) -> Written:
        skipped = self.changed_rows(changes)
        kept = _without(changes, skipped)
        self._check_names(kept)
        repeated = {alarm.chat_id for alarm in kept.handled if self.alarms.get(alarm)}
        now, row_version = self.clock(), next(self._row_version)
        self._keep(kept, now, row_version)
        return Written(skipped, repeated, now, row_version)

    async def due_alarms(
        self,
        limit: int,
        *,
        without: Sequence[str] = (),
        publishing: float = 0.0,
        retention: timedelta | None = None,
    ) -> DueAlarms:
        now = self.clock()
        ripe = self._ripe(now, without, limit, retention)
        self.alarms = dict.fromkeys(ripe, None) | self.alarms
        rested = {alarm.chat_id for alarm in self._ripe(now, (), len(self.snapshots), retention)}
        young = now - timedelta(seconds=publishing)
        due = sorted(a for a in self.alarms if a.at <= now and a.chat_id not in without)
        busy = [alarm for alarm in due if (self.alarms[alarm] or young) > young]
        first = [alarm for alarm in due if alarm not in busy][:limit]
        found: dict[str, list[Alarm]] = {}
        for alarm in first:
            there = alarm.chat_id in self.snapshots
            chat = await self.chats.get(alarm.chat_id) if there else None
            needed = alarm.chat_id in rested or (chat and not needs_no_timer(chat))
            if there and (self.alarms[alarm] or needed):
                found.setdefault(alarm.chat_id, []).append(alarm)
            else:
                del self.alarms[alarm]
        handled = {alarm.chat_id for alarm in first if self.alarms.get(alarm)}
        later = min((alarm.at for alarm in self.alarms if alarm.at > now), default=None)
        return DueAlarms(now, found, handled, len(first) == limit, bool(busy), later)

    def _ripe(
        self, now: datetime, without: Sequence[str], limit: int, retention: timedelta | None
    ) -> list[Alarm]:
        """Return alarms for the chats with a workspace that has rested for `retention`."""
        if retention is None:
            return []
        found = [(s, c) for s, c in self._rests() if s + retention <= now and c not in without]
        return [
            Alarm(min(alarm_time(s + retention, now), now), c) for s, c in sorted(found)[:limit]
        ]

    def _rests(self) -> list[tuple[datetime, str]]:
        found = [(rests_since(chat), chat.chat_id) for chat in self.all_chats()]
        return [(since, chat_id) for since, chat_id in found if since is not None]

    async def first_rest(self, retention: timedelta) -> datetime | None:
        ends = [since + retention for since, _ in self._rests()]
        return min((end for end in ends if end > self.clock()), default=None)

    async def delete_alarms(self, alarms: Sequence[Alarm], *, unhandled: bool = False) -> None:
        for alarm in alarms:
            if unhandled or self.alarms.get(alarm):
                self.alarms.pop(alarm, None)

    def changed_rows(self, changes: Changes) -> set[str]:
        """Return the chats of `changes` of which something else is true than what they assume."""
        versions = changes.row_versions
        chats = {*(chat.chat_id for chat in changes.chats), *changes.unchanged}
        if changes.unbound & self.credentials.bound.keys():
            return chats
        changed = {
            chat_id
            for chat_id in chats & versions.keys()
            if self.row_versions.get(chat_id, NO_ROW) != versions[chat_id]
        }
        return changed | {
            chat_id for chat_id, _ in self.identities.intersection(changes.identities)
        }

    def _check_names(self, changes: Changes) -> None:
        """Raise TransientError if a requested name was given to another workspace meanwhile."""
        used = {
            (n.owner_id, n.name.lower()): n.workspace_id
            for n, deleted in self.names.values()
            if n.requested and not deleted
        }
        for name in changes.names:
            key = name.owner_id, name.name.lower()
            if name.requested and used.setdefault(key, name.workspace_id) != name.workspace_id:
                raise TransientError("another workspace of the owner got the same name")

    def _keep(self, changes: Changes, now: datetime, row_version: int) -> None:
        for chat in changes.chats:
            self.put_snapshot(chat, row_version)
        for chat_id, entry in changes.entries:
            cause = msgspec.to_builtins(entry.cause) if entry.cause else None
            row = {name: getattr(entry, name) for name in Entry.__slots__}
            logged = log_entry(row, json.loads(written(entry.event)), cause)
            self.entries.setdefault(chat_id, []).append(logged)
        self.identities.update(changes.identities)
        for stored in changes.calls:
            key = CallKey(stored.call.chat_id, stored.call.call_id)
            self._keep_call(key, stored, now)
        self.cancellations |= dict.fromkeys(changes.cancellations, now)
        for name in changes.names:
            self.names.setdefault(name.workspace_id, (name, False))
        for workspace_id, chat_id in changes.freed:
            if (known := self.names.get(workspace_id)) and known[0].chat_id == chat_id:
                self.names[workspace_id] = (known[0], True)
        self.alarms |= {alarm: now for alarm in changes.handled if alarm in self.alarms}
        self.alarms |= dict.fromkeys(changes.alarms, None)
        if changes.jobs:
            since = now - JOB_RETENTION
            kept = {key: job for key, job in self.jobs.items() if job.not_after >= since}
            new = {job.build_id: job for job in changes.jobs if job.build_id not in kept}
            self.unpublished |= new.keys()
            self.jobs = new | kept
        for build_id, _ in changes.unneeded_jobs:
            if build_id in self.jobs:
                self.jobs[build_id] = replace(self.jobs[build_id], unneeded=True)

    def _keep_call(self, key: CallKey, stored: StoredCall, now: datetime) -> None:
        known = self.calls.get(key)
        if known is not None and known.answer is not None:
            if stored.answer is None or known.call.conflict or not stored.call.conflict:
                return
            stored = StoredCall(stored.call, known.answer)
        self.calls[key] = stored
        if stored.answer is not None:
            self.answered_at[key] = now

    def put_snapshot(self, chat: Chat, row_version: int | None = None) -> None:
        """Store a snapshot as a new version of the chat's row."""
        self.snapshots[chat.chat_id] = chat_to_json(chat)
        self.row_versions[chat.chat_id] = row_version or next(self._row_version)
        self.changed_at[chat.chat_id] = self.clock()

    async def settings(self) -> dict[str, str]:
        return dict(self.setting_values)

    async def put_setting(self, key: str, value: str) -> None:
        self.setting_values[key] = value

    async def unset_setting(self, key: str) -> None:
        self.setting_values.pop(key, None)

    async def check_writable(self) -> None:
        """Return, because memory always accepts changes."""

    async def probe_write(self) -> None:
        """Return, because memory always accepts changes."""

    async def note_blocked(self, chat_ids: AbstractSet[str], reason: str, seconds: float) -> None:
        until = self.clock() + timedelta(seconds=seconds)
        self.block_notes |= dict.fromkeys(chat_ids, (reason, until))

    async def blocked(self, chat_ids: AbstractSet[str]) -> dict[str, str]:
        now = self.clock()
        return {
            chat_id: reason
            for chat_id, (reason, until) in self.block_notes.items()
            if chat_id in chat_ids and until > now
        }

    def backup(self) -> Backup:
        """Return a copy of everything that is stored."""
        return [
            deepcopy({k: v for k, v in vars(part).items() if isinstance(v, dict | set | int)})
            for part in self._parts
        ]

    def restore(self, backup: Backup) -> None:
        """Go back to what was stored when the backup was made."""
        for part, values in zip(self._parts, deepcopy(backup), strict=True):
            vars(part).update(values)

    @property
    def _parts(self) -> tuple[object, ...]:
        return self, self.templates, self.credentials, self.recovery

    def all_chats(self) -> list[Chat]:
        """Return every chat, sorted by chat id."""
        return [chat_from_json(text) for _, text in sorted(self.snapshots.items())]


def _without(changes: Changes, chat_ids: AbstractSet[str]) -> Changes:
    """Return the changes without those of some chats."""
    if not chat_ids:
        return changes
    return Changes(
        [chat for chat in changes.chats if chat.chat_id not in chat_ids],
        [entry for entry in changes.entries if entry[0] not in chat_ids],
        [identity for identity in changes.identities if identity[0] not in chat_ids],
        [stored for stored in changes.calls if stored.call.chat_id not in chat_ids],
        [key for key in changes.cancellations if key.chat_id not in chat_ids],
        [name for name in changes.names if name.chat_id not in chat_ids],
        [freed for freed in changes.freed if freed[1] not in chat_ids],
        [job for job in changes.jobs if job.chat_id not in chat_ids],
        [job for job in changes.unneeded_jobs if job[1] not in chat_ids],
        [alarm for alarm in changes.alarms if alarm.chat_id not in chat_ids],
        [alarm for alarm in changes.handled if alarm.chat_id not in chat_ids],
    )


class MemoryChats:
    """Implements `Chats`; the port documents the methods."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def get(self, chat_id: str) -> Chat | None:
        text = self._store.snapshots.get(chat_id)
        return None if text is None else chat_from_json(text)

    async def get_many(self, chat_ids: Sequence[str]) -> list[Chat]:
        found = [await self.get(chat_id) for chat_id in chat_ids]
        return [chat for chat in found if chat is not None]

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
        def texts(chat: Chat) -> str:
            current = chat.current
            names = (current.name, current.owner_name) if current else ()
            return " ".join(filter(None, (chat.chat_id, *names, chat.owner_name))).lower()

        return [
            chat
            for chat in self._store.all_chats()
            if (after is None or chat.chat_id > after)
            and template_id in (None, chat.current and chat.current.template_id)
            and (query is None or query.lower() in texts(chat))
            and organization_id in (None, chat.organization_id)
            and owner_id in (None, chat.owner_id)
            and (states is None or chat.state in states)
        ][:limit]

    async def with_previous(self, *, after: str | None = None, limit: int = 100) -> list[Chat]:
        return [
            chat
            for chat in self._store.all_chats()
            if not all(record.deleted for record in chat.previous) and chat.chat_id > (after or "")
        ][:limit]

    async def current_workspaces(self, workspace_ids: AbstractSet[str]) -> set[str]:
        if not workspace_ids:
            return set()
        chats = self._store.all_chats()
        return {c.current.id for c in chats if c.current and c.current.id in workspace_ids}

    async def open_calls(self, chat_id: str) -> list[Call]:
        found = [
            stored.call
            for key, stored in self._store.calls.items()
            if key.chat_id == chat_id and stored.answer is None
        ]
        return sorted(found, key=lambda call: call.order)

    async def count_open_calls(self, limit: int) -> int:
        return min(limit, sum(stored.answer is None for stored in self._store.calls.values()))

    async def known_call(self, chat_id: str, call_id: str) -> KnownCall | None:
        stored = self._store.calls.get(CallKey(chat_id, call_id))
        return stored and KnownCall(stored.call.digest, CALL_KEY)

    async def is_answered(self, chat_id: str, call_id: str) -> bool:
        stored = self._store.calls.get(CallKey(chat_id, call_id))
        return stored is not None and stored.answer is not None

    async def log(self, chat_id: str, *, after: int = 0, limit: int = 100) -> list[LogEntry]:
        return [e for e in self._store.entries.get(chat_id, []) if e["seq"] > after][:limit]


class MemoryTemplates:
    """Implements `Templates`; the port documents the methods."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._versions: dict[str, tuple[Version, bytes]] = {}
        self._pushed: dict[str, datetime] = {}
        self._active: dict[str, tuple[str, str]] = {}
        """(organization id, version id) by template id."""

    async def push(self, organization_id: str, version: Version, archive: bytes) -> None:
        self._versions.setdefault(version.id, (version, archive))
        self._pushed.setdefault(version.id, self._clock())
        self._active[version.template_id] = (organization_id, version.id)

    async def activate(self, version_id: str) -> str | None:
        if version_id not in self._versions:
            return None
        template_id = self._versions[version_id][0].template_id
        self._active[template_id] = (self._active[template_id][0], version_id)
        return template_id

    async def catalog(self, organization_id: str) -> Catalog:
        return self.select({organization_id}, set(), set())

    async def versions(self, template_id: str) -> list[PushedVersion]:
        _, active = self._active.get(template_id, (None, None))
        return [
            PushedVersion(v.id, self._pushed[v.id], len(archive), v.id == active)
            for v, archive in self._versions.values()
            if v.template_id == template_id
        ]

    async def read_archive(self, version_id: str, offset: int, size: int) -> bytes | None:
        found = self._versions.get(version_id)
        return None if found is None else found[1][offset : offset + size]

    async def pools(self) -> set[str]:
        return {version.manifest.pool for version, _ in self._versions.values()}

    def select(
        self,
        organization_ids: AbstractSet[str],
        template_ids: AbstractSet[str],
        version_ids: AbstractSet[str],
    ) -> Catalog:
        """Return the templates of these organizations, these templates, and these versions."""
        templates = {
            template_id: Template(template_id, organization_id, self._versions[version_id][0])
            for template_id, (organization_id, version_id) in self._active.items()
            if organization_id in organization_ids or template_id in template_ids
        }
        wanted = {template.active.id for template in templates.values()} | set(version_ids)
        return Catalog(templates, {v: self._versions[v][0] for v in wanted if v in self._versions})


class MemoryStatistics:
    """Implements `Statistics`; the port documents the methods."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def server(self) -> DatabaseServer:
        return DatabaseServer("memory", self._store.clock())

    async def waiting_calls(self, limit: int) -> WaitingCalls:
        found = await self.open_calls(limit=limit)
        return WaitingCalls(len(found), min((call.asked_at for call in found), default=None))

    async def open_calls(
        self, *, chat_id: str | None = None, after: CallKey | None = None, limit: int = 100
    ) -> list[Call]:
        def place(call: Call) -> tuple[datetime, str, str]:
            return call.asked_at, call.chat_id, call.call_id

        behind = None if after is None else place(self._store.calls[after].call)
        found = [
            stored.call
            for stored in self._store.calls.values()
            if stored.answer is None
            and chat_id in (None, stored.call.chat_id)
            and (behind is None or place(stored.call) > behind)
        ]
        return sorted(found, key=place)[:limit]

    async def pools(self) -> set[str]:
        return await self._store.templates.pools()

    async def build_times(
        self, since: datetime, until: datetime, *, limit: int
    ) -> tuple[int, list[BuildTimes]]:
        ended = sorted(
            (
                (entry, entries)
                for entries in self._store.entries.values()
                for entry in entries
                if _kind(entry) in ("build_succeeded", "build_failed", "build_canceled")
                and entry["outcome"] in ("moved", "changed", "kept")
                and since <= _at(entry) < until
            ),
            key=lambda found: _at(found[0]),
            reverse=True,
        )[:limit]
        groups: dict[tuple[str | None, str], list[tuple[str, float | None, float | None]]] = {}
        for entry, entries in ended:
            began, requested = (
                _before(entries, entry, kind) for kind in ("build_started", "build_requested")
            )
            template = None if requested is None else requested["event"]["data"].get("template")
            name = None if template is None else template["name"]
            group = groups.setdefault((name, entry["event"]["data"]["transition"]), [])
            group.append((_kind(entry), _between(began, entry), _between(requested, began)))
        found = [_build_times(name, kind, builds) for (name, kind), builds in groups.items()]
        found.sort(key=lambda one: (-one.count, one.template is None, one.template, one.transition))
        return len(ended), found


def _kind(entry: LogEntry) -> str:
    return entry["event"]["type"].split(".")[1]


def _at(entry: LogEntry) -> datetime:
    return datetime.fromisoformat(entry["at"])


def _before(entries: Sequence[LogEntry], end: LogEntry, kind: str) -> LogEntry | None:
    """Return the last entry of that kind about the build that `end` is about, before it."""
    build_id = end["event"]["data"]["build_id"]
    earlier = [
        entry
        for entry in entries
        if entry["seq"] < end["seq"]
        and _kind(entry) == kind
        and entry["event"]["data"]["build_id"] == build_id
    ]
    return earlier[-1] if earlier else None


def _between(one: LogEntry | None, other: LogEntry | None) -> float | None:
    return None if one is None or other is None else (_at(other) - _at(one)).total_seconds()


def _build_times(
    template: str | None, transition: str, builds: Sequence[tuple[str, float | None, float | None]]
) -> BuildTimes:
    kinds = [kind for kind, _, _ in builds]
    took = [t for kind, t, _ in builds if kind == "build_succeeded" and t is not None]
    return BuildTimes(
        template,
        transition,
        count=len(builds),
        failed=kinds.count("build_failed"),
        canceled=kinds.count("build_canceled"),
        median=_percentile(took, 0.5),
        p90=_percentile(took, 0.9),
        longest=max(took, default=None),
        queued=_percentile([queued for *_, queued in builds if queued is not None], 0.5),
    )


def _percentile(values: Sequence[float], part: float) -> float | None:
    """Return a percentile, between two values in proportion, as PostgreSQL's `percentile_cont` does."""
    if not values:
        return None
    place = part * (len(values) - 1)
    low, above = sorted(values)[math.floor(place)], sorted(values)[math.ceil(place)]
    return low + (above - low) * (place - math.floor(place))


class MemoryRecovery:
    """Implements `Recovery`; the port documents the methods."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.current_origin = "memory"
        self._recorded_origin: str | None = None
        self._positions: dict[str, StreamPosition] = {}
        self._seen_server: dict[str, datetime] = {}

    async def origin(self) -> DatabaseOrigin:
        return DatabaseOrigin(self.current_origin, self._recorded_origin)

    async def record_origin(self, current: str) -> None:
        self._recorded_origin = current

    async def stream_positions(self) -> dict[str, StreamPosition]:
        return dict(self._positions)

    async def advance_positions(
        self, positions: Mapping[str, StreamPosition], server_id: str | None
    ) -> None:
        for name, new in positions.items():
            known = self._positions.setdefault(name, new)
            if known.created == new.created and known.last < new.last:
                self._positions[name] = new
        if server_id is not None and server_id in self._seen_server:
            self._seen_server = {server_id: self._store.clock()}

    async def reset_positions(self, positions: Mapping[str, StreamPosition]) -> None:
        self._positions.update(positions)

    async def seen_server(self) -> SeenServer | None:
        return next((SeenServer(*seen) for seen in self._seen_server.items()), None)

    async def record_server(self, server_id: str) -> None:
        at = next(iter(self._seen_server.values()), self._store.clock())
        self._seen_server = {server_id: at}

    async def mark_lost(self, before: Mapping[str, StreamPosition | None], token: str) -> None:
        for name, position in before.items():
            if self._positions.get(name) == position:
                self._positions[name] = StreamPosition.lost(token)

    async def alarm_times(
        self, *, after: datetime | None = None, limit: int = 1000
    ) -> list[datetime]:
        times = {alarm.at for alarm in self._store.alarms}
        return sorted(at for at in times if after is None or at > after)[:limit]

    async def published_chats(self, *, after: str | None = None, limit: int = 500) -> list[Chat]:
        chats = self._store.all_chats()
        return [chat for chat in chats if chat.version and chat.chat_id > (after or "")][:limit]

    async def changed_chats(
        self, since: datetime, *, after: str | None = None, limit: int = 200
    ) -> list[Chat]:
        return [
            chat
            for chat in self._store.all_chats()
            if self._store.changed_at[chat.chat_id] >= since and chat.chat_id > (after or "")
        ][:limit]

    async def chats_with_agents(self, *, after: str | None = None, limit: int = 500) -> list[Chat]:
        return [
            chat
            for chat in self._store.all_chats()
            if any(facts.connected for facts in chat.agents) and chat.chat_id > (after or "")
        ][:limit]

    async def jobs(
        self, *, after: str | None = None, limit: int = 100
    ) -> list[tuple[StoredJob, Chat]]:
        oldest = self._store.clock() - JOB_RETENTION
        chats = {chat.chat_id: chat for chat in self._store.all_chats()}
        return [
            (job, chats[job.chat_id])
            for build_id, job in sorted(self._store.jobs.items())
            if build_id > (after or "") and job.not_after > oldest and not job.unneeded
        ][:limit]

    async def unpublished_jobs(self, chat_ids: Sequence[str]) -> list[StoredJob]:
        jobs = self._store.jobs.values()
        missing = self._store.unpublished
        return [
            replace(j, sequence=None)
            for j in jobs
            if j.chat_id in chat_ids and j.build_id in missing and not j.unneeded
        ]

    async def mark_published(self, sequences: Mapping[str, int | None]) -> set[str]:
        jobs = self._store.jobs
        self._store.unpublished.difference_update(sequences)
        for build_id, sequence in sequences.items():
            if build_id in jobs and sequence is not None:
                jobs[build_id] = replace(jobs[build_id], sequence=sequence)
        return {jobs[b].chat_id for b in sequences if b in jobs and jobs[b].unneeded}

    async def unneeded_jobs(self, chat_ids: Sequence[str]) -> list[StoredJob]:
        jobs = self._store.jobs.values()
        return [j for j in jobs if j.chat_id in chat_ids and j.unneeded and j.sequence is not None]

    async def mark_taken_back(self, build_ids: Sequence[str]) -> None:
        jobs = self._store.jobs
        for build_id in build_ids:
            if build_id in jobs and jobs[build_id].unneeded:
                jobs[build_id] = replace(jobs[build_id], sequence=None)

    async def answered_calls(
        self, *, after: CallKey | None = None, limit: int = 500
    ) -> list[StoredCall]:
        return self._answered(after=after)[:limit]

    async def answers_of(
        self, chat_ids: Sequence[str], since: datetime | None = None
    ) -> list[StoredCall]:
        return [s for s in self._answered(since=since) if s.call.chat_id in chat_ids]

    def _answered(
        self, *, since: datetime | None = None, after: CallKey | None = None
    ) -> list[StoredCall]:
        day = self._store.clock() - timedelta(hours=24)
        return [
            self._store.calls[key]
            for key, at in sorted(self._store.answered_at.items())
            if at >= max(since or day, day) and (after is None or key > after)
        ]
