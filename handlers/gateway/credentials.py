"""The rpcs by which keys are issued, listed and revoked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, cast

from bus import Bus, BusError, Message, ServiceError
from handlers.access.disconnect import disconnect_invalid
from handlers.access.issued_keys import (
    AGENT_LIFETIME,
    NewKey,
    caller_credential,
    caller_key,
    issue,
    max_lifetime,
)
from handlers.gateway import replies
from handlers.gateway.requests import (
    AgentCredentialBody,
    CredentialsBody,
    FrontendCredentialBody,
    IssueBody,
    RevokeBody,
)
from statemachine.codec import timestamp
from statemachine.store import Credential, ListedCredential, Store
from statemachine.workspace import Build

PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class CredentialRpcs:
    """Answers the rpcs about keys."""

    store: Store
    bus: Bus

    async def agent_credential(self, body: AgentCredentialBody, message: Message) -> replies.Key:
        """Issue a key to an agent of a chat's newest build. Raises ServiceError 403."""
        chat = await self.store.chats.get(body.chat_id)
        current, build = (chat.current, chat.build) if chat else (None, None)
        if (
            current is None
            or current.id != body.workspace_id
            or build is None
            or build.id != body.build_id
        ):
            raise ServiceError(
                403, f"build {body.build_id} is not the newest one of chat {body.chat_id}"
            )
        await self._check_pool(message, build)
        credential = Credential(
            kind="agent",
            chat_ids=(body.chat_id,),
            expires_at=datetime.now(UTC) + AGENT_LIFETIME,
            workspace_id=body.workspace_id,
            build_id=body.build_id,
            agent_id=body.agent_id,
        )
        return _key_reply(await issue(self.store, credential), credential)

    async def _check_pool(self, message: Message, build: Build) -> None:
        """Let a provisioner with an issued key obtain keys only for builds of its pool.

        Raises ServiceError 403. The static role's key is not limited to a pool.
        """
        found = await self.store.credentials.get(caller_key(message.headers))
        pool = found.credential.pool if found else None
        build_pool = build.template.pool if build.template else None
        if None not in (pool, build_pool) and pool != build_pool:
            raise ServiceError(403, f"build {build.id} does not belong to pool {pool}")

    async def frontend_credential(
        self, body: FrontendCredentialBody, message: Message
    ) -> replies.FrontendKey:
        """Issue a key with which a frontend can follow some chats.

        Raises ServiceError 403 if the caller may not run commands, but the key would see them.
        """
        caller = await caller_credential(self.store, message.reply, message.headers)
        if body.exec and caller is not None and not caller.exec:
            raise ServiceError(
                403, "a key without the right to run commands issues none that sees them"
            )
        expires_at = datetime.now(UTC) + timedelta(seconds=body.ttl_seconds)
        credential = Credential("frontend", body.chat_ids, expires_at, exec=body.exec)
        issued = await issue(self.store, credential)
        return {"public_key": issued.public_key, **_key_reply(issued, credential)}

    async def issue_credential(self, body: IssueBody) -> replies.IssuedKey:
        """Issue a key for a role. Raises ServiceError 400."""
        if (fault := _fault(body)) is not None:
            raise ServiceError(400, f"body.{fault}")
        if body.role == "provisioner" and body.name and body.pool:
            bound = await self.store.credentials.bind_provisioner(body.name, body.pool)
            if bound != body.pool:
                raise ServiceError(
                    400,
                    f"body.name: {body.name!r} belongs to a provisioner of pool {bound} for ever",
                )
        credential = Credential(
            kind=body.role,
            chat_ids=body.chat_ids,
            expires_at=datetime.now(UTC) + timedelta(seconds=body.ttl_seconds),
            name=body.name,
            pool=body.pool,
            exec=body.role != "frontend" if body.exec is None else body.exec,
        )
        issued = await issue(self.store, credential)
        return {
            "public_key": issued.public_key,
            "role": body.role,
            **_key_reply(issued, credential),
        }

    async def list_credentials(self, body: CredentialsBody) -> replies.KeysPage:
        """Return a page of the issued keys."""
        found = await self.store.credentials.find(
            include_expired=body.spent, after=body.cursor, limit=PAGE + 1
        )
        page: replies.KeysPage = {"credentials": [_listed_key(key) for key in found[:PAGE]]}
        if len(found) > PAGE:
            page["next"] = found[PAGE - 1].public_key
        return page

    async def revoke_credential(self, body: RevokeBody) -> replies.RevokedKey:
        """Revoke a key and close its connections. Raises ServiceError 404 and 503."""
        if not await self.store.credentials.revoke(body.public_key):
            raise ServiceError(404, f"no key {body.public_key} was issued")
        try:
            closed, unreachable = await disconnect_invalid(
                self.store, self.bus, public_key=body.public_key
            )
        except (BusError, TimeoutError) as error:
            raise ServiceError(
                503,
                f"the key is revoked, but its connections may still be open; try again: {error}",
            ) from error
        return {
            "public_key": body.public_key,
            "revoked": True,
            "connections_ended": closed,
            "connections_unreachable": unreachable,
        }


def _key_reply(issued: NewKey, credential: Credential) -> replies.Key:
    return {
        "seed": issued.seed,
        "inbox_prefix": issued.inbox_prefix,
        "expires_at": timestamp(credential.expires_at),
    }


def _fault(body: IssueBody) -> str | None:
    """Return which field does not fit the role and why, or None."""
    if (body.role == "frontend") != bool(body.chat_ids):
        return "chat_ids: a key for frontend needs chats, and a key for another role has none"
    if body.role == "provisioner" and not (body.name and body.pool):
        return "name, pool: a key for provisioner needs a name and a pool"
    if body.role != "provisioner" and body.pool:
        return "pool: only a key for provisioner has a pool"
    if body.exec is not None and body.role not in ("chat-service", "frontend"):
        return "exec: only a key for chat-service or frontend is issued with or without it"
    longest = max_lifetime(body.role)
    if body.ttl_seconds > longest:
        return f"ttl_seconds: a key for {body.role} is valid for {longest:g} s at most"
    return None


def _listed_key(listed: ListedCredential) -> replies.ListedKey:
    credential = listed.credential
    entry = {
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
        "exec": credential.exec if credential.kind in ("chat-service", "frontend") else None,
    }
    present = {key: value for key, value in entry.items() if value is not None}
    return cast(replies.ListedKey, present)
