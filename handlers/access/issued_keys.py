"""Issued keys: their lifetimes, and their rights.

The store keeps only the public key with a `Credential`, and decides whether the key is valid. The auth
callout turns a valid credential into a `Grant` each time its holder connects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from bus import subjects
from bus.streams import STATE
from handlers.access import nkey
from handlers.access.accounts import (
    AGENTS,
    CHATS_WITHOUT_EXEC,
    FRONTENDS,
    FRONTENDS_RPC,
    ROLE_ACCOUNTS,
)
from handlers.access.auth_protocol import DenialReason, Grant
from handlers.access.permissions import (
    PERMISSIONS,
    SHARED_INBOX_PREFIX,
    Permissions,
    provisioner_permissions,
    role_inbox_prefix,
)
from statemachine.store import Credential, Store

REQUEST_INFO: Final = "Nats-Request-Info"
"""The header in which nats-server tells a service of another account who sent the request."""

AGENT_LIFETIME: Final = timedelta(days=30)
"""How long an agent's key is valid, unless a newer build supersedes the agent's build earlier."""
_DAY: Final = 24 * 3600.0
_MAX_LIFETIMES: Final = {"frontend": 7 * _DAY, "operator": 7 * _DAY}

_OWN_INBOX: Final = "_INBOX_"
_IMPORTED_REPLY: Final = "_R_"
"""The first token of the reply subjects that nats-server makes up for requests of other accounts."""


class NewKey(NamedTuple):
    """A new key. Its holder gets the seed and connects with the inbox prefix."""

    seed: str
    public_key: str
    inbox_prefix: str


def max_lifetime(role: str) -> float:
    """Return the longest lifetime of a key for a role, in seconds."""
    return _MAX_LIFETIMES.get(role, 30 * _DAY)


async def issue(store: Store, credential: Credential) -> NewKey:
    """Generate a key and store its public part with the credential."""
    seed = nkey.new_seed("user")
    public_key = nkey.public_key(seed)
    await store.credentials.issue(public_key, credential)
    return NewKey(seed, public_key, _inbox_prefix_of(credential, public_key))


def grant_for(public_key: str, credential: Credential) -> Grant | DenialReason:
    """Return the rights of the holder of a valid key."""
    expires_at = credential.expires_at
    match credential:
        case Credential(kind="frontend", chat_ids=chat_ids):
            return frontend_grant(
                name=public_key,
                chat_ids=chat_ids,
                expires_at=expires_at,
                exec_allowed=credential.exec,
            )
        case Credential(
            kind="agent", chat_ids=(chat, *_), build_id=str(build), agent_id=str(agent)
        ):
            return agent_grant(chat_id=chat, build_id=build, agent_id=agent, expires_at=expires_at)
        case Credential(kind="provisioner", pool=str(pool), name=str(name)):
            return provisioner_grant(
                public_key=public_key, pool=pool, name=name, expires_at=expires_at
            )
        case Credential(kind="operator" | "chat-service" | "worker" | "gateway" as role):
            return role_grant(
                role=role,
                public_key=public_key,
                expires_at=expires_at,
                exec_allowed=credential.exec,
            )
        case _:
            return DenialReason.UNKNOWN


def agent_grant(*, chat_id: str, build_id: str, agent_id: str, expires_at: datetime) -> Grant:
    """Let an agent report about itself and answer requests to it, and nothing else."""
    permissions = Permissions(
        publish=(
            subjects.inbound("agent", chat_id, agent_id),
            subjects.log(chat_id, build_id),
            subjects.presence(chat_id, agent_id),
            subjects.exec_output(chat_id, agent_id, "*"),
        ),
        subscribe=(subjects.RESEND_AGENT, subjects.agent_requests(chat_id, agent_id)),
        allow_responses=True,
    )
    return _grant(agent_id, AGENTS, permissions, expires_at)


def frontend_grant(
    *, name: str, chat_ids: Sequence[str], expires_at: datetime, exec_allowed: bool = False
) -> Grant:
    """Let a frontend read states and logs of its chats, and follow their changes and perhaps commands.

    The gateway checks which chats' logs it reads.
    """
    permissions = Permissions(
        publish=(
            *(subjects.direct_get(STATE.name, subjects.state(chat)) for chat in chat_ids),
            subjects.rpc(FRONTENDS_RPC),
        ),
        subscribe=tuple(map(subjects.ui, chat_ids)),
        deny_subscribe=() if exec_allowed else tuple(map(subjects.ui_execs, chat_ids)),
    )
    return _grant(name, FRONTENDS, permissions, expires_at)


def role_grant(
    *, role: str, public_key: str, expires_at: datetime, exec_allowed: bool = True
) -> Grant:
    """Let a client do what the static role may do, but with an inbox of its own, and perhaps run no commands."""
    permissions, shared_inbox = PERMISSIONS[role], f"{role_inbox_prefix(role)}.>"
    subscribe = tuple(subject for subject in permissions.subscribe if subject != shared_inbox)
    permissions = replace(permissions, subscribe=subscribe)
    if exec_allowed:
        return _grant(public_key, ROLE_ACCOUNTS[role], permissions, expires_at)
    permissions = replace(permissions, deny_subscribe=(subjects.ALL_UI_EXECS,))
    return _grant(public_key, CHATS_WITHOUT_EXEC, permissions, expires_at)


def provisioner_grant(*, public_key: str, pool: str, name: str, expires_at: datetime) -> Grant:
    """Let a provisioner take the jobs of its pool and report under its own name."""
    permissions = provisioner_permissions(pool, name)
    return _grant(public_key, ROLE_ACCOUNTS["provisioner"], permissions, expires_at)


def _grant(name: str, account: str, permissions: Permissions, expires_at: datetime) -> Grant:
    """Return a grant of these permissions and of the client's own inbox."""
    subscribe = (*permissions.subscribe, f"{inbox_prefix(name)}.>")
    return Grant(name, account, replace(permissions, subscribe=subscribe), expires_at)


def inbox_prefix(name: str) -> str:
    """Return the inbox prefix of the client that a grant names."""
    return _OWN_INBOX + name


def issued_role_inbox_prefix(role: str, public_key: str) -> str:
    """Return the inbox prefix for an issued key of a role; no other client can read that inbox."""
    static = role_inbox_prefix(role)
    return static if static == SHARED_INBOX_PREFIX else inbox_prefix(public_key)


def caller_key(headers: Mapping[str, str]) -> str:
    """Return the public key of the client in another account that sent an rpc, or an empty string.

    nats-server replaces this header if a client of another account sets it. It adds none to requests
    from the gateway's own account, whose clients may not call the rpcs that depend on it.
    """
    return _request_info(headers, "user")


def _request_info(headers: Mapping[str, str], key: str) -> str:
    try:
        return str(json.loads(headers.get(REQUEST_INFO, "{}"))[key])
    except (ValueError, KeyError, TypeError):
        return ""


def caller(reply: str, headers: Mapping[str, str]) -> str:
    """Identify the caller of an rpc: by inbox prefix, or by the key that the server reports for other accounts.

    Within the gateway's own account anybody could set the header that reports the key.
    """
    inbox = reply.partition(".")[0]
    return (caller_key(headers) or inbox) if is_of_other_account(reply) else inbox


def is_of_other_account(reply: str) -> bool:
    """Return whether an rpc came from another account than the gateway's, by its reply subject."""
    return reply.partition(".")[0] == _IMPORTED_REPLY


async def caller_credential(
    store: Store, reply: str, headers: Mapping[str, str]
) -> Credential | None:
    """Return the credential of the issued key that sent an rpc from another account; None for a static role.

    Of the gateway's own account it is None too: chat services whose rights are limited are not in it.
    """
    if not is_of_other_account(reply) or not (key := caller_key(headers)):
        return None
    found = await store.credentials.get(key)
    return found.credential if found else None


async def may_read_log(store: Store, reply: str, headers: Mapping[str, str], chat_id: str) -> bool:
    """Return whether the caller of an rpc may read the logs of a chat: a frontend, only those of its chats."""
    if not is_of_other_account(reply) or _request_info(headers, "acc") != FRONTENDS:
        return True
    credential = await caller_credential(store, reply, headers)
    return credential is not None and chat_id in credential.chat_ids


def _inbox_prefix_of(credential: Credential, public_key: str) -> str:
    if credential.agent_id is not None:
        return inbox_prefix(credential.agent_id)
    if credential.kind == "frontend":
        return inbox_prefix(public_key)
    return issued_role_inbox_prefix(credential.kind, public_key)
