"""Opens connections to PostgreSQL: reads the database's URL and checks that the server is suitable.

A server is suitable if its database can store every text (UTF-8), and if a connection stays one session. A
pooler in transaction mode gives a client another session for each transaction. Timeouts, prepared statements
and locks of this process would then apply to other clients.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote_plus, unquote, urlsplit, urlunsplit

import asyncpg

from statemachine.store import (
    AccessDeniedError,
    MisconfiguredError,
    StoreUnavailableError,
    UnreachableError,
)
from statemachine.store.database import RESPONSE_TIMEOUT

UNREADABLE: Final = (
    "the database's URL can't be read; a password in it has %2F for /, %23 for #, %3F for ?, %3A for : "
    "and %40 for @"
)
"""Replaces the parser's message, which may contain a part of the password."""
POOLER: Final = (
    "between here and the database is a connection pooler in transaction mode (like pgbouncer's "
    "pool_mode=transaction), where a session belongs to several clients: name the database server itself, "
    "or let the pooler give this user sessions (pool_mode=session)"
)
_SCHEMES: Final = ("postgresql", "postgres")
_MOST_PORT: Final = 65_535
_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_FULFILLED: Final[Mapping[str, tuple[str, ...]]] = {
    "channel_binding": ("prefer", "disable"),
    "gssencmode": ("prefer", "disable"),
    "sslcompression": ("0",),
    "sslsni": ("1",),
    "sslcertmode": ("allow",),
    "keepalives": ("1",),
    "load_balance_hosts": ("disable",),
    "replication": ("false", "off", "no", "0"),
    "client_encoding": ("utf8", "utf-8", "unicode", "auto"),
}
"""Parameters of libpq that the driver does not know, and the values that match what it does anyway."""
_SESSIONS: Final = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")
"""The values of `target_session_attrs`; the driver's own message does not name them."""
_UNSUPPORTED: Final = frozenset(
    [
        "hostaddr",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "requirepeer",
        "require_auth",
        "sslcrldir",
        "gssdelegation",
        "servicefile",
        "min_protocol_version",
        "max_protocol_version",
        "sslkeylogfile",
        "scram_client_key",
        "scram_server_key",
        "oauth_issuer",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_scope",
    ]
)
"""Parameters of libpq that neither the driver nor the server knows."""
_NOT_ADMITTED: Final = frozenset({"28", "3D"})
"""Classes of SQLSTATE for a wrong user or password, and for an unknown database."""
_REFUSED_SETTING: Final = re.compile(r'parameter(?::| "?)\s*"?([\w.]+)')
"""Finds the setting's name in the error of a server, or of a pooler, that rejects it."""
_WHO: Final = "select pg_backend_pid() as pid, current_setting('server_encoding') as encoding"
_TURNS: Final = "ABBAABABBA"
"""The order in which two connections are asked. With a regular order, a pooler that rotates could stay undetected."""


@dataclass(frozen=True, slots=True)
class Address:
    """A database's URL, prepared for the driver."""

    url: str
    timeout: float = RESPONSE_TIMEOUT
    """Seconds within which a connection must open."""
    asked: frozenset[str] = frozenset()
    """The server's settings that the URL sets."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments for the driver."""


def read_url(url: str) -> Address:
    """Parse a database's URL. Raises MisconfiguredError with a message that contains no password."""
    try:
        parts = urlsplit(url.strip())
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise MisconfiguredError(UNREADABLE) from None
    if parts.scheme not in _SCHEMES:
        raise MisconfiguredError(
            "the database's URL can't be read: it begins with postgresql://, like "
            "postgresql://user:password@host:5432/database"
        )
    # An "@" behind the host belongs to a password with an unescaped "/", "?" or "#".
    if parts.fragment or "@" in parts.path or any("@" in f"{n}{v}" for n, v in given):
        raise MisconfiguredError(UNREADABLE)
    if "\0" in unquote(url):
        raise MisconfiguredError("the database's URL contains %00, which no PostgreSQL accepts")
    values = {name: value for name, value in given if value != ""}
    where = parts.netloc.rpartition("@")[2]
    hosts = [host for host in (where or unquote(values.get("host", ""))).split(",") if host]
    for port in (*map(_port_in, hosts), *values.get("port", "").split(",")):
        _check_port(port)
    timeout = _timeout(values.pop("connect_timeout", None))
    if (name := values.pop("fallback_application_name", None)) is not None:
        values.setdefault("application_name", name)
    for name in list(values):
        _check(name, values)
    options: dict[str, Any] = {}
    if len(hosts) > 1 and "target_session_attrs" not in values:
        options["target_session_attrs"] = (
            "read-write"  # after a failover, the one that accepts changes
        )
    query = "&".join(f"{name}={quote_plus(value)}" for name, value in values.items())
    netloc = parts.netloc.replace("@", "%40", parts.netloc.count("@") - 1)
    return Address(
        urlunsplit((parts.scheme, netloc, parts.path, query, "")),
        timeout,
        frozenset(values),
        options,
    )


def _port_in(host: str) -> str:
    """Return the port in `host:port`; empty for none."""
    if host.startswith("/"):
        return ""
    return host.rpartition("]")[2].partition(":")[2]


def _check_port(port: str) -> None:
    if port == "":
        return
    if not (port.isascii() and port.isdecimal()):
        raise MisconfiguredError(UNREADABLE)
    if not 0 < int(port) <= _MOST_PORT:
        raise MisconfiguredError(
            f"the database's URL names port {port}: ports are numbers from 1 to {_MOST_PORT}"
        )


def _timeout(text: str | None) -> float:
    if text is None:
        return RESPONSE_TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        raise MisconfiguredError(
            "connect_timeout in the database's URL is a number of seconds"
        ) from None
    return min(seconds, 600.0) if seconds > 0 else RESPONSE_TIMEOUT


def _check(name: str, values: dict[str, str]) -> None:
    """Remove a parameter that matches what the driver does anyway. Raises MisconfiguredError for others."""
    value = values[name]
    if name in _FULFILLED:
        if value.lower() not in _FULFILLED[name]:
            known = " or ".join(_FULFILLED[name])
            raise MisconfiguredError(
                f"{name}={value} in the database's URL is not supported: remove it, or say {known}"
            )
        del values[name]
    elif name == "target_session_attrs" and value not in _SESSIONS:
        raise MisconfiguredError(
            f"{name}={value} in the database's URL is not supported: say {' or '.join(_SESSIONS)}"
        )
    elif name in _UNSUPPORTED:
        raise MisconfiguredError(
            f"parameter {name} in the database's URL is not supported: remove it"
        )
    elif name in _FILES:
        try:
            with Path(value).open("rb"):
                pass
        except OSError as error:
            raise MisconfiguredError(
                f"{name} in the database's URL names {value}, which can't be read: {error.strerror}"
            ) from error


@contextmanager
def translate_connect_errors(
    address: Address, limits: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Translate every error that the driver raises while it opens a connection.

    Raises UnreachableError, or MisconfiguredError if waiting does not help.
    """
    try:
        yield
    except StoreUnavailableError:
        raise
    except asyncpg.PostgresError as error:
        raise _refused(error, address, limits or {}) from error
    except TimeoutError as error:
        raise UnreachableError(
            f"can't open the database: no answer within {address.timeout:g} s"
        ) from error
    except asyncpg.ClientConfigurationError as error:
        raise MisconfiguredError(f"can't open the database: {_first_line(error)}") from None
    except ValueError as error:
        if isinstance(error, UnicodeError):  # of the host's name
            raise UnreachableError(f"can't open the database: {error}") from None
        raise MisconfiguredError(UNREADABLE) from None
    except Exception as error:  # no statement was sent that could be at fault
        raise UnreachableError(
            f"can't open the database: {_first_line(error) or type(error).__name__}"
        ) from error


def _refused(
    error: asyncpg.PostgresError, address: Address, limits: Mapping[str, str]
) -> StoreUnavailableError:
    found = _REFUSED_SETTING.search(str(error))
    if str(error.sqlstate)[:2] in _NOT_ADMITTED:
        return AccessDeniedError(f"can't open the database: {error}")
    if found is None:
        return UnreachableError(f"can't open the database: {error}")
    if found[1] in limits:
        return MisconfiguredError(
            f"PostgreSQL 17 or later is needed, and no pooler between that refuses "
            f"{' and '.join(limits)}: {error}"
        )
    if found[1] in address.asked:
        return MisconfiguredError(
            f"parameter {found[1]} in the database's URL is not supported: remove it ({error})"
        )
    return UnreachableError(f"can't open the database: {error}")


def _first_line(bad: Exception) -> str:
    return str(bad).partition("\n")[0]


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """A connection to a suitable server."""

    connection: asyncpg.Connection[Any]
    pooled: bool
    """Whether a pooler is in between; it may ignore the settings that a connection asks for."""


@asynccontextmanager
async def open_connection(
    address: Address, limits: Mapping[str, str] | None = None
) -> AsyncIterator[OpenConnection]:
    """Open one connection. Raises StoreUnavailableError, also when the server is not suitable."""
    with translate_connect_errors(address, limits):
        connection = await _connect(address, limits)
    try:
        with translate_connect_errors(address, limits):
            pooled = await _examine(connection, address, limits)
        yield OpenConnection(connection, pooled)
    finally:
        await _close(connection)


async def _connect(address: Address, limits: Mapping[str, str] | None) -> asyncpg.Connection[Any]:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(
        address.url,
        timeout=address.timeout,
        statement_cache_size=0,
        server_settings=dict(limits or {}),
        **address.options,
    )
    return connection


async def _close(connection: asyncpg.Connection[Any]) -> None:
    try:
        await connection.close(timeout=RESPONSE_TIMEOUT)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        connection.terminate()


async def _examine(
    connection: asyncpg.Connection[Any], address: Address, limits: Mapping[str, str] | None
) -> bool:
    """Return whether a pooler is in between. Raises StoreUnavailableError if it, or the database, is not suitable."""
    who = await _ask(connection)
    if who["encoding"] != "UTF8":
        raise MisconfiguredError(
            f"the database has encoding {who['encoding']}, which can't hold every text: make one with encoding UTF8 "
            "(createdb --encoding=UTF8 --template=template0)"
        )
    # A pooler reports another process id to its clients than the server does.
    if who["pid"] == connection.get_server_pid():
        return False
    other = await _connect(address, limits)
    try:
        if await _share_sessions(connection, other):
            raise MisconfiguredError(POOLER)
    except TimeoutError as error:
        raise UnreachableError(
            f"can't open the database: the connection pooler before it gave no second session within "
            f"{RESPONSE_TIMEOUT:g} s; each process needs some (pgbouncer's default_pool_size)"
        ) from error
    finally:
        await _close(other)
    return True


async def _share_sessions(one: asyncpg.Connection[Any], other: asyncpg.Connection[Any]) -> bool:
    """Return whether two open connections share a session, or one of them uses several.

    In session mode neither happens. In transaction mode the first happens in a pool of one session, and the
    second in a larger pool as soon as both connections are used alternately.
    """
    seen: dict[str, set[int]] = {"A": set(), "B": set()}
    for name in _TURNS:
        seen[name].add((await _ask(one if name == "A" else other))["pid"])
        if seen["A"] & seen["B"] or len(seen[name]) > 1:
            return True
    async with one.transaction():  # keeps its session busy, so that the other one gets another
        return (await _ask(other))["pid"] not in seen["B"]


async def _ask(connection: asyncpg.Connection[Any]) -> Any:
    """Query process id and encoding, in a transaction, which no pooler spreads over several sessions."""
    try:
        async with asyncio.timeout(RESPONSE_TIMEOUT), connection.transaction():
            return await connection.fetchrow(_WHO)
    except (asyncpg.PostgresConnectionError, asyncpg.InvalidSQLStatementNameError) as error:
        if isinstance(error, asyncpg.InvalidSQLStatementNameError) or "pooling mode" in str(error):
            raise MisconfiguredError(f"{POOLER} ({error})") from error
        raise
