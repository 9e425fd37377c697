"""How the database fails, told apart: it is away, or the same again may succeed."""

from __future__ import annotations

import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeAlias

import asyncpg

from statemachine.store import StoreUnavailableError, TransientError

Session: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"
UNREADABLE: Final = (
    "the database's URL can't be read; a password in it has %2F for /, %23 for #, %3A for : and "
    "%40 for @"
)
"""Instead of what the parser says, which may show a part of the password."""
LOST_RACES: Final = (
    asyncpg.TransactionRollbackError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
)
"""What it raises when the same again may succeed."""
CONNECTION_ERRORS: Final = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.PostgresSystemError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.InternalClientError,
)
"""What asyncpg raises when the database is away or refuses work for now: no fault of the work."""

ANSWER_WITHIN: Final = 10.0
"""Seconds: a database that is silent for longer is away, even if nobody closed the connection."""
_CLOSED: Final = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    ConnectionError,
)
"""What asyncpg raises when somebody closed the connection; it may not have heard why."""


@contextmanager
def said() -> Iterator[None]:
    """Raise TransientError or StoreUnavailableError for what is no fault of the work."""
    try:
        yield
    except LOST_RACES as race:
        raise TransientError(str(race)) from race
    except TimeoutError as silence:
        raise StoreUnavailableError(f"no answer within {ANSWER_WITHIN:.0f} s") from silence
    except CONNECTION_ERRORS as bad:
        raise StoreUnavailableError(str(bad) or type(bad).__name__) from bad


@asynccontextmanager
async def borrowed(pool: asyncpg.Pool[Any]) -> AsyncIterator[Session]:
    """Borrow a connection; one that does not answer is not used again.

    Raises as asyncpg does, but StoreUnavailableError for whatever a server says to who connects:
    that is never a fault of the work.
    """
    try:
        connection = await pool.acquire(timeout=ANSWER_WITHIN)
    except asyncpg.PostgresError as refusal:
        raise StoreUnavailableError(str(refusal)) from refusal
    try:
        yield connection
    except TimeoutError:
        connection.terminate()  # it would wait for the server to confirm the cancellation
        raise
    except asyncpg.InternalClientError:
        connection.terminate()  # asyncpg loses its thread over what a server says in leaving
        raise
    finally:
        await pool.release(connection)


class Block:
    """Tells a transaction that ran out of time from a database that went away.

    The server ends both by closing the connection, and a session that was just then idle does not
    hear why.
    """

    def __init__(self, longest: float) -> None:
        self.silent = False
        """Whether the database did not answer in time."""
        self._longest = longest
        self._began = math.inf
        self._locked: Callable[[], bool] = bool

    def begun(self, locked: Callable[[], bool]) -> None:
        """Measure from now on; `locked` says whether it holds what others wait for."""
        self._began, self._locked = time.monotonic(), locked

    @contextmanager
    def told_apart(self) -> Iterator[None]:
        """Raise TransientError when the connection was closed because of the time it took."""
        try:
            yield
        except _CLOSED as bad:
            if _of_lost_race(bad) or self._out_of_time():
                raise TransientError(f"the transaction took too long: {bad}") from bad
            if self.silent:
                raise TimeoutError from bad
            raise

    def _out_of_time(self) -> bool:
        if self.silent or not self._locked():
            return False
        return time.monotonic() - self._began >= 0.8 * self._longest  # its clock is not ours


def _of_lost_race(bad: BaseException) -> bool:
    """Say whether the server's last word was heard: as the cause, or that of the loss before."""
    before = bad.__context__ if isinstance(bad.__context__, _CLOSED) else None
    return isinstance(bad.__cause__ or (before and before.__cause__), LOST_RACES)


def shortest(limits: Mapping[str, str]) -> float:
    """Return the seconds after which the first of `limits` ends a transaction."""
    found = [
        int(match[1]) * {"ms": 0.001, "s": 1.0}[match[2]]
        for name in ("transaction_timeout", "idle_in_transaction_session_timeout")
        if (match := re.fullmatch(r"(\d+)(ms|s)", limits.get(name, "")))
    ]
    return min(found, default=math.inf)
