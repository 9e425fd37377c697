"""Opens a connection to NATS: one attempt or retries, with an error that says what to do.

URLs of servers may contain passwords: `redacted` removes them before a URL is logged.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Server
from workspaced.nats_py import prepare_websockets

from bus.errors import Refused, Unavailable, Untrusted, retry_delay
from bus.nats_client import NO_TLS, NatsClient

log = logging.getLogger(__name__)

_PING_INTERVAL: Final = 3
"""Seconds; the connection is considered broken after two unanswered pings."""
_CONNECT_TIMEOUT: Final = 2
_SLOWEST_RETRY: Final = 1.0
LOG_INTERVAL: Final = 60.0
"""Seconds between two warnings that there is still no server."""
_SCHEMES: Final = ("nats", "tls", "ws", "wss")
_USERINFO: Final = re.compile(r"(?P<scheme>\w+://)(?P<user>(?:(?!,\w+://)\S)*)@")
"""Up to the last `@` before the next URL: an unescaped password may contain `/`, `#`, `,` or `@`."""
_QUERY: Final = re.compile(r"(?i)(?P<key>[?&](?:password|sslpassword|passfile|token)=)[^&\s]*")


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
) -> NatsClient:
    """Connect as documented at `bus.jetstream.connect`."""
    _check_urls(url)
    prepare_websockets(url)
    options: dict[str, Any] = {"name": name, "tls": tls, "inbox_prefix": inbox_prefix}
    if seed_file is not None:
        options["nkeys_seed"] = str(seed_file)
    elif seed is not None:
        options["nkeys_seed_str"] = seed
    if jwt is not None:
        options["user_jwt_cb"] = jwt.encode
    attempts, logged_at = 0, -math.inf
    while True:
        try:
            client = await _try(url, options, tls is not None or scheme(url) in ("tls", "wss"))
        except Unavailable as error:
            _raise_if_cancelled()
            if not wait or isinstance(error, Untrusted):
                raise
            if (now := asyncio.get_running_loop().time()) - logged_at >= LOG_INTERVAL:
                logged_at = now
                log.warning("%s; trying again", error)
        else:
            try:
                _raise_if_cancelled()
            except asyncio.CancelledError:
                await client.close()
                raise
            return client
        await asyncio.sleep(retry_delay(attempts, limit=_SLOWEST_RETRY))  # back-off
        attempts += 1


def _check_urls(urls: str) -> None:
    """Raise Refused if no server can have one of these URLs: to try again would not help."""
    for url in urls.split(","):
        if not _is_readable(url):
            raise Refused(
                f"{redacted(url)!r} is no URL of a NATS server: it is like nats://host:4222 and begins "
                f"with {', '.join(f'{name}://' for name in _SCHEMES)}; the port is a number from 1 to "
                "65535; a user or password in it has %2F for /, %23 for #, %3F for ?, %3A for :, %40 for "
                "@ and %2C for a comma"
            )


def _is_readable(url: str) -> bool:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        known = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    # An "@" behind the host belongs to a password with an unescaped "/", "?" or "#".
    return known and url == url.strip() and "@" not in f"{parts.path}{parts.query}{parts.fragment}"


def _raise_if_cancelled() -> None:
    """Raise a pending CancelledError: Python 3.11 loses it when a socket opens at the same moment."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _try(url: str, options: Mapping[str, Any], tls_required: bool) -> NatsClient:
    client = NatsClient(tls_required=tls_required)
    try:
        # One attempt only: left to itself, nats-py would retry a first connection without end.
        await client.connect(
            url.split(","),
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            reconnect_to_server_handler=_next_server,
            connect_timeout=_CONNECT_TIMEOUT,
            ping_interval=_PING_INTERVAL,
            pending_size=0,
            error_cb=client.report_error,
            disconnected_cb=client.report_disconnect,
            reconnected_cb=client.report_reconnect,
            closed_cb=client.report_closed,
            **options,
        )
        if not client.is_connected:
            raise nats.errors.UnexpectedEOF  # nats-py returns normally after an early EOF
        client.enable_reconnect()
    except (OSError, nats.errors.Error, TimeoutError) as error:
        reason = redacted(client.error_text or str(error) or type(error).__name__)
        with suppress(Exception):
            await client.close()
        raise _explained(redacted(url), reason) from error
    if (problem := client.payload_problem()) is not None:
        await client.close()
        raise Refused(f"{redacted(url)}: {problem}")
    return client


def _explained(where: str, reason: str) -> Refused | Unavailable:
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return Untrusted(
            f"the certificate of {where} can't be verified ({reason}): name the CA that signed it "
            "with --nats-ca or WORKSPACED_NATS_CA, and write the host in the URL as the certificate names it"
        )
    if NO_TLS in reason:
        return Untrusted(
            f"no NATS at {where} over TLS: {reason}, and in plain text anybody on the way could read "
            "and change the messages; name the right server, or enable TLS on this one"
        )
    if "authorization" in reason.lower():
        return Refused(
            f"{where} does not accept these credentials, or no gateway runs to check them: {reason}"
        )
    return Unavailable(f"no NATS at {where}: {reason}")


def _next_server(
    servers: Sequence[Server], _info: Mapping[str, Any]
) -> tuple[Server | None, float]:
    """Return the server to try next, and a random delay so that clients do not reconnect at once."""
    server = min(servers, key=lambda candidate: candidate.reconnects)
    return server, retry_delay(server.reconnects, limit=_SLOWEST_RETRY)


def redacted(text: str) -> str:
    """Return the text with `***` in place of each password in its URLs; commas may separate URLs."""
    return _QUERY.sub(r"\g<key>***", _USERINFO.sub(_without_password, text))


def anonymous(urls: str) -> str:
    """Return NATS URLs without user and password, for processes that have their own credentials."""
    return _USERINFO.sub(r"\g<scheme>", urls)


def scheme(urls: str) -> str:
    """Return the scheme of the first URL in lower case; nats-py requires one scheme for all."""
    first, found, _ = urls.partition("://")
    return first.lower() if found else "nats"


def _without_password(found: re.Match[str]) -> str:
    user, colon, _ = found["user"].partition(":")
    # In a NATS URL a user without password may be a token, which is secret; in a database URL it is a name.
    if not colon and not found["scheme"].startswith("postgres"):
        user, colon = "***", ""
    return f"{found['scheme']}{user}{':***' if colon else ''}@"
