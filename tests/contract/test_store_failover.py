"""A failover: the address leads to the promoted standby; the old server still runs, read-only."""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from handlers.embedded.postgresql import _binaries
from handlers.embedded.run_as import choose_user
from statemachine.store import Changes, Store, StoreUnavailableError
from statemachine.store.migrator import migrate
from statemachine.store.postgres import connect
from tests.contract.stores import uid, write
from tests.rigs.proxy import proxy
from tests.rigs.servers import free_port, listening_postgres


async def copied(url: str, of: Path, home: Path) -> None:
    """Copy the files of a running server for a standby."""
    with (of / "postgres" / "pg_hba.conf").open("a") as file:
        file.write("host replication all 127.0.0.1/32 trust\n")
    admin = await asyncpg.connect(url)
    await admin.execute("select pg_reload_conf()")
    await admin.close()
    await asyncio.to_thread(_copied, url, home)


def _copied(url: str, home: Path) -> None:
    home.mkdir()
    data = home / "postgres"
    command = [
        _binaries() / "pg_basebackup",
        "-d",
        url,
        "-D",
        data,
        "-R",
        "-X",
        "stream",
        "-c",
        "fast",
    ]
    subprocess.run(command, check=True, capture_output=True)
    identity = choose_user(data, _binaries() / "postgres")
    for path in (data, *data.rglob("*")):
        os.chown(path, identity.uid, identity.gid, follow_symlinks=False)


async def is_written(store: Store) -> bool:
    """Try to write a change; return whether the database accepted it."""
    try:
        await write(store, Changes(), new=[uid()])
    except StoreUnavailableError:
        return False
    return True


async def test_connections_move_to_the_server_that_takes_changes_now(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    first, second = free_port(), free_port()
    target = [first]
    chat = uid()
    async with listening_postgres(tmp_path / "old", first) as old:
        await migrate(old)
        await copied(old, tmp_path / "old", tmp_path / "new")
        async with (
            listening_postgres(tmp_path / "new", second) as new,
            proxy(lambda: asyncio.open_connection("127.0.0.1", target[0])) as way,
        ):
            address = urlsplit(old)._replace(
                netloc=urlsplit(old).netloc.replace(str(first), str(way.port))
            )
            async with connect(address.geturl()) as store:
                await store.check_writable()
                await write(store, Changes(), new=[uid()])

                admin = await asyncpg.connect(old)
                await admin.execute("alter system set default_transaction_read_only = on")
                await admin.execute("select pg_reload_conf()")
                await admin.close()
                async with asyncio.timeout(20):  # until the session has reloaded its configuration
                    while await is_written(store):
                        pass
                assert [await is_written(store) for _ in range(3)] == [False, False, False]
                with pytest.raises(StoreUnavailableError, match="read-only"):
                    await store.check_writable()

                promoted = await asyncpg.connect(new)
                assert await promoted.fetchval("select pg_promote()")
                target[0] = second
                with suppress(StoreUnavailableError):
                    await write(store, Changes(), new=[chat])  # may notice the move and fail
                await store.check_writable()
                await write(store, Changes(), new=[chat])
                assert await store.settings() == {}
                found = await promoted.fetchval(
                    "select count(*) from chat where chat_id::text = $1", chat
                )
                await promoted.close()
    assert found == 1


async def test_of_two_hosts_the_one_that_takes_changes_is_found(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    first, second = free_port(), free_port()
    async with listening_postgres(tmp_path / "old", first) as old:
        await migrate(old)
        await copied(old, tmp_path / "old", tmp_path / "new")
        async with listening_postgres(tmp_path / "new", second):
            both = urlsplit(old)
            netloc = both.netloc.replace(
                f"127.0.0.1:{first}", f"127.0.0.1:{second},127.0.0.1:{first}"
            )
            async with connect(both._replace(netloc=netloc).geturl()) as store:
                await store.check_writable()
                await write(store, Changes(), new=[uid()])
