"""Who may connect, as nats-server's configuration says it: the same on one server and on a cluster."""

from __future__ import annotations

import json

from handlers.access import accounts
from handlers.access.accounts import CHATS, HOMES, OFFERED
from handlers.access.identities import Identities
from handlers.access.permissions import PERMISSIONS, as_nats_conf


def authorization(identities: Identities) -> str:
    """Return accounts, static users and auth callout. It holds public keys only: no secret."""
    blocks = "\n".join(
        accounts.as_nats_conf(
            account, [_user(identities, role) for role in HOMES if HOMES[role] == account]
        )
        for account in OFFERED
    )
    return f"""\
accounts {{
{blocks}
}}
system_account: SYS
authorization {{
  timeout: 1.5  # below the patience of clients, so that they hear a refusal as such
  # Whoever is not listed is judged by the gateway; who is, needs nobody's word.
  auth_callout {{
    issuer: {identities.issuer}
    account: {CHATS}
    auth_users: {json.dumps(list(identities.roles.values()))}
  }}
}}
"""


def _user(identities: Identities, role: str) -> str:
    permissions = as_nats_conf(PERMISSIONS[role])
    return f"{{ nkey: {identities.roles[role]}, permissions: {permissions} }}  # {role}"
