"""The commands about keys for NATS and tokens for HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from handlers.cli import arguments as types
from handlers.cli.arguments import flag, positional, selector, switch
from handlers.cli.command_table.connecting import ConnectingCommand, json_switch

ROLES: Final = ("frontend", "chat-service", "provisioner", "operator", "worker", "gateway")
"""The roles that keys are issued for."""
TOKEN_ROLES: Final = ("chat-service", "chat", "frontend", "operator")
"""The roles that bearer tokens are issued for."""


def _chats(text: str) -> Any:
    """Return the flag --chat, which may be repeated."""
    return selector(
        "--chat", action="append", type=types.uuid, default=[], metavar="UUID", help=text
    )


def _exec(text: str) -> Any:
    """Return the flags --exec and --no-exec."""
    return flag("--exec", action=argparse.BooleanOptionalAction, default=None, help=text)


class IssueCredential(ConnectingCommand):
    """Issue a key for a role, for a limited time.

    Prints JSON with the seed (a secret that workspaced does not keep), the public key (pass it to
    `credentials revoke`), the inbox prefix to connect with, and the time when the key expires.
    """

    name = "credentials issue"
    function = "handlers.cli.commands.credentials:issue"
    role: str = flag(
        "--role",
        required=True,
        metavar="ROLE",
        choices=ROLES,
        help=f"the role of the key: {', '.join(ROLES)}",
    )
    chat: list[str] = _chats("a chat that a frontend may follow; repeat the flag for several chats")
    pool: str | None = selector(
        "--pool", metavar="POOL", help="the pool that a provisioner takes jobs from"
    )
    label: str | None = flag(
        "--name",
        metavar="NAME",
        help="the name of a provisioner on the bus; for other roles a label in `credentials list`",
    )
    lifetime: float = flag(
        "--for",
        type=types.seconds,
        default=3600.0,
        metavar="TIME",
        help="how long the key is valid: 90s, 1h, 1h30m (default: 1h; at most a week, for services 30 "
        "days)",
    )
    exec: bool | None = _exec(
        "whether a chat service may run commands in workspaces (default: yes), or a frontend sees those "
        "that run (default: no)"
    )
    out: Path | None = flag(
        "--out",
        type=types.path,
        metavar="FILE",
        help="write the seed to this new file, which only you may read, instead of to stdout",
    )


class ListCredentials(ConnectingCommand):
    """List the issued keys."""

    name = "credentials list"
    function = "handlers.cli.commands.credentials:list_credentials"
    all: bool = switch(
        "--all",
        help="also list keys that expired or were revoked, and keys of agents of superseded builds",
    )
    json: bool = json_switch()


class RevokeCredential(ConnectingCommand):
    """Revoke a key for ever.

    NATS closes every connection that uses the key at once and accepts no new one.
    """

    name = "credentials revoke"
    function = "handlers.cli.commands.credentials:revoke"
    key: str = positional("KEY", help="the public key, as `credentials list` shows it")


class IssueToken(ConnectingCommand):
    """Issue a bearer token for the HTTP interface, for a limited time.

    Prints JSON with the token (a secret that workspaced does not keep), its id (pass it to `token
    revoke`), its role and the time when it expires.
    """

    name = "token issue"
    function = "handlers.cli.commands.token:issue"
    role: str = flag(
        "--role",
        required=True,
        metavar="ROLE",
        choices=TOKEN_ROLES,
        help=f"the role of the token: {', '.join(TOKEN_ROLES)}",
    )
    chat: list[str] = _chats(
        "the chat of a chat token; a chat that a frontend may follow (repeat the flag for several)"
    )
    organization: str | None = flag(
        "--organization",
        type=types.uuid,
        metavar="UUID",
        help="for role chat: the organization of its calls",
    )
    owner: str | None = flag(
        "--owner", type=types.uuid, metavar="UUID", help="for role chat: the owner of its calls"
    )
    owner_name: str | None = flag(
        "--owner-name", metavar="NAME", help="for role chat: the name of that owner"
    )
    exec: bool | None = _exec(
        "whether its holder may run commands in workspaces (default: yes); for a frontend, whether it "
        "sees the commands that run (default: no)"
    )
    lifetime: float = flag(
        "--for",
        type=types.seconds,
        default=3600.0,
        metavar="TIME",
        help="how long the token is valid: 90s, 1h, 30d (default: 1h; at most 30 days, for operators 7)",
    )


class ListTokens(ConnectingCommand):
    """List the valid tokens. Prints JSON."""

    name = "token list"
    function = "handlers.cli.commands.token:list_tokens"


class RevokeToken(ConnectingCommand):
    """Revoke a token for ever. Its streams end, and its waiting requests are refused, within a second."""

    name = "token revoke"
    function = "handlers.cli.commands.token:revoke"
    id: str = positional("ID", type=types.uuid, help="the token's id, as `token list` shows it")


class OpenPage(ConnectingCommand):
    """Print a link that opens the page in a browser and signs it in, once, within five minutes.

    The page of an operator shows all chats, and can change them. With --chat it shows those chats only, and changes
    nothing.
    """

    name = "page"
    function = "handlers.cli.commands.token:open_page"
    chat: list[str] = _chats(
        "a chat that the page shows (repeat the flag for several; default: all)"
    )
    url: str | None = flag(
        "--url",
        metavar="URL",
        help="the address at which the browser reaches a gateway (default: that of the gateway that answers)",
    )
    json: bool = json_switch()
