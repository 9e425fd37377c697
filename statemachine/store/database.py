"""Runs the statements of queries.sql over a pool of connections.

`classify_error` decides which of the driver's errors are the database's fault.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from importlib.resources import files
from typing import Any, Final, TypeAlias

import asyncpg

from statemachine.store.errors import StoreUnavailableError, TransientError, WorkRefusedError

Session: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"
Pooled: TypeAlias = "asyncpg.pool.PoolConnectionProxy[Any]"
Rows = Sequence[Mapping[str, Any]]
Fetch = Callable[..., Awaitable[Rows]]
"""Runs the statement with a name; returns its rows."""
RESPONSE_TIMEOUT: Final = 10.0
"""Seconds. A database that does not answer within this time counts as unreachable."""
LONGEST_IDLE: Final = 300.0
"""Seconds after which an unused connection is replaced."""
TRANSIENT_ERRORS: Final = (
    asyncpg.TransactionRollbackError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
)
"""The same transaction may succeed next time: deadlocks, locks and timeouts."""
NAME_INDEX: Final = "workspace_requested_name"
"""The index that rejects a name which was given to another workspace since it was looked up."""
DATA_CLASSES: Final = frozenset({"21", "22", "23", "54"})
"""Classes of SQLSTATE that blame the transaction's data: cardinality, data, constraints, program limits."""
SERVER_CLASSES: Final = frozenset({"08", "28", "3D", "53", "57", "58"})
"""Classes of SQLSTATE about the server as a whole: it accepts no transaction now."""
_SESSION_CLASSES: Final = frozenset({"0A", "26", "3F", "42"})
"""Classes of SQLSTATE for statements, schemas and tables that a session does not find."""
_READ_ONLY: Final = "25006"
_NOT_FOR_FACTS: Final = re.compile(r"^-- not for facts$.*?(^-- end$|\Z)", re.MULTILINE | re.DOTALL)
"""The parts of `look` and `write` that batches of facts do not need."""


def named_statements(file: str) -> dict[str, str]:
    """Read an SQL file of this package; return the text below each line `-- name: NAME`, by name."""
    text = files(__package__).joinpath(file).read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return {name: part.strip() for name, part in zip(parts[1::2], parts[2::2], strict=True)}


@cache
def queries() -> dict[str, str]:
    """Return the statements of queries.sql by name.

    `look_facts` and `write_facts` are `look` and `write` without what only requests and alarms need: the server takes a
    third less time for them when a batch is small.
    """
    found = named_statements("queries.sql")
    return found | {
        f"{name}_facts": _NOT_FOR_FACTS.sub("", found[name]).strip() for name in ("look", "write")
    }


QUERIES: Final = queries()


class Database:
    """A pool of connections to a database of workspaced."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool
        self._kept: tuple[Pooled, float] | None = None
        """A borrowed connection that nobody uses, and since when. The pool makes two tasks for each loan."""
        self._waiting = 0
        """How many callers wait for a connection of the pool."""
        self._expired = 0
        """How often all connections were replaced."""

    async def fetch(self, name: str, *args: object) -> Rows:
        """Run a statement on its own; return its rows.

        Raises StoreUnavailableError; an error that blames `args` passes through as the driver raised it.
        """
        with translate_errors(), _keep_cancellation():
            try:
                return await self._fetch_once(name, args)
            except asyncpg.PostgresError as error:
                if not is_session_error(error):
                    raise
            return await self._fetch_once(name, args)  # in a new session

    async def _fetch_once(self, name: str, args: Sequence[object]) -> Rows:
        async with self._acquire() as session:
            return await session.fetch(QUERIES[name], *args)

    async def expire_sessions(self) -> None:
        """Use new sessions from now on: they may reach another server, or see other tables."""
        self._expired += 1
        await self._pool.expire_connections()
        if self._kept is not None:
            (session, _), self._kept = self._kept, None
            await self._pool.release(session)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        """Commit at the end of the block, roll back when it raises. Raises like `fetch`."""
        with translate_errors(), _keep_cancellation():
            async with self._acquire() as session, session.transaction():
                yield session

    @asynccontextmanager
    async def _acquire(self) -> AsyncIterator[Session]:
        """Borrow a connection; one that fails is not used again.

        Raises like asyncpg, but StoreUnavailableError for every error of a new connection:
        no statement is at fault for that.
        """
        expired, session, keep = self._expired, await self._borrow(), False
        try:
            yield session
            keep = self._kept is None and not self._waiting and expired == self._expired
        except (TimeoutError, asyncio.CancelledError):
            session.terminate()  # otherwise it would wait for the server to confirm the cancellation
            raise
        except asyncpg.InternalClientError:
            session.terminate()  # asyncpg can't follow the protocol after a server's last message
            raise
        except asyncpg.PostgresError as error:
            if is_session_error(error):
                await self.expire_sessions()  # the others were opened at the same time
                session.terminate()
            raise
        finally:
            if keep:
                self._kept = session, _now()
            else:
                await self._pool.release(session)

    async def _borrow(self) -> Pooled:
        if self._kept is not None:
            (session, since), self._kept = self._kept, None
            with suppress(asyncpg.InterfaceError):  # it was closed and is back in the pool
                if _now() > since + LONGEST_IDLE:
                    session.terminate()  # a firewall may have forgotten it
                elif not session.is_closed():
                    return session
            await self._pool.release(session)
        self._waiting += 1
        try:
            return await self._pool.acquire(timeout=RESPONSE_TIMEOUT)
        except TimeoutError:
            raise
        except Exception as error:
            raise StoreUnavailableError(str(error) or type(error).__name__) from error
        finally:
            self._waiting -= 1


def _now() -> float:
    return asyncio.get_running_loop().time()


# -- errors of the driver -------------------------------------------------------------------------


@contextmanager
def _keep_cancellation() -> Iterator[None]:
    """Raise CancelledError instead of any error if the task was cancelled.

    To cancel a statement, the driver opens another connection, and raises that one's error if it cannot.
    """
    try:
        yield
    except Exception as error:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError from error
        raise


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
    # When a timeout ends the session, the driver raises an error of the connection, caused by the server's reason.
    if isinstance(error, TRANSIENT_ERRORS) or isinstance(error.__cause__, TRANSIENT_ERRORS):
        return TransientError(message)
    if isinstance(error, asyncpg.UniqueViolationError) and error.constraint_name == NAME_INDEX:
        return TransientError("another workspace of the owner got the same name at the same time")
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
