"""Decides at each connect to NATS whether the client's issued key is valid, and records the connection.

Connections are recorded so that they can be closed when their key becomes invalid.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from bus import Bus, BusError, Message, subjects
from handlers.access import auth_protocol
from handlers.access.auth_protocol import DENIAL_MESSAGES, ConnectRequest, DenialReason, Grant
from handlers.access.disconnect import can_disconnect, disconnect
from handlers.access.issued_keys import grant_for
from handlers.runtime import clock
from statemachine.store import ClientConnection, Credential, Store, StoreUnavailableError

log = logging.getLogger(__name__)
LOG_INTERVAL: Final = 60.0
"""Seconds in which a repeated failure is counted but not logged: refused clients retry for ever."""
MAX_REMEMBERED: Final = 1000
"""Different failures for which the time of the last log line is remembered."""


class AuthCallout:
    """Answers nats-server's auth callout requests; several gateways may do so at the same time."""

    def __init__(self, store: Store, bus: Bus, issuer_seed: str) -> None:
        self._store, self._bus, self._issuer_seed = store, bus, issuer_seed
        self.failures = AuthFailures()
        self._servers: set[str] = set()
        self._checks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start to answer requests. Raises BusError."""
        await self._bus.respond(subjects.AUTH_CALLOUT, auth_protocol.QUEUE, self._respond)

    async def _respond(self, message: Message) -> bytes:
        """Answer a request. If this raises, the bus logs the error, and the server refuses the client."""
        response = await auth_protocol.answer(
            message.data, self._issuer_seed, self.look_up, datetime.now(UTC)
        )
        if response.denial is not None:
            self.failures.record(response.request, response.denial)
        return response.token

    async def look_up(self, request: ConnectRequest) -> Grant | DenialReason:
        """Return the rights of the holder of a key, or the reason for refusing it.

        The key is checked again after the connection is recorded. If the key is revoked or its build is
        superseded after that, the recorded connection is found and closed; if it happened before, the
        second check finds it.
        """
        credential = await self._valid_credential(request.public_key)
        if isinstance(credential, DenialReason):
            return credential
        await self._register_server(request)
        connection = ClientConnection(request.server_id, request.client_id)
        excess = await self._store.credentials.record_connection(
            request.public_key, connection, request.server_name, credential
        )
        credential = await self._valid_credential(request.public_key)
        if isinstance(credential, DenialReason):
            await self._store.credentials.forget_connections([connection])
            return credential
        if excess:
            await self._disconnect_excess(request, excess)
        return grant_for(request.public_key, credential)

    async def _valid_credential(self, public_key: str) -> Credential | DenialReason:
        found = await self._store.credentials.get(public_key)
        if found is None:
            return DenialReason.UNKNOWN
        return found.credential if found.denial is None else DenialReason(found.denial)

    async def _disconnect_excess(
        self, request: ConnectRequest, connections: list[ClientConnection]
    ) -> None:
        log.warning(
            "key %s has too many connections: closing its oldest %d",
            request.public_key,
            len(connections),
        )
        try:
            await disconnect(self._store, self._bus, connections)
        except (BusError, TimeoutError, StoreUnavailableError) as error:
            log.warning("could not close them; the key's next connect tries again: %s", error)

    async def _register_server(self, request: ConnectRequest) -> None:
        """For a new nats-server process, delete the records of connections to its earlier process."""
        if request.server_id in self._servers:
            return
        await self._store.credentials.forget_earlier_server(request.server_name, request.server_id)
        self._servers.add(request.server_id)
        check = asyncio.create_task(self._check_disconnect_support(request.server_id))
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)

    async def _check_disconnect_support(self, server_id: str) -> None:
        try:
            if await can_disconnect(self._bus, server_id):
                return
        except (BusError, TimeoutError) as error:
            log.info("could not check whether server %s closes connections: %s", server_id, error)
            return
        log.error(
            "server %s does not close the connections of revoked keys, because its configuration is "
            "of an older version: generate it again with `workspaced nats-auth`",
            server_id,
        )


@dataclass(slots=True)
class AuthFailures:
    """Counts denied connects, and logs each kind of failure at most once a minute per client."""

    clock: Callable[[], float] = clock
    counts: Counter[DenialReason] = field(default_factory=Counter)
    """Failures since the process started, by reason."""
    _last_logged: OrderedDict[tuple[str, str, DenialReason], tuple[float, int]] = field(
        default_factory=OrderedDict
    )
    """The time of the last log line, and the number of failures since, by key, address and reason."""

    def record(self, request: ConnectRequest, reason: DenialReason) -> None:
        """Count a failure, and log it unless the same one was logged within `LOG_INTERVAL`."""
        self.counts[reason] += 1
        now, failure = self.clock(), (request.public_key, request.address, reason)
        logged_at, unlogged = self._last_logged.pop(failure, (now - LOG_INTERVAL, 0))
        if now - logged_at < LOG_INTERVAL:
            self._last_logged[failure] = (logged_at, unlogged + 1)
            return
        self._last_logged[failure] = (now, 0)
        if len(self._last_logged) > MAX_REMEMBERED:
            self._last_logged.popitem(last=False)
        log.warning(
            "connect denied: %s (%s); key %r, client name %r, %s from %s; %d denied for this reason, "
            "%d of them from this client since the last log line",
            reason,
            DENIAL_MESSAGES[reason],
            request.public_key,
            request.client_name,
            request.client_type,
            request.address,
            self.counts[reason],
            unlogged + 1,
            extra={
                "why": str(reason),
                "public_key": request.public_key,
                "address": request.address,
            },
        )
