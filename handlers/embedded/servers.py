"""The servers of a data directory: `up` starts them together, and other commands find them.

The process that runs them holds a lock on the directory, and writes their URLs to `servers.json`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bus.connect import redacted
from handlers.access.identities import credentials_directory, load_identities
from handlers.embedded.child import Child
from handlers.embedded.database_access import (
    read_password,
    role_urls,
    with_password,
    without_password,
)
from handlers.embedded.disk_space import DiskSpace, check_disk
from handlers.embedded.inotify import wait_until_removed
from handlers.embedded.nats_server import nats_server
from handlers.embedded.ports import Ports, port_requests
from handlers.embedded.postgresql import postgresql
from handlers.errors import DataDirectoryInUse, EmbeddedError
from handlers.publishing.atomic_files import write_atomically
from handlers.runtime.listeners import Listeners
from handlers.runtime.supervise import run_until_one_ends

LOCK: Final = "lock"
"""The name of the lock file in a data directory."""
_SERVERS_FILE: Final = "servers.json"


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of a data directory and how to reach them."""

    directory: Path
    credentials: Path
    nats_url: str
    websocket_url: str | None
    """None if the NATS server was given by URL."""
    database_url: str
    """The administrator's URL with the password, or the URL that was given."""
    children: tuple[Child, ...] = ()
    databases: Mapping[str, str] = field(default_factory=dict)
    """The URL of each role; empty if a URL was given, which all roles use."""
    nats_ca: Path | None = None
    """CA certificates (PEM) to verify NATS with; None: the system's."""
    stream_room: int | None = None
    """Bytes of disk for the streams; None: the NATS server was given and has to have enough."""

    @property
    def public_database_url(self) -> str:
        """The URL of the database without a password, for output and logs."""
        return redacted(without_password(self.database_url))

    def problem(self) -> str | None:
        """Return the problem of a running server, or None."""
        monitors = [child.monitor for child in self.children if child.monitor is not None]
        return next((problem for one in monitors if (problem := one.problem())), None)

    async def failed(self) -> EmbeddedError:
        """Wait until a server ends, or a file that the servers need is removed; return the error."""
        ended = (child.ended() for child in self.children)
        return await run_until_one_ends(self._file_removed(), *ended)

    async def _file_removed(self) -> EmbeddedError:
        needs = [self.directory, self.directory / LOCK, self.directory / _SERVERS_FILE]
        for child in self.children:
            needs += [credentials_directory(self.directory), *child.needs]
        removed = await wait_until_removed(needs)
        return EmbeddedError(
            f"{removed} was removed or moved while workspaced ran on {self.directory}, so clients can "
            "no longer connect: start workspaced again, and exclude this directory from cleaners of "
            "temporary files"
        )


@asynccontextmanager
async def embedded_servers(
    directory: Path,
    *,
    listeners: Listeners = Listeners(),  # noqa: B008 — never changed
    nats_url: str | None = None,
    database_url: str | None = None,
) -> AsyncIterator[Servers]:
    """Lock the data directory and run its servers, except a server whose URL is given.

    Raises EmbeddedError.
    """
    directory = _create(directory)
    async with AsyncExitStack() as stack:
        stack.enter_context(_locked(directory))
        servers_file = directory / _SERVERS_FILE
        servers_file.unlink(missing_ok=True)
        children: list[Child] = []
        embedded = nats_url is None or database_url is None
        space = check_disk(directory) if embedded else DiskSpace(0)

        async def start_nats() -> tuple[str, str | None]:
            if nats_url is not None:
                Ports(directory).take(port_requests(listeners, nats=False))
                return nats_url, None
            server = nats_server(directory, load_identities(directory), listeners, space.store)
            url, websocket_url, child = await stack.enter_async_context(server)
            children.append(child)
            return url, websocket_url

        async def start_database() -> str:
            if database_url is not None:
                return database_url
            server = postgresql(directory, space.database_settings())
            dsn, child = await stack.enter_async_context(server)
            children.append(child)
            return dsn

        # Wait for both even if one fails, so that the stack stops the server that did start.
        started = asyncio.ensure_future(start_nats()), asyncio.ensure_future(start_database())
        await asyncio.gather(*started, return_exceptions=True)
        (nats, websocket), database = started[0].result(), started[1].result()
        servers = Servers(
            directory=directory,
            credentials=credentials_directory(directory),
            nats_url=nats,
            websocket_url=websocket,
            database_url=database,
            children=tuple(children),
            databases=role_urls(database) if database_url is None else {},
            nats_ca=listeners.ca,
            stream_room=None if nats_url is not None else space.streams,
        )
        _write(servers_file, servers)
        stack.callback(servers_file.unlink, missing_ok=True)
        yield servers


def running_servers(directory: Path) -> Servers | None:
    """Return the servers that another process runs on the data directory, or None.

    Raises EmbeddedError.
    """
    directory = _real(directory)
    if _lock_holder(directory) is None:
        return None
    try:
        content = json.loads((directory / _SERVERS_FILE).read_bytes())
    except FileNotFoundError:
        return None
    credentials, database_url = credentials_directory(directory), content["database"]
    if embedded := content.get("embedded_database", False):
        database_url = with_password(database_url, read_password(credentials))
    return Servers(
        directory=directory,
        credentials=credentials,
        nats_url=content["nats"],
        websocket_url=content["websocket"],
        database_url=database_url,
        databases=role_urls(database_url) if embedded else {},
        nats_ca=Path(content["nats_ca"]) if content.get("nats_ca") else None,
        stream_room=content.get("stream_room"),
    )


def _write(path: Path, servers: Servers) -> None:
    embedded = bool(servers.databases)
    content = {
        "nats": servers.nats_url,
        "websocket": servers.websocket_url,
        "database": servers.public_database_url if embedded else servers.database_url,
        "embedded_database": embedded,
        "nats_ca": None if servers.nats_ca is None else str(servers.nats_ca),
        "stream_room": servers.stream_room,
    }
    # Readable by the current user only: a URL that was given may contain a password.
    write_atomically(path, json.dumps(content, indent=2).encode(), durable=False)


def _create(directory: Path) -> Path:
    directory = _real(directory)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError("no permission to write to it")
    except OSError as error:
        raise EmbeddedError(
            f"{directory} can't be the data directory ({error.strerror or error}): choose another "
            "with --data-dir"
        ) from error
    return directory


def _real(directory: Path) -> Path:
    """Resolve symbolic links. Links in a loop stay as they are, and opening them fails."""
    return Path(os.path.realpath(directory.expanduser()))  # Path.resolve raises RuntimeError there


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock the data directory until the block, or the process, ends. Raises DataDirectoryInUse.

    Two servers on one directory would both accept writes and lose them.
    """
    held = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirectoryInUse(directory, _read_pid(held)) from None
        os.ftruncate(held, 0)
        os.pwrite(held, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(held)


def _lock_holder(directory: Path) -> int | None:
    """Return the process that has locked the directory, 0 if it is unknown, None if there is none.

    Raises EmbeddedError.
    """
    try:
        lock = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EmbeddedError(
            f"{directory} can't be the data directory ({error.strerror}): choose another with --data-dir"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(lock) or 0
    else:
        return None
    finally:
        os.close(lock)


def _read_pid(lock: int) -> int | None:
    written = os.pread(lock, 32, 0)
    return int(written) if written.isdigit() else None
