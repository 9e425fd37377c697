"""Bringing a database to the schema of this version: forward only, one transaction a step."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Final

import asyncpg

from statemachine.store import StoreUnavailableError
from statemachine.store.losses import ANSWER_WITHIN, CONNECTION_ERRORS, LOST_RACES
from statemachine.store.sql import Migration, migrations

log = logging.getLogger(__name__)
OLDEST: Final = 17
"""The first major version of PostgreSQL that has `transaction_timeout`."""
_LOCK: Final = 0x776F726B  # "work": the advisory lock of whoever migrates
_LEDGER: Final = """create table if not exists schema_migration (
    number integer primary key, name text not null, applied_at timestamptz not null default now())"""


async def migrate(url: str) -> list[Migration]:
    """Apply what is missing at `url`, one at a time whoever else tries; return what was applied.

    Raises StoreUnavailableError.
    """
    try:
        connection: asyncpg.Connection[Any] = await asyncpg.connect(url, timeout=ANSWER_WITHIN)
    except (*CONNECTION_ERRORS, ValueError) as bad:
        raise StoreUnavailableError(
            f"can't open the database: {str(bad) or type(bad).__name__}"
        ) from bad
    try:
        found = connection.get_server_version()
        if found.major < OLDEST:
            raise StoreUnavailableError(
                f"PostgreSQL {OLDEST} or later is needed; this server is {found.major}.{found.minor}"
            )
        return await _brought_forward(connection)
    except asyncpg.InsufficientPrivilegeError as bad:
        raise StoreUnavailableError(f"can't migrate the database: {bad}") from bad
    except (*LOST_RACES, *CONNECTION_ERRORS) as bad:
        raise StoreUnavailableError(
            f"the database went away while it was migrated: {str(bad) or type(bad).__name__}"
        ) from bad
    finally:
        with suppress(*CONNECTION_ERRORS):
            await connection.close(timeout=ANSWER_WITHIN)


async def _brought_forward(connection: asyncpg.Connection[Any]) -> list[Migration]:
    await connection.execute("select pg_advisory_lock($1)", _LOCK)
    await connection.execute(_LEDGER)
    done = {row["number"] for row in await connection.fetch("select number from schema_migration")}
    known = migrations()
    newest = max(step.number for step in known)
    if max(done, default=0) > newest:
        raise StoreUnavailableError(
            f"the database has schema {max(done):04d}, this program knows {newest:04d} at most: "
            "use the workspaced that migrated it, or a later one"
        )
    missing = [step for step in known if step.number not in done]
    for step in missing:
        async with connection.transaction():
            await connection.execute(step.text)
            await connection.execute(
                "insert into schema_migration (number, name) values ($1, $2)",
                step.number,
                step.name,
            )
        log.info("migrated the database to %04d %s", step.number, step.name)
    return missing
