"""Real servers for the tests: PostgreSQL and nats-server once per run, a database per test."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from nats.aio.client import Client

from handlers.embedded import Servers, embedded_servers
from handlers.embedded.postgresql import postgresql
from statemachine.store.migrator import migrate
from tests.rigs.client import Participant, role_options
from tests.rigs.client import connect as connect_participant
from tests.rigs.servers import WITHOUT_SYNC, new_database

ConnectAs = Callable[..., Awaitable[Client]]

# Where this variable is set, which is usual in containers, each of the hundreds of processes that tests start
# would compile all modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell's background job ignores SIGINT, and all processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = (
    "tests/simulation",
    "tests/cli/test_environment.py",
    "tests/faults",
    "tests/cli/test_restore.py",
    "tests/cli/test_operating.py",
    "tests/embedded/test_surroundings.py",
    "tests/kit",
    "tests/cluster",
    "tests/worker/test_left_alone.py",
    "tests/examples",
    "tests/page",
    "tests/client",
    "tests/cli/test_demo.py",
    "tests/cli/test_up.py",
    "tests/wire/test_crashes.py",
    "tests/outages/test_workers.py",
    "tests/agent/test_outliving.py",
    "tests/wire/test_http.py",
    "tests/outages/test_commands.py",
    "tests/wire/test_branches_limits.py",
    "tests/wire/test_presence.py",
)
"""What takes longest is run first, so that no process of `make test` runs it alone at the end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests of LONGEST first, and leave the others in their order."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(config.rootpath).as_posix()
        return next((n for n, begin in enumerate(LONGEST) if path.startswith(begin)), len(LONGEST))

    items.sort(key=place)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers() -> AsyncIterator[Servers]:
    """Run the servers of the whole test run.

    The names of streams are fixed, so a test that needs an empty NATS uses `own_nats`.
    PostgreSQL does not wait for the disk: no test cuts the power, and what it has written survives its kill.
    """

    def without_sync(directory: Path, more: Mapping[str, str]) -> Any:
        return postgresql(directory, {**more, **WITHOUT_SYNC})

    with (
        tempfile.TemporaryDirectory(prefix="workspaced-tests-") as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("handlers.embedded.servers.postgresql", without_sync)
        async with embedded_servers(Path(directory)) as running:
            patch.undo()
            yield running


@pytest.fixture
async def database_url(servers: Servers) -> AsyncIterator[str]:
    """Yield the URL of an empty database for this test."""
    async with new_database(servers) as url:
        yield url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def migrated_database(servers: Servers) -> AsyncIterator[str]:
    """Yield the name of a database with all migrations, which nobody may connect to: others are copies of it."""
    async with new_database(servers) as url:
        await migrate(url)
        yield urlsplit(url).path[1:]


@pytest.fixture
async def migrated_url(servers: Servers, migrated_database: str) -> AsyncIterator[str]:
    """Yield the URL of a database for this test, with all migrations and without data."""
    async with new_database(servers, migrated_database) as url:
        yield url


@pytest.fixture
async def own_nats(servers: Servers, tmp_path: Path) -> AsyncIterator[Servers]:
    """Run an empty nats-server for this test, with the same roles and permissions."""
    directory = tmp_path / "own-nats"
    async with embedded_servers(directory, database_url=servers.database_url) as running:
        yield running


@pytest.fixture
async def connect_as(servers: Servers) -> AsyncIterator[ConnectAs]:
    """Return a function: `await connect_as("operator", on=own_nats, **options of Client.connect)`.

    It does not retry. Only `error_cb` receives permission violations. Connections are closed at the
    end.
    """
    async with AsyncExitStack() as connections:

        async def connect(role: str, *, on: Servers = servers, **options: Any) -> Client:
            party = Participant()
            party.client = options.pop("client", party.client)
            # The connection is closed even if the server refuses it: nats-py leaves its socket
            # open.
            connections.push_async_callback(party.client.close)
            settings = role_options(on.credentials, role) | options
            await connect_participant(party, on.nats_url, **settings)
            return party.client

        yield connect
