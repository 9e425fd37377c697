"""Servers for the tests of one module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from handlers.embedded import Servers, embedded_servers
from tests.rigs.servers import new_database


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_servers(
    servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Servers, str, Path]]:
    """Yield a NATS server and a database for the tests of one module, and a directory."""
    home = tmp_path_factory.mktemp("outages")
    async with (
        new_database(servers) as database_url,
        embedded_servers(home / "nats", database_url=servers.database_url) as own,
    ):
        yield own, database_url, home
