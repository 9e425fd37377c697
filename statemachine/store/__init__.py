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
from typing import NamedTuple, Protocol

from statemachine.calls import Answered, Call
from statemachine.chat import Cause, Chat
from statemachine.events import Event
from statemachine.messages import LogEntry
from statemachine.store.beside import Pushed
from statemachine.store.credentials import Admitting, Connection, Credential, Listed
from statemachine.store.recovery import Job, Origin, Recovering, Seen
from statemachine.templates import Catalog, Version

__all__ = [
    "Changes",
    "Connection",
    "Credential",
    "Entry",
    "Found",
    "Job",
    "Key",
    "Listed",
    "NotAdmittedError",
    "Origin",
    "Outgoing",
    "Pushed",
    "Seen",
    "Store",
    "StoreUnavailableError",
    "StoredCall",
    "Terms",
    "Transaction",
    "TransientError",
    "UnreachableError",
    "UnsuitableError",
    "WorkRefusedError",
    "identity",
]


class StoreUnavailableError(Exception):
    """The database can't be reached or refuses work now; try again."""

    exit_status = 1
    """`workspaced` exits with this status when the error ends a command."""


class UnreachableError(StoreUnavailableError):
    """The database can't be opened; which one is for those to add who know what may be shown of it."""


class UnsuitableError(StoreUnavailableError):
    """The database can't be used before somebody changes it, or its URL: waiting does not help."""


class NotAdmittedError(UnreachableError, UnsuitableError):
    """The server does not let this user in, or has no such database."""


class WorkRefusedError(StoreUnavailableError):
    """The database answers, but does not take this work now, and not because of its data; try again.

    Other work may get through: a trigger may refuse one chat, a missing table refuses all of them.
    """


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
    cause: Cause | None = None
    """The event that it followed from; None for one that followed from no other."""
    deadline: datetime | None = None
    """The limit that it set, and that holds after it."""


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

    chats: list[Chat] = field(default_factory=list)
    entries: list[tuple[str, Entry]] = field(default_factory=list)
    identities: list[tuple[str, bytes]] = field(default_factory=list)
    calls: list[StoredCall] = field(default_factory=list)
    cancellations: list[Key] = field(default_factory=list)
    names: list[tuple[str, str, str, str]] = field(default_factory=list)
    """(workspace id, chat id, owner id, name) of new workspaces."""
    freed: list[tuple[str, str]] = field(default_factory=list)
    """(workspace id, chat id) of deleted ones."""
    outgoing: list[Outgoing] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    """Those of `outgoing` that ask for builds, kept for a day, to be asked for again."""


class Found(NamedTuple):
    """What there is of events and calls that a batch speaks of."""

    known: set[tuple[str, bytes]]
    """Those events (chat id, digest) that were applied before."""
    calls: dict[Key, StoredCall]
    waiting: dict[str, list[Call]]
    """By chat, in the order they came."""
    canceled: set[Key]
    """Calls whose cancellation came before them."""
    pools: dict[str, str]
    """The pool that a provisioner is bound to, by its name."""


class Terms(NamedTuple):
    """What calls are judged by."""

    catalog: Catalog
    settings: Mapping[str, str]


class Transaction(Protocol):
    """Reads under lock, and one write."""

    @property
    def now(self) -> datetime:
        """The database's clock when the chats were locked."""
        ...

    async def lock(
        self, chat_ids: AbstractSet[str], *, creating: AbstractSet[str] | None = None
    ) -> dict[str, Chat]:
        """Lock the chats until the end and return their snapshots; `creating` (all) may be new."""
        ...

    async def found(
        self,
        identities: Sequence[tuple[str, bytes]],
        keys: AbstractSet[Key],
        waiting_of: AbstractSet[str],
        provisioners: AbstractSet[str] = frozenset(),
    ) -> Found:
        """Return what there is of events, calls by key, waiting calls by chat, pools by provisioner."""
        ...

    async def calls(self, keys: AbstractSet[Key]) -> dict[Key, StoredCall]:
        """Return the calls of these keys that exist."""
        ...

    async def names(self, owner_ids: AbstractSet[str]) -> dict[str, set[str]]:
        """Return the lower-case names in use by owner; nobody else gives out names meanwhile."""
        ...

    async def terms(
        self,
        organization_ids: AbstractSet[str],
        template_ids: AbstractSet[str],
        version_ids: AbstractSet[str],
    ) -> Terms:
        """Return the templates of these organizations and ids, these versions, and the settings."""
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


class Store(Recovering, Admitting, Protocol):
    """The truth."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Commit at the end of the block, roll back when it raises."""
        ...

    async def published(self, ids: Sequence[int]) -> None:
        """Drop outbox rows that the bus has stored."""
        ...

    async def chat(self, chat_id: str) -> Chat | None:
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
    ) -> list[Chat]:
        """Return snapshots by chat id, after `after`."""
        ...

    async def waiting(self, chat_id: str) -> list[Call]:
        """Return a chat's open calls."""
        ...

    async def waiting_in_all(self, most: int) -> int:
        """Count the open calls of all chats, up to `most`."""
        ...

    async def answered(self, chat_id: str, call_id: str) -> bool:
        """Say whether a call is known and over."""
        ...

    async def log(self, chat_id: str, *, after: int = 0, most: int = 100) -> list[LogEntry]:
        """Return log entries as `read_events` shows them, plus `at`."""
        ...

    async def waking(self, *, after: str | None = None, most: int = 1000) -> list[Chat]:
        """Return the chats that a timer is set for, by chat id, after `after`."""
        ...

    async def orphaned(self, *, after: str | None = None, most: int = 100) -> list[Chat]:
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

    async def check(self) -> None:
        """Return if the database can take changes now. Raises StoreUnavailableError with what is wrong."""
        ...

    async def hold_up(self, chat_ids: AbstractSet[str], words: str, seconds: float) -> None:
        """Note for so many seconds why events of these chats are not taken."""
        ...

    async def held_up(self, chat_ids: AbstractSet[str]) -> dict[str, str]:
        """Return why events are not taken now, by chat: as noted, or because the database takes no changes."""
        ...

    async def put_setting(self, key: str, value: str) -> None:
        """Change a setting, for all workers at once."""
        ...


def identity(source: str, event_id: str) -> bytes:
    """Return the 16-byte digest by which an event is known for ever."""
    return sha256(f"{len(source)}:{source}{event_id}".encode()).digest()[:16]
