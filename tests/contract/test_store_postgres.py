"""Rules of the store in PostgreSQL only: the server's limits, its outages, its statements."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from handlers.embedded import embedded_servers
from statemachine.chat import Chat
from statemachine.step import WorkspaceName
from statemachine.store import (
    Alarm,
    Changes,
    Store,
    StoredJob,
    StoreUnavailableError,
    TransientError,
)
from statemachine.store import database as store_database
from statemachine.store import postgres as postgres_store
from statemachine.store.database import queries
from statemachine.store.migrator import migrate
from statemachine.store.postgres import PLANS, PostgresStore, connect
from tests.contract.stores import NOW, owned, uid, until_one_waits, version, write
from tests.rigs.proxy import Proxy, database_url_through, proxy, to_database

STORE = Path(postgres_store.__file__).parent


@pytest.fixture
def url(migrated_url: str) -> str:
    return migrated_url


@pytest.mark.parametrize(
    "name", ["alarm_times", "answered_calls", "chats_with_agents", "jobs", "published_chats"]
)
async def test_a_page_does_not_read_the_rows_before_it(url: str, name: str) -> None:
    """A worker has one plan for all pages; a condition with `or` would only filter, from the first row on."""
    db = await asyncpg.connect(url, server_settings=dict(PLANS))
    try:
        await db.execute(f"prepare page as {queries()[name]}")
        nulls = ", ".join(["null"] * (3 if name == "answered_calls" else 2))
        plan = await db.fetch(f"explain execute page ({nulls})")
    finally:
        await db.close()

    conditions = [row[0] for row in plan if "Index Cond: " in row[0]]
    assert any("COALESCE($1" in condition for condition in conditions), plan


OF_BATCHES = [
    *(
        "look",
        "look_facts",
        "look_up",
        "write",
        "write_facts",
        "due_alarms",
        "delete_alarms",
        "ripen",
    ),
    *(
        "mark_published",
        "unpublished_jobs",
        "unneeded_jobs",
        "mark_taken_back",
        "answers_of",
        "first_rest",
    ),
]
FEW_ROWS = {"template", "template_version", "setting", "call_key", "provisioner_name"}
"""Tables that may be read as a whole."""


def scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a plan that read a table or an index."""
    if "Scan" in node["Node Type"] and ("Relation Name" in node or "Index Name" in node):
        yield node
    for part in node.get("Plans", ()):
        yield from scans(part)


@pytest.mark.parametrize("rows", [0, 3])
async def test_a_batch_reads_no_table_as_a_whole(url: str, rows: int) -> None:
    """A session may make its plans while the tables are small, and use them when they are large."""
    db = await asyncpg.connect(url, server_settings=dict(PLANS))
    whole: list[tuple[str, ...]] = []
    try:
        async with connect(url) as store:
            for _ in range(rows):
                await store.write(postgres_store._sample_changes(uid()))
        await db.execute("analyze" if rows else "select 1")
        for name in OF_BATCHES:
            statement = queries()[name]
            arguments = len((await db.prepare(statement)).get_parameters())
            await db.execute(f"prepare {name} as {statement}")
            nulls = ", ".join(["null"] * arguments)
            (plan,) = json.loads(
                await db.fetchval(f"explain (format json) execute {name}({nulls})")
            )
            whole += [
                (name, scan["Node Type"], scan.get("Relation Name", ""), scan.get("Index Name", ""))
                for scan in scans(plan["Plan"])
                if scan.get("Relation Name") not in FEW_ROWS
                and scan["Node Type"] != "Bitmap Heap Scan"  # its index is a node of its own
                and not {"Index Cond", "TID Cond"} & scan.keys()
            ]
    finally:
        await db.close()

    assert not whole


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

    assert used == set(queries())


async def test_a_write_that_waits_too_long_for_a_lock_may_be_tried_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_id = uid()
    for name in ("transaction_timeout", "lock_timeout", "statement_timeout"):
        monkeypatch.setattr(postgres_store, "TIMEOUTS", {name: "200ms"})
        async with connect(url) as store:
            await write(store, Changes(), new=[chat_id])
            async with locked(url, chat_id):
                with pytest.raises(TransientError):
                    await write(store, Changes(chats=[newer(chat_id)]))
            await write(store, Changes(chats=[newer(chat_id)]))


async def test_a_deadlock_is_a_transient_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = sorted((uid(), uid()))
    monkeypatch.setattr(postgres_store, "TIMEOUTS", {"deadlock_timeout": "50ms"})
    async with connect(url) as store:
        await write(store, Changes(), new=[one, two])
        async with locked(url, two) as other:
            writing = asyncio.create_task(write(store, Changes(chats=[newer(one), newer(two)])))
            await until_one_waits(url)
            await other.execute("set deadlock_timeout = '1min'")
            late = asyncio.create_task(
                other.execute("select from chat where chat_id = $1 for update", one)
            )
            with pytest.raises(TransientError):
                await writing
            await late


async def test_a_row_that_changes_while_a_write_waits_for_it_is_written_nevertheless(
    url: str,
) -> None:
    """The server does not see the new version of the row by its place in the table."""
    chat_id, build_id, workspace_id, owner_id = uid(), uid(), uid(), uid()
    alarm = Alarm(NOW, chat_id)
    async with connect(url) as store:
        given = Changes(
            jobs=[StoredJob(build_id, chat_id, "s", b"job", NOW)],
            alarms=[alarm],
            names=[WorkspaceName(workspace_id, chat_id, owner_id, "blue", requested=True)],
        )
        await write(store, given, new=[chat_id])
        changes = Changes(
            chats=[newer(chat_id)],
            unneeded_jobs=[(build_id, chat_id)],
            handled=[alarm],
            freed=[(workspace_id, chat_id)],
        )
        async with locked(url, chat_id) as other:
            for change in (
                "update chat set updated_at = now() where chat_id = $1",
                "update job set published = true where chat_id = $1",
                "update alarm set handled_at = 'epoch' where chat_id = $1",
                "update workspace set name = 'red' where chat_id = $1",
            ):
                await other.execute(change, chat_id)
            writing = asyncio.create_task(store.write(changes))
            await until_one_waits(url)
            await other.execute("commit")
        assert (await writing).skipped == set()
        db = await asyncpg.connect(url)
        try:
            assert await db.fetchval("select version from chat where chat_id = $1", chat_id) > 0
            assert await db.fetchval("select unneeded from job where chat_id = $1", chat_id)
            assert await db.fetchval(
                "select handled_at > $1 from alarm", NOW - timedelta(days=9999)
            )
            assert await db.fetchval("select deleted_at is not null from workspace")
            change = db.transaction()
            await change.start()
            await db.execute("update alarm set handled_at = 'epoch' where chat_id = $1", chat_id)
            deleting = asyncio.create_task(store.delete_alarms([alarm]))
            await until_one_waits(url)
            await change.commit()
            await deleting
            assert await db.fetchval("select count(*) from alarm") == 0
        finally:
            await db.close()


async def test_a_connection_lost_during_a_write_is_an_unavailable_store(url: str) -> None:
    async with connect(url) as store:
        chat_id = uid()
        await write(store, Changes(), new=[chat_id])
        async with locked(url, chat_id) as other:
            writing = asyncio.create_task(write(store, Changes(chats=[newer(chat_id)])))
            await until_one_waits(url)
            await other.execute(
                "select pg_terminate_backend(pid, 2000) from pg_stat_activity "
                "where datname = current_database() and wait_event_type = 'Lock'"
            )
            with pytest.raises(StoreUnavailableError) as lost:
                await writing
        assert not isinstance(lost.value, TransientError)

        chat = await store.chats.get(chat_id)
    assert chat is not None
    assert chat.version == 0


async def test_a_connection_that_was_lost_unused_is_made_anew_or_said_to_be_away(url: str) -> None:
    async with connect(url, connections=1) as store:
        assert await store.recovery.alarm_times() == []
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
                await write(store, Changes(), new=[uid()])


async def test_a_server_that_went_away_is_a_store_that_is_away(tmp_path: Path) -> None:
    async with embedded_servers(tmp_path, nats_url="nats://nowhere") as own:
        await migrate(own.database_url)
        opened = connect(own.database_url)
        store = await opened.__aenter__()
        await store.settings()

    for asked in (
        store.settings(),
        store.chats.get(uid()),
        store.delete_alarms([Alarm(NOW, uid())]),
        store.templates.catalog(uid()),
        write(store, Changes(), new=[uid()]),
        migrate(own.database_url),
        connect(own.database_url).__aenter__(),
    ):
        with pytest.raises(StoreUnavailableError):
            await asked
    await opened.__aexit__(None, None, None)


@pytest.mark.parametrize("in_transaction", [False, True])
async def test_a_cancellation_is_not_lost_when_the_server_can_no_longer_be_reached(
    in_transaction: bool, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To cancel a statement the driver connects again, for example to a socket that was removed."""
    monkeypatch.setitem(store_database.QUERIES, "sleep", "select pg_sleep(60)")
    at = re.sub(r"(?<=host=)[^&]+", str(tmp_path / "sockets"), url)
    assert at != url, f"{url} has no socket directory"
    (tmp_path / "sockets").symlink_to(re.search(r"host=([^&]+)", url)[1])  # type: ignore[index]
    async with connect(at) as store:

        async def work() -> None:
            if not in_transaction:
                await store._database.fetch("sleep")
            async with store._database.transaction() as session:
                await session.fetch("select pg_sleep(60)")

        working = asyncio.create_task(work())
        await until_sleeping(url)
        (tmp_path / "sockets").unlink()
        working.cancel()
        await asyncio.wait([working])

    assert working.cancelled()


async def until_sleeping(url: str) -> None:
    """Wait until a session of the database sleeps; the query itself waits a moment."""
    database = await asyncpg.connect(url)
    try:
        while not await database.fetchval(
            "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
            " and datname = current_database()"
        ):
            pass
    finally:
        await database.close()


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
    async def work() -> None:
        await silence
        await store.write(Changes(chats=[newer(uid())]))

    return work()


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


@asynccontextmanager
async def locked(url: str, *chat_ids: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Lock the rows of chats in a transaction of another session."""
    db = await asyncpg.connect(url)
    try:
        await db.execute("begin")
        for chat_id in chat_ids:
            await db.execute("select from chat where chat_id = $1 for update", chat_id)
        yield db
    finally:
        db.terminate()


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
    migrated_url: str,
) -> None:
    role = f"plain_{uid().replace('-', '_')}"
    db = await asyncpg.connect(migrated_url)
    try:
        await db.execute(f"create role {role}; grant select on origin to {role}; set role {role}")
        (row,) = await db.fetch(queries()["origin"])
        await db.execute(f"reset role; drop owned by {role}; drop role {role}")
    finally:
        await db.close()

    assert row["here"].count(":") == 4
    assert row["noted"] is None
