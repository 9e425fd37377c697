"""MCP on standard input and output: one client, one chat."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator
from typing import Any, Final, cast

from mcp.server import Server
from mcp.server.stdio import stdio_server

_MAX_LINE: Final = 4 * 1024 * 1024


class _Lines:
    """The lines of standard input. Unlike the SDK's own reader, it can be cancelled while it waits."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def __aiter__(self) -> AsyncIterator[str]:
        while line := await self._reader.readline():
            yield line.decode(errors="replace")


async def serve_stdio(server: Server[Any]) -> None:
    """Serve one client until it closes standard input."""
    async with stdio_server(stdin=cast(Any, await _stdin())) as (reads, writes):
        await server.run(reads, writes, server.create_initialization_options())


async def _stdin() -> _Lines | None:
    """Return the lines of standard input; None if it is a file or a device, which the SDK reads."""
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or sys.stdin.isatty()):
        return None
    reader = asyncio.StreamReader(limit=_MAX_LINE)
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    return _Lines(reader)
