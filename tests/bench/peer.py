"""The work that every system does, and the interface that a system implements to be measured.

For each chat the caller makes a `create_workspace` call and waits; then four events arrive from
another process. An event counts as accepted when it is durable; it is applied once to a persisted
state and an append-only log. The call returns when the chat is `ready`.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).parents[2]
"""The checkout, from which every process of the benchmark runs."""
CACHE = ROOT / ".bench"
"""The directory of the peers' environments, the figures and the report."""

KINDS = ("build_started", "build_succeeded", "agent_connected", "lifecycle_ready")
STATES = ("none", "building", "agent_connecting", "scripts_running", "ready")

Event = dict[str, Any]


def make_event(chat: str, kind: str) -> Event:
    """Return one event of about 190 bytes of JSON; a second copy is a duplicate of the first."""
    return {
        "id": f"{chat}/{kind}",
        "chat": chat,
        "kind": kind,
        "source": "provisioner" if kind.startswith("build") else "agent",
        "detail": "x" * (200 - 80 - 2 * len(chat) - 2 * len(kind)),
    }


class Peer:
    """One system under test, used from two processes.

    The app's process (measure.py) calls `start`, `create` and `stop`. The process of the sources
    (source.py) calls `connect`, `event` and `close`; it knows only what `address` returned.
    """

    processed_on: ClassVar = "result"
    """`ack` when the accepting transaction also applies the event, else `result`."""
    app_is_load: ClassVar = False
    """Whether the app's process is only a caller and no part of the system."""

    root: Path
    """A new directory for the system's files; it exists before `start`."""
    most: int
    """The largest number of chats that one measure may have open at the same time."""

    def __init__(self, **options: Any) -> None:
        """Take the options of this variant of the system."""
        self.options = options
        self.stack = AsyncExitStack()
        """Cleanups of everything that was started."""

    async def start(self) -> None:
        """Start servers and the app."""

    async def create(self, chat: str) -> Awaitable[Mapping[str, Any]]:
        """Make a call; return its pending result when the call is durably accepted."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop everything, including the remains of a failed start."""
        await self.stack.aclose()

    def address(self) -> dict[str, Any]:
        """Return the information that the process of the sources receives, as JSON."""
        return {}

    def pids(self) -> dict[str, int]:
        """Return the root process of each of the system's process trees, by name."""
        return {}

    async def counters(self) -> dict[str, int]:
        """Return the storage's monotonic counters."""
        return {}

    async def now(self) -> Any:
        """Return the present time by the clock that `asked_since` uses."""
        return None

    async def asked_since(self, then: Any) -> int | None:
        """Return how many storage connections were used since then, or None if that is unknown."""
        del then
        return None

    async def verify(self, chats: Sequence[str]) -> dict[str, int]:
        """Return counts of persisted data: `ready`, `logged`, and `sampled` if not all chats."""
        del chats
        return {}

    async def connect(self, address: Mapping[str, Any]) -> None:
        """Connect the process of the sources."""

    async def created(self, chats: Sequence[str]) -> None:
        """Wait until these chats' calls are applied, if the system accepts them before."""

    async def event(self, chat: str, kind: str) -> None:
        """Send an event; return when it is durably accepted."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close the connection of the sources."""


def load(name: str, options: Mapping[str, Any]) -> Peer:
    """Return the system of that name."""
    driver: Peer = importlib.import_module(f"tests.bench.peers.{name}").Driver(**options)
    return driver
