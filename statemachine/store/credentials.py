"""The part of the store's port that says who may come in, and who is in and must go."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from statemachine.chat import Chat

MOST_CONNECTIONS: Final = 64
"""Connections of one key; with one more the oldest must go."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What a public key may be used for."""

    kind: str
    """`agent`, `frontend`, or a static role."""
    chat_ids: tuple[str, ...]
    expires_at: datetime
    workspace_id: str | None = None
    build_id: str | None = None
    agent_id: str | None = None
    name: str | None = None
    """Of a static role: what it is called; of a provisioner, on the bus."""
    pool: str | None = None
    """Of a provisioner: whose builds it makes."""
    revoked_at: datetime | None = None


class Connection(NamedTuple):
    """Names a client's connection; neither half is ever used again for another one."""

    server: str
    client: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A credential as operators see it."""

    public_key: str
    credential: Credential
    issued_at: datetime
    connections: int
    """Made with it and not known to be over."""
    superseded: bool = False
    """An agent's, whose build is not the newest of its chat any more: it lets nobody in."""


class Admitting(Protocol):
    """Keys and connections."""

    async def issue(self, public_key: str, credential: Credential) -> None:
        """Keep what a public key may be used for."""
        ...

    async def bind(self, name: str, pool: str) -> str:
        """Let facts of the provisioner's name count for `pool` only; return the pool it is bound to.

        That is another one if the name was bound before.
        """
        ...

    async def credential(self, public_key: str) -> tuple[Credential, Chat | None] | None:
        """Return what a public key may be used for, with its (first) chat."""
        ...

    async def credentials(
        self, *, spent: bool = False, after: str | None = None, most: int = 100
    ) -> list[Listed]:
        """Return the keys by name, after `after`; with `spent` also those that are no longer good."""
        ...

    async def revoke(self, public_key: str) -> bool:
        """Take a key back, from now on and for ever; say whether there is such a key."""
        ...

    async def let_in(
        self, public_key: str, at: Connection, server_name: str, credential: Credential
    ) -> list[Connection]:
        """Note a connection before it is let in; return those of the key that are too many."""
        ...

    async def server_began(self, server_name: str, server: str) -> None:
        """Forget the connections to earlier processes of that server."""
        ...

    async def unwelcome(
        self,
        *,
        chat_ids: AbstractSet[str] | None = None,
        public_key: str | None = None,
        after: Connection | None = None,
        most: int = 500,
    ) -> list[Connection]:
        """Return connections whose key is no longer good: of agents of these chats, of a key, or all.

        In order, after `after`.
        """
        ...

    async def cut_off(self, connections: Sequence[Connection]) -> None:
        """Forget connections that are over."""
        ...
