"""Bringing a database to the schema of this version: forward only, one transaction a step."""

from __future__ import annotations

import logging
from typing import Any, Final

import asyncpg

from statemachine.store import StoreUnavailableError
from statemachine.store.reading import CONNECTION_ERRORS
from statemachine.store.sql import Migration, migrations

log = logging.getLogger(__name__)
_LOCK: Final = 0x776F726B  # "work": the advisory lock of whoever migrates
_LEDGER: Final = """create table if not exists schema_migration (
    number integer primary key, name text not null, applied_at timestamptz not null default now())"""


async def migrate(url: str) -> list[Migration]:
    """Apply what is missing at `url`, one at a time whoever else tries; return what was applied.

    Raises StoreUnavailableError.
    """
    try:
        connection: asyncpg.Connection[Any] = await asyncpg.connect(url)
    except (*CONNECTION_ERRORS, ValueError) as bad:
        raise StoreUnavailableError(f"can't open the database: {bad}") from bad
    try:
        await connection.execute("select pg_advisory_lock($1)", _LOCK)
        await connection.execute(_LEDGER)
        done = {
            row["number"] for row in await connection.fetch("select number from schema_migration")
        }
        missing = [step for step in migrations() if step.number not in done]
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
    finally:
        await connection.close()
