"""Credentials of agents and frontends: a key each, kept by its public half, good for one purpose."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from bus import ServiceError
from handlers import nkey
from handlers.gateway.bodies import AgentCredentialBody, FrontendCredentialBody
from handlers.gateway.callout import Grant, agent_grant, frontend_grant, inbox_prefix
from statemachine.codec import timestamp
from statemachine.store import Credential, Store

AGENT_LIFE: Final = timedelta(days=30)
"""How long an agent's key is good, if its build is not superseded before."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Issues keys, and says what a key may do."""

    store: Store

    async def agent(self, body: AgentCredentialBody) -> dict[str, Any]:
        """Issue a key to one agent of a chat's newest build. Raises ServiceError 403."""
        chat = await self.store.chat(body.chat_id)
        ref, build = (chat.ref, chat.build) if chat else (None, None)
        if ref is None or ref.id != body.workspace_id or build is None or build.id != body.build_id:
            raise ServiceError(
                403, f"build {body.build_id} is not the newest one of chat {body.chat_id}"
            )
        expires_at = datetime.now(UTC) + AGENT_LIFE
        return await self._issue(
            Credential(
                kind="agent",
                chat_ids=(body.chat_id,),
                expires_at=expires_at,
                workspace_id=body.workspace_id,
                build_id=body.build_id,
                agent_id=body.agent_id,
            ),
            body.agent_id,
        )

    async def frontend(self, body: FrontendCredentialBody) -> dict[str, Any]:
        """Issue a key that follows some chats for a while."""
        expires_at = datetime.now(UTC) + timedelta(seconds=body.ttl_seconds)
        return await self._issue(Credential("frontend", body.chat_ids, expires_at), None)

    async def grant_for(self, public_key: str) -> Grant | None:
        """Return what the holder of a key may do now, or None."""
        found = await self.store.credential(public_key)
        if found is None:
            return None
        credential, chat = found
        if credential.kind == "frontend":
            return frontend_grant(
                name=public_key, chat_ids=credential.chat_ids, expires_at=credential.expires_at
            )
        if chat is None or credential.build_id is None or credential.agent_id is None:
            return None
        if chat.build is None or chat.build.id != credential.build_id:
            return None  # superseded: what that agent says moves nothing
        return agent_grant(
            chat_id=credential.chat_ids[0],
            build_id=credential.build_id,
            agent_id=credential.agent_id,
            expires_at=credential.expires_at,
        )

    async def _issue(self, credential: Credential, name: str | None) -> dict[str, Any]:
        seed = nkey.new_seed("user")
        public = nkey.public_key(seed)
        await self.store.issue(public, credential)
        return {
            "seed": seed,
            "inbox_prefix": inbox_prefix(name or public),
            "expires_at": timestamp(credential.expires_at),
        }
