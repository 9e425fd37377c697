"""The ports of a data directory: free ones at first, the same again ever after, as agents outlive us."""

from __future__ import annotations

import errno
import json
import random
import socket
from pathlib import Path
from typing import Final

from handlers.embedded.errors import EmbeddedError, PortTaken
from handlers.listening import LOOPBACK
from handlers.sending.disk import write_whole

_LOWEST: Final = 20_000
_TRIES: Final = 200


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

    def take(
        self,
        name: str,
        *,
        asked: int | None = None,
        flag: str | None = None,
        host: str = LOOPBACK,
    ) -> int:
        """Return the port for `name`, free on `host` just now: the asked one, the kept one, a new one.

        Raises PortTaken, naming `flag` as the way to choose another.
        """
        kept = self.kept()
        port = asked or kept.get(name)
        if port is None:
            port = _unused(set(kept.values()), host)
        elif (fault := _fault(port, host)) is not None:
            ways = ["stop what holds it"]
            if flag is not None:
                ways.append(f"choose another port with {flag}")
            if asked is None:
                ways.append(f"delete {name!r} from {self._path} to get a new one")
            raise PortTaken(f"port {port} ({name}) {fault}: {', or '.join(ways)}")
        if kept.get(name) != port:
            self._write(kept | {name: port})
        return port

    def _write(self, ports: dict[str, int]) -> None:
        write_whole(self._path, f"{json.dumps(ports, indent=2)}\n".encode())


def _fault(port: int, host: str) -> str | None:
    """Say why nobody can listen there now, if so."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
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
    with socket.socket() as any_free:
        any_free.bind((LOOPBACK, 0))
        return int(any_free.getsockname()[1])
