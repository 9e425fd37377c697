"""Translates the driver's errors into the store's: which of them are the database's fault.

The caller tries again without limit what is the database's fault. An error that blames the data of the
transaction passes through, because the same data will fail again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from statemachine.store import StoreUnavailableError, TransientError, WorkRefusedError

RESPONSE_TIMEOUT: Final = 10.0
"""Seconds. A database that does not answer within this time counts as unreachable."""
TRANSIENT_ERRORS: Final = (
    asyncpg.TransactionRollbackError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
)
"""The same transaction may succeed next time: deadlocks, locks and timeouts."""
DATA_CLASSES: Final = frozenset({"21", "22", "23", "54"})
"""Classes of SQLSTATE that blame the transaction's data: cardinality, data, constraints, program limits."""
SERVER_CLASSES: Final = frozenset({"08", "28", "3D", "53", "57", "58"})
"""Classes of SQLSTATE about the server as a whole: it accepts no transaction now."""
_SESSION_CLASSES: Final = frozenset({"0A", "26", "3F", "42"})
"""Classes of SQLSTATE for statements, schemas and tables that a session does not find."""
_READ_ONLY: Final = "25006"


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise StoreUnavailableError instead of every error that `classify_error` blames on the database."""
    try:
        yield
    except Exception as error:
        if (translated := classify_error(error)) is None:
            raise
        raise translated from error


def classify_error(error: Exception) -> StoreUnavailableError | None:
    """Return what to raise instead of `error`, or None when the data or a bug is at fault.

    This is the only place that decides it. A server's error blames the data only if its SQLSTATE is in
    `DATA_CLASSES`. Whatever else the server refuses, it may accept later with the same data.
    """
    message = str(error) or type(error).__name__
    if isinstance(error, StoreUnavailableError):
        return error
    if isinstance(error, TRANSIENT_ERRORS):
        return TransientError(message)
    if isinstance(error, TimeoutError):
        return StoreUnavailableError(f"no answer within {RESPONSE_TIMEOUT:.0f} s")
    if isinstance(error, asyncpg.PostgresError):
        state = _sqlstate(error)
        if state[:2] in DATA_CLASSES:
            return None
        if state[:2] in SERVER_CLASSES or state == _READ_ONLY:
            return StoreUnavailableError(message)
        return WorkRefusedError(f"{message} (SQLSTATE {state})")
    if isinstance(error, asyncpg.InterfaceError):
        # For values that it can't encode, the driver raises an InterfaceError that is a ValueError too.
        return None if isinstance(error, ValueError) else StoreUnavailableError(message)
    if isinstance(error, OSError | EOFError | asyncpg.InternalClientError):
        return StoreUnavailableError(message)
    return None


def is_session_error(error: asyncpg.PostgresError) -> bool:
    """Say whether a new session may not have the error: it may see other tables or reach another server."""
    return _sqlstate(error) == _READ_ONLY or _sqlstate(error)[:2] in _SESSION_CLASSES


def _sqlstate(error: asyncpg.PostgresError) -> str:
    return str(getattr(error, "sqlstate", None) or "?????")
