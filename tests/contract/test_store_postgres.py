"""What only the store in PostgreSQL has to keep to: the server's limits, its losses, its statements."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from pathlib import Path

import asyncpg
import pytest

from handlers.embedded import embedded_servers
from statemachine.store import Changes, Store, StoreUnavailableError, TransientError
from statemachine.store import postgres as postgres_store
from statemachine.store.migrating import migrate
from statemachine.store.postgres import connect
from statemachine.store.sql import queries
from statemachine.workspace import Workspace
from tests.contract.stores import owned, uid, write

STORE = Path(postgres_store.__file__).parent


@pytest.fixture
async def url(database_url: str) -> str:
    await migrate(database_url)
    return database_url


async def test_every_statement_fits_the_schema(url: str) -> None:
    db = await asyncpg.connect(url)
    try:
        for name, statement in queries().items():
            assert (await db.prepare(statement)).get_query(), name
    finally:
        await db.close()


def test_every_statement_is_used_and_every_used_one_exists() -> None:
    used: set[str] = set()
    for source in STORE.glob("*.py"):
        text = source.read_text()
        used |= set(re.findall(r'(?:Q\[|_fetch\(\s*)"(\w+)"', text))
        used |= set(re.findall(r'^\s+\(?"(write_\w+|free_\w+)",', text, re.MULTILINE))

    assert used == set(queries())


async def test_the_server_ends_the_transaction_of_a_paused_worker(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for its chats goes on; it hears of it when it wakes."""
    chat_id = uid()
    monkeypatch.setattr(postgres_store, "LIMITS", {"transaction_timeout": "200ms"})
    async with connect(url) as paused, connect(url) as awake:
        with pytest.raises(StoreUnavailableError):
            await held(paused, chat_id, until=write(awake, Changes(chats=[newer(chat_id)])))

        chat = await paused.chat(chat_id)

    assert chat is not None
    assert chat.version == 1


async def test_a_transaction_that_does_nothing_is_ended_too(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"idle_in_transaction_session_timeout": "200ms"}
    monkeypatch.setattr(postgres_store, "LIMITS", limits)
    chat_id = uid()
    async with connect(url) as paused, connect(url) as awake:
        with pytest.raises(StoreUnavailableError):
            await held(paused, chat_id, until=write(awake, Changes(), lock=[chat_id]))


async def test_a_statement_that_takes_too_long_may_be_tried_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_id = uid()
    monkeypatch.setattr(postgres_store, "LIMITS", {"lock_timeout": "100ms"})
    async with connect(url) as store:
        await write(store, Changes(), lock=[chat_id])
        async with store.transaction() as tx:
            await tx.lock({chat_id})
            with pytest.raises(TransientError):
                await write(store, Changes(), lock=[chat_id])


async def test_those_who_wait_in_a_circle_are_told_to_try_again(url: str) -> None:
    one, two = uid(), uid()
    async with connect(url) as store:
        await write(store, Changes(), lock=[one, two])
        first, second = asyncio.Event(), asyncio.Event()

        async def hold(mine: str, other: str, have: asyncio.Event, wait: asyncio.Event) -> None:
            async with store.transaction() as tx:
                await tx.lock({mine})
                have.set()
                await wait.wait()
                await tx.lock({other})

        outcomes = await asyncio.gather(
            hold(one, two, first, second), hold(two, one, second, first), return_exceptions=True
        )

    assert [type(outcome) for outcome in outcomes if outcome] == [TransientError]


async def test_a_lost_connection_is_a_store_that_is_away(url: str) -> None:
    async with connect(url) as store:
        chat_id = uid()
        with pytest.raises(StoreUnavailableError):
            await held(store, chat_id, until=cut(url))

        assert await store.chat(chat_id) is None


async def test_a_connection_that_was_lost_unused_is_made_anew_or_said_to_be_away(url: str) -> None:
    async with connect(url, connections=1) as store:
        assert await store.waking() == []
        await cut(url)
        for _ in range(2):
            try:
                found = await store.settings()
            except StoreUnavailableError:
                continue
            break

    assert found == {}


async def test_a_database_that_takes_no_writes_now_is_away(url: str) -> None:
    """As after a failover: the event that met it is no worse than any other."""
    async with connect(url) as store:
        db = await asyncpg.connect(url)
        await db.execute(
            "do $$ begin execute format('alter database %I set default_transaction_read_only = on',"
            " current_database()); end $$"
        )
        await db.close()
        await cut(url)

        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                await write(store, Changes(), lock=[uid()])


async def test_a_server_that_went_away_is_a_store_that_is_away(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path, nats_url="nats://nowhere") as own:
        await migrate(own.database_url)
        opened = connect(own.database_url)
        store = await opened.__aenter__()
        await store.settings()

    for asked in (
        store.settings(),
        store.chat(uid()),
        store.published([1]),
        store.templates(uid()),
        write(store, Changes(), lock=[uid()]),
        migrate(own.database_url),
        connect(own.database_url).__aenter__(),
    ):
        with pytest.raises(StoreUnavailableError):
            await asked
    await opened.__aexit__(None, None, None)


def newer(chat_id: str) -> Workspace:
    return owned(chat_id, uid(), uid(), version=1)


async def held(store: Store, chat_id: str, *, until: Awaitable[object]) -> None:
    """Have a chat's lock, do nothing until that has happened, and then go on."""
    async with store.transaction() as tx:
        await tx.lock({chat_id})
        await until
        await tx.write(Changes(chats=[owned(chat_id, uid(), uid(), version=9)]))


async def cut(url: str) -> None:
    """Have the server end all other connections to the database."""
    db = await asyncpg.connect(url)
    try:
        await db.execute(
            "select pg_terminate_backend(pid, 2000) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
    finally:
        await db.close()
