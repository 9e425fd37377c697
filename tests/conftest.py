"""Real servers for the tests: one PostgreSQL and one nats-server a run, a database a test."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.client import Client

from handlers.access.identities import seed_file
from handlers.access.permissions import role_inbox_prefix
from handlers.embedded import Servers, embedded_servers
from tests.rigs.servers import new_database

ConnectAs = Callable[..., Awaitable[Client]]

# Who starts us in the background of a shell has SIGINT ignored, and so would all that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers() -> AsyncIterator[Servers]:
    """The run's own servers. Streams have fixed names: who needs a clean bus takes `own_nats`."""
    with tempfile.TemporaryDirectory(prefix="workspaced-tests-") as directory:
        async with embedded_servers(Path(directory)) as running:
            yield running


@pytest.fixture
async def database_url(servers: Servers) -> AsyncIterator[str]:
    """A database of the test's own, empty."""
    async with new_database(servers) as url:
        yield url


@pytest.fixture
async def own_nats(servers: Servers, tmp_path: Path) -> AsyncIterator[Servers]:
    """A nats-server of the test's own, empty, with the same roles and permissions."""
    directory = tmp_path / "own-nats"
    async with embedded_servers(directory, database_url=servers.database_url) as running:
        yield running


@pytest.fixture
async def connect_as(servers: Servers) -> AsyncIterator[ConnectAs]:
    """`await connect_as("operator", on=own_nats, **options of Client.connect)`, closed at the end.

    It fails at once instead of trying again. What the server denies comes to `error_cb` only.
    """
    async with AsyncExitStack() as connections:

        async def connect(role: str, *, on: Servers = servers, **options: Any) -> Client:
            settings: dict[str, Any] = {
                "client": Client(),
                "nkeys_seed": str(seed_file(on.credentials, role)),
                "inbox_prefix": role_inbox_prefix(role),
                "max_reconnect_attempts": 1,
                "reconnect_time_wait": 0.1,
                "connect_timeout": 2,
                "error_cb": _ignore,
                "allow_reconnect": False,
            } | options
            client: Client = settings.pop("client")
            # Also when it is refused: nats-py then leaves its socket open.
            connections.push_async_callback(client.close)
            await client.connect(on.nats_url, **settings)
            return client

        yield connect


async def settled(client: Client) -> None:
    """Wait until the server has worked all that the client sent before.

    One flush is not enough: nats-py's PING overtakes what waits to be written.
    """
    await client.flush()
    await client.flush()


async def _ignore(_error: Exception) -> None:
    """Else nats-py logs every one of them."""
