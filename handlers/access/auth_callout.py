"""The door: NATS asks who may come in, and of everybody who may it is noted where they are."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from bus import Bus, BusError, Message
from handlers.access import auth_protocol
from handlers.access.auth_failures import Refusals
from handlers.access.auth_protocol import Visitor, Why
from handlers.access.disconnect import can_cut, cut
from handlers.access.grants import (
    Grant,
    agent_grant,
    frontend_grant,
    provisioner_grant,
    role_grant,
)
from statemachine.store import (
    CheckedCredential,
    ClientConnection,
    Credential,
    Store,
    StoreUnavailableError,
)

log = logging.getLogger(__name__)


class Door:
    """Answers NATS; any number of gateways do."""

    def __init__(self, store: Store, bus: Bus, issuer_seed: str) -> None:
        self._store, self._bus, self._issuer_seed = store, bus, issuer_seed
        self.refusals = Refusals()
        self._servers: set[str] = set()
        self._looking: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Answer from now on. Raises BusError."""
        await self._bus.respond(auth_protocol.SUBJECT, auth_protocol.QUEUE, self._respond)

    async def _respond(self, message: Message) -> bytes:
        """Answer one question. What it raises is logged; nobody comes in without an answer."""
        answered = await auth_protocol.answer(
            message.data, self._issuer_seed, self.grant_for, datetime.now(UTC)
        )
        if answered.refused is not None:
            self.refusals.note(answered.visitor, answered.refused)
        return answered.token

    async def grant_for(self, visitor: Visitor) -> Grant | Why:
        """Return what the holder of a key may do now, or why nothing."""
        found = _still_good(await self._store.credentials.get(visitor.key))
        if isinstance(found, Why):
            return found
        await self._meet(visitor)
        at = ClientConnection(visitor.server, visitor.client)
        too_many = await self._store.credentials.record_connection(
            visitor.key, at, visitor.server_name, found
        )
        # Looked at again once it is noted where: whoever takes the key back, or supersedes its build,
        # from here on finds the connection; who did so before is seen now.
        found = _still_good(await self._store.credentials.get(visitor.key))
        if isinstance(found, Why):
            await self._store.credentials.forget_connections([at])
            return found
        if too_many:
            await self._leave_off(visitor, too_many)
        return _granted(visitor.key, found)

    async def _leave_off(self, visitor: Visitor, too_many: list[ClientConnection]) -> None:
        log.warning(
            "key %s came in more often than is noted: its oldest connections, if open, end: %d",
            visitor.key,
            len(too_many),
        )
        try:
            await cut(self._store, self._bus, too_many)
        except (BusError, TimeoutError, StoreUnavailableError) as bad:
            log.warning("they could not be cut off, the next one tries again: %s", bad)

    async def _meet(self, visitor: Visitor) -> None:
        """Forget, of a server process that is new to us, the connections of the one before it."""
        if visitor.server in self._servers:
            return
        await self._store.credentials.forget_earlier_server(visitor.server_name, visitor.server)
        self._servers.add(visitor.server)
        looking = asyncio.create_task(self._look_at(visitor.server))
        self._looking.add(looking)
        looking.add_done_callback(self._looking.discard)

    async def _look_at(self, server: str) -> None:
        try:
            if await can_cut(self._bus, server):
                return
        except (BusError, TimeoutError) as bad:
            log.info("it is not known whether server %s cuts off whom we name: %s", server, bad)
            return
        log.error(
            "server %s cuts nobody off when a key is revoked: its configuration is an older one; print "
            "it anew with `workspaced nats-auth`",
            server,
        )


def _still_good(found: CheckedCredential | None) -> Credential | Why:
    if found is None:
        return Why.UNKNOWN
    return found.credential if found.denial is None else Why(found.denial)


def _granted(public_key: str, credential: Credential) -> Grant | Why:
    expires_at = credential.expires_at
    match credential:
        case Credential(kind="frontend", chat_ids=chat_ids):
            return frontend_grant(name=public_key, chat_ids=chat_ids, expires_at=expires_at)
        case Credential(
            kind="agent", chat_ids=(chat, *_), build_id=str(build), agent_id=str(agent)
        ):
            return agent_grant(chat_id=chat, build_id=build, agent_id=agent, expires_at=expires_at)
        case Credential(kind="provisioner", pool=str(pool), name=str(name)):
            return provisioner_grant(
                public_key=public_key, pool=pool, name=name, expires_at=expires_at
            )
        case Credential(kind="operator" | "chat-service" | "worker" | "gateway" as role):
            return role_grant(role=role, public_key=public_key, expires_at=expires_at)
        case _:
            return Why.UNKNOWN
