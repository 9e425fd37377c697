"""How long to wait before a request is repeated."""

from __future__ import annotations

import asyncio
import random
from typing import Final

_DOUBLINGS: Final = 16


class Backoff:
    """The delays between the attempts of one loop; call `reset` after a success."""

    def __init__(self, first: float = 0.1, limit: float = 5.0) -> None:
        self._first, self._limit, self._attempt = first, limit, 0

    async def wait(self) -> None:
        """Sleep for the current delay; the next one is twice as long, up to the limit."""
        longest = min(self._limit, self._first * (1 << min(self._attempt, _DOUBLINGS)))
        self._attempt += 1
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311  # back-off

    def reset(self) -> None:
        """Start again with the shortest delay."""
        self._attempt = 0
