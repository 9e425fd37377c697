"""The network between one kind of program and NATS; it can be cut, or held for a while."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class InterruptibleLink:
    """A proxy: its own port forwards connections to the server's port."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.url = ""
        self._port = 0
        self._free = asyncio.Event()
        self._free.set()
        self._ends: set[asyncio.StreamWriter] = set()

    async def open(self, port: int) -> None:
        """Listen, and forward each connection to `port`."""
        self._port = port
        self._server = await asyncio.start_server(self._joined, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Stop listening, and cut all connections."""
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection; new connections are forwarded."""
        for end in list(self._ends):
            end.transport.abort()

    async def hold(self, seconds: float) -> None:
        """Hold all data in both directions for this time, then forward it."""
        self._free.clear()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._free.set()

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        with suppress(OSError):
            there, server = await asyncio.open_connection("127.0.0.1", self._port)
            ends.append(server)
            self._ends.update(ends)
            either = [
                asyncio.create_task(self._carry(reader, server)),
                asyncio.create_task(self._carry(there, writer)),
            ]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            for task in either:
                task.cancel()
        self._ends.difference_update(ends)
        for end in ends:
            end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._free.wait()
                writer.write(data)
                await writer.drain()
