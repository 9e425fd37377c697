"""After an error: whether to try again, and a wait that is longer each time and never the same for two."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from bus import BusError, Refused, ServiceError

_CLIENT_ERRORS: Final = range(400, 500)
_LATER: Final = (408, 425, 429)
"""Client errors that say "not now": too slow, too early, too many."""


def is_final(error: BusError) -> bool:
    """Tell a "no", which would be the same again, from a "not now", which passes."""
    if isinstance(error, ServiceError):
        return error.code in _CLIENT_ERRORS and error.code not in _LATER
    return isinstance(error, Refused)


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
