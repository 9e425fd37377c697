"""Where snapshots, logs, calls and the outbox are kept.

This module is the port. `postgres` fills it; `memory` does too, in this process, for simulation; one
contract suite holds both to the same conduct. Whatever moves a chat happens in one `Transaction`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from statemachine.calls import Answered, Call
from statemachine.events import Event
from statemachine.templates import Catalog, Version
from statemachine.workspace import Workspace


class StoreUnavailableError(Exception):
    """The database can't be reached or refuses work now; try again."""


class TransientError(StoreUnavailableError):
    """The transaction lost a race or its time; the same again may succeed."""


class Key(NamedTuple):
    """Names a call."""

    chat_id: str
    call_id: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What the event log records of one event."""

    seq: int
    event: Event
    outcome: str
    state_before: str
    state_after: str
    version: int | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An effect on its way: a message for the bus. `lane` gives the order in which kinds leave."""

    chat_id: str
    lane: int
    subject: str
    message_id: str
    payload: bytes
    version: int | None = None
    due: datetime | None = None
    id: int = 0
    """Its row, once committed."""


@dataclass(frozen=True, slots=True)
class StoredCall:
    """A call and, when it is over, its answer."""

    call: Call
    answer: Answered | None


@dataclass(slots=True)
class Changes:
    """All that one transaction writes."""

    chats: list[Workspace] = field(default_factory=list)
    entries: list[tuple[str, Entry]] = field(default_factory=list)
    identities: list[tuple[str, bytes]] = field(default_factory=list)
    calls: list[StoredCall] = field(default_factory=list)
    cancellations: list[Key] = field(default_factory=list)
    names: list[tuple[str, str, str, str]] = field(default_factory=list)
    """(workspace id, chat id, owner id, name) of new workspaces."""
    freed: list[tuple[str, str]] = field(default_factory=list)
    """(workspace id, chat id) of deleted ones."""
    outgoing: list[Outgoing] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pushed:
    """A template version as its history tells of it."""

    version_id: str
    pushed_at: datetime
    size: int
    """Bytes of its archive."""
    active: bool


class Transaction(Protocol):
    """Reads under lock, and one write."""

    @property
    def now(self) -> datetime:
        """The database's clock when the chats were locked."""
        ...

    async def lock(
        self, chat_ids: AbstractSet[str], *, creating: AbstractSet[str] | None = None
    ) -> dict[str, Workspace]:
        """Lock the chats until the end and return their snapshots; `creating` (all) may be new."""
        ...

    async def known(self, identities: Sequence[tuple[str, bytes]]) -> set[tuple[str, bytes]]:
        """Return those of `identities` (chat id, digest) that were applied before."""
        ...

    async def calls(self, keys: AbstractSet[Key]) -> dict[Key, StoredCall]:
        """Return the calls of these keys that exist."""
        ...

    async def open_calls(self, chat_ids: AbstractSet[str]) -> dict[str, list[Call]]:
        """Return the waiting calls by chat, in the order they came."""
        ...

    async def cancellations(self, keys: AbstractSet[Key]) -> set[Key]:
        """Return those of `keys` whose cancellation came before them."""
        ...

    async def names(self, owner_ids: AbstractSet[str]) -> dict[str, set[str]]:
        """Return the lower-case names in use by owner; nobody else gives out names meanwhile."""
        ...

    async def catalog(
        self,
        organization_ids: AbstractSet[str],
        template_ids: AbstractSet[str],
        version_ids: AbstractSet[str],
    ) -> Catalog:
        """Return the templates of these organizations and ids, and these versions."""
        ...

    async def settings(self) -> dict[str, str]:
        """Return the settings as they are now."""
        ...

    async def had(self, workspace_ids: AbstractSet[str]) -> set[str]:
        """Return those of `workspace_ids` that some chat has."""
        ...

    async def unpublished(self, chat_ids: AbstractSet[str]) -> list[Outgoing]:
        """Return what these chats still have in the outbox."""
        ...

    async def write(self, changes: Changes) -> list[Outgoing]:
        """Write everything; return the outgoing with their row ids."""
        ...


@dataclass(frozen=True, slots=True)
class Credential:
    """What a public key may be used for."""

    kind: str
    chat_ids: tuple[str, ...]
    expires_at: datetime
    workspace_id: str | None = None
    build_id: str | None = None
    agent_id: str | None = None


class Store(Protocol):
    """The truth."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Commit at the end of the block, roll back when it raises."""
        ...

    async def published(self, ids: Sequence[int]) -> None:
        """Drop outbox rows that the bus has stored."""
        ...

    async def chat(self, chat_id: str) -> Workspace | None:
        """Return a snapshot, without lock."""
        ...

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
        ...

    async def waiting(self, chat_id: str) -> list[Call]:
        """Return a chat's open calls."""
        ...

    async def answered(self, chat_id: str, call_id: str) -> bool:
        """Say whether a call is known and over."""
        ...

    async def log(
        self, chat_id: str, *, after: int = 0, most: int = 100
    ) -> list[Mapping[str, Any]]:
        """Return log entries as `read_events` shows them, plus `at`."""
        ...

    async def waking(self, *, after: str | None = None, most: int = 1000) -> list[Workspace]:
        """Return the chats that a timer is set for, by chat id, after `after`."""
        ...

    async def orphaned(self, *, after: str | None = None, most: int = 100) -> list[Workspace]:
        """Return the chats that remember orphans, by chat id, after `after`."""
        ...

    async def had(self, workspace_ids: AbstractSet[str]) -> set[str]:
        """Return those of `workspace_ids` that some chat has."""
        ...

    async def pools(self) -> set[str]:
        """Return the pools that templates name."""
        ...

    async def archive(self, version_id: str, offset: int, size: int) -> bytes | None:
        """Return a piece of a template version's tar.gz, or None when there is no such version."""
        ...

    async def push(self, organization_id: str, version: Version, archive: bytes) -> None:
        """Keep a template version and make it the active one."""
        ...

    async def templates(self, organization_id: str) -> Catalog:
        """Return an organization's templates."""
        ...

    async def history(self, template_id: str) -> list[Pushed]:
        """Return a template's versions in the order they were first pushed."""
        ...

    async def activate(self, version_id: str) -> str | None:
        """Make a version its template's active one; return the template's id, if there is such."""
        ...

    async def settings(self) -> dict[str, str]:
        """Return the settings."""
        ...

    async def put_setting(self, key: str, value: str) -> None:
        """Change a setting, for all workers at once."""
        ...

    async def issue(self, public_key: str, credential: Credential) -> None:
        """Keep what a public key may be used for."""
        ...

    async def credential(self, public_key: str) -> tuple[Credential, Workspace | None] | None:
        """Return what a public key may be used for, with its (first) chat."""
        ...


def identity(source: str, event_id: str) -> bytes:
    """Return the 16-byte digest by which an event is known for ever."""
    return sha256(f"{len(source)}:{source}{event_id}".encode()).digest()[:16]
