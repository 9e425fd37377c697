"""The authorization part of nats-server's configuration, for a single server and for a cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence

from handlers.access.accounts import CHATS, CORE, EXPORTS, ROLE_ACCOUNTS, SYSTEM
from handlers.access.identities import Identities
from handlers.access.permissions import PERMISSIONS, Permissions


def authorization(identities: Identities) -> str:
    """Return the accounts, the static users and the auth callout. The text contains no secrets."""
    accounts = "\n".join(
        _account(
            account,
            [_user(identities, role) for role, of in ROLE_ACCOUNTS.items() if of == account],
        )
        for account in EXPORTS
    )
    return f"""\
accounts {{
{accounts}
}}
system_account: {SYSTEM}
authorization {{
  timeout: 1.5  # shorter than the connect timeout of clients, so that they see the refusal
  # The gateway decides about every client that is not listed in auth_users.
  auth_callout {{
    issuer: {identities.issuer}
    account: {CHATS}
    auth_users: {json.dumps(list(identities.roles.values()))}
  }}
}}
"""


def permissions_block(permissions: Permissions) -> str:
    """Return the `permissions` block of a user."""
    publish = f"allow: {json.dumps(permissions.publish)}"
    if permissions.deny_publish:
        publish += f", deny: {json.dumps(permissions.deny_publish)}"
    subscribe = f"allow: {json.dumps(permissions.subscribe)}"
    if permissions.deny_subscribe:
        subscribe += f", deny: {json.dumps(permissions.deny_subscribe)}"
    block = f"publish: {{ {publish} }}, subscribe: {{ {subscribe} }}"
    if permissions.allow_responses:
        # A gateway may hold an rpc for 25 minutes before it answers.
        block += ', allow_responses: { max: 1, expires: "30m" }'
    return f"{{ {block} }}"


def _user(identities: Identities, role: str) -> str:
    permissions = permissions_block(PERMISSIONS[role])
    return f"{{ nkey: {identities.roles[role]}, permissions: {permissions} }}  # {role}"


def _account(account: str, users: Sequence[str]) -> str:
    exports = [_block({one.kind: one.subject}, one.options) for one in EXPORTS[account]]
    imports = [
        f"{{ {one.kind}: {_block({'account': owner, 'subject': one.subject})}"
        f"{', share: true' if one.share_client_info else ''} }}"
        for owner, exported in EXPORTS.items()
        for one in exported
        if account in one.importers
    ]
    parts = ["jetstream: enabled"] if account == CORE else []
    for name, entries in (("users", users), ("exports", exports), ("imports", imports)):
        if entries:
            lines = "\n".join(f"      {entry}" for entry in entries)
            parts.append(f"{name}: [\n{lines}\n    ]")
    content = "\n    ".join(parts)
    return f"  {account} {{\n    {content}\n  }}"


def _block(pairs: dict[str, str], options: str = "") -> str:
    entries = [f"{key}: {json.dumps(value)}" for key, value in pairs.items()]
    return "{ " + ", ".join([*entries, options] if options else entries) + " }"
