"""Keys and connections in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from statemachine.chat import Chat, chat_from_json
from statemachine.store.credentials import MOST_CONNECTIONS, Connection, Credential, Listed


class PostgresAdmitting:
    """What `Admitting` promises, over the statements that the store fetches."""

    async def _fetch(self, name: str, *args: object) -> Sequence[Mapping[str, Any]]:
        raise NotImplementedError

    async def issue(self, public_key: str, credential: Credential) -> None:
        """Keep what a public key may be used for."""
        await self._fetch(
            "issue_credential",
            public_key,
            credential.kind,
            list(credential.chat_ids),
            credential.workspace_id,
            credential.build_id,
            credential.agent_id,
            credential.expires_at,
            credential.name,
            credential.pool,
        )

    async def bind(self, name: str, pool: str) -> str:
        """Bind a provisioner's name to a pool; return the one it is bound to."""
        rows: Sequence[Mapping[str, Any]] = ()
        while not rows:  # another just binds it: its row shows in the next look
            rows = await self._fetch("bind_provisioner", name, pool)
        return str(rows[0]["pool"])

    async def credential(self, public_key: str) -> tuple[Credential, Chat | None] | None:
        """Return what a public key may be used for, with its (first) chat."""
        rows = await self._fetch("credential", public_key)
        if not rows:
            return None
        chat = rows[0]["snapshot"]
        return _credential(rows[0]), None if chat is None else chat_from_json(chat)

    async def credentials(
        self, *, spent: bool = False, after: str | None = None, most: int = 100
    ) -> list[Listed]:
        """Return the keys by name, after `after`; with `spent` also those that are no longer good."""
        return [
            Listed(
                row["public_key"],
                _credential(row),
                row["issued_at"],
                row["connections"],
                row["superseded"],
            )
            for row in await self._fetch("credentials", spent, after, most)
        ]

    async def revoke(self, public_key: str) -> bool:
        """Take a key back; say whether there is such a key."""
        return bool(await self._fetch("revoke_credential", public_key))

    async def let_in(
        self, public_key: str, at: Connection, server_name: str, credential: Credential
    ) -> list[Connection]:
        """Note a connection before it is let in; return those of the key that are too many."""
        rows = await self._fetch(
            "let_in",
            *at,
            server_name,
            public_key,
            credential.chat_ids[0] if credential.kind == "agent" else None,
            credential.expires_at,
            MOST_CONNECTIONS,
        )
        return [Connection(**row) for row in rows]

    async def server_began(self, server_name: str, server: str) -> None:
        """Forget the connections to earlier processes of that server."""
        await self._fetch("server_began", server_name, server)

    async def unwelcome(
        self,
        *,
        chat_ids: AbstractSet[str] | None = None,
        public_key: str | None = None,
        after: Connection | None = None,
        most: int = 500,
    ) -> list[Connection]:
        """Return connections whose key is no longer good, in order."""
        chats = None if chat_ids is None else list(chat_ids)
        rows = await self._fetch("unwelcome", chats, public_key, *(after or (None, None)), most)
        return [Connection(**row) for row in rows]

    async def cut_off(self, connections: Sequence[Connection]) -> None:
        """Forget connections that are over."""
        await self._fetch(
            "cut_off", [c.server for c in connections], [c.client for c in connections]
        )


def _credential(row: Mapping[str, Any]) -> Credential:
    return Credential(
        row["kind"],
        tuple(row["chat_ids"]),
        row["expires_at"],
        workspace_id=row["workspace_id"],
        build_id=row["build_id"],
        agent_id=row["agent_id"],
        name=row["name"],
        pool=row["pool"],
        revoked_at=row["revoked_at"],
    )
