"""A proxy between one process and one server, with which a test holds or cuts traffic.

Holding traffic from a message with certain words on defines an exact moment: the process has done
everything up to that message, and nothing after it.
"""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import parse_qs, urlsplit

from tests.rigs.processes import TIMEOUT

_CHUNK: Final = 65_536
Dial = Callable[[], Awaitable[tuple[StreamReader, StreamWriter]]]


class Direction:
    """One direction of all connections of a proxy: open or held."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()


class Proxy:
    """Accepts connections on a port of its own and forwards everything, unless the test holds or cuts traffic."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self.tells_end = asyncio.Event()
        """While not set, clients do not learn that the server has closed a connection."""
        self.tells_end.set()
        self.ended = asyncio.Event()
        """Set when the server has closed a connection."""
        self._out, self._back = Direction(), Direction()
        self._words: bytes | None = None
        self._then: tuple[Direction, ...] = ()
        self._sprung = asyncio.Event()
        self._ends: set[StreamWriter] = set()
        self._refusing = False
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def hold(self, words: bytes) -> None:
        """Hold everything sent to the server, beginning with the chunk that contains the words."""
        self._set(words, self._out)

    def hold_answers(self, words: bytes) -> None:
        """Forward the chunk that contains the words, and hold all answers of the server from then on."""
        self._set(words, self._back)

    def freeze(self) -> None:
        """Hold both directions from now on: a network partition that neither side notices."""
        self._out.open.clear()
        self._back.open.clear()

    async def held(self) -> None:
        """Wait until the words have passed."""
        async with asyncio.timeout(TIMEOUT):
            await self._sprung.wait()

    def release(self) -> None:
        """Forward what is held, and everything after it."""
        self._words = None
        for moment in (self._out.open, self._back.open, self.tells_end):
            moment.set()

    def drop(self) -> None:
        """Abort every connection; new connections are accepted."""
        for end in list(self._ends):
            end.transport.abort()

    def cut(self) -> None:
        """Abort every connection, discard what is held, and refuse connections until `mend`."""
        self._refusing = True
        self.drop()
        self.release()

    def mend(self) -> None:
        """Accept connections again."""
        self._refusing = False

    def _set(self, words: bytes, *then: Direction) -> None:
        self._sprung = asyncio.Event()
        self._words, self._then = words, then

    async def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            if self._refusing:
                return
            server_reader, server_writer = await self._dial()
            self._ends |= {writer, server_writer}
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, server_writer, self._out, watched=True))
                pumps.create_task(self._pump(server_reader, writer, self._back))
        except* OSError:
            pass
        finally:
            writer.transport.abort()
            self._ends.discard(writer)

    async def _pump(
        self, reader: StreamReader, writer: StreamWriter, way: Direction, *, watched: bool = False
    ) -> None:
        before = b""
        try:
            while chunk := await reader.read(_CHUNK):
                if watched:
                    self._look(before + chunk)
                    before = chunk[-64:]
                await way.open.wait()
                writer.write(chunk)
                await writer.drain()
            if not watched:
                self.ended.set()
                await self.tells_end.wait()
        finally:
            with suppress(OSError):
                writer.transport.abort() if writer.transport.is_closing() else writer.close()
            self._ends.discard(writer)

    def _look(self, chunk: bytes) -> None:
        if self._words is not None and self._words in chunk:
            self._words = None
            for way in self._then:
                way.open.clear()
            self._sprung.set()


def to_database(url: str) -> Dial:
    """Return how to reach a PostgreSQL that listens on a Unix socket."""
    place = parse_qs(urlsplit(url).query)
    socket = f"{place['host'][0]}/.s.PGSQL.{place.get('port', ['5432'])[0]}"
    return lambda: asyncio.open_unix_connection(socket)


def database_url_through(made: Proxy, url: str) -> str:
    """Return the URL with which a program reaches that PostgreSQL through its proxy."""
    parts = urlsplit(url)
    user = parts.netloc.partition("@")[0]
    return f"postgresql://{user}@127.0.0.1:{made.port}{parts.path}?sslmode=disable"


@asynccontextmanager
async def proxy(dial: Dial) -> AsyncIterator[Proxy]:
    """Run a proxy in front of the server to which `dial` connects."""
    made = Proxy(dial)
    made._server = await asyncio.start_server(made._connected, "127.0.0.1", 0)
    try:
        yield made
    finally:
        made.cut()
        made._server.close()
        await made._server.wait_closed()
