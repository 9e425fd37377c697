"""Whom a request of an MCP client comes from: a chat, its owner, and their rights."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from workspaced import Owner

from statemachine.naming import is_canonical


@dataclass(frozen=True, slots=True)
class Caller:
    """The chat of an MCP client, and what the client may do."""

    chat_id: str
    owner: Owner
    may_execute: bool = True
    """Whether it may run commands and use files in the workspace."""
    ended: asyncio.Event = field(default_factory=asyncio.Event, compare=False)
    """Is set when the caller's token is revoked or expires. On stdio there is no token, and nothing sets it."""


def local_caller(chat: str, *, organization: str, owner: str | None, owner_name: str) -> Caller:
    """Return the caller on stdio: the same names give the same chat each time.

    `chat` is any text; a UUID stands for the chat with that id. `owner` is derived from `owner_name` if it is None.
    """
    owner_id = owner or str(uuid5(NAMESPACE_URL, f"workspaced:owner:{owner_name}"))
    chat_id = chat.lower()
    if not is_canonical(chat_id):
        chat_id = str(uuid5(NAMESPACE_URL, f"workspaced:chat:{organization}:{owner_id}:{chat}"))
    return Caller(chat_id, Owner(id=owner_id, name=owner_name, organization=organization))


def caller_of_token(rights: Mapping[str, Any]) -> Caller | None:
    """Return the caller of a token with these rights, as rpc `check_token` says them; None if it is not of a chat."""
    if rights["role"] != "chat":
        return None
    owner = Owner(
        id=rights["owner_id"], name=rights["owner_name"], organization=rights["organization_id"]
    )
    return Caller(rights["chat_ids"][0], owner, rights["exec"])
