"""Tells why builds are queued: whether a provisioner of their pool is present, and how many builds are ahead.

A provisioner is present if it has a pull open at the pool's consumer, or listens to the pool's cancels. The
server knows both at once, so nobody has to wait for a silence, and no worker has to live.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from bus import Bus, BusError, NoResponder, subjects
from bus.streams import pool_consumer
from handlers.cli.client import rpc_pages

_IGNORED_WITHIN: Final = 0.5
"""Seconds in which the server says if nobody listens; a provisioner ignores the message."""
_WITH_BUILDS: Final = ("building", "stopping")


def is_queued(chat: Mapping[str, Any]) -> bool:
    """Return whether the chat's build waits for a provisioner of a known pool."""
    build = chat["build"] or {}
    waits = chat["state"] in _WITH_BUILDS and build.get("pool") is not None
    return waits and build.get("begun_at", "") is None


class PoolQueues:
    """The queues of all pools, as they were when a command first asked for them."""

    def __init__(self, bus: Bus) -> None:
        """`bus`: an operator's."""
        self._bus = bus
        self._served: dict[str, bool] = {}
        self._builds: list[tuple[str, str]] | None = None
        """Pool and start of each build that is requested and has not ended."""

    async def add_notice(self, chat: dict[str, Any]) -> dict[str, Any]:
        """Set the notice of a chat whose build is queued, and return the chat. Raises BusError, TimeoutError."""
        if is_queued(chat):
            chat["notice"] = await self._notice(chat["build"])
        return chat

    async def _notice(self, build: Mapping[str, Any]) -> str:
        pool = build["pool"]
        if pool not in self._served:
            self._served[pool] = await self._is_served(pool)
        if not self._served[pool]:
            return f"queued, pool {pool}: nobody serves it"
        if self._builds is None:
            self._builds = [
                (chat["build"]["pool"], chat["build"]["started_at"])
                for state in _WITH_BUILDS
                async for chat in rpc_pages(self._bus, "list_chats", "chats", "cursor", state=state)
            ]
        ahead = sum(one == pool and since < build["started_at"] for one, since in self._builds)
        return f"queued, pool {pool}: {ahead} {'job' if ahead == 1 else 'jobs'} ahead"

    async def _is_served(self, pool: str) -> bool:
        with suppress(BusError):  # the pool has no consumer yet
            if (await self._bus.consumer_state(pool_consumer(pool))).pulls:
                return True
        try:
            await self._bus.request(subjects.cancel(pool), b"{}", timeout=_IGNORED_WITHIN)
        except NoResponder:
            return False
        except TimeoutError:
            pass
        return True
