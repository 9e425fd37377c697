"""Databases of a test's own, on servers that run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg

from handlers.embedded import Servers


@asynccontextmanager
async def database_on(servers: Servers) -> AsyncIterator[str]:
    """A database of its own, empty."""
    name = f"test_{uuid4().hex}"
    server = await asyncpg.connect(servers.database_url)
    try:
        await server.execute(f"create database {name} template template0")
        yield servers.database_url.replace("/workspaced?", f"/{name}?", 1)
        await server.execute(f"drop database {name} with (force)")
    finally:
        await server.close()
