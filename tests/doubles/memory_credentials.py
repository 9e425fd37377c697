"""Keys and connections in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime
from operator import itemgetter

from statemachine.chat import Chat
from statemachine.store.credentials import MOST_CONNECTIONS, Connection, Credential, Listed


class MemoryAdmitting:
    """What `Admitting` promises, over dictionaries."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.clock = clock
        self.issued: dict[str, tuple[Credential, datetime]] = {}
        self.bound: dict[str, str] = {}
        self.connections: dict[Connection, tuple[str, str, Credential]] = {}

    async def chat(self, chat_id: str) -> Chat | None:
        """Return a snapshot, without lock."""
        raise NotImplementedError

    async def issue(self, public_key: str, credential: Credential) -> None:
        """Keep what a public key may be used for."""
        self.issued[public_key] = (credential, self.clock())

    async def bind(self, name: str, pool: str) -> str:
        """Bind a provisioner's name to a pool; return the one it is bound to."""
        return self.bound.setdefault(name, pool)

    async def credential(self, public_key: str) -> tuple[Credential, Chat | None] | None:
        """Return what a public key may be used for, with its (first) chat."""
        if public_key not in self.issued:
            return None
        found, _ = self.issued[public_key]
        return found, await self.chat(found.chat_ids[0]) if found.chat_ids else None

    async def credentials(
        self, *, spent: bool = False, after: str | None = None, most: int = 100
    ) -> list[Listed]:
        """Return the keys by name, after `after`; with `spent` also those that are no longer good."""
        return [
            Listed(
                key,
                credential,
                issued_at,
                sum(k == key for k, *_ in self.connections.values()),
                await self._superseded(credential),
            )
            for key, (credential, issued_at) in sorted(self.issued.items())
            if (spent or await self._good(key)) and key > (after or "")
        ][:most]

    async def revoke(self, public_key: str) -> bool:
        """Take a key back; say whether there is such a key."""
        if public_key not in self.issued:
            return False
        credential, issued_at = self.issued[public_key]
        now = self.clock()
        over = replace(
            credential,
            revoked_at=credential.revoked_at or now,
            expires_at=min(credential.expires_at, now),
        )
        self.issued[public_key] = (over, issued_at)
        return True

    async def let_in(
        self, public_key: str, at: Connection, server_name: str, credential: Credential
    ) -> list[Connection]:
        """Note a connection before it is let in; return those of the key that are too many."""
        self.connections.pop(at, None)
        self.connections[at] = (public_key, server_name, credential)
        of_key = [c for c, (key, *_) in self.connections.items() if key == public_key]
        return of_key[:-MOST_CONNECTIONS][::-1]

    async def server_began(self, server_name: str, server: str) -> None:
        """Forget the connections to earlier processes of that server."""
        for at, (_, name, _) in list(self.connections.items()):
            if name == server_name and at.server != server:
                del self.connections[at]

    async def unwelcome(
        self,
        *,
        chat_ids: AbstractSet[str] | None = None,
        public_key: str | None = None,
        after: Connection | None = None,
        most: int = 500,
    ) -> list[Connection]:
        """Return connections whose key is no longer good, in order."""
        return [
            at
            for at, (key, _, noted) in sorted(self.connections.items(), key=itemgetter(0))
            if (after is None or at > after)
            and (chat_ids is None or (noted.kind == "agent" and noted.chat_ids[0] in chat_ids))
            and public_key in (None, key)
            and not await self._good(key)
        ][:most]

    async def _good(self, public_key: str) -> bool:
        if public_key not in self.issued:
            return False
        credential, _ = self.issued[public_key]
        if credential.revoked_at is not None or credential.expires_at <= self.clock():
            return False
        return not await self._superseded(credential)

    async def _superseded(self, credential: Credential) -> bool:
        if credential.kind != "agent":
            return False
        chat = await self.chat(credential.chat_ids[0])
        build = chat.build if chat else None
        return build is None or build.id != credential.build_id

    async def cut_off(self, connections: Sequence[Connection]) -> None:
        """Forget connections that are over."""
        for at in connections:
            self.connections.pop(at, None)
