"""The store's credentials in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime
from operator import itemgetter

from statemachine.chat import Chat
from statemachine.store import (
    CONNECTIONS_PER_KEY,
    CheckedCredential,
    ClientConnection,
    Credential,
    ListedCredential,
    Token,
)


class MemoryCredentials:
    """Implements `Credentials` over dictionaries; the port documents the methods."""

    def __init__(
        self, clock: Callable[[], datetime], get_chat: Callable[[str], Awaitable[Chat | None]]
    ) -> None:
        self._clock, self._get_chat = clock, get_chat
        self.issued: dict[str, tuple[Credential, datetime]] = {}
        self.bound: dict[str, str] = {}
        self.connections: dict[ClientConnection, tuple[str, str, Credential]] = {}

    async def issue(self, public_key: str, credential: Credential) -> None:
        self.issued[public_key] = (credential, self._clock())

    async def get(self, public_key: str) -> CheckedCredential | None:
        if public_key not in self.issued:
            return None
        credential, _ = self.issued[public_key]
        denial = None
        if credential.revoked_at is not None:
            denial = "revoked"
        elif credential.expires_at <= self._clock():
            denial = "expired"
        elif await self._superseded(credential):
            denial = "superseded"
        return CheckedCredential(credential, denial)

    async def find(
        self, *, include_expired: bool = False, after: str | None = None, limit: int = 100
    ) -> list[ListedCredential]:
        return [
            ListedCredential(
                key,
                credential,
                issued_at,
                sum(k == key for k, *_ in self.connections.values()),
                await self._superseded(credential),
            )
            for key, (credential, issued_at) in sorted(self.issued.items())
            if (include_expired or await self._valid(key)) and key > (after or "")
        ][:limit]

    async def revoke(self, public_key: str) -> bool:
        if public_key not in self.issued:
            return False
        credential, issued_at = self.issued[public_key]
        now = self._clock()
        revoked = replace(
            credential,
            revoked_at=credential.revoked_at or now,
            expires_at=min(credential.expires_at, now),
        )
        self.issued[public_key] = (revoked, issued_at)
        return True

    async def bind_provisioner(self, name: str, pool: str) -> str:
        return self.bound.setdefault(name, pool)

    async def record_connection(
        self, public_key: str, at: ClientConnection, server_name: str, credential: Credential
    ) -> list[ClientConnection]:
        self.connections.pop(at, None)
        self.connections[at] = (public_key, server_name, credential)
        of_key = [c for c, (key, *_) in self.connections.items() if key == public_key]
        return of_key[:-CONNECTIONS_PER_KEY][::-1]

    async def invalid_connections(
        self,
        *,
        chat_ids: AbstractSet[str] | None = None,
        public_key: str | None = None,
        after: ClientConnection | None = None,
        limit: int = 500,
    ) -> list[ClientConnection]:
        return [
            at
            for at, (key, _, credential) in sorted(self.connections.items(), key=itemgetter(0))
            if (after is None or at > after)
            and (
                chat_ids is None
                or (credential.kind == "agent" and credential.chat_ids[0] in chat_ids)
            )
            and public_key in (None, key)
            and not await self._valid(key)
        ][:limit]

    async def forget_connections(self, connections: Sequence[ClientConnection]) -> None:
        for at in connections:
            self.connections.pop(at, None)

    async def forget_earlier_server(self, server_name: str, server: str) -> None:
        for at, (_, name, _) in list(self.connections.items()):
            if name == server_name and at.server != server:
                del self.connections[at]

    async def _valid(self, public_key: str) -> bool:
        found = await self.get(public_key)
        return found is not None and found.denial is None

    async def _superseded(self, credential: Credential) -> bool:
        if credential.kind != "agent":
            return False
        chat = await self._get_chat(credential.chat_ids[0])
        build = chat.build if chat else None
        return build is None or build.id != credential.build_id


class MemoryTokens:
    """Implements `Tokens` over a dictionary; the port documents the methods."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._issued: dict[bytes, Token] = {}

    async def issue(self, digest: bytes, token: Token) -> None:
        self._issued[digest] = replace(token, created_at=self._clock())

    async def find(self, digest: bytes) -> Token | None:
        token = self._issued.get(digest)
        return token if token is not None and token.expires_at > self._clock() else None

    async def page(
        self, roles: Sequence[str], *, after: str | None = None, limit: int = 100
    ) -> list[Token]:
        now = self._clock()
        found = [t for t in self._issued.values() if t.role in roles and t.expires_at > now]
        return sorted((t for t in found if t.id > (after or "")), key=lambda t: t.id)[:limit]

    async def exchange(self, digest: bytes, other: bytes, expires_at: datetime) -> Token | None:
        if (token := await self.find(digest)) is None:
            return None
        del self._issued[digest]
        self._issued[other] = replace(token, expires_at=expires_at)
        return self._issued[other]

    async def revoke(self, token_id: str, roles: Sequence[str]) -> bool:
        found = [
            digest for digest, t in self._issued.items() if t.id == token_id and t.role in roles
        ]
        for digest in found:
            del self._issued[digest]
        return bool(found)
