"""Retries after an error: whether an error is final, and delays that grow and differ between processes."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from bus.errors import BusError, Refused, ServiceError

_CLIENT_ERRORS: Final = range(400, 500)
_TEMPORARY: Final = (408, 425, 429)
"""Client errors that a later attempt may not get: request timeout, too early, too many requests."""
_DOUBLINGS: Final = 16


def is_final(error: BusError) -> bool:
    """Return whether a retry would get the same error again."""
    if isinstance(error, ServiceError):
        return error.code in _CLIENT_ERRORS and error.code not in _TEMPORARY
    return isinstance(error, Refused)


def retry_delay(attempt: int, first: float = 0.05, limit: float = 5.0) -> float:
    """Return the seconds to wait after failed attempt number `attempt`, which counts from 0.

    The delay doubles from `first` up to `limit`. Up to half of it is random, so that clients that
    failed together do not retry together.
    """
    longest = min(limit, first * (1 << min(attempt, _DOUBLINGS)))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 — jitter, not a secret


class Backoff:
    """The delays between the attempts of one loop; call `reset` after a success."""

    def __init__(self, first: float = 0.05, limit: float = 5.0) -> None:
        self._first, self._limit, self._attempt = first, limit, 0

    async def wait(self) -> None:
        """Sleep for the current delay; the next one is twice as long, up to the limit."""
        delay = retry_delay(self._attempt, self._first, self._limit)
        self._attempt += 1
        await asyncio.sleep(delay)  # back-off

    def reset(self) -> None:
        """Start again with the shortest delay."""
        self._attempt = 0
