"""Cutting off who is in and may be no longer: NATS asks who somebody is at the door only."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from bus import Bus, BusError, NoResponder, subjects
from bus.backoff import Backoff
from statemachine.store import ClientConnection, Store, StoreUnavailableError

log = logging.getLogger(__name__)
WITHIN: Final = 5.0
"""Seconds that a server may take to close a connection."""
LAST_WORDS: Final = 2.0
"""Seconds that an agent is left when its build is superseded: for what its shutdown script prints."""


async def cut_off(
    store: Store,
    bus: Bus,
    *,
    chat_ids: AbstractSet[str] | None = None,
    public_key: str | None = None,
) -> tuple[int, int]:
    """Cut off whose key is good no longer: agents of these chats, holders of a key, or everybody.

    Return how many, and of how many the server can't be found. Raises as `cut`, after all others
    were tried.
    """
    there, away, after = 0, 0, None
    failed: BusError | TimeoutError | None = None
    while found := await store.credentials.invalid_connections(
        chat_ids=chat_ids, public_key=public_key, after=after
    ):
        after = found[-1]
        try:
            ended = await cut(store, bus, found)
        except (BusError, TimeoutError) as bad:
            failed = failed or bad
        else:
            there, away = there + ended, away + len(found) - ended
    if failed is not None:
        raise failed
    return there, away


async def cut(store: Store, bus: Bus, connections: Sequence[ClientConnection]) -> int:
    """Have the servers close these connections, and forget them; return how many.

    Of a server that is not to be found they are kept: it may be one that this side of a cluster does
    not see now. If it is gone, its successor or the end of the key has them forgotten.
    Raises StoreUnavailableError, and what the first server that failed said (BusError, TimeoutError):
    the connections of others are ended and forgotten by then.
    """
    asked = await asyncio.gather(*(_kick(bus, one) for one in connections), return_exceptions=True)
    ended = [one for one, there in zip(connections, asked, strict=True) if there is True]
    await store.credentials.forget_connections(ended)
    for answer in asked:
        if isinstance(answer, BaseException):
            raise answer
    return len(ended)


async def can_cut(bus: Bus, server: str) -> bool:
    """Say whether that server, which is there, would cut somebody off for us."""
    try:
        await _ask(bus, ClientConnection(server, 0))  # nobody is called that
    except NoResponder:
        return False
    return True


async def _kick(bus: Bus, connection: ClientConnection) -> bool:
    try:
        await _ask(bus, connection)
    except NoResponder:
        return False
    log.info("cut off connection %d of server %s", connection.client, connection.server)
    return True


async def _ask(bus: Bus, connection: ClientConnection) -> None:
    """Ask; a connection that is not there any more is answered too."""
    body = json.dumps({"cid": connection.client}).encode()
    await bus.request(subjects.kick(connection.server), body, timeout=WITHIN)


class Cutting:
    """Cuts off the agents of superseded builds, beside the work: when told, and at first all."""

    def __init__(self, store: Store, bus: Bus) -> None:
        self._store, self._bus = store, bus
        self._chats: set[str] = set()
        self._told = asyncio.Event()

    def superseded(self, chat_ids: set[str]) -> None:
        """Take these chats, whose agents of earlier builds are to be cut off after their last words."""
        if chat_ids:
            asyncio.get_running_loop().call_later(LAST_WORDS, self._cut_off, chat_ids.copy())
            chat_ids.clear()

    def _cut_off(self, chat_ids: AbstractSet[str]) -> None:
        self._chats |= chat_ids
        self._told.set()

    async def run(self) -> None:
        """Cut off until cancelled. Whom a worker that died did not get to is found at the start."""
        backoff, everybody = Backoff(), True
        while True:
            chats, self._chats = self._chats, set()
            self._told.clear()
            try:
                await cut_off(self._store, self._bus, chat_ids=None if everybody else chats)
            except (BusError, TimeoutError, StoreUnavailableError) as bad:
                log.warning("agents of superseded builds are not cut off yet: %s", bad)
                self._chats |= chats
                await backoff.wait()
                continue
            backoff.reset()
            everybody = False
            await self._told.wait()
