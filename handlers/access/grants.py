"""What the holder of an issued key may say and hear, by what it was issued for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from bus import subjects
from bus.streams import STATE
from handlers.access.accounts import AGENTS, FRONTENDS, HOMES
from handlers.access.permissions import PERMISSIONS, provisioner_of
from handlers.access.permissions import inbox_prefix as static_inbox_prefix

REQUEST_INFO: Final = "Nats-Request-Info"
_ALL_INBOXES: Final = "_INBOX"
_OWN: Final = "_INBOX_"


@dataclass(frozen=True, slots=True)
class Grant:
    """What one client may publish and subscribe, until when; what is not named is refused."""

    name: str
    account: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    expires_at: datetime
    refused: tuple[str, ...] = ()
    """Subjects of `publish` that it may not publish after all."""
    answers: bool = False
    """It may also reply once to what it gets."""


def inbox_prefix(name: str) -> str:
    """Return where answers to the holder of a grant come."""
    return _OWN + name


def role_inbox_prefix(role: str, public_key: str) -> str:
    """Return where answers to the holder of a role's key come: to nobody else of that role."""
    static = static_inbox_prefix(role)
    return static if static == _ALL_INBOXES else inbox_prefix(public_key)


def asker(headers: Mapping[str, str]) -> str:
    """Return the key of who asks an rpc from another account, as the server says; empty: it says nothing.

    The server puts that header in the place of one that the asker made up. Within our own account it
    says nothing, but who is there may not ask what this is looked up for.
    """
    try:
        return str(json.loads(headers.get(REQUEST_INFO, "{}"))["user"])
    except (ValueError, KeyError, TypeError):
        return ""


def agent_grant(*, chat_id: str, build_id: str, agent_id: str, expires_at: datetime) -> Grant:
    """Let an agent report about itself, and nothing else."""
    return Grant(
        name=agent_id,
        account=AGENTS,
        publish=(
            subjects.inbound("agent", chat_id, agent_id),
            subjects.log(chat_id, build_id),
            subjects.presence(chat_id, agent_id),
        ),
        subscribe=(subjects.RESEND_AGENT, f"{inbox_prefix(agent_id)}.>"),
        expires_at=expires_at,
    )


def frontend_grant(*, name: str, chat_ids: Sequence[str], expires_at: datetime) -> Grant:
    """Let a frontend see its chats: the last state of each, and what happens from then on."""
    return Grant(
        name=name,
        account=FRONTENDS,
        publish=tuple(subjects.direct_get(STATE.name, subjects.state(chat)) for chat in chat_ids),
        subscribe=(*map(subjects.ui, chat_ids), f"{inbox_prefix(name)}.>"),
        expires_at=expires_at,
    )


def role_grant(*, role: str, public_key: str, expires_at: datetime) -> Grant:
    """Let somebody do what a static role may, with an inbox of one's own."""
    may, own = PERMISSIONS[role], f"{static_inbox_prefix(role)}.>"
    subscribe = tuple(subject for subject in may.subscribe if subject != own)
    return Grant(
        name=public_key,
        account=HOMES[role],
        publish=may.publish,
        subscribe=(*subscribe, f"{inbox_prefix(public_key)}.>"),
        expires_at=expires_at,
        refused=may.refused,
        answers=may.answers,
    )


def provisioner_grant(*, public_key: str, pool: str, name: str, expires_at: datetime) -> Grant:
    """Let a provisioner build for its pool, and speak in its own name."""
    may = provisioner_of(pool, name)
    return Grant(
        name=public_key,
        account=HOMES["provisioner"],
        publish=may.publish,
        subscribe=(*may.subscribe, f"{inbox_prefix(public_key)}.>"),
        expires_at=expires_at,
    )
