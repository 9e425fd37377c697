"""Rules of the store in PostgreSQL only: the server's limits, its outages, its statements."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from handlers.embedded import embedded_servers
from statemachine.chat import Chat
from statemachine.store import Changes, Store, StoreUnavailableError, TransientError
from statemachine.store import database as store_database
from statemachine.store import postgres as postgres_store
from statemachine.store.database import queries
from statemachine.store.migrator import migrate
from statemachine.store.postgres import PostgresStore, connect
from tests.contract.stores import owned, uid, version, write
from tests.rigs.proxy import Proxy, database_url_through, proxy, to_database

STORE = Path(postgres_store.__file__).parent


@pytest.fixture
async def url(database_url: str) -> str:
    await migrate(database_url)
    return database_url


async def test_every_statement_fits_the_schema(url: str) -> None:
    db = await asyncpg.connect(url)
    try:
        for name, statement in queries().items():
            for command in statement.split(";\n"):
                assert (await db.prepare(command)).get_query(), name
    finally:
        await db.close()


def test_every_statement_is_used_and_every_used_one_exists() -> None:
    used: set[str] = set()
    for source in STORE.glob("*.py"):
        text = source.read_text()
        used |= set(re.findall(r'(?:QUERIES\[|fetch\(\s*)"(\w+)"', text))
        used |= set(re.findall(r'^\s+\(?"(write_\w+|free_\w+)",', text, re.MULTILINE))

    assert used == set(queries())


async def test_the_server_ends_the_transaction_of_a_paused_worker(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transactions that wait for its chats continue; it gets the error when it continues itself."""
    chat_id = uid()
    async with connect(url) as awake:  # its limit is longer, as it begins to wait later
        monkeypatch.setattr(postgres_store, "TIMEOUTS", {"transaction_timeout": "200ms"})
        async with connect(url) as paused:
            with pytest.raises(TransientError):
                await held(paused, chat_id, until=write(awake, Changes(chats=[newer(chat_id)])))

            chat = await paused.chats.get(chat_id)

    assert chat is not None
    assert chat.version == 1


async def test_a_transaction_that_does_nothing_is_ended_too(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"idle_in_transaction_session_timeout": "200ms"}
    monkeypatch.setattr(postgres_store, "TIMEOUTS", limits)
    chat_id = uid()
    async with connect(url) as paused, connect(url) as awake:
        with pytest.raises(TransientError):
            await held(paused, chat_id, until=write(awake, Changes(), lock=[chat_id]))


async def test_a_statement_that_outlasts_its_transaction_may_be_tried_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_store, "TIMEOUTS", {"transaction_timeout": "200ms"})
    async with connect(url) as store:
        with pytest.raises(TransientError):
            await held(store, uid(), until=None)


async def test_a_statement_that_takes_too_long_may_be_tried_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_id = uid()
    monkeypatch.setattr(postgres_store, "TIMEOUTS", {"lock_timeout": "100ms"})
    async with connect(url) as store:
        await write(store, Changes(), lock=[chat_id])
        async with store.transaction() as tx:
            await tx.lock({chat_id})
            with pytest.raises(TransientError):
                await write(store, Changes(), lock=[chat_id])


async def test_a_deadlock_is_a_transient_error(url: str) -> None:
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


async def test_a_lost_connection_is_an_unavailable_store(url: str) -> None:
    async with connect(url) as store:
        chat_id = uid()
        with pytest.raises(StoreUnavailableError) as lost:
            await held(store, chat_id, until=cut(url))
        assert not isinstance(lost.value, TransientError)

        assert await store.chats.get(chat_id) is None


async def test_a_connection_that_was_lost_unused_is_made_anew_or_said_to_be_away(url: str) -> None:
    async with connect(url, connections=1) as store:
        assert await store.chats.with_timers() == []
        await cut(url)
        for _ in range(2):
            try:
                found = await store.settings()
            except StoreUnavailableError:
                continue
            break

    assert found == {}


async def test_a_database_that_takes_no_writes_now_is_away(url: str) -> None:
    """As after a failover; the event is not to blame."""
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
        store.chats.get(uid()),
        store.delete_published([1]),
        store.templates.catalog(uid()),
        write(store, Changes(), lock=[uid()]),
        migrate(own.database_url),
        connect(own.database_url).__aenter__(),
    ):
        with pytest.raises(StoreUnavailableError):
            await asked
    await opened.__aexit__(None, None, None)


async def test_a_server_without_the_timeout_setting_is_named_as_too_old(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL 16 does not know `transaction_timeout`."""
    monkeypatch.setattr(postgres_store, "TIMEOUTS", {"some_timeout": "5s"})

    with pytest.raises(StoreUnavailableError, match="PostgreSQL 17 or later"):
        await connect(url).__aenter__()


def reading(store: Store, silence: Awaitable[None]) -> Awaitable[object]:
    async def work() -> None:
        await silence
        await store.settings()

    return work()


def pushing(store: Store, silence: Awaitable[None]) -> Awaitable[object]:
    async def work() -> None:
        await silence
        await store.templates.push(uid(), version(uid()), b"")

    return work()


def working(store: PostgresStore, silence: Awaitable[None]) -> Awaitable[object]:
    return held(store, uid(), until=silence)


@pytest.mark.parametrize("work", [reading, pushing, working])
async def test_a_database_that_falls_silent_is_away(
    url: str, monkeypatch: pytest.MonkeyPatch, work: Callable[..., Awaitable[object]]
) -> None:
    """The connection stays open, but nothing arrives any more."""
    for module in (postgres_store, store_database):
        monkeypatch.setattr(module, "RESPONSE_TIMEOUT", 0.3)
    async with through_proxy(url) as (between, store), asyncio.timeout(10):
        await store.settings()
        with pytest.raises(StoreUnavailableError, match="no answer") as silent:
            await work(store, freeze(between))
        with pytest.raises(StoreUnavailableError):
            await store.settings()
        between.release()

        assert await store.settings() == {}
    assert not isinstance(silent.value, TransientError)


@pytest.mark.parametrize("work", [reading, pushing, working])
async def test_a_farewell_that_came_before_the_end_of_its_connection_is_a_database_away(
    url: str, work: Callable[..., Awaitable[object]]
) -> None:
    """A killed server sends an error to idle clients, and closes the connection a moment later."""
    async with through_proxy(url) as (between, store), asyncio.timeout(10):
        await store.settings()
        between.tells_end.clear()
        with pytest.raises(StoreUnavailableError) as lost:
            await work(store, farewell(between, url))
        assert not isinstance(lost.value, TransientError)

        assert await store.settings() == {}


@asynccontextmanager
async def through_proxy(url: str) -> AsyncIterator[tuple[Proxy, PostgresStore]]:
    """Connect a store with one connection through a proxy."""
    async with (
        proxy(to_database(url)) as between,
        connect(database_url_through(between, url), connections=1) as store,
    ):
        yield between, store


async def freeze(between: Proxy) -> None:
    between.freeze()


async def farewell(between: Proxy, url: str) -> None:
    """Make the server end the connection; return when the client has its last message."""
    await cut(url)
    await between.ended.wait()
    for _ in range(10):  # let the client read it
        await asyncio.sleep(0)


def newer(chat_id: str) -> Chat:
    return owned(chat_id, uid(), uid(), version=1)


async def held(store: PostgresStore, chat_id: str, *, until: Awaitable[object] | None) -> None:
    """Lock a chat, wait for `until` (None: for 5 s in the database), and then write."""
    async with store.transaction() as tx:
        await tx.lock({chat_id})
        await (until or tx._session.execute("select pg_sleep(5)"))
        await tx.write(Changes(chats=[owned(chat_id, uid(), uid(), version=9)]))


async def cut(url: str) -> None:
    """Make the server end all other connections to the database."""
    db = await asyncpg.connect(url)
    try:
        await db.execute(
            "select pg_terminate_backend(pid, 2000) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
    finally:
        await db.close()


async def test_a_role_that_may_do_nothing_else_may_ask_which_database_this_is(
    database_url: str,
) -> None:
    await migrate(database_url)
    role = f"plain_{uid().replace('-', '_')}"
    db = await asyncpg.connect(database_url)
    try:
        await db.execute(f"create role {role}; grant select on origin to {role}; set role {role}")
        (row,) = await db.fetch(queries()["origin"])
        await db.execute(f"reset role; drop owned by {role}; drop role {role}")
    finally:
        await db.close()

    assert row["here"].count(":") == 4
    assert row["noted"] is None
