"""Database URLs and servers that are accepted, and those that are refused before they are used."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from handlers.embedded import Servers
from statemachine.store import (
    AccessDeniedError,
    MisconfiguredError,
    StoreUnavailableError,
    UnreachableError,
    connection,
)
from statemachine.store.connection import read_url
from statemachine.store.migrator import migrate
from statemachine.store.postgres import connect
from tests.rigs.proxy import database_url_through, proxy, to_database
from tests.rigs.servers import free_port, listening_postgres

AT = "postgresql://user:secret@host:5432/db"
ELSEWHERE = "postgresql://user:secret@127.0.0.1:1/db"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://user:secret@host:99999/db", "99999"),
        ("postgresql://user:secret@host:0/db", "port 0"),
        ("postgresql://user:secret@one:5432,two:70000/db", "70000"),
        (f"{AT}?port=123456", "123456"),
        (f"{AT}?channel_binding=require", "channel_binding"),
        (f"{AT}?gssencmode=require", "gssencmode"),
        (f"{AT}?client_encoding=latin1", "client_encoding"),
        (f"{AT}?keepalives_idle=30", "keepalives_idle"),
        (f"{AT}?hostaddr=127.0.0.1", "hostaddr"),
        (f"{AT}?require_auth=scram-sha-256", "require_auth"),
        (f"{AT}?connect_timeout=soon", "connect_timeout"),
        (f"{AT}?sslmode=verify-full&sslrootcert=/no/such/file", "/no/such/file"),
        ("host=127.0.0.1 dbname=db password=secret", "postgresql://"),
        ("mysql://user:secret@host/db", "postgresql://"),
        ("secret", "postgresql://"),
        ("", "postgresql://"),
        ("postgresql://user:se/secret@host/db", "%2F"),
        ("postgresql://user:se#secret@host/db", "%23"),
        ("postgresql://user:se?secret@host/db", "%3F"),
        ("postgresql://user:12/secret@host/db", "%2F"),
        ("postgresql://user:secret@host:54x2/db", "can't be read"),
        ("postgresql://user:secret@[::1/db", "can't be read"),
        (f"{AT}?sslmode", "can't be read"),
        (f"{AT}?application_name=a%00b", "%00"),
        ("postgresql://user:secret@host/d%00b", "%00"),
        (f"{AT}?target_session_attrs=master", "any or primary or standby or read-write"),
    ],
)
async def test_a_url_that_can_not_be_followed_is_refused_in_words(url: str, words: str) -> None:
    for use in (migrate(url), connect(url).__aenter__()):
        with pytest.raises(MisconfiguredError) as refused:
            await use
        assert words in str(refused.value)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sslmode=sometimes", "sslmode"),
        ("target_session_attrs=any-will-do", "target_session_attrs"),
        ("sslnegotiation=never", "sslnegotiation"),
        ("sslmode=disable&sslnegotiation=direct", "sslmode"),
    ],
)
async def test_values_that_the_driver_does_not_know_are_named(query: str, words: str) -> None:
    with pytest.raises(MisconfiguredError, match=words):
        await migrate(f"{ELSEWHERE}?{query}")


@pytest.mark.parametrize("host", ["x" * 70, "nowhere.invalid", "127.0.0.1:1,127.0.0.1:2"])
async def test_a_host_that_is_not_there_may_come(host: str) -> None:
    with pytest.raises(UnreachableError) as away:
        await migrate(f"postgresql://user:secret@{host}/db")
    assert not isinstance(away.value, MisconfiguredError)


async def test_a_password_file_that_is_broken_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "pgpass"
    broken.write_text("x\n")
    broken.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(broken))

    with pytest.raises(StoreUnavailableError):
        await migrate("postgresql://user@127.0.0.1:1/db")


@pytest.mark.parametrize(
    "query",
    [
        "connect_timeout=10",
        "connect_timeout=0",
        "channel_binding=prefer",
        "channel_binding=disable",
        "gssencmode=disable&sslcompression=0&sslsni=1&keepalives=1&replication=false",
        "client_encoding=UTF8",
        "fallback_application_name=ours",
        "application_name=a%20b%2Bc",
        "options=-c%20statement_timeout%3D20s",
        "sslmode=disable",
        "sslmode=prefer",
        "target_session_attrs=read-write",
        "target_session_attrs=primary",
        "statement_timeout=20s",
        "search_path=public",
    ],
)
async def test_usual_parameters_work(database_url: str, query: str) -> None:
    url = f"{database_url}&{query}"
    assert await migrate(url)

    async with connect(url) as store:
        await store.check_writable()
        shown = await store._database._pool.fetchval("show application_name")
        limit = await store._database._pool.fetchval("show statement_timeout")

    if "name=" in query:
        assert shown in ("ours", "a b+c")
    if "statement_timeout" in query:
        assert limit == "20s"


@pytest.mark.parametrize(
    ("query", "name"),
    [("ssl=true", "ssl"), ("pgbouncer=true", "pgbouncer"), ("statement_timeout=soon", "statement")],
)
async def test_a_parameter_that_the_server_does_not_take_is_named(
    database_url: str, query: str, name: str
) -> None:
    with pytest.raises(MisconfiguredError, match=f"parameter {name}"):
        await migrate(f"{database_url}&{query}")


def test_of_several_hosts_the_one_that_takes_changes_is_used() -> None:
    assert read_url("postgresql://u@one,two:6000/db").options == {
        "target_session_attrs": "read-write"
    }
    assert read_url("postgresql://u@one,two/db?target_session_attrs=any").options == {}
    assert read_url("postgresql://u@one/db").options == {}


async def test_a_user_or_database_that_is_not_known_is_nothing_to_wait_for(
    database_url: str,
) -> None:
    for url in (
        database_url.replace("/test_", "/no_"),
        database_url.replace("//postgres", "//nobody", 1),
    ):
        with pytest.raises(AccessDeniedError):
            await migrate(url)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
async def test_a_database_that_can_not_hold_every_text_is_refused(
    servers: Servers, encoding: str
) -> None:
    name = f"test_{uuid4().hex}"
    server = await asyncpg.connect(servers.database_url)
    try:
        await server.execute(
            f"create database {name} template template0 encoding '{encoding}' locale 'C'"
        )
        url = servers.database_url.replace("/workspaced?", f"/{name}?", 1)
        for use in (migrate(url), connect(url).__aenter__()):
            with pytest.raises(MisconfiguredError, match=f"{encoding}.*UTF8"):
                await use
        await server.execute(f"drop database {name} with (force)")
    finally:
        await server.close()


# -- poolers -----------------------------------------------------------------------------------


class Pooled:
    """A client's connection to a pooler, which assigns a session to each transaction."""

    def __init__(self, session: Callable[[], int]) -> None:
        self._session = session

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        yield

    async def fetchrow(self, _question: str) -> dict[str, Any]:
        return {"pid": self._session(), "encoding": "UTF8"}


def rotating(size: int) -> tuple[Any, Any]:
    turns: Iterator[int] = iter(n % size for n in range(1000))
    return Pooled(lambda: next(turns)), Pooled(lambda: next(turns))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 20])
async def test_connections_that_take_turns_at_sessions_are_seen_through(size: int) -> None:
    assert await connection._share_sessions(*rotating(size))


async def test_connections_that_find_each_other_s_session_free_are_seen_through() -> None:
    """The pooler assigns the session that was returned last."""
    assert await connection._share_sessions(*(Pooled(lambda: 7), Pooled(lambda: 7)))  # type: ignore[arg-type]


async def test_connections_that_keep_their_sessions_are_no_pooler_s() -> None:
    assert not await connection._share_sessions(*(Pooled(lambda: 7), Pooled(lambda: 8)))  # type: ignore[arg-type]


BOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_bouncer = pytest.mark.skipif(BOUNCER is None, reason="pgbouncer is not installed")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pooled")


@asynccontextmanager
async def pooler(
    home: Path, database: str, mode: str, size: int, more: str = ""
) -> AsyncIterator[str]:
    """Run a pgbouncer in front of a server that listens on TCP; yield its URL."""
    assert BOUNCER is not None
    port = free_port()
    before = database.rpartition("@")[2].partition("/")[0].rpartition(":")[2]
    ini = home / f"{mode}-{size}.ini"
    ini.write_text(
        f"[databases]\n* = host=127.0.0.1 port={before} user=postgres\n"
        f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\nauth_type=any\n"
        f"pool_mode={mode}\ndefault_pool_size={size}\n{more}\n"
    )
    for path in (*reversed(ini.parents), ini):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755 if path.is_dir() else 0o644)
    command = [BOUNCER, *(("-u", "nobody") if os.geteuid() == 0 else ()), str(ini)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if b"process up" in line:
                break
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable"
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


@needs_bouncer
async def test_a_pooler_is_refused_where_sessions_are_shared_and_leaves_no_lock(home: Path) -> None:
    ignoring = "ignore_startup_parameters=transaction_timeout,idle_in_transaction_session_timeout"
    async with listening_postgres(home, free_port()) as database:
        for mode, size, more in (
            ("transaction", 1, ""),
            ("transaction", 2, f"server_round_robin=1\n{ignoring}"),
            ("transaction", 20, ignoring),
            ("statement", 20, ignoring),
        ):
            async with pooler(home, database, mode, size, more) as url:
                for use in (migrate(url), connect(url).__aenter__()):
                    with pytest.raises(MisconfiguredError, match="pool_mode=session"):
                        await use
        for more in ("", ignoring):
            async with pooler(home, database, "session", 20, more) as url:
                await migrate(url)
                async with connect(url) as store:
                    assert await store._database._pool.fetchval("show transaction_timeout") == "5s"
                    await store.put_setting("a", "b")
        assert await migrate(database) == []
        async with connect(database) as store:
            locks = "select count(*) from pg_locks where locktype = 'advisory'"
            assert await store._database._pool.fetchval(locks) == 0
            assert await store.settings() == {"a": "b"}


async def test_a_process_that_is_told_another_number_than_its_session_s_is_no_pooler_by_itself(
    database_url: str,
) -> None:
    """A proxy that only forwards bytes is no pooler."""
    await migrate(database_url)
    async with (
        proxy(to_database(database_url)) as passing,
        connect(database_url_through(passing, database_url)) as store,
    ):
        await store.check_writable()
