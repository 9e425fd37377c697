"""The ports of a data directory: free ones at first, the same again ever after, as agents outlive us."""

from __future__ import annotations

import errno
import json
import random
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from handlers.access.listeners import LOOPBACK, Listeners, address_family
from handlers.errors import EmbeddedError, PortTaken
from handlers.publishing.atomic_files import write_atomically

_LOWEST: Final = 20_000
_TRIES: Final = 200


@dataclass(frozen=True, slots=True)
class Wanted:
    """A listener that needs a port."""

    name: str
    flag: str
    """What an operator chooses its port with."""
    host: str = LOOPBACK
    asked: int | None = None


def wanted(listeners: Listeners, *, nats: bool) -> list[Wanted]:
    """Return who of the listeners needs a port; `nats`: its server is ours."""
    found = []
    if nats:
        found += [
            Wanted("nats", "--nats-port", listeners.host, listeners.port),
            Wanted(
                "websocket", "--websocket-port", listeners.websocket_host, listeners.websocket_port
            ),
        ]
    if listeners.http_host is not None:
        found.append(Wanted("http", "--http-port", listeners.http_host, listeners.http_port))
    return found


class Ports:
    """What `ports.json` of a data directory says; a port is kept under the name of its use."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "ports.json"

    def kept(self) -> dict[str, int]:
        """Return the ports kept so far."""
        try:
            content = json.loads(self._path.read_bytes())
            return {str(name): int(port) for name, port in content.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError) as error:
            raise EmbeddedError(
                f"{self._path} is not an object of name to port ({error}): correct or delete it"
            ) from error

    def take(self, wanted: Sequence[Wanted]) -> dict[str, int]:
        """Return a port for each: the one asked for, else the kept one, else a new one; keep them.

        All of them are decided together, and nothing is kept unless each is free and each is another
        one. Raises PortTaken, which names the flags to choose others with.
        """
        kept = self.kept()
        chosen = {one.name: one.asked or kept.get(one.name) for one in wanted}
        by_port: dict[int, str] = {}
        for name, port in (kept | chosen).items():
            if port is None or (other := by_port.setdefault(port, name)) == name:
                continue
            if name in chosen or other in chosen:
                raise PortTaken(self._clash(port, {one.name: one for one in wanted}, other, name))
        for one in wanted:
            port = chosen[one.name]
            if port is None:
                others = {*kept.values(), *filter(None, chosen.values())}
                try:
                    chosen[one.name] = _unused(others, one.host)
                except OSError as no:
                    raise PortTaken(
                        f"nothing can listen on {one.host} ({no.strerror or no}): choose another "
                        f"address with {one.flag.removesuffix('port')}host"
                    ) from no
            elif (fault := _fault(port, one.host)) is not None:
                ways = ["stop what holds it", f"choose another port with {one.flag}"]
                if one.asked is None:
                    ways.append(f"delete {one.name!r} from {self._path} to get a new one")
                raise PortTaken(f"port {port} ({one.name}) {fault}: {', or '.join(ways)}")
        ports = {name: port for name, port in chosen.items() if port is not None}
        if (new := kept | ports) != kept:
            self._write(new)
        return ports

    def _clash(self, port: int, wanted: Mapping[str, Wanted], *names: str) -> str:
        """Say which two uses have the same port, and what to do."""
        asked = [one.flag for name in names if (one := wanted.get(name)) and one.asked]
        if len(asked) == len(names):
            return f"port {port} is given by {' and '.join(asked)}: give each a port of its own"
        flags = [one.flag for name in names if (one := wanted.get(name))]
        return (
            f"port {port} would be that of {' and '.join(names)}, since {self._path} keeps the ports "
            f"of earlier starts: choose another with {' or '.join(flags)}"
        )

    def _write(self, ports: dict[str, int]) -> None:
        write_atomically(self._path, f"{json.dumps(ports, indent=2)}\n".encode())


def _fault(port: int, host: str) -> str | None:
    """Say why nobody can listen there now, if so."""
    with socket.socket(address_family(host)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()
        except (OSError, OverflowError) as error:
            held = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            return "is held by another program" if held else f"can't be used ({error})"
    return None


def _unused(taken: set[int], host: str) -> int:
    """Stay below the range of outgoing connections.

    A client that keeps trying a port of that range while nobody listens there ends up connected to
    itself, and then holds the very port that the server needs.
    """
    outgoing = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    below = min(int(outgoing[0]), 2**16)
    if below > _LOWEST:
        draw = random.SystemRandom()
        for _ in range(_TRIES):
            port = draw.randrange(_LOWEST, below)
            if port not in taken and _fault(port, host) is None:
                return port
    with socket.socket(address_family(host)) as any_free:
        any_free.bind((host, 0))
        return int(any_free.getsockname()[1])
