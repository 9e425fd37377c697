"""The composition root: which store, which bus, which identity a process works with."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from bus.jetstream import JetStreamBus, connect
from handlers import nkey
from handlers.embedded import running_servers
from handlers.embedded.permissions import inbox_prefix
from handlers.settings import Settings
from statemachine.store.migrating import migrate
from statemachine.store.postgres import PostgresStore
from statemachine.store.postgres import connect as open_store
from statemachine.workspace import Limits

log = logging.getLogger(__name__)
Role = Literal["operator", "chat-service", "provisioner", "worker", "gateway"]


class NotFoundError(Exception):
    """Something that a command needs is not there; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the servers are, and where the credentials."""

    nats_url: str
    database_url: str | None
    credentials: Path
    """A seed file, or the directory with one a role."""

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
        """Connect as `role`. Raises BusError, NotFoundError."""
        async with await connect(
            self.nats_url,
            name=f"workspaced {role}",
            seed=self.seed(role),
            inbox_prefix=inbox_prefix(role),
            wait=wait,
        ) as bus:
            yield bus

    @asynccontextmanager
    async def store(self) -> AsyncIterator[PostgresStore]:
        """Open the database, brought to this version. Raises StoreUnavailableError, NotFoundError."""
        if self.database_url is None:
            raise NotFoundError(
                "no database is named: use --database-url or WORKSPACED_DATABASE_URL"
            )
        await migrate(self.database_url)  # whoever comes first: roles start in any order
        async with open_store(self.database_url) as store:
            yield store


def _seed(file: Path) -> str:
    try:
        seed = file.read_text().strip()
        nkey.public_key(seed)
    except (OSError, UnicodeDecodeError, nkey.InvalidSeed) as bad:
        raise NotFoundError(f"{file}: {bad}") from bad
    return seed


def locate(settings: Settings) -> Place:
    """Find the servers: those that are named, else those of a running `workspaced up`.

    Raises NotFoundError.
    """
    running = running_servers(settings.data_dir)
    nats_url = settings.nats_url or (running.nats_url if running else None)
    database_url = settings.database_url or (running.database_url if running else None)
    if nats_url is None:
        raise NotFoundError(
            f"no workspaced runs on {settings.data_dir}: start `workspaced up`, or name the "
            "servers with --nats-url and --database-url"
        )
    folder = running.credentials if running else settings.data_dir / "credentials"
    return Place(nats_url, database_url, settings.credentials or folder)


def limits(settings: Settings) -> Limits:
    """Return how long each state may last."""
    return Limits(
        build=timedelta(seconds=settings.build_timeout),
        agent_connect=timedelta(seconds=settings.agent_connect_timeout),
        startup_scripts=timedelta(seconds=settings.startup_scripts_timeout),
        orphan_grace=timedelta(seconds=settings.orphan_grace),
    )
