"""Migrating a database to the present schema: only forward, once, even if several processes try."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from statemachine.store import StoreUnavailableError, migrator
from statemachine.store.migrator import Migration, migrate, migrations


async def ledger(url: str) -> list[tuple[int, str]]:
    db = await asyncpg.connect(url)
    try:
        rows = await db.fetch("select number, name from schema_migration order by number")
        return [(row["number"], row["name"]) for row in rows]
    finally:
        await db.close()


async def test_the_ledger_lists_the_applied_migrations(database_url: str) -> None:
    applied = await migrate(database_url)

    assert applied == migrations()
    assert await ledger(database_url) == [(step.number, step.name) for step in applied]


async def test_migrating_again_applies_nothing(database_url: str) -> None:
    await migrate(database_url)

    assert await migrate(database_url) == []


async def test_of_many_concurrent_migrations_one_applies_the_steps(database_url: str) -> None:
    applied = await asyncio.gather(*(migrate(database_url) for _ in range(6)))

    assert sorted(map(len, applied)) == [0, 0, 0, 0, 0, len(migrations())]


async def test_a_later_step_is_applied_alone(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(database_url)
    later = Migration(9999, "later", "create table later (); select 1;")
    monkeypatch.setattr(migrator, "migrations", lambda: [*migrations(), later])

    assert await migrate(database_url) == [later]


async def test_a_migration_that_fails_is_rolled_back(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(database_url)
    bad = Migration(9999, "bad", "create table half (); select 1 / 0;")
    monkeypatch.setattr(migrator, "migrations", lambda: [*migrations(), bad])

    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(database_url)

    assert 9999 not in dict(await ledger(database_url))
    db = await asyncpg.connect(database_url)
    try:
        assert await db.fetchval("select to_regclass('half')") is None
    finally:
        await db.close()


async def test_a_migration_does_not_wait_for_long_for_a_table_in_use(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(database_url)
    later = Migration(9999, "later", "alter table chat add column later text")
    monkeypatch.setattr(migrator, "migrations", lambda: [*migrations(), later])
    monkeypatch.setattr(migrator, "LOCK_TIMEOUT", "50ms")
    dump = await asyncpg.connect(database_url)
    try:
        async with dump.transaction():
            await dump.execute("lock table chat in access share mode")
            with pytest.raises(StoreUnavailableError, match="in use"):
                await migrate(database_url)
    finally:
        await dump.close()

    assert await migrate(database_url) == [later]


async def test_a_database_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(StoreUnavailableError):
        await migrate("postgresql://nobody@127.0.0.1:1/nowhere")


async def test_an_older_server_is_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrator, "OLDEST", 99)

    with pytest.raises(StoreUnavailableError, match="PostgreSQL 99 or later is needed"):
        await migrate(database_url)


async def test_a_schema_of_a_later_program_is_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Migration(9999, "later", "select 1")
    with monkeypatch.context() as patch:
        patch.setattr(migrator, "migrations", lambda: [*migrations(), later])
        await migrate(database_url)

    with pytest.raises(StoreUnavailableError, match="schema 9999"):
        await migrate(database_url)


async def test_a_connection_that_is_lost_within_a_step_is_a_database_that_is_away(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = Migration(9999, "cut", "select pg_terminate_backend(pg_backend_pid())")
    monkeypatch.setattr(migrator, "migrations", lambda: [*migrations(), cut])

    with pytest.raises(StoreUnavailableError):
        await migrate(database_url)


def test_every_file_of_the_folder_is_a_step_and_numbers_count_up() -> None:
    folder = Path(migrator.__file__).parent / "migrations"
    files = sorted(path.name for path in folder.glob("*.sql"))

    assert [f"{step.number:04d}_{step.name}.sql" for step in migrations()] == files
    assert [step.number for step in migrations()] == list(range(1, len(files) + 1))
