"""Both adapters of the store behind one fixture, and objects for tests to store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg

from statemachine.calls import Answered, Call, StoredCall, Until, Wait
from statemachine.chat import Chat
from statemachine.events import Data, DeleteRequested, Event, event_digest
from statemachine.lookups import Lookups
from statemachine.step import Entry
from statemachine.store import CallKey, Changes, Store, Wanted
from statemachine.templates import Version, read, template_id

WAITING = """select count(*) from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock'"""
NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def uid() -> str:
    return str(uuid4())


@dataclass(slots=True)
class Shift:
    """A clock that is ahead of the real one by the time that a test lets pass."""

    passed: timedelta = field(default_factory=timedelta)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.passed


@dataclass(slots=True)
class Shelf:
    """One of the two adapters, with operations that only tests may use."""

    store: Store
    url: str | None = None
    shift: Shift = field(default_factory=Shift)

    async def later(self, passed: timedelta) -> None:
        """Let time pass for stored cancellations, answers, chats, jobs and alarms."""
        self.shift.passed += passed
        if self.url is not None:
            db = await asyncpg.connect(self.url)
            try:
                await db.execute("update cancellation set at = at - $1::interval", passed)
                await db.execute("update call set resolved_at = resolved_at - $1::interval", passed)
                await db.execute("update chat set updated_at = updated_at - $1::interval", passed)
                await db.execute("update job set not_after = not_after - $1::interval", passed)
                await db.execute("update alarm set at = at - $1::interval", passed)
            finally:
                await db.close()


async def until_one_waits(url: str) -> None:
    """Return when one session of the database waits for another's lock."""
    db = await asyncpg.connect(url)
    try:
        while not await db.fetchval(WAITING):
            pass  # each attempt is a round trip
    finally:
        await db.close()


async def write(store: Store, changes: Changes, *, new: Iterable[str] = ()) -> None:
    """Write `changes`; first create the chats `new`, and those of calls and entries, that do not exist."""
    chats = {*new, *(stored.call.chat_id for stored in changes.calls)}
    chats |= {chat_id for chat_id, _ in changes.entries}
    chats -= {chat.chat_id for chat in changes.chats}
    look = await store.look(Wanted(chats))
    missing = [Chat(chat_id=chat_id) for chat_id in chats - look.chats.keys()]
    if missing:
        await store.write(Changes(chats=missing))
    assert (await store.write(changes)).skipped == set()


async def names_of(shelf: Shelf, owner_id: str) -> set[str]:
    """Return the names that an owner uses."""
    return (await shelf.store.look_up(Lookups(owners=frozenset({owner_id})))).names[owner_id]


def entry(seq: int, chat_id: str, *, at: datetime = NOW, data: Data | None = None) -> Entry:
    event = Event(
        source="/chat/service",
        id=uid(),
        chat_id=chat_id,
        time=NOW,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        data=data or DeleteRequested(reason='it said "ä\N{SNOWMAN}" \\'),
    )
    return Entry(seq, event, "kept", "none", "none", None, at)


def call(chat_id: str, call_id: str = "c", order: int = 1, **more: Any) -> Call:
    values: dict[str, Any] = {
        "args": {"name": "ä", "deep": [1, 2.5, None, {"x": True}], "big": 2**70},
        "asked_at": NOW,
    }
    return Call(
        chat_id=chat_id,
        call_id=call_id,
        tool="create_workspace",
        organization_id=uid(),
        owner_id=uid(),
        owner_name="ann",
        order=order,
        wait=Wait(until=Until.SETTLED, build_id=uid(), requested=True, extra={"a": [1]}),
        **{**values, **more},
    )


def answered(stored: Call, result: dict[str, Any] | None = None) -> StoredCall:
    return StoredCall(stored, Answered(result or {"created": True, "x": [1, 2.5, "ä"]}))


def digest(name: str) -> bytes:
    return event_digest("/chat/service", name)


def key(stored: Call) -> CallKey:
    return CallKey(stored.chat_id, stored.call_id)


def owned(chat_id: str, organization: str, owner: str, **more: Any) -> Chat:
    return Chat(
        chat_id=chat_id, organization_id=organization, owner_id=owner, owner_name="ann", **more
    )


MANIFEST = """
name = "{name}"
display_name = "Ä"
description = "With \\"quotes\\""
pool = "{pool}"
require_active_version = true

[[parameter]]
name = "size"
type = "number"
default = 2.5
validation_min = 1
validation_max = 1e3
options = [{{ name = "Two", value = "2.5" }}]

[[parameter]]
name = "token"
sensitive = true
required = true

[[preset]]
name = "default"
default = true
parameters = {{ size = 2.5 }}

[build]
start = "./build.sh"

[[agent]]
name = "main"
env = {{ A = "1" }}
"""


def version(
    organization: str, name: str = "python", *, archive: bytes = b"", pool: str = "local"
) -> Version:
    return Version(
        id=uid(),
        template_id=template_id(organization, name),
        manifest=read(MANIFEST.format(name=name, pool=pool)),
        readme="# Read me ä",
        sha256="0" * 64,
        size=len(archive),
    )
