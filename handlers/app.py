"""The composition root: which store, which bus, which identity a process works with."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

from bus import Denied, Refused
from bus.first_connection import TOLD_EVERY
from bus.jetstream import JetStreamBus, connect
from bus.streams import Tuning
from bus.urls import redacted
from handlers.access import nkey
from handlers.access.permissions import PERMISSIONS, inbox_prefix
from handlers.clock import clock
from handlers.embedded import running_servers
from handlers.embedded.database_password import completed, folder_of
from handlers.listen import trust
from handlers.publishing import Backoff
from handlers.settings import Settings
from handlers.worker.load_sampler import Room
from statemachine.chat import Limits
from statemachine.store import StoreUnavailableError, UnreachableError, UnsuitableError
from statemachine.store.migrator import migrate
from statemachine.store.postgres import PostgresStore, limits_of
from statemachine.store.postgres import connect as open_store

log = logging.getLogger(__name__)
Role = Literal["operator", "chat-service", "provisioner", "worker", "gateway"]
DatabaseRole = Literal["operator", "worker", "gateway"]


class NotFoundError(Exception):
    """Something that a command needs is not there; the message says what to do."""


class WrongKey(Refused):
    """A key is let in, but may not do what is asked with it, as one of the role might."""

    def __init__(self, file: Path, role: Role) -> None:
        self.file, self.role = file, role
        super().__init__(self.about("that"))

    def about(self, what: str) -> str:
        """Say what needs which key."""
        return f"{self.file} is let in, but may not do this: {what} needs a key of role {self.role}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the servers are, and where the credentials."""

    nats_url: str
    database_url: str | None
    credentials: Path
    """A seed file, or the directory with one a role."""
    transaction_timeout: float = 5.0
    """Seconds that a transaction may hold its chats."""
    databases: Mapping[str, str] = field(default_factory=dict)
    """The URLs of roles that have one of their own."""
    nats_ca: Path | None = None
    """Who signed the certificate of NATS; None: somebody whom this machine trusts."""
    stream_room: int | None = None
    """Bytes of disk for the streams of an embedded NATS."""

    def seed_file(self, role: Role) -> Path:
        """Return the file with the role's seed. Raises NotFoundError."""
        file = self.credentials / f"{role}.nk" if self.credentials.is_dir() else self.credentials
        if not file.is_file():
            raise NotFoundError(
                f"there is no credential {file}: name the seed file of role '{role}' with "
                "--credentials or WORKSPACED_CREDENTIALS"
            )
        return file

    def seed(self, role: Role) -> str:
        """Read the role's seed; a line end behind it does no harm. Raises NotFoundError."""
        return _seed(self.seed_file(role))

    def issuer_seed(self) -> str | None:
        """Return the seed that signs for agents and frontends, or None and say so.

        Raises NotFoundError for one that can't be used.
        """
        folder = self.credentials if self.credentials.is_dir() else self.credentials.parent
        file = folder / "issuer.nk"
        if not file.is_file():
            log.warning(
                "there is no %s: agents and frontends can't connect to NATS, "
                "unless another gateway has that file",
                file,
            )
            return None
        return _seed(file)

    @asynccontextmanager
    async def bus(self, role: Role, *, wait: bool = False) -> AsyncIterator[JetStreamBus]:
        """Connect as `role`. Raises BusError, WrongKey also for what the block does, NotFoundError."""
        seed, prefixes = self.seed(role), self._inbox_prefixes(role)
        while True:
            prefix = prefixes.pop(0)
            async with await connect(
                self.nats_url,
                name=f"workspaced {role}",
                seed=seed,
                inbox_prefix=prefix,
                tls=trust(self.nats_ca),
                wait=wait,
            ) as bus:
                if prefixes and not await _hears(bus, prefix):
                    continue
                try:
                    yield bus
                except Denied as no:
                    raise WrongKey(self.seed_file(role), role) from no
                return

    def _inbox_prefixes(self, role: Role) -> list[str]:
        """Return where answers may come to, the likelier first.

        Nothing in a seed says whether it is the role's own, whose inbox is named after the role, or
        one that was issued, whose inbox is named after its key. Only the server knows.
        """
        of_role = inbox_prefix(role)
        if PERMISSIONS[role].subscribe == (">",) or self.credentials.is_dir():
            return [of_role]
        of_key = f"_INBOX_{nkey.public_key(self.seed(role))}"
        named = self.credentials.name == f"{role}.nk"
        return [of_role, of_key] if named else [of_key, of_role]

    @asynccontextmanager
    async def store(
        self, role: DatabaseRole = "operator", *, wait: bool = False
    ) -> AsyncIterator[PostgresStore]:
        """Open the database as `role`; with `wait`, wait until it is there, and say so.

        Raises StoreUnavailableError, NotFoundError.
        """
        url = self.databases.get(role, self.database_url)
        if url is None:
            raise NotFoundError(
                "no database is named: use --database-url or WORKSPACED_DATABASE_URL"
            )
        async with opened(url, self.transaction_timeout, wait=wait) as store:
            yield store


@asynccontextmanager
async def opened(
    database_url: str, transaction_timeout: float, *, wait: bool = False
) -> AsyncIterator[PostgresStore]:
    """Open a database, brought to this version if its user may do that.

    With `wait`, wait until it is there, and say so; but not where only a change of the database or its URL
    helps. Raises StoreUnavailableError.
    """
    backoff, told = Backoff(), -math.inf
    async with AsyncExitStack() as stack:
        while True:
            try:
                with naming(database_url):
                    await migrate(database_url)  # whoever comes first: roles start in any order
                    opening = open_store(database_url, limits=limits_of(transaction_timeout))
                    store = await stack.enter_async_context(opening)
                break
            except StoreUnavailableError as no:
                if not wait or isinstance(no, UnsuitableError):
                    raise
                if (now := clock()) - told >= TOLD_EVERY:
                    told = now
                    log.warning("%s; trying again", no)
            await backoff.wait()
        yield store


@contextmanager
def naming(database_url: str) -> Iterator[None]:
    """Say which database it is that can't be opened, and nothing of its password."""
    try:
        yield
    except UnreachableError as no:
        # Spaces would end what is taken for the URL, and with it for the password.
        raise type(no)(f"{no} ({redacted('%20'.join(database_url.split()))})") from no


async def _hears(bus: JetStreamBus, prefix: str) -> bool:
    """Say whether we may listen to that inbox."""
    try:
        async with bus.subscribe(f"{prefix}.here"):
            return True
    except Refused:
        return False


def _seed(file: Path) -> str:
    try:
        seed = file.read_text().strip()
        nkey.public_key(seed)
    except (OSError, UnicodeDecodeError, nkey.InvalidSeed) as bad:
        raise NotFoundError(f"{file}: {bad}") from bad
    return seed


def locate(settings: Settings) -> Place:
    """Find the servers: those that are named, else those of a running `workspaced up`.

    Raises NotFoundError, EmbeddedError.
    """
    running = running_servers(settings.data_dir)
    nats_url = settings.nats_url or (running.nats_url if running else None)
    database_url = database_of(settings) or (running.database_url if running else None)
    databases = running.databases if running and settings.database_url is None else {}
    if nats_url is None:
        raise NotFoundError(
            f"no workspaced runs on {settings.data_dir}: start `workspaced up`, or name the "
            "servers with --nats-url and --database-url"
        )
    folder = running.credentials if running else settings.data_dir / "credentials"
    return Place(
        nats_url,
        database_url,
        settings.credentials or folder,
        settings.transaction_timeout,
        databases,
        settings.nats_ca if settings.nats_url or running is None else running.nats_ca,
        running.stream_room if running and settings.nats_url is None else None,
    )


def database_of(settings: Settings) -> str | None:
    """Return the URL of the database that is named, with the password if it is that of an `up`.

    Raises EmbeddedError.
    """
    if settings.database_url is None:
        return None
    given = settings.credentials or settings.data_dir / "credentials"
    return completed(settings.database_url, folder_of(given))


@asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[PostgresStore]:
    """Open the database alone: there may be no NATS to go with it. Raises as `Place.store`."""
    if (url := database_of(settings)) is not None:
        async with opened(url, settings.transaction_timeout) as store:
            yield store
        return
    async with locate(settings).store() as store:
        yield store


def limits(settings: Settings) -> Limits:
    """Return how long each state may last."""
    return Limits(
        build=timedelta(seconds=settings.build_timeout),
        agent_connect=timedelta(seconds=settings.agent_connect_timeout),
        startup_scripts=timedelta(seconds=settings.startup_scripts_timeout),
        orphan_grace=timedelta(seconds=settings.orphan_grace),
    )


def room(settings: Settings) -> Room:
    """Return how much may wait."""
    return Room(settings.waiting_calls_per_chat, settings.waiting_calls, settings.job_queue)


def tuning(settings: Settings, place: Place) -> Tuning:
    """Return how streams and consumers are to be made."""
    chosen = Tuning(settings.nats_replicas, settings.duplicate_window, settings.ack_wait)
    return chosen if place.stream_room is None else replace(chosen, disk=place.stream_room)
