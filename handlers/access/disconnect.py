"""Closes connections to NATS whose key has become invalid.

nats-server asks whether a key is valid only when a client connects. Connections whose key was revoked,
or belongs to the agent of a superseded build, therefore have to be closed by `$SYS.REQ.SERVER.<id>.KICK`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from bus import Backoff, Bus, BusError, NoResponder, subjects
from statemachine.store import ClientConnection, Store, StoreUnavailableError

log = logging.getLogger(__name__)
REPLY_TIMEOUT: Final = 5.0
"""Seconds to wait for a server's answer to a KICK request."""
SHUTDOWN_GRACE: Final = 2.0
"""Seconds between a build's supersession and the disconnect of its agent, which may still send the
output of its shutdown scripts."""


async def disconnect_invalid(
    store: Store,
    bus: Bus,
    *,
    chat_ids: AbstractSet[str] | None = None,
    public_key: str | None = None,
) -> tuple[int, int]:
    """Close the connections of invalid keys: of agents of some chats, of one key, or all of them.

    Returns how many connections were closed, and how many are on servers that did not answer.
    Raises the first error of `disconnect` after it has tried all connections.
    """
    closed, unreachable, after = 0, 0, None
    failed: BusError | TimeoutError | None = None
    while found := await store.credentials.invalid_connections(
        chat_ids=chat_ids, public_key=public_key, after=after
    ):
        after = found[-1]
        try:
            ended = await disconnect(store, bus, found)
        except (BusError, TimeoutError) as error:
            failed = failed or error
        else:
            closed, unreachable = closed + ended, unreachable + len(found) - ended
    if failed is not None:
        raise failed
    return closed, unreachable


async def disconnect(store: Store, bus: Bus, connections: Sequence[ClientConnection]) -> int:
    """Ask the servers to close connections, delete their records, and return how many were closed.

    A record is kept if nobody answers for its server: in a partitioned cluster the server may be out
    of reach only for now. If the server is gone, the next process of that server or the end of the
    key deletes the record. Raises StoreUnavailableError, or the error of the first server that failed
    (BusError, TimeoutError), after the connections on the other servers were closed.
    """
    requests = (_kick(bus, one) for one in connections)
    answers = await asyncio.gather(*requests, return_exceptions=True)
    closed = [one for one, answer in zip(connections, answers, strict=True) if answer is True]
    await store.credentials.forget_connections(closed)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return len(closed)


async def can_disconnect(bus: Bus, server_id: str) -> bool:
    """Check whether a running server accepts KICK requests. Raises BusError and TimeoutError."""
    try:
        await _request_kick(bus, ClientConnection(server_id, 0))  # no connection has this number
    except NoResponder:
        return False
    return True


async def _kick(bus: Bus, connection: ClientConnection) -> bool:
    try:
        await _request_kick(bus, connection)
    except NoResponder:
        return False
    log.info("closed connection %d of server %s", connection.client, connection.server)
    return True


async def _request_kick(bus: Bus, connection: ClientConnection) -> None:
    """Send a KICK request; the server also answers if the connection is closed already."""
    body = json.dumps({"cid": connection.client}).encode()
    await bus.request(subjects.kick(connection.server), body, timeout=REPLY_TIMEOUT)


class SupersededAgents:
    """Disconnects the agents of superseded builds, in the background."""

    def __init__(self, store: Store, bus: Bus) -> None:
        self._store, self._bus = store, bus
        self._chats: set[str] = set()
        self._scheduled = asyncio.Event()

    def disconnect_later(self, chat_ids: set[str]) -> None:
        """Disconnect the agents of older builds of these chats after the grace period; empties the set."""
        if chat_ids:
            asyncio.get_running_loop().call_later(SHUTDOWN_GRACE, self._schedule, chat_ids.copy())
            chat_ids.clear()

    def _schedule(self, chat_ids: AbstractSet[str]) -> None:
        self._chats |= chat_ids
        self._scheduled.set()

    async def run(self) -> None:
        """Disconnect agents until cancelled.

        The first pass covers all chats, because a worker that crashed may have left some undone.
        """
        backoff, all_chats = Backoff(), True
        while True:
            chats, self._chats = self._chats, set()
            self._scheduled.clear()
            try:
                await disconnect_invalid(
                    self._store, self._bus, chat_ids=None if all_chats else chats
                )
            except (BusError, TimeoutError, StoreUnavailableError) as error:
                log.warning("could not disconnect agents of superseded builds yet: %s", error)
                self._chats |= chats
                await backoff.wait()
                continue
            backoff.reset()
            all_chats = False
            await self._scheduled.wait()
