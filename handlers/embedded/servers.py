"""The servers of one data directory: started together, and found again by other commands."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bus.urls import redacted
from handlers.access.identities import credentials_directory, load_identities
from handlers.access.listeners import Listeners
from handlers.embedded.child import Child
from handlers.embedded.database_password import (
    read_password,
    with_password,
    without_password,
)
from handlers.embedded.database_roles import urls_of
from handlers.embedded.disk_room import Room, room_of
from handlers.embedded.inotify import vanished
from handlers.embedded.lock import LOCK, owner_of, owning
from handlers.embedded.nats_server import nats_server
from handlers.embedded.ports import Ports, wanted
from handlers.embedded.postgresql import postgresql
from handlers.errors import EmbeddedError
from handlers.publishing.atomic_files import write_atomically
from handlers.supervise import run_until_one_ends

_FOUND_IN: Final = "servers.json"


@dataclass(frozen=True, slots=True)
class Servers:
    """Where everything is; `websocket_url` is None when somebody else's NATS is used."""

    directory: Path
    credentials: Path
    nats_url: str
    websocket_url: str | None
    database_url: str
    """The administrator's with the password, or the one that was given."""
    children: tuple[Child, ...] = ()
    databases: Mapping[str, str] = field(default_factory=dict)
    """Each role's own URL; empty when one was given, which is everybody's."""
    nats_ca: Path | None = None
    """Who signed the certificate of NATS, if it is not known to this machine anyway."""
    stream_room: int | None = None
    """Bytes of disk for the streams; None: the NATS of somebody else has to have room for all."""

    @property
    def public_database_url(self) -> str:
        """The URL of the database as it may be shown: without any password."""
        return redacted(without_password(self.database_url))

    def wrong(self) -> str | None:
        """Return what is wrong with a server that runs, or None."""
        watches = [child.watch for child in self.children if child.watch is not None]
        return next((wrong for watch in watches if (wrong := watch.wrong())), None)

    async def lost(self) -> EmbeddedError:
        """Wait until a server ends by itself, or a file or directory vanishes that they need; say which."""
        ended = (child.ended() for child in self.children)
        return await run_until_one_ends(self._vanished(), *ended)

    async def _vanished(self) -> EmbeddedError:
        needs = [self.directory, self.directory / LOCK, self.directory / _FOUND_IN]
        for child in self.children:
            needs += [credentials_directory(self.directory), *child.needs]
        gone = await vanished(needs)
        return EmbeddedError(
            f"{gone} was removed or moved while workspaced ran on {self.directory}, so nothing can "
            "reach it any more: start it again, and keep cleaners of temporary files away from there"
        )


@asynccontextmanager
async def embedded_servers(
    directory: Path,
    *,
    listeners: Listeners = Listeners(),  # noqa: B008 — never changed
    nats_url: str | None = None,
    database_url: str | None = None,
) -> AsyncIterator[Servers]:
    """Own the data directory and run its servers; what has a URL given is not started.

    Raises EmbeddedError.
    """
    directory = _made(directory)
    async with AsyncExitStack() as stack:
        stack.enter_context(owning(directory))
        found_in = directory / _FOUND_IN
        found_in.unlink(missing_ok=True)
        children: list[Child] = []
        ours = nats_url is None or database_url is None
        room = room_of(directory) if ours else Room(0)

        async def start_nats() -> tuple[str, str | None]:
            if nats_url is not None:
                Ports(directory).take(wanted(listeners, nats=False))
                return nats_url, None
            server = nats_server(directory, load_identities(directory), listeners, room.store)
            url, websocket_url, child = await stack.enter_async_context(server)
            children.append(child)
            return url, websocket_url

        async def start_database() -> str:
            if database_url is not None:
                return database_url
            server = postgresql(directory, room.database_settings())
            dsn, child = await stack.enter_async_context(server)
            children.append(child)
            return dsn

        # Both are awaited also when one fails, so that the stack stops whichever started.
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
            databases=urls_of(database) if database_url is None else {},
            nats_ca=listeners.ca,
            stream_room=None if nats_url is not None else room.streams,
        )
        _note(found_in, servers)
        stack.callback(found_in.unlink, missing_ok=True)
        yield servers


def running_servers(directory: Path) -> Servers | None:
    """Return the servers that another process runs on the data directory now, if any.

    Raises EmbeddedError.
    """
    directory = _real(directory)
    if owner_of(directory) is None:
        return None
    try:
        noted = json.loads((directory / _FOUND_IN).read_bytes())
    except FileNotFoundError:
        return None
    credentials, database_url = credentials_directory(directory), noted["database"]
    if embedded := noted.get("embedded_database", False):
        database_url = with_password(database_url, read_password(credentials))
    return Servers(
        directory=directory,
        credentials=credentials,
        nats_url=noted["nats"],
        websocket_url=noted["websocket"],
        database_url=database_url,
        databases=urls_of(database_url) if embedded else {},
        nats_ca=Path(noted["nats_ca"]) if noted.get("nats_ca") else None,
        stream_room=noted.get("stream_room"),
    )


def _note(path: Path, servers: Servers) -> None:
    embedded = bool(servers.databases)
    content = {
        "nats": servers.nats_url,
        "websocket": servers.websocket_url,
        "database": servers.public_database_url if embedded else servers.database_url,
        "embedded_database": embedded,
        "nats_ca": None if servers.nats_ca is None else str(servers.nats_ca),
        "stream_room": servers.stream_room,
    }
    # For us alone: a URL that was given may hold a password.
    write_atomically(path, json.dumps(content, indent=2).encode(), durable=False)


def _made(directory: Path) -> Path:
    directory = _real(directory)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError("no permission to write there")
    except OSError as error:
        raise EmbeddedError(
            f"{directory} can't be the data directory ({error.strerror or error}): choose another "
            "with --data-dir"
        ) from error
    return directory


def _real(directory: Path) -> Path:
    """Return where a directory is; links in a loop stay, and whoever opens them is refused."""
    return Path(os.path.realpath(directory.expanduser()))  # Path.resolve raises RuntimeError there
