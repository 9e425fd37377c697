"""The composition root: finds the servers and credentials of a process and connects to them."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

from bus import Backoff, Denied, Refused
from bus.connect import LOG_INTERVAL, redacted
from bus.jetstream import JetStreamBus, connect
from bus.streams import Tuning
from handlers.access import nkey
from handlers.access.permissions import PERMISSIONS, role_inbox_prefix
from handlers.embedded import running_servers
from handlers.embedded.database_access import complete_url, credentials_folder
from handlers.errors import NotFoundError
from handlers.runtime import clock
from handlers.runtime.listeners import client_context
from handlers.settings import Settings
from handlers.worker.call_limits import WaitingLimits
from statemachine.chat import Limits
from statemachine.store import MisconfiguredError, StoreUnavailableError, UnreachableError
from statemachine.store.migrator import migrate
from statemachine.store.postgres import PLANS, PostgresStore, timeouts
from statemachine.store.postgres import connect as open_store

log = logging.getLogger(__name__)
Role = Literal["operator", "chat-service", "provisioner", "worker", "gateway"]
DatabaseRole = Literal["operator", "worker", "gateway"]


class WrongKey(Refused):
    """NATS accepts a key, but its permissions do not allow what was tried with it."""

    def __init__(self, file: Path, role: Role, denied: Exception) -> None:
        self.file, self.role = file, role
        super().__init__(
            f"the key in {file} does not permit this ({denied}): "
            f"use a key of role {role} with --credentials"
        )


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The servers that a process uses, and the credentials it connects with."""

    nats_url: str
    database_url: str | None
    credentials: Path
    """A seed file, or a directory that holds `<role>.nk` for each role."""
    transaction_timeout: float = 5.0
    """Seconds after which PostgreSQL ends a statement or a transaction of a role."""
    databases: Mapping[str, str] = field(default_factory=dict)
    """Database URLs of the roles that have one of their own, by role."""
    nats_ca: Path | None = None
    """CA certificates (PEM) to verify NATS with; None: those of the system."""
    stream_room: int | None = None
    """Bytes of disk that the streams of an embedded NATS may use; None: the usual size."""

    def seed_file(self, role: Role) -> Path:
        """Return the file that holds the role's seed. Raises NotFoundError."""
        file = self.credentials / f"{role}.nk" if self.credentials.is_dir() else self.credentials
        if not file.is_file():
            raise NotFoundError(
                f"there is no credential {file}: name the seed file of role '{role}' with "
                "--credentials or WORKSPACED_CREDENTIALS"
            )
        return file

    def seed(self, role: Role) -> str:
        """Read the role's seed. Raises NotFoundError."""
        return _read_seed(self.seed_file(role))

    def issuer_seed(self) -> str | None:
        """Read the seed that signs the credentials of agents and frontends.

        Returns None, and logs a warning, if there is no such file. Raises NotFoundError if the file
        cannot be used.
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
        return _read_seed(file)

    @asynccontextmanager
    async def bus(self, role: Role, *, wait: bool = False) -> AsyncIterator[JetStreamBus]:
        """Connect to NATS as `role`; with `wait`, retry until the server answers.

        Raises BusError and NotFoundError. Raises WrongKey also when NATS denies what the block does.
        """
        seed, prefixes = self.seed(role), self._inbox_prefixes(role)
        while True:
            prefix = prefixes.pop(0)
            async with await connect(
                self.nats_url,
                name=f"workspaced {role}",
                seed=seed,
                inbox_prefix=prefix,
                tls=client_context(self.nats_ca),
                wait=wait,
            ) as bus:
                if prefixes and not await _may_subscribe(bus, prefix):
                    continue
                try:
                    yield bus
                except Denied as error:
                    raise WrongKey(self.seed_file(role), role, error) from error
                return

    def _inbox_prefixes(self, role: Role) -> list[str]:
        """Return the inbox prefixes that the key may have, the likelier one first.

        The inbox of a role's own key is named after the role, that of an issued key after the key.
        The seed does not say which kind it is; only the server knows.
        """
        role_prefix = role_inbox_prefix(role)
        if PERMISSIONS[role].subscribe == (">",) or self.credentials.is_dir():
            return [role_prefix]
        key_prefix = f"_INBOX_{nkey.public_key(self.seed(role))}"
        is_role_file = self.credentials.name == f"{role}.nk"
        return [role_prefix, key_prefix] if is_role_file else [key_prefix, role_prefix]

    @asynccontextmanager
    async def store(
        self, role: DatabaseRole = "operator", *, wait: bool = False
    ) -> AsyncIterator[PostgresStore]:
        """Connect to the database as `role`; with `wait`, retry until it is available.

        Raises StoreUnavailableError, NotFoundError.
        """
        url = self.databases.get(role, self.database_url)
        if url is None:
            raise NotFoundError(
                "no database is named: use --database-url or WORKSPACED_DATABASE_URL"
            )
        limits = {**timeouts(self.transaction_timeout), **(PLANS if role == "worker" else {})}
        async with connect_store(url, limits, wait=wait) as store:
            yield store


@asynccontextmanager
async def connect_store(
    database_url: str, limits: Mapping[str, str], *, wait: bool = False
) -> AsyncIterator[PostgresStore]:
    """Connect to a database, and migrate it first if its user has the rights.

    `limits` are the settings of each session. With `wait`, retry and log until the database is
    available, unless only a change of the database or of its URL would help. Raises
    StoreUnavailableError.
    """
    backoff, last_warning = Backoff(), -math.inf
    async with AsyncExitStack() as stack:
        while True:
            try:
                with errors_name_database(database_url):
                    await migrate(database_url)  # roles start in any order: the first one migrates
                    opening = open_store(database_url, limits=limits)
                    store = await stack.enter_async_context(opening)
                break
            except StoreUnavailableError as error:
                if not wait or isinstance(error, MisconfiguredError):
                    raise
                if (now := clock()) - last_warning >= LOG_INTERVAL:
                    last_warning = now
                    log.warning("%s; trying again", error)
            await backoff.wait()
        yield store


@contextmanager
def errors_name_database(database_url: str) -> Iterator[None]:
    """Add the URL, without its password, to errors of a database that cannot be reached."""
    try:
        yield
    except UnreachableError as error:
        # A space would end what `redacted` takes for the URL, and the password with it.
        shown = redacted("%20".join(database_url.split()))
        raise type(error)(f"{error} ({shown})") from error


async def _may_subscribe(bus: JetStreamBus, prefix: str) -> bool:
    """Return whether NATS lets this connection subscribe below the inbox prefix."""
    try:
        async with bus.subscribe(f"{prefix}.here"):
            return True
    except Refused:
        return False


def _read_seed(file: Path) -> str:
    try:
        seed = file.read_text().strip()
        nkey.public_key(seed)
    except (OSError, UnicodeDecodeError, nkey.InvalidSeed) as error:
        raise NotFoundError(f"{file}: {error}") from error
    return seed


def locate(settings: Settings) -> Endpoints:
    """Return the servers that the settings name, or those of the running `workspaced up`.

    Raises NotFoundError, EmbeddedError.
    """
    running = running_servers(settings.data_dir)
    nats_url = settings.nats_url or (running.nats_url if running else None)
    if nats_url is None:
        raise NotFoundError(
            f"no workspaced runs on {settings.data_dir}: start `workspaced up`, or name the "
            "servers with --nats-url and --database-url"
        )
    folder = running.credentials if running else settings.data_dir / "credentials"
    return Endpoints(
        nats_url,
        database_url(settings) or (running.database_url if running else None),
        settings.credentials or folder,
        settings.transaction_timeout,
        running.databases if running and settings.database_url is None else {},
        settings.nats_ca if settings.nats_url or running is None else running.nats_ca,
        running.stream_room if running and settings.nats_url is None else None,
    )


def database_url(settings: Settings) -> str | None:
    """Return the database URL of the settings, completed with the password of an `up` if it is its.

    Raises EmbeddedError.
    """
    if settings.database_url is None:
        return None
    given = settings.credentials or settings.data_dir / "credentials"
    return complete_url(settings.database_url, credentials_folder(given))


@asynccontextmanager
async def store_from_settings(settings: Settings) -> AsyncIterator[PostgresStore]:
    """Connect to the database only, since there may be no NATS. Raises as `Endpoints.store`."""
    if (url := database_url(settings)) is not None:
        async with connect_store(url, timeouts(settings.transaction_timeout)) as store:
            yield store
        return
    async with locate(settings).store() as store:
        yield store


def limits(settings: Settings) -> Limits:
    """Return how long a chat may stay in each state."""
    return Limits(
        build=timedelta(seconds=settings.build_timeout),
        agent_connect=timedelta(seconds=settings.agent_connect_timeout),
        startup_scripts=timedelta(seconds=settings.startup_scripts_timeout),
        cancel=timedelta(seconds=settings.cancel_timeout),
        orphan_grace=timedelta(seconds=settings.orphan_grace),
    )


def waiting_limits(settings: Settings) -> WaitingLimits:
    """Return how many calls and jobs may wait."""
    return WaitingLimits(
        settings.waiting_calls_per_chat, settings.waiting_calls, settings.job_queue
    )


def tuning(settings: Settings, endpoints: Endpoints) -> Tuning:
    """Return how workers configure streams and consumers."""
    chosen = Tuning(settings.nats_replicas, settings.duplicate_window, settings.ack_wait)
    room = endpoints.stream_room
    return chosen if room is None else replace(chosen, disk=room)
