"""Brings a database to this version's schema: migrations only go forward, one transaction each."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

import asyncpg

from statemachine.store import MisconfiguredError, StoreUnavailableError
from statemachine.store.connection import open_connection, read_url
from statemachine.store.database import classify_error, named_statements

log = logging.getLogger(__name__)
OLDEST: Final = 17
"""The first major version of PostgreSQL that has `transaction_timeout`."""
OWNER: Final = "workspaced_owner"
SERVICES: Final = ("workspaced_worker", "workspaced_gateway", "workspaced_operator")
"""The roles of roles.sql. They are optional: a server may have none of them."""
_LOCK: Final = (
    f"select pg_advisory_xact_lock({0x776F726B})"  # "work": one process migrates at a time
)
LOCK_TIMEOUT: Final = "3s"
"""How long a migration may wait for a table that is in use: all workers wait behind it."""
_LEDGER: Final = """create table if not exists schema_migration (
    number integer primary key, name text not null, applied_at timestamptz not null default now())"""
_OWNERS: Final = """select from pg_database where datname = current_database()
    and datdba::regrole::text = $1 and pg_has_role(datdba, 'member')"""
_ROLES: Final = "select count(*) from pg_roles where rolname = any($1)"


class Migration(NamedTuple):
    """One forward step of the schema."""

    number: int
    name: str
    text: str


def migrations() -> list[Migration]:
    """Return all migrations, sorted by number."""
    return sorted(
        Migration(int(match[1]), match[2], file.read_text("utf-8"))
        for file in files(__package__).joinpath("migrations").iterdir()
        if (match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name))
    )


@cache
def roles() -> dict[str, str]:
    """Return the parts of roles.sql by name: `roles`, `database`, `grants`."""
    return named_statements("roles.sql")


async def migrate(url: str, *, granting: bool = False) -> list[Migration]:
    """Apply the missing migrations to the database at `url`; return those that were applied.

    When several processes migrate, each migration is still applied once. A user without the right to create
    tables may call this when nothing is missing. The services' rights are granted with the last migration,
    or with `granting` in any case. Raises StoreUnavailableError.
    """
    address = read_url(url)
    async with open_connection(address) as session:
        connection = session.connection
        found = connection.get_server_version()
        if found.major < OLDEST:
            raise MisconfiguredError(
                f"PostgreSQL {OLDEST} or later is needed; this server is {found.major}.{found.minor}"
            )
        try:
            if not granting and not await _missing(connection):
                return []
            async with open_connection(address) as other, other.connection.transaction():
                # A transaction of another connection holds the lock: it outlasts the migrations, and ends with
                # this process. A session's lock could stay behind in a pooler.
                await other.connection.execute(_LOCK)
                return await _apply_missing(connection, granting=granting)
        except asyncpg.InsufficientPrivilegeError as error:
            raise MisconfiguredError(
                f"the database is not ready for this user, who may not bring it to schema "
                f"{migrations()[-1].number:04d} ({error}): run `workspaced migrate` with its owner's URL"
            ) from error
        except asyncpg.LockNotAvailableError as error:
            raise StoreUnavailableError(
                f"can't migrate the database while a table is in use, by pg_dump perhaps: {error}; try again"
            ) from error
        except Exception as error:
            if isinstance(error, StoreUnavailableError) or (why := classify_error(error)) is None:
                raise
            raise StoreUnavailableError(f"the database could not be migrated: {why}") from error


async def _apply_missing(connection: asyncpg.Connection[Any], *, granting: bool) -> list[Migration]:
    """Apply the missing migrations, each in a transaction of its own; return them."""
    async with _as_owner(connection):
        await connection.execute(_LEDGER)
        missing = await _missing(connection)
        if granting and not missing:
            await _grant(connection)
    for step in missing:
        async with _as_owner(connection):
            await connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
            await connection.execute(step.text)
            await connection.execute(
                "insert into schema_migration (number, name) values ($1, $2)",
                step.number,
                step.name,
            )
            if step is missing[-1]:
                await _grant(connection)
        log.info("migrated the database to %04d %s", step.number, step.name)
    return missing


@asynccontextmanager
async def _as_owner(connection: asyncpg.Connection[Any]) -> AsyncIterator[None]:
    """Run the block in a transaction, as the owner if there is one, so that all tables belong to the owner."""
    async with connection.transaction():
        if await connection.fetchrow(_OWNERS, OWNER) is not None:
            await connection.execute(f"set local role {OWNER}")
        yield


async def _missing(connection: asyncpg.Connection[Any]) -> list[Migration]:
    """Return the migrations that were not applied yet.

    Raises MisconfiguredError if the database has a later schema than this program knows.
    """
    done: set[int] = set()
    if await connection.fetchval("select to_regclass('schema_migration') is not null"):
        rows = await connection.fetch("select number from schema_migration")
        done = {row["number"] for row in rows}
    known = migrations()
    newest = max(step.number for step in known)
    if max(done, default=0) > newest:
        raise MisconfiguredError(
            f"the database has schema {max(done):04d}, this program knows {newest:04d} at most: "
            "use the workspaced that migrated it, or a later one"
        )
    return [step for step in known if step.number not in done]


async def _grant(connection: asyncpg.Connection[Any]) -> None:
    """Grant the services' roles their rights, if the server has those roles."""
    if await connection.fetchval(_ROLES, list(SERVICES)) == len(SERVICES):
        await connection.execute(roles()["grants"])
