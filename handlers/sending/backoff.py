"""The wait after an error: longer each time, and never the same for two senders."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """How long to wait before the next try; `reset` after a success."""

    def __init__(self, first: float = 0.05, most: float = 5.0) -> None:
        self._first, self._most, self._next = first, most, first

    async def wait(self) -> None:
        """Wait for the present delay, and double the next."""
        delay, self._next = self._next, min(self._next * 2, self._most)
        # Half of it by chance, so that those whom one error hit together don't come back together.
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 — back-off, no secret

    def reset(self) -> None:
        """Begin again with the shortest delay."""
        self._next = self._first
