"""The work that every system does, and what a system has to offer to be measured.

For each chat a `create_workspace` call is made and awaited; then four events come in from another
process. Each is durable before it counts as accepted, and is applied once to a persisted state and
an append-only log; the call returns when `ready` is reached.
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
"""Environments of the peers, figures and the report."""

KINDS = ("build_started", "build_succeeded", "agent_connected", "lifecycle_ready")
STATES = ("none", "building", "agent_connecting", "scripts_running", "ready")

Event = dict[str, Any]


def make_event(chat: str, kind: str) -> Event:
    """Return one event, about 190 bytes of JSON; handed over twice it is a duplicate."""
    return {
        "id": f"{chat}/{kind}",
        "chat": chat,
        "kind": kind,
        "source": "provisioner" if kind.startswith("build") else "agent",
        "detail": "x" * (200 - 80 - 2 * len(chat) - 2 * len(kind)),
    }


class Peer:
    """One system under test, seen from two processes.

    `start`, `create` and `stop` are called in the app's process (measure.py); `connect`, `event` and
    `close` in the process of the sources (source.py), which knows only what `address` told it.
    """

    processed_on: ClassVar = "result"
    """`ack` when the accepting transaction also applies the event, else `result`."""
    app_is_load: ClassVar = False
    """The app's process is only a caller, and none of the system's."""

    root: Path
    """A new directory for its files, there before `start`."""
    most: int
    """As many chats as one measure may have open at once."""

    def __init__(self, **options: Any) -> None:
        """Take what distinguishes this variant of the system."""
        self.options = options
        self.stack = AsyncExitStack()
        """What was started, and how it is stopped."""

    async def start(self) -> None:
        """Start servers and the app."""

    async def create(self, chat: str) -> Awaitable[Mapping[str, Any]]:
        """Return when the call is durably accepted, with what will be its result."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop all of it, also what a failed start left."""
        await self.stack.aclose()

    def address(self) -> dict[str, Any]:
        """Return, as JSON, all that the sources get to know."""
        return {}

    def pids(self) -> dict[str, int]:
        """Return the roots of the system's process trees, by name."""
        return {}

    async def counters(self) -> dict[str, int]:
        """Return counters of the storage that only rise."""
        return {}

    async def now(self) -> Any:
        """Return the time by the clock that `asked_since` goes by."""
        return None

    async def asked_since(self, then: Any) -> int | None:
        """Return how many connections to the storage were used since then, if that can be told."""
        del then
        return None

    async def verify(self, chats: Sequence[str]) -> dict[str, int]:
        """Return persisted facts of these chats: `ready`, `logged`, and `sampled` if not all."""
        del chats
        return {}

    async def connect(self, address: Mapping[str, Any]) -> None:
        """Begin to be the sources."""

    async def created(self, chats: Sequence[str]) -> None:
        """Wait until the calls of these chats have been applied, where accepting did not do so."""

    async def event(self, chat: str, kind: str) -> None:
        """Return when the event is durably accepted."""
        raise NotImplementedError

    async def close(self) -> None:
        """Leave."""


def load(name: str, options: Mapping[str, Any]) -> Peer:
    """Return the system of that name."""
    driver: Peer = importlib.import_module(f"tests.bench.peers.{name}").Driver(**options)
    return driver
