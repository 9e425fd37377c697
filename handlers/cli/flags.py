"""The command line's words: every command, every flag, and what each is for.

Nothing heavy is imported here, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

ORGANIZATION: Final = "0c5d1a5e-0000-4000-8000-000000000001"
"""The organization of who names none: one machine, one team."""
OWNER: Final = "0c5d1a5e-0000-4000-8000-000000000002"
"""The owner of who names none."""
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def parser() -> argparse.ArgumentParser:
    """Return the parser; `command` of what it parses is a name that `dispatch` knows, or None."""
    parser = argparse.ArgumentParser(
        prog="workspaced",
        description="Development workspaces for AI chats: a persisted state machine on NATS and "
        "PostgreSQL. Begin with `workspaced demo`, or `workspaced up` and `workspaced tool`.",
        epilog="Every flag with a WORKSPACED_ variable may be given by that instead; the flag wins.",
    )
    parser.set_defaults(command=None, serves=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_servers(commands)
    _add_tool(commands)
    _add_templates(commands)
    _add_operating(commands)
    return parser


def _add_servers(commands: Any) -> None:
    up = _command(
        commands,
        "up",
        "run everything on this machine: PostgreSQL, NATS, worker, gateway, local provisioner",
        "Prints one line of JSON on stdout when ready. SIGINT or SIGTERM ends all of it; workspaces "
        "and their agents go on and find the next `up`.",
    )
    up.add_argument("--nats-port", type=_port, metavar="N", help="port of NATS; kept from then on")
    up.add_argument("--http-port", type=_port, metavar="N", help="port of /healthz and /readyz")
    up.set_defaults(serves=True)
    for name, words in (
        ("worker", "run a worker: any number share the work"),
        ("gateway", "run a gateway: it answers workspaced.rpc.*; any number share the work"),
        ("provisioner", "run a local provisioner: builds workspaces on this machine"),
    ):
        role = _command(commands, name, words)
        role.set_defaults(serves=True)
        if name == "provisioner":
            role.add_argument(
                "--name", default="local", help="its name on the bus (default: local)"
            )
            role.add_argument(
                "--pool", default="local", help="whose jobs it takes (default: local)"
            )
    agent = _command(commands, "agent", "run one agent of a workspace (provisioners start these)")
    agent.add_argument(
        "config", type=Path, help="the agent's config.json, written by its provisioner"
    )
    agent.set_defaults(serves=True)


def _add_tool(commands: Any) -> None:
    tool = _command(
        commands,
        "tool",
        "call a tool for a chat and wait for the answer",
        "Shows states and build log on stderr while waiting, and the answer as JSON on stdout. "
        "Example: workspaced tool create_workspace --chat new --arg template_id=… "
        "--arg parameters.branch=main",
    )
    tool.add_argument(
        "tool",
        help="create_workspace, start_workspace, stop_workspace, list_templates or read_template",
    )
    tool.add_argument(
        "--chat", required=True, type=_chat, metavar="UUID", help="the chat, or `new`"
    )
    tool.add_argument(
        "--arg",
        action="append",
        type=_pair,
        default=[],
        metavar="K=V",
        help="an argument of the tool; parameters.K=V for a template's parameter. "
        "V is JSON if it reads as JSON, else text",
    )
    tool.add_argument(
        "--call-id", metavar="ID", help="to ask again for the answer of an earlier call"
    )
    tool.add_argument("--quiet", action="store_true", help="show nothing while waiting")
    _identity(tool)


def _add_templates(commands: Any) -> None:
    template = commands.add_parser("template", help="push or list templates")
    verbs = template.add_subparsers(title="commands", metavar="COMMAND", required=True)
    push = _command(
        verbs,
        "template push",
        "make a folder's content the active version of its template",
        "Prints JSON with template_id and version_id. An unchanged folder gives the same version.",
    )
    push.add_argument("folder", type=Path, metavar="DIR", help="a folder with template.toml")
    listing = _command(verbs, "template list", "list an organization's templates as JSON lines")
    for verb in (push, listing):
        verb.add_argument(
            "--organization",
            type=_uuid,
            default=ORGANIZATION,
            metavar="UUID",
            help="whose templates (default: the one of a single machine)",
        )


def _add_operating(commands: Any) -> None:
    events = _command(commands, "events", "print a chat's event log as JSON lines")
    events.add_argument("chat", type=_chat, metavar="CHAT", help="the chat's UUID")
    replay = _command(
        commands,
        "replay",
        "fold an event log and print the path of states",
        "Exits with 1 when the log folds to something else than it recorded, and says where.",
    )
    replay.add_argument(
        "file", metavar="FILE", help="what `workspaced events` printed; - for stdin"
    )
    settings = commands.add_parser("settings", help="show or change the settings all workers use")
    verbs = settings.add_subparsers(title="commands", metavar="COMMAND", required=True)
    change = _command(verbs, "settings set", "change a setting; workers see it at once")
    change.add_argument("key", metavar="KEY", help="chat_workspace_ttl or chat_template_allowlist")
    change.add_argument(
        "value", metavar="VALUE", help="2h or 1h30m; template ids with commas between"
    )
    _command(verbs, "settings list", "print the settings as JSON")
    demo = _command(
        commands,
        "demo",
        "show the whole thing on real servers, in a directory of its own",
        "Creates, joins, fails, stops and starts workspaces, replays the log, and ends with a table "
        "of how long each state took to reach the caller, beside polling every 2 s.",
    )
    demo.add_argument("--keep", action="store_true", help="leave the directory for a look")


def _command(commands: Any, command: str, words: str, more: str = "") -> argparse.ArgumentParser:
    name = command.rpartition(" ")[2]
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=words, description=f"{words[0].upper()}{words[1:]}. {more}"
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="what `up` runs on (WORKSPACED_DATA_DIR; default ~/.local/share/workspaced)",
    )
    where.add_argument(
        "--nats-url", metavar="URL", help="NATS, if not that of `up` (WORKSPACED_NATS_URL)"
    )
    where.add_argument(
        "--database-url", metavar="URL", help="PostgreSQL, likewise (WORKSPACED_DATABASE_URL)"
    )
    where.add_argument(
        "--credentials", type=Path, metavar="FILE", help="NKey seed file (WORKSPACED_CREDENTIALS)"
    )
    parser.set_defaults(command=command)
    return parser


def _identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--organization",
        type=_uuid,
        default=ORGANIZATION,
        metavar="UUID",
        help="the chat's organization",
    )
    parser.add_argument(
        "--owner", type=_uuid, default=OWNER, metavar="UUID", help="the chat's owner"
    )
    parser.add_argument(
        "--owner-name", default="me", metavar="NAME", help="the owner's name (default: me)"
    )


def _uuid(text: str) -> str:
    if not _UUID.fullmatch(text.lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a UUID")
    return text.lower()


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: expected 1 to 65535")
    return int(text)


def _chat(text: str) -> str:
    return str(uuid4()) if text == "new" else _uuid(text)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected K=V")
    return key, value
