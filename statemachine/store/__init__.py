"""The store's port: where snapshots, event logs, tool calls and alarms are kept.

`postgres` implements it; `tests/doubles` has an implementation in memory. One contract suite
(`tests/contract/test_store*.py`) runs against both.

A `Store` is composed of small parts, each a protocol of its own:

- `look` and `look_up` read what a batch of events needs, and `write` is the only way for workers to change a
  chat. Nothing is locked between them: `write` skips the chats that have changed since `look`.
- `chats`: other reads of chats, calls and event logs.
- `templates`: template versions and their archives.
- `credentials`: issued keys, and the NATS connections made with them.
- `tokens`: bearer tokens for the gateway's HTTP interface.
- `statistics`: what operators ask about all chats at once.
- `recovery`: what workers need to publish again after NATS lost data or the database was restored.

Every method may raise `StoreUnavailableError`. Lists come in pages: at most `limit` rows, sorted by
their key, beginning behind the key `after`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol, cast

from statemachine.calls import Call, StoredCall
from statemachine.chat import Chat
from statemachine.codec import timestamp
from statemachine.lifetimes import rests_since
from statemachine.lookups import Lookups
from statemachine.messages import LogEntry, LoggedEvent, ShownCause
from statemachine.step import Entry, WorkspaceName
from statemachine.store.errors import AccessDeniedError as AccessDeniedError
from statemachine.store.errors import MisconfiguredError as MisconfiguredError
from statemachine.store.errors import StoreUnavailableError as StoreUnavailableError
from statemachine.store.errors import TransientError as TransientError
from statemachine.store.errors import UnreachableError as UnreachableError
from statemachine.store.errors import WorkRefusedError as WorkRefusedError
from statemachine.templates import Catalog, Version
from statemachine.timers import needs_no_timer

JOB_RETENTION: Final = timedelta(days=1)
"""The time for which a job is kept after its `not_after`: its build may have begun and not ended."""
CONNECTIONS_PER_KEY: Final = 64
"""Recorded connections per key. When one more is made, the oldest one has to be closed."""
_LOSS_PREFIX: Final = "lost:"


# -- values ---------------------------------------------------------------------------------------


class CallKey(NamedTuple):
    """Identifies a tool call."""

    chat_id: str
    call_id: str


class Alarm(NamedTuple):
    """A time at which a chat has to be looked at, because one of its timers may be due."""

    at: datetime
    """A time of `timers.alarm_time`."""
    chat_id: str


@dataclass(frozen=True, slots=True)
class DueAlarms:
    """A page of the alarms whose time has come."""

    now: datetime
    """The database's time."""
    alarms: dict[str, list[Alarm]]
    """The alarms by chat."""
    handled: set[str]
    """Chats with an alarm that was handled before, but what followed from it may not be published."""
    is_full: bool
    """Whether there may be more."""
    publishing: bool
    """Whether others are left out, because somebody is publishing what follows from them."""
    next: datetime | None
    """The first time for which an alarm is stored and that has not come."""


@dataclass(frozen=True, slots=True)
class Written:
    """The result of `Store.write`."""

    skipped: set[str]
    """The chats that were not written, with everything that belongs to them: see `Store.write`."""
    repeated: set[str]
    """Chats with an alarm among `Changes.handled` that was handled before, by another worker or in an earlier try."""
    now: datetime
    """The database's time."""
    row_version: int
    """The version that the rows of the chats have now that were written."""


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A build that was requested, with the message as it was published."""

    build_id: str
    chat_id: str
    subject: str
    payload: bytes
    not_after: datetime
    unneeded: bool = False
    """Its build was canceled before it began."""
    sequence: int | None = None
    """Its sequence in the stream of jobs when it was published; None if it is not known."""


@dataclass(slots=True)
class Changes:
    """Everything that one batch writes."""

    chats: list[Chat] = field(default_factory=list)
    entries: list[tuple[str, Entry]] = field(default_factory=list)
    """(chat id, entry)."""
    identities: list[tuple[str, bytes]] = field(default_factory=list)
    """(chat id, digest) of the events that were applied."""
    calls: list[StoredCall] = field(default_factory=list)
    cancellations: list[CallKey] = field(default_factory=list)
    """Calls that were canceled before they arrived."""
    names: list[WorkspaceName] = field(default_factory=list)
    freed: list[tuple[str, str]] = field(default_factory=list)
    """(workspace id, chat id) of deleted workspaces, whose names may be used again."""
    jobs: list[StoredJob] = field(default_factory=list)
    unneeded_jobs: list[tuple[str, str]] = field(default_factory=list)
    """(build id, chat id) of jobs that nobody needs any more, because their builds were canceled."""
    alarms: list[Alarm] = field(default_factory=list)
    """Alarms that the chats need."""
    handled: list[Alarm] = field(default_factory=list)
    """Alarms whose timers these changes are the result of. They stay until `delete_alarms`.

    One that is also among `alarms` is set again, and not marked as handled.
    """
    unchanged: list[str] = field(default_factory=list)
    """Chats whose rows are not written, but must have the versions in `row_versions`."""
    row_versions: Mapping[str, int] = field(default_factory=dict)
    """The version of each chat's row that the changes are made for, as `Look` names it.

    A chat that is not named here is written whatever the version of its row is.
    """
    unbound: AbstractSet[str] = frozenset()
    """Names of provisioners that must not be bound to a pool."""


# -- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """The rows that a batch reads about its chats."""

    chats: AbstractSet[str] = frozenset()
    identities: Sequence[tuple[str, bytes]] = ()
    """(chat id, digest) of events that may have been applied before."""
    calls: AbstractSet[CallKey] = frozenset()
    waiting: AbstractSet[str] = frozenset()
    """Chats whose open calls are needed."""
    waiting_unless_joined: AbstractSet[str] = frozenset()
    """Chats whose open calls are needed unless new calls only join (`Chat.calls_only_join`)."""
    provisioners: AbstractSet[str] = frozenset()
    """Names of provisioners whose pools are needed."""
    facts_only: AbstractSet[str] = frozenset()
    """Those of `chats` that only new facts concern. A caller may remember them instead: `write` compares."""


@dataclass(slots=True)
class Look:
    """The content of the database at one moment. It may change at any time: nothing is locked."""

    now: datetime
    """The database's time."""
    chats: dict[str, Chat] = field(default_factory=dict)
    """The snapshots of the chats that exist."""
    row_versions: dict[str, int] = field(default_factory=dict)
    """The version of the row of each chat that was asked for. It changes with every change of the row.

    That of a chat that does not exist is `NO_ROW`.
    """
    known: set[tuple[str, bytes]] = field(default_factory=set)
    """(chat id, digest) of the events that were applied before."""
    calls: dict[CallKey, StoredCall] = field(default_factory=dict)
    waiting: dict[str, list[Call]] = field(default_factory=dict)
    """Open calls by chat, in the order of their arrival."""
    canceled: set[CallKey] = field(default_factory=set)
    """Calls whose cancellation arrived before them."""
    pools: dict[str, str] = field(default_factory=dict)
    """The pool that each provisioner is bound to, by the provisioner's name."""


NO_ROW: Final = 0
"""The row version of a chat that does not exist."""


class KnownCall(NamedTuple):
    """A stored call, to compare another request with."""

    digest: str | None
    """`Call.digest`."""
    key: bytes
    """The key of `arguments.content_digest`."""


class LookedUp(NamedTuple):
    """The rows that calls are evaluated with."""

    catalog: Catalog
    settings: Mapping[str, str]
    names: Mapping[str, set[str]]
    """Owner id -> lower-case names of the owner's workspaces."""
    current: set[str]
    """Those of the workspaces that are the current workspace of a chat."""
    call_key: bytes
    """The key of `arguments.content_digest`. It stays the same as long as the database exists."""


class Chats(Protocol):
    """Reads of chats, their calls and their logs; nothing is locked."""

    async def get(self, chat_id: str) -> Chat | None:
        """Return a chat's snapshot."""
        ...

    async def get_many(self, chat_ids: Sequence[str]) -> Sequence[Chat]:
        """Return the snapshots of those of the chats that exist."""
        ...

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
        """Return a page of chats, sorted by chat id. A filter that is None matches every chat.

        `query` is part of the chat's id, the workspace's name or its owner's name, without regard to case.
        """
        ...

    async def with_previous(self, *, after: str | None = None, limit: int = 100) -> list[Chat]:
        """Return a page of the chats with previous workspaces that are not deleted, sorted by chat id."""
        ...

    async def current_workspaces(self, workspace_ids: AbstractSet[str]) -> set[str]:
        """Return those of the workspaces that are the current workspace of a chat."""
        ...

    async def open_calls(self, chat_id: str) -> list[Call]:
        """Return a chat's open calls, in the order of their arrival."""
        ...

    async def count_open_calls(self, limit: int) -> int:
        """Count the open calls of all chats; stop counting at `limit`."""
        ...

    async def known_call(self, chat_id: str, call_id: str) -> KnownCall | None:
        """Return what identifies the content of a stored call; None if it is not stored."""
        ...

    async def is_answered(self, chat_id: str, call_id: str) -> bool:
        """Say whether a call exists and was answered."""
        ...

    async def log(self, chat_id: str, *, after: int = 0, limit: int = 100) -> list[LogEntry]:
        """Return a page of a chat's event log, as `read_events` shows it, behind sequence `after`."""
        ...


@dataclass(frozen=True, slots=True)
class PushedVersion:
    """One version in a template's history."""

    version_id: str
    pushed_at: datetime
    size: int
    """Bytes of its archive."""
    active: bool


class Templates(Protocol):
    """Template versions and their archives."""

    async def push(self, organization_id: str, version: Version, archive: bytes) -> None:
        """Keep a version with its tar.gz and make it its template's active version.

        Pushing a version again activates it again; the stored version stays as it is.
        """
        ...

    async def activate(self, version_id: str) -> str | None:
        """Make a version its template's active one; return the template's id, None for an unknown version."""
        ...

    async def catalog(self, organization_id: str) -> Catalog:
        """Return an organization's templates with their active versions."""
        ...

    async def versions(self, template_id: str) -> Sequence[PushedVersion]:
        """Return a template's versions, oldest first."""
        ...

    async def read_archive(self, version_id: str, offset: int, size: int) -> bytes | None:
        """Return at most `size` bytes of a version's tar.gz from `offset` on; None for an unknown version."""
        ...

    async def pools(self) -> set[str]:
        """Return the pools that template versions name."""
        ...


@dataclass(frozen=True, slots=True)
class Credential:
    """The rights of an issued public key."""

    kind: str
    """`agent`, `frontend`, or a static role."""
    chat_ids: tuple[str, ...]
    """The chats that the key is for; empty for a static role's key, which is for all of them."""
    expires_at: datetime
    workspace_id: str | None = None
    build_id: str | None = None
    agent_id: str | None = None
    name: str | None = None
    """A label; for a provisioner, its name on the bus."""
    pool: str | None = None
    """For a provisioner: the pool whose builds it makes."""
    exec: bool = True
    """For a chat service: whether it may run commands. For a frontend: whether it sees those that run."""
    revoked_at: datetime | None = None


class CheckedCredential(NamedTuple):
    """An issued credential, and whether its key may be used now."""

    credential: Credential
    denial: str | None
    """None if the key is valid; otherwise `revoked`, `expired`, or `superseded` (by a newer build)."""


@dataclass(frozen=True, slots=True)
class ListedCredential:
    """A credential as operators see it."""

    public_key: str
    credential: Credential
    issued_at: datetime
    connections: int
    """Recorded connections that are not known to be closed."""
    superseded: bool = False
    """For an agent: its chat has a newer build, so the key admits nobody."""


class ClientConnection(NamedTuple):
    """Identifies a client's connection to NATS. Servers never use an id twice."""

    server: str
    client: int


class Credentials(Protocol):
    """Issued keys, and the connections that were made with them."""

    async def issue(self, public_key: str, credential: Credential) -> None:
        """Store a key's credential; replace the one that it has."""
        ...

    async def get(self, public_key: str) -> CheckedCredential | None:
        """Return a key's credential and whether the key may be used now; None for an unknown key.

        This and `invalid_connections` are the only places that decide whether a key is valid.
        """
        ...

    async def find(
        self, *, include_expired: bool = False, after: str | None = None, limit: int = 100
    ) -> list[ListedCredential]:
        """Return a page of the credentials, sorted by public key.

        Without `include_expired`, keys that expired or were revoked or superseded are left out.
        """
        ...

    async def revoke(self, public_key: str) -> bool:
        """Revoke a key for ever; return False for an unknown key."""
        ...

    async def bind_provisioner(self, name: str, pool: str) -> str:
        """Bind a provisioner's name to a pool for ever; return the pool that it is bound to.

        That is another pool than `pool` if the name was bound before.
        """
        ...

    async def record_connection(
        self, public_key: str, at: ClientConnection, server_name: str, credential: Credential
    ) -> list[ClientConnection]:
        """Record a connection before NATS admits it; return the key's surplus connections, newest first.

        A key has at most `CONNECTIONS_PER_KEY`.
        """
        ...

    async def invalid_connections(
        self,
        *,
        chat_ids: AbstractSet[str] | None = None,
        public_key: str | None = None,
        after: ClientConnection | None = None,
        limit: int = 500,
    ) -> list[ClientConnection]:
        """Return a page of the connections whose key is no longer valid, sorted.

        Only those of agents of `chat_ids`, or of `public_key`, if given.
        """
        ...

    async def forget_connections(self, connections: Sequence[ClientConnection]) -> None:
        """Delete the records of connections that are closed."""
        ...

    async def forget_earlier_server(self, server_name: str, server: str) -> None:
        """Delete the records of connections to earlier processes of the server with that name."""
        ...


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token's rights. The token itself is not stored, only its digest."""

    id: str
    role: str
    """`operator`, `chat-service`, `chat` or `frontend`."""
    exec: bool
    """Whether its holder may run commands; for a frontend: whether it sees the commands that run."""
    created_at: datetime
    expires_at: datetime
    chat_ids: tuple[str, ...] = ()
    """The chats that it is for; empty for roles that may use all of them."""
    organization_id: str | None = None
    owner_id: str | None = None
    owner_name: str | None = None
    """The organization and owner of the calls of a `chat` token."""


class Tokens(Protocol):
    """Bearer tokens. Only valid ones, neither revoked nor expired, are returned."""

    async def issue(self, digest: bytes, token: Token) -> None:
        """Store a new token's rights."""
        ...

    async def find(self, digest: bytes) -> Token | None:
        """Return the rights of the token with that digest; None if there is no such valid token."""
        ...

    async def page(
        self, roles: Sequence[str], *, after: str | None = None, limit: int = 100
    ) -> list[Token]:
        """Return a page of the tokens of these roles, sorted by id."""
        ...

    async def exchange(self, digest: bytes, other: bytes, expires_at: datetime) -> Token | None:
        """Give the token with a digest another digest and end; None if there is no such valid token."""
        ...

    async def revoke(self, token_id: str, roles: Sequence[str]) -> bool:
        """Revoke a token of one of these roles for ever; return False if there is no such valid token."""
        ...


@dataclass(frozen=True, slots=True)
class DatabaseServer:
    """The PostgreSQL server."""

    version: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class WaitingCalls:
    """How many calls of all chats wait for their answers."""

    count: int
    oldest_at: datetime | None
    """When the one was asked that waits longest."""


@dataclass(frozen=True, slots=True)
class BuildTimes:
    """How long the builds of a template took that ended in a period."""

    template: str | None
    """The template's name; None for builds that workspaced did not request."""
    transition: str
    """`start`, `stop` or `delete`."""
    count: int
    failed: int
    canceled: int
    median: float | None
    """Seconds from the begin to the end of those that succeeded; None if none did."""
    p90: float | None
    longest: float | None
    queued: float | None
    """The median of the seconds from the request to the begin, of all that a provisioner began."""


class Statistics(Protocol):
    """Reads about all chats at once, for operators."""

    async def server(self) -> DatabaseServer:
        """Return which server this is."""
        ...

    async def waiting_calls(self, limit: int) -> WaitingCalls:
        """Count the open calls of all chats; stop counting at `limit`."""
        ...

    async def open_calls(
        self, *, chat_id: str | None = None, after: CallKey | None = None, limit: int = 100
    ) -> list[Call]:
        """Return a page of the open calls of all chats or of one, those first that have waited longest."""
        ...

    async def pools(self) -> set[str]:
        """Return the pools that the active versions of templates name."""
        ...

    async def build_times(
        self, since: datetime, until: datetime, *, limit: int
    ) -> tuple[int, Sequence[BuildTimes]]:
        """Return how many builds ended in a period, and how long they took by template and transition.

        Only the newest `limit` builds are read.
        """
        ...


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """The last known end of a stream, or the mark that the stream lost messages."""

    created: str
    """When the stream was created, as the server reports it."""
    last: int
    """The last sequence."""

    @classmethod
    def lost(cls, token: str) -> StreamPosition:
        """Return the mark of a loss. `token` names the loss: it becomes part of message ids."""
        return cls(f"{_LOSS_PREFIX}{token}", 0)

    @property
    def loss_token(self) -> str | None:
        """The token of the loss; None if this is a position."""
        lost = self.created.startswith(_LOSS_PREFIX)
        return self.created.removeprefix(_LOSS_PREFIX) if lost else None


@dataclass(frozen=True, slots=True)
class DatabaseOrigin:
    """Identifies this database, and the one that its rows were written in.

    They differ after a restore, which took the rows back to an earlier moment.
    """

    current: str
    recorded: str | None
    """None if nobody has recorded it yet."""

    @property
    def differs(self) -> bool:
        """Whether the rows may come from another database."""
        return self.current != self.recorded


@dataclass(frozen=True, slots=True)
class SeenServer:
    """The NATS server process that workers used last."""

    id: str
    at: datetime
    """Everything that was committed before this time had been published to it."""


class Recovery(Protocol):
    """Reads and records with which workers publish again the messages that NATS lost."""

    async def origin(self) -> DatabaseOrigin:
        """Return which database this is, and which one its rows were written in."""
        ...

    async def record_origin(self, current: str) -> None:
        """Record that the rows belong to the database `current`."""
        ...

    async def stream_positions(self) -> dict[str, StreamPosition]:
        """Return the recorded positions of streams, by stream name."""
        ...

    async def advance_positions(
        self, positions: Mapping[str, StreamPosition], server_id: str | None
    ) -> None:
        """Record how far streams are, and that the server process (None: none) was seen, if it is the recorded one.

        A position only moves forward, within the same stream, and never replaces the mark of a loss.
        """
        ...

    async def reset_positions(self, positions: Mapping[str, StreamPosition]) -> None:
        """Record how far streams are, whatever is recorded."""
        ...

    async def seen_server(self) -> SeenServer | None:
        """Return the server process that workers used last; None if none is recorded."""
        ...

    async def record_server(self, server_id: str) -> None:
        """Record a server process to which everything has been published. The time of the earlier one stays."""
        ...

    async def mark_lost(self, before: Mapping[str, StreamPosition | None], token: str) -> None:
        """Mark streams as having lost messages; each only while its recorded position is that in `before`.

        So all workers that find a loss at the same time agree on one mark.
        """
        ...

    async def alarm_times(
        self, *, after: datetime | None = None, limit: int = 1000
    ) -> Sequence[datetime]:
        """Return a page of the times for which alarms are stored, sorted."""
        ...

    async def published_chats(
        self, *, after: str | None = None, limit: int = 500
    ) -> Sequence[Chat]:
        """Return a page of the chats that have published a state, sorted by chat id."""
        ...

    async def changed_chats(
        self, since: datetime, *, after: str | None = None, limit: int = 200
    ) -> Sequence[Chat]:
        """Return a page of the chats that changed at that time or later, sorted by chat id."""
        ...

    async def chats_with_agents(
        self, *, after: str | None = None, limit: int = 500
    ) -> Sequence[Chat]:
        """Return a page of the chats with connected agents, sorted by chat id."""
        ...

    async def jobs(
        self, *, after: str | None = None, limit: int = 100
    ) -> Sequence[tuple[StoredJob, Chat]]:
        """Return a page of the jobs that still need an end, each with its chat, sorted by build id.

        A job is among them until `JOB_RETENTION` after its `not_after`.
        """
        ...

    async def unpublished_jobs(self, chat_ids: Sequence[str]) -> Sequence[StoredJob]:
        """Return the jobs of chats that are not marked as published."""
        ...

    async def mark_published(self, sequences: Mapping[str, int | None]) -> set[str]:
        """Record that jobs are published, so that nobody publishes them again because an event is redelivered.

        `sequences`: build id -> sequence of the job in its stream, if it is known. Return the chats of those
        jobs that nobody needs any more.
        """
        ...

    async def unneeded_jobs(self, chat_ids: Sequence[str]) -> Sequence[StoredJob]:
        """Return the published jobs of chats that nobody needs any more and that were not taken back."""
        ...

    async def mark_taken_back(self, build_ids: Sequence[str]) -> None:
        """Record that jobs were deleted from their stream."""
        ...

    async def answered_calls(
        self, *, after: CallKey | None = None, limit: int = 500
    ) -> Sequence[StoredCall]:
        """Return a page of the calls that were answered in the last 24 hours, sorted by key."""
        ...

    async def answers_of(
        self, chat_ids: Sequence[str], since: datetime | None = None
    ) -> Sequence[StoredCall]:
        """Return the calls of chats that were answered since a time, and in the last 24 hours."""
        ...


# -- the store ------------------------------------------------------------------------------------


class Store(Protocol):
    """The database of workspaced. See the module's text for its parts."""

    @property
    def chats(self) -> Chats:
        """Reads of chats."""
        ...

    @property
    def templates(self) -> Templates:
        """Template versions."""
        ...

    @property
    def credentials(self) -> Credentials:
        """Issued keys and their connections."""
        ...

    @property
    def tokens(self) -> Tokens:
        """Bearer tokens for HTTP."""
        ...

    @property
    def statistics(self) -> Statistics:
        """Reads about all chats at once."""
        ...

    @property
    def recovery(self) -> Recovery:
        """Reads and records for publishing lost messages again."""
        ...

    async def now(self) -> datetime:
        """Return the database's time."""
        ...

    def locked(self, name: str) -> AbstractAsyncContextManager[None]:
        """Hold the lock of that name; others wait for it.

        The database takes it back after the transaction timeout. Raises TransientError.
        """
        ...

    async def look(self, wanted: Wanted) -> Look:
        """Read what a batch needs to know about its chats, all as of one moment."""
        ...

    async def look_up(
        self, wanted: Lookups, workspace_ids: AbstractSet[str] = frozenset()
    ) -> LookedUp:
        """Return the templates, versions and names that `wanted` names, all settings, and the current workspaces."""
        ...

    async def write(self, changes: Changes) -> Written:
        """Write and commit, in one statement, the changes of all chats for which what the caller assumed is true.

        A chat is skipped if its row has another version than the one that is named, or if one of its events was applied
        before. All chats are skipped if a name of `Changes.unbound` is bound to a pool.

        Raises TransientError for deadlocks and timeouts, and when another chat of an owner got the same name at
        the same time; WorkRefusedError, StoreUnavailableError. An error of the database that blames the data
        passes through as the driver raised it.
        """
        ...

    async def due_alarms(
        self,
        limit: int,
        *,
        without: Sequence[str] = (),
        publishing: float = 0.0,
        retention: timedelta | None = None,
    ) -> DueAlarms:
        """Return the first alarms whose time has come. Those of chats that need no timer any more are deleted.

        With `retention`, alarms are stored first for chats with a workspace that has rested for so long. Alarms of the chats `without` are left out, and those that were handled less than `publishing` seconds ago.
        """
        ...

    async def first_rest(self, retention: timedelta) -> datetime | None:
        """Return when the next workspace will have rested for `retention`; None if none rests, or each did for longer."""
        ...

    async def delete_alarms(self, alarms: Sequence[Alarm], *, unhandled: bool = False) -> None:
        """Delete alarms that were handled; with `unhandled`, also those that were not."""
        ...

    async def settings(self) -> dict[str, str]:
        """Return the operators' settings by name."""
        ...

    async def put_setting(self, key: str, value: str) -> None:
        """Change a setting; it holds for the next transaction of every worker."""
        ...

    async def unset_setting(self, key: str) -> None:
        """Remove a setting, so that its default holds for the next transaction of every worker."""
        ...

    async def check_writable(self) -> None:
        """Return if the database accepts changes now; write nothing.

        Raises StoreUnavailableError that says what is wrong: the database is read-only, lacks a table, or
        a table is locked by somebody else.
        """
        ...

    async def probe_write(self) -> None:
        """Write sample rows into every table that a batch writes, and roll back.

        Raises StoreUnavailableError when the database does not accept them, for any reason: the sample is
        valid, so the fault is the database's.
        """
        ...

    async def note_blocked(self, chat_ids: AbstractSet[str], reason: str, seconds: float) -> None:
        """Record for so many seconds why events of these chats can't be applied."""
        ...

    async def blocked(self, chat_ids: AbstractSet[str]) -> dict[str, str]:
        """Return the reasons why events of these chats can't be applied now, by chat.

        They are those of `note_blocked`, or what `check_writable` finds.
        """
        ...


# -- representations that all implementations share -----------------------------------------------


def chat_columns(chat: Chat) -> dict[str, Any]:
    """Return the columns of a chat's row that repeat parts of its snapshot, to search by."""
    return {
        "version": chat.version,
        "state": str(chat.state),
        "organization_id": chat.organization_id,
        "owner_id": chat.owner_id,
        "workspace_id": chat.current.id if chat.current else None,
        "wakes": not needs_no_timer(chat),
    }


def rest_columns(chat: Chat) -> dict[str, Any]:
    """Return further such columns. Programs of schema 0011 leave them as they are when they change a chat."""
    return {
        "rests_since": rests_since(chat),
        "has_previous": any(not record.deleted for record in chat.previous),
    }


def log_entry(
    row: Mapping[str, Any], event: Mapping[str, Any], cause: Mapping[str, Any] | None
) -> LogEntry:
    """Return a log entry as `read_events` and exports show it.

    `row` has the columns of `event_log`. The keys `cause`, `deadline` and `notice` are left out where there
    is none. The notice is stored as an attribute of the event, and shown as the entry's.
    """
    deadline: datetime | None = row["deadline"]
    notice = event.get("notice")
    logged = {name: value for name, value in event.items() if name != "notice"}
    entry: LogEntry = {
        "seq": row["seq"],
        "event": cast(LoggedEvent, logged),
        "outcome": row["outcome"],
        "state_before": row["state_before"],
        "state_after": row["state_after"],
        "version": row["version"],
        "at": timestamp(row["at"]),
    }
    if cause is not None:
        entry["cause"] = cast(ShownCause, cause)
    if deadline is not None:
        entry["deadline"] = timestamp(deadline)
    if notice is not None:
        entry["notice"] = notice
    return entry
