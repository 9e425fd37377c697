"""Both adapters of the bus behind one fixture, and servers that tests can kill."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bus import Bus, Stream
from bus.jetstream import connect
from statemachine.store.postgres import connect as open_store
from tests.contract.stores import Shelf, Shift
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_server import MemoryServer
from tests.doubles.memory_store import MemoryStore

NATS_SERVER = Path(sys.executable).parent / "nats-server"

Connect = Callable[[], Awaitable[Bus]]

_numbers = count(1)


class NatsServer:
    """A nats-server that keeps its port and its store when it is killed and started again."""

    def __init__(self, directory: Path, config: str = "jetstream {}") -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self.config = directory / "nats.conf"
        self.config.write_text(config)
        self._command: list[str | Path] = [NATS_SERVER, "-c", self.config, "-a", "127.0.0.1"]
        self._command += ["-p", str(self.port), "-sd", directory / "store"]
        self._command += ["-l", directory / "nats.log"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Stop the server in the way in which it writes everything to the disk."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def reload(self, config: str) -> None:
        assert self._process is not None
        self.config.write_text(config)
        subprocess.run([NATS_SERVER, "--signal", f"reload={self._process.pid}"], check=True)


class World:
    """A server, and buses connected to it."""

    def __init__(self, kind: str, server: Any, connections: AsyncExitStack) -> None:
        self.kind = kind
        self.server = server
        self._connections = connections

    async def connect(self) -> Bus:
        if self.kind == "memory":
            bus: Any = MemoryBus(self.server)
        else:
            bus = await connect(self.server.url, wait=True)
        return await self._connections.enter_async_context(bus)


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["nats", "memory"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """One server for all tests, with each adapter in turn."""
    async with AsyncExitStack() as connections:
        if request.param == "memory":
            yield World("memory", MemoryServer(), connections)
        else:
            yield World("nats", request.getfixturevalue("nats_server"), connections)


@pytest.fixture(params=["nats", "memory"])
async def own_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A server that only this test uses, and may stop and start."""
    async with AsyncExitStack() as connections:
        if request.param == "memory":
            yield World("memory", MemoryServer(), connections)
            return
        server = NatsServer(tmp_path)
        server.start()
        connections.callback(server.stop)
        yield World("nats", server, connections)


@pytest.fixture
async def bus(world: World) -> Bus:
    return await world.connect()


@pytest.fixture
async def other(world: World) -> Bus:
    """Another connection to the same server."""
    return await world.connect()


@pytest.fixture
def prefix() -> str:
    """Return a first token of subjects that no other test uses."""
    return f"t{next(_numbers)}"


@pytest.fixture
def declare(prefix: str) -> Callable[..., Stream]:
    """Return a function that makes streams which no other test uses."""

    def make(**declared: Any) -> Stream:
        return Stream(
            name=prefix.upper(), subjects=[f"{prefix}.>"], **{"allow_direct": True, **declared}
        )

    return make


@pytest.fixture
async def memory_shelf() -> Shelf:
    """The in-memory store."""
    shift = Shift()
    return Shelf(MemoryStore(shift.now), shift=shift)


@pytest.fixture
async def postgres_shelf(migrated_url: str) -> AsyncIterator[Shelf]:
    """The store in a database that only this test uses."""
    async with open_store(migrated_url) as store:
        yield Shelf(store, migrated_url)


@pytest.fixture(params=["memory", "postgres"])
def shelf(request: pytest.FixtureRequest) -> Shelf:
    """Each store in turn, empty."""
    found: Shelf = request.getfixturevalue(f"{request.param}_shelf")
    return found
