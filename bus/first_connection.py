"""The first connection: one try, a clear word when it fails, and upkeep from then on."""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import nats.errors
from nats.aio.client import Server

from bus import Refused, Unavailable, Untrusted
from bus.backoff import retry_delay
from bus.client import NO_TLS
from bus.connection import Connection
from bus.urls import redacted, scheme

log = logging.getLogger(__name__)

_PING_INTERVAL: Final = 3
"""Seconds; a server that has left two pings unanswered is given up."""
_CONNECT_WITHIN: Final = 2
_SLOWEST_RETRY: Final = 1.0
TOLD_EVERY: Final = 60.0
"""Seconds between two words that there is still no server."""


async def open_connection(
    url: str,
    *,
    name: str | None,
    seed: str | None,
    seed_file: Path | None,
    jwt: str | None,
    inbox_prefix: str,
    tls: ssl.SSLContext | None,
    wait: bool,
) -> Connection:
    """Connect as `bus.jetstream.connect` says."""
    options: dict[str, Any] = {"name": name, "tls": tls, "inbox_prefix": inbox_prefix}
    if seed_file is not None:
        options["nkeys_seed"] = str(seed_file)
    elif seed is not None:
        options["nkeys_seed_str"] = seed
    if jwt is not None:
        options["user_jwt_cb"] = jwt.encode
    attempts, told = 0, -math.inf
    while True:
        try:
            connection = await _try(url, options, tls is not None or scheme(url) in ("tls", "wss"))
        except Unavailable as no:
            _heed_cancel()
            if not wait or isinstance(no, Untrusted):
                raise
            if (now := asyncio.get_running_loop().time()) - told >= TOLD_EVERY:
                told = now
                log.warning("%s; trying again", no)
        else:
            try:
                _heed_cancel()
            except asyncio.CancelledError:
                await connection.close()
                raise
            return connection
        attempts += 1
        await asyncio.sleep(retry_delay(attempts, limit=_SLOWEST_RETRY))  # back-off


def _heed_cancel() -> None:
    """Raise CancelledError if that was done already: Python 3.11 forgets it when a socket opens just then."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _try(url: str, options: Mapping[str, Any], secret: bool) -> Connection:
    connection = Connection(secret=secret)
    try:
        # nats-py would try the first connection for ever: so that is a single try.
        await connection.connect(
            url.split(","),
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            reconnect_to_server_handler=_next_server,
            connect_timeout=_CONNECT_WITHIN,
            ping_interval=_PING_INTERVAL,
            pending_size=0,
            error_cb=connection.report,
            disconnected_cb=connection.lost,
            reconnected_cb=connection.back,
            closed_cb=connection.ended,
            **options,
        )
        if not connection.is_connected:
            raise nats.errors.UnexpectedEOF  # nats-py takes an early EOF for a yes
        connection.keep_up()
    except (OSError, nats.errors.Error, TimeoutError) as error:
        reason = redacted(connection.reason or str(error) or type(error).__name__)
        where = redacted(url)
        with suppress(Exception):
            await connection.close()
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            raise Untrusted(
                f"the certificate of {where} is not to be trusted ({reason}): name who signed it "
                "with --nats-ca or WORKSPACED_NATS_CA, and the server as the certificate does"
            ) from None
        if NO_TLS in reason:
            raise Untrusted(
                f"no NATS at {where} over TLS: {reason}, and without anybody on the way could read "
                "and change what passes; name the right server, or let this one speak TLS"
            ) from None
        if "authorization" in reason.lower():
            raise Refused(
                f"{where} does not accept these credentials, or nobody is there to judge them: {reason}"
            ) from None
        raise Unavailable(f"no NATS at {where}: {reason}") from error
    if (why := connection.too_narrow()) is not None:
        await connection.close()
        raise Refused(f"{redacted(url)}: {why}")
    return connection


def _next_server(
    servers: Sequence[Server], _info: Mapping[str, Any]
) -> tuple[Server | None, float]:
    """Choose whom to try next and after how long, so that not all clients come back at once."""
    server = min(servers, key=lambda candidate: candidate.reconnects)
    return server, retry_delay(server.reconnects, limit=_SLOWEST_RETRY)
