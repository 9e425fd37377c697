"""The ports of a data directory: chosen at the first start and kept in `ports.json`.

They have to stay the same because agents, which keep running while workspaced restarts, reconnect to them.
"""

from __future__ import annotations

import errno
import json
import random
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from handlers.errors import EmbeddedError, PortTaken
from handlers.publishing.atomic_files import write_atomically
from handlers.runtime.listeners import LOOPBACK, Listeners, address_family

_OUTGOING: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_OUTGOING: Final = 32_768
_LOWEST: Final = 20_000
_TRIES: Final = 200


@dataclass(frozen=True, slots=True)
class PortRequest:
    """A listener that needs a port."""

    name: str
    flag: str
    """The command line flag for this port."""
    host: str = LOOPBACK
    port: int | None = None
    """The port that the operator chose, if any."""


def port_requests(listeners: Listeners, *, nats: bool) -> list[PortRequest]:
    """Return the listeners that need a port; `nats`: also those of the embedded nats-server."""
    found = []
    if nats:
        found += [
            PortRequest("nats", "--nats-port", listeners.host, listeners.port),
            PortRequest(
                "websocket", "--websocket-port", listeners.websocket_host, listeners.websocket_port
            ),
        ]
    if listeners.http_host is not None:
        found.append(PortRequest("http", "--http-port", listeners.http_host, listeners.http_port))
    return found


class Ports:
    """The file `ports.json` of a data directory, which maps the names of listeners to ports."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "ports.json"

    def kept(self) -> dict[str, int]:
        """Return the content of the file. Raises EmbeddedError."""
        try:
            content = json.loads(self._path.read_bytes())
            return {str(name): int(port) for name, port in content.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError) as error:
            raise EmbeddedError(
                f"{self._path} is not an object of name to port ({error}): correct or delete it"
            ) from error

    def take(self, requests: Sequence[PortRequest]) -> dict[str, int]:
        """Return a port for each listener, and keep them: the requested one, the kept one, or a new one.

        The file changes only if all ports are free and different. Raises PortTaken, which names the
        flags for choosing others.
        """
        kept = self.kept()
        chosen = {one.name: one.port or kept.get(one.name) for one in requests}
        by_port: dict[int, str] = {}
        for name, port in (kept | chosen).items():
            if port is None or (other := by_port.setdefault(port, name)) == name:
                continue
            if name in chosen or other in chosen:
                raise PortTaken(self._clash(port, {one.name: one for one in requests}, other, name))
        for one in requests:
            port = chosen[one.name]
            if port is None:
                others = {*kept.values(), *filter(None, chosen.values())}
                try:
                    chosen[one.name] = _unused(others, one.host)
                except OSError as error:
                    raise PortTaken(
                        f"nothing can listen on {one.host} ({error.strerror or error}): choose another "
                        f"address with {one.flag.removesuffix('port')}host"
                    ) from error
            elif (fault := _fault(port, one.host)) is not None:
                ways = ["stop that program", f"choose another port with {one.flag}"]
                if one.port is None:
                    ways.append(f"delete {one.name!r} from {self._path} to get a new one")
                raise PortTaken(f"port {port} ({one.name}) {fault}: {', or '.join(ways)}")
        ports = {name: port for name, port in chosen.items() if port is not None}
        if (new := kept | ports) != kept:
            self._write(new)
        return ports

    def _clash(self, port: int, requests: Mapping[str, PortRequest], *names: str) -> str:
        """Return a message about two listeners with the same port, and what to do."""
        asked = [one.flag for name in names if (one := requests.get(name)) and one.port]
        if len(asked) == len(names):
            return f"port {port} is given by {' and '.join(asked)}: give each a port of its own"
        flags = [one.flag for name in names if (one := requests.get(name))]
        return (
            f"port {port} would be used for {' and '.join(names)}, because {self._path} keeps the ports "
            f"of earlier starts: choose another with {' or '.join(flags)}"
        )

    def _write(self, ports: dict[str, int]) -> None:
        write_atomically(self._path, f"{json.dumps(ports, indent=2)}\n".encode())


def _fault(port: int, host: str) -> str | None:
    """Return why it is impossible to listen on a port, or None."""
    with socket.socket(address_family(host)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()
        except (OSError, OverflowError) as error:
            held = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            return "is held by another program" if held else f"can't be used ({error})"
    return None


def _first_outgoing() -> int:
    """Return the first port of outgoing connections; Linux's default if the sandbox does not show it."""
    try:
        return int(_OUTGOING.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUAL_OUTGOING


def _unused(taken: set[int], host: str) -> int:
    """Return a free port, below the range of outgoing connections if possible.

    A client that repeatedly connects to a port of that range while nobody listens there can end up connected
    to itself, and then occupies the port that the server needs.
    """
    below = min(_first_outgoing(), 2**16)
    if below > _LOWEST:
        draw = random.SystemRandom()
        for _ in range(_TRIES):
            port = draw.randrange(_LOWEST, below)
            if port not in taken and _fault(port, host) is None:
                return port
    with socket.socket(address_family(host)) as any_free:
        any_free.bind((host, 0))
        return int(any_free.getsockname()[1])
