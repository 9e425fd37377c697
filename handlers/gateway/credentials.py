"""Keys that are issued: kept by their public half, good for one purpose, until they end or are taken back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, cast

from bus import Bus, BusError, Message, ServiceError
from handlers.access import nkey
from handlers.access.disconnect import cut_off
from handlers.access.grants import asker, inbox_prefix, role_inbox_prefix
from handlers.gateway.replies import IssuedKey, Key, KeysPage, ListedKey, RevokedKey
from handlers.gateway.requests import (
    AgentCredentialBody,
    CredentialsBody,
    FrontendCredentialBody,
    IssueBody,
    RevokeBody,
)
from statemachine.chat import Build
from statemachine.codec import timestamp
from statemachine.store import Credential, ListedCredential, Store

AGENT_LIFE: Final = timedelta(days=30)
"""How long an agent's key is good, if its build is not superseded before."""
_DAY: Final = 24 * 3600.0
LONGEST: Final = {"frontend": 7 * _DAY, "operator": 7 * _DAY}
"""Seconds that a key is good at most, where that is less than `SERVICES`."""
SERVICES: Final = 30 * _DAY
PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class Credentials:
    """Issues keys, lists them, takes them back."""

    store: Store
    bus: Bus

    async def agent(self, body: AgentCredentialBody, asked: Message) -> Key:
        """Issue a key to one agent of a chat's newest build. Raises ServiceError 403."""
        chat = await self.store.chats.get(body.chat_id)
        ref, build = (chat.ref, chat.build) if chat else (None, None)
        if ref is None or ref.id != body.workspace_id or build is None or build.id != body.build_id:
            raise ServiceError(
                403, f"build {body.build_id} is not the newest one of chat {body.chat_id}"
            )
        await self._see_pool(asked, build)
        _, issued = await self._issue(
            Credential(
                kind="agent",
                chat_ids=(body.chat_id,),
                expires_at=datetime.now(UTC) + AGENT_LIFE,
                workspace_id=body.workspace_id,
                build_id=body.build_id,
                agent_id=body.agent_id,
            )
        )
        return issued

    async def _see_pool(self, asked: Message, build: Build) -> None:
        """See that a provisioner which is known by name asks for a build of its own pool.

        Its pool is looked up by its key, which the server tells of who asks.
        """
        found = await self.store.credentials.get(asker(asked.headers))
        pool = found.credential.pool if found else None
        theirs = build.template.pool if build.template else None
        if None not in (pool, theirs) and pool != theirs:
            raise ServiceError(403, f"build {build.id} is not one of pool {pool}")

    async def frontend(self, body: FrontendCredentialBody) -> Key:
        """Issue a key that follows some chats for a while."""
        expires_at = datetime.now(UTC) + timedelta(seconds=body.ttl_seconds)
        _, issued = await self._issue(Credential("frontend", body.chat_ids, expires_at))
        return issued

    async def issue(self, body: IssueBody) -> IssuedKey:
        """Issue a key for a role. Raises ServiceError 400."""
        if (fault := _fault(body)) is not None:
            raise ServiceError(400, f"body.{fault}")
        if body.role == "provisioner" and body.name and body.pool:
            bound = await self.store.credentials.bind_provisioner(body.name, body.pool)
            if bound != body.pool:
                raise ServiceError(
                    400, f"body.name: {body.name!r} is a provisioner of pool {bound} for ever"
                )
        credential = Credential(
            kind=body.role,
            chat_ids=body.chat_ids,
            expires_at=datetime.now(UTC) + timedelta(seconds=body.ttl_seconds),
            name=body.name,
            pool=body.pool,
        )
        public_key, issued = await self._issue(credential)
        return {"public_key": public_key, "role": body.role, **issued}

    async def listed(self, body: CredentialsBody) -> KeysPage:
        """Return a page of the keys that were issued."""
        found = await self.store.credentials.find(
            include_expired=body.spent, after=body.cursor, limit=PAGE + 1
        )
        page: KeysPage = {"credentials": [_shown(listed) for listed in found[:PAGE]]}
        if len(found) > PAGE:
            page["next"] = found[PAGE - 1].public_key
        return page

    async def revoke(self, body: RevokeBody) -> RevokedKey:
        """Take a key back, and cut off who is connected with it. Raises ServiceError 404."""
        if not await self.store.credentials.revoke(body.public_key):
            raise ServiceError(404, f"no key {body.public_key} was issued")
        try:
            ended, unreachable = await cut_off(self.store, self.bus, public_key=body.public_key)
        except (BusError, TimeoutError) as bad:
            raise ServiceError(
                503, f"revoked, but who is connected with it may be so still; ask again: {bad}"
            ) from bad
        return {
            "public_key": body.public_key,
            "revoked": True,
            "connections_ended": ended,
            "connections_unreachable": unreachable,
        }

    async def _issue(self, credential: Credential) -> tuple[str, Key]:
        """Keep a new key; return its public half, and what its holder is told."""
        seed = nkey.new_seed("user")
        public = nkey.public_key(seed)
        await self.store.credentials.issue(public, credential)
        told: Key = {
            "seed": seed,
            "inbox_prefix": _inbox_prefix(credential, public),
            "expires_at": timestamp(credential.expires_at),
        }
        return public, told


def _inbox_prefix(credential: Credential, public_key: str) -> str:
    if credential.agent_id is not None:
        return inbox_prefix(credential.agent_id)
    if credential.kind == "frontend":
        return inbox_prefix(public_key)
    return role_inbox_prefix(credential.kind, public_key)


def _fault(body: IssueBody) -> str | None:
    """Return what does not fit the role, or None."""
    if (body.role == "frontend") != bool(body.chat_ids):
        return "chat_ids: a frontend's key is for some chats, one for another role is for all"
    if body.role == "provisioner" and not (body.name and body.pool):
        return "name, pool: a provisioner's key is for one name and one pool"
    if body.role != "provisioner" and body.pool:
        return "pool: only a provisioner's key is for a pool"
    longest = LONGEST.get(body.role, SERVICES)
    if body.ttl_seconds > longest:
        return f"ttl_seconds: a key for {body.role} is good for {longest:g} s at most"
    return None


def _shown(listed: ListedCredential) -> ListedKey:
    credential = listed.credential
    shown = {
        "public_key": listed.public_key,
        "role": credential.kind,
        "name": credential.name,
        "pool": credential.pool,
        "chat_ids": list(credential.chat_ids) or None,
        "workspace_id": credential.workspace_id,
        "build_id": credential.build_id,
        "agent_id": credential.agent_id,
        "issued_at": timestamp(listed.issued_at),
        "expires_at": timestamp(credential.expires_at),
        "revoked_at": timestamp(credential.revoked_at) if credential.revoked_at else None,
        "connections": listed.connections,
        "superseded": listed.superseded or None,
    }
    return cast(ListedKey, {key: value for key, value in shown.items() if value is not None})
