"""Bringing a database to the schema of this version: forward only, one transaction a step."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from statemachine.store import StoreUnavailableError, UnsuitableError
from statemachine.store.connection import opened, read_url
from statemachine.store.errors import judged
from statemachine.store.sql import Migration, migrations, roles

log = logging.getLogger(__name__)
OLDEST: Final = 17
"""The first major version of PostgreSQL that has `transaction_timeout`."""
OWNER: Final = "workspaced_owner"
SERVICES: Final = ("workspaced_worker", "workspaced_gateway", "workspaced_operator")
"""The roles of roles.sql; a database whose server has none of them works without."""
_LOCK: Final = (
    f"select pg_advisory_xact_lock({0x776F726B})"  # "work": one process at a time migrates
)
PATIENCE: Final = "3s"
"""How long a step may wait for a table that somebody uses: all workers wait behind it."""
_LEDGER: Final = """create table if not exists schema_migration (
    number integer primary key, name text not null, applied_at timestamptz not null default now())"""
_OWNERS: Final = """select from pg_database where datname = current_database()
    and datdba::regrole::text = $1 and pg_has_role(datdba, 'member')"""
_ROLES: Final = "select count(*) from pg_roles where rolname = any($1)"


async def migrate(url: str, *, granting: bool = False) -> list[Migration]:
    """Apply what is missing at `url`, one at a time whoever else tries; return what was applied.

    Who finds nothing missing needs no right to make anything. The services' rights are given with
    the last step, or with `granting` in any case. Raises StoreUnavailableError.
    """
    address = read_url(url)
    async with opened(address) as session:
        connection = session.connection
        found = connection.get_server_version()
        if found.major < OLDEST:
            raise UnsuitableError(
                f"PostgreSQL {OLDEST} or later is needed; this server is {found.major}.{found.minor}"
            )
        try:
            if not granting and not await _missing(connection):
                return []
            async with opened(address) as other, other.connection.transaction():
                # Held by a transaction of another connection: it outlasts the steps, and ends with whoever
                # holds it. A session's lock could be left behind in a pooler.
                await other.connection.execute(_LOCK)
                return await _brought_forward(connection, granting=granting)
        except asyncpg.InsufficientPrivilegeError as bad:
            raise UnsuitableError(
                f"the database is not ready for this user, who may not bring it to schema "
                f"{migrations()[-1].number:04d} ({bad}): run `workspaced migrate` with its owner's URL"
            ) from bad
        except asyncpg.LockNotAvailableError as bad:
            raise StoreUnavailableError(
                f"can't migrate the database while a table is in use, by pg_dump perhaps: {bad}; try again"
            ) from bad
        except Exception as bad:
            if isinstance(bad, StoreUnavailableError) or (why := judged(bad)) is None:
                raise
            raise StoreUnavailableError(f"the database could not be migrated: {why}") from bad


async def _brought_forward(
    connection: asyncpg.Connection[Any], *, granting: bool
) -> list[Migration]:
    """Apply the steps that are missing, each in a transaction of its own."""
    async with _as_owner(connection):
        await connection.execute(_LEDGER)
        missing = await _missing(connection)
        if granting and not missing:
            await _grant(connection)
    for step in missing:
        async with _as_owner(connection):
            await connection.execute(f"set local lock_timeout = '{PATIENCE}'")
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
    """Run the block in a transaction, as the owner if there is one: what a superuser makes is the owner's too."""
    async with connection.transaction():
        if await connection.fetchrow(_OWNERS, OWNER) is not None:
            await connection.execute(f"set local role {OWNER}")
        yield


async def _missing(connection: asyncpg.Connection[Any]) -> list[Migration]:
    """Return the steps that the ledger does not have. Raises StoreUnavailableError for later ones."""
    done: set[int] = set()
    if await connection.fetchval("select to_regclass('schema_migration') is not null"):
        rows = await connection.fetch("select number from schema_migration")
        done = {row["number"] for row in rows}
    known = migrations()
    newest = max(step.number for step in known)
    if max(done, default=0) > newest:
        raise UnsuitableError(
            f"the database has schema {max(done):04d}, this program knows {newest:04d} at most: "
            "use the workspaced that migrated it, or a later one"
        )
    return [step for step in known if step.number not in done]


async def _grant(connection: asyncpg.Connection[Any]) -> None:
    """Give the services' roles their rights, where the server has those roles."""
    if await connection.fetchval(_ROLES, list(SERVICES)) == len(SERVICES):
        await connection.execute(roles()["grants"])
