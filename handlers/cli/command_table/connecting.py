"""Arguments that commands of several groups have, and the base of all commands that connect to servers."""

from __future__ import annotations

from typing import Any, Final

from handlers.cli import arguments as types
from handlers.cli.arguments import Command, flag, positional, setting, switch

_SERVERS: Final = "which servers to use"


def chat_argument() -> Any:
    """Declare the positional argument CHAT."""
    return positional("CHAT", type=types.known_chat, help="the chat's UUID")


def parameter_flag() -> Any:
    """Declare -p, a parameter of a template, which may be repeated."""
    return flag(
        "-p",
        "--parameter",
        action="append",
        type=types.key_and_value,
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the template; VALUE is the text exactly as you type it, but is read as JSON if it begins "
        'with " or [',
    )


def json_switch() -> Any:
    """Declare --json of a command that prints a table."""
    return switch(
        "--json", help="print JSON lines, as this command always does when stdout is not a terminal"
    )


def organization_flag(help: str) -> Any:  # noqa: A002 — as argparse names it
    """Declare --organization; `help` says what the organization is for."""
    return flag(
        "--organization",
        type=types.uuid,
        metavar="UUID",
        help=f"{help} (WORKSPACED_ORGANIZATION; default: the default organization)",
    )


class ConnectingCommand(Command):
    """A command that connects to servers."""

    data_dir: str | None = setting("data_dir", _SERVERS)
    nats_url: str | None = setting("nats_url", _SERVERS)
    database_url: str | None = setting("database_url", _SERVERS)
    nats_ca: str | None = setting("nats_ca", _SERVERS)
    credentials: str | None = setting("credentials", _SERVERS)
