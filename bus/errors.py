"""The exceptions of the bus, one class for each case that a caller handles differently, and how to retry."""

from __future__ import annotations

import asyncio
import random
from typing import Final

_CLIENT_ERRORS: Final = range(400, 500)
_TEMPORARY: Final = (408, 425, 429)
"""Client errors that a later attempt may not get: request timeout, too early, too many requests."""
_DOUBLINGS: Final = 16


class BusError(Exception):
    """Base class of all errors that the bus raises, except TimeoutError."""


class Unavailable(BusError):
    """No server, no stream, or the stream is full. Retry: the message may have been received or not."""


class NoConsumer(Unavailable):
    """The durable consumer does not exist. Retry after it was created."""


class Untrusted(Unavailable):
    """The server's certificate can't be verified, or it offers no TLS where TLS is required."""


class NoResponder(BusError):
    """Nobody is subscribed to the subject of a request."""


class Conflict(BusError):
    """The subject's last sequence is not the expected one; `last` is the actual one, if known."""

    def __init__(self, description: str, last: int | None = None) -> None:
        super().__init__(description)
        self.last = last


class Refused(BusError):
    """The server rejects the request, and would reject it again: a permission, a limit, a bad configuration."""


class Denied(Refused):
    """The credentials are valid, but do not permit to publish or subscribe to that subject."""


class ServiceError(BusError):
    """A micro service replied with an error. `code` is an HTTP status code."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{code} {description}")
        self.code, self.description = code, description


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
