"""How the database fails: it is away, it refuses this work, the same again may succeed, or the work is at fault."""

from __future__ import annotations

import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeAlias

import asyncpg

from statemachine.store import StoreUnavailableError, TransientError, WorkRefusedError

Session: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"
LOST_RACES: Final = (
    asyncpg.TransactionRollbackError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
)
"""What the driver raises when the same again may succeed."""
DATA: Final = frozenset({"22", "23"})
"""Classes of SQLSTATE that blame the values that were sent, or the rows that they would have made."""
AWAY: Final = frozenset({"08", "28", "3D", "53", "57", "58"})
"""Classes of SQLSTATE that are about the server as a whole: no work would get through."""
_READ_ONLY: Final = "25006"
_OF_THE_SESSION: Final = frozenset({"0A", "26", "3F", "42"})
"""Classes of SQLSTATE for statements, schemas and tables that a session does not find."""
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
    """Raise a StoreUnavailableError for whatever is no fault of the work; see `judged`."""
    try:
        yield
    except Exception as bad:
        if (judged_as := judged(bad)) is None:
            raise
        raise judged_as from bad


def judged(error: Exception) -> StoreUnavailableError | None:
    """Decide whether the database failed, or the work; None: the work, by its data or by a bug of ours.

    This is the one place where that is decided. Of what a server says only the classes in `DATA` blame the
    work: whatever else it refuses, it may take later, without anything having changed in the work.
    """
    words = str(error) or type(error).__name__
    if isinstance(error, StoreUnavailableError):
        return error
    if isinstance(error, LOST_RACES):
        return TransientError(words)
    if isinstance(error, TimeoutError):
        return StoreUnavailableError(f"no answer within {ANSWER_WITHIN:.0f} s")
    if isinstance(error, asyncpg.PostgresError):
        state = _state(error)
        if state[:2] in DATA:
            return None
        if state[:2] in AWAY or state == _READ_ONLY:
            return StoreUnavailableError(words)
        return WorkRefusedError(f"{words} (SQLSTATE {state})")
    if isinstance(error, asyncpg.InterfaceError):
        # The driver refuses values that it can't send with an error that is a ValueError as well.
        return None if isinstance(error, ValueError) else StoreUnavailableError(words)
    if isinstance(error, OSError | EOFError | asyncpg.InternalClientError):
        return StoreUnavailableError(words)
    return None


def of_the_session(error: asyncpg.PostgresError) -> bool:
    """Say whether another session may not meet the error: it may find other tables, or another server."""
    return _state(error) == _READ_ONLY or _state(error)[:2] in _OF_THE_SESSION


def _state(error: asyncpg.PostgresError) -> str:
    return str(getattr(error, "sqlstate", None) or "?????")


@asynccontextmanager
async def borrowed(pool: asyncpg.Pool[Any]) -> AsyncIterator[Session]:
    """Borrow a connection; one that does not answer is not used again.

    Raises as asyncpg does, but StoreUnavailableError for whatever a server says to who connects:
    that is never a fault of the work.
    """
    try:
        connection = await pool.acquire(timeout=ANSWER_WITHIN)
    except Exception as refusal:
        if isinstance(refusal, TimeoutError):
            raise
        raise StoreUnavailableError(str(refusal) or type(refusal).__name__) from refusal
    try:
        yield connection
    except TimeoutError:
        connection.terminate()  # it would wait for the server to confirm the cancellation
        raise
    except asyncpg.InternalClientError:
        connection.terminate()  # asyncpg loses its thread over what a server says in leaving
        raise
    except asyncpg.PostgresError as no:
        if of_the_session(no):
            await (
                pool.expire_connections()
            )  # the others were made at the same time, and are no better
            connection.terminate()
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
