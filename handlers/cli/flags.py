"""The command line's words: every command, every flag, and what each is for.

Nothing heavy is imported here, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
from typing import Any, Final

from handlers.cli.operating import add_operating
from handlers.cli.words import (
    ORGANIZATION,
    OWNER,
    Parser,
    a_call_id,
    a_chat,
    a_pair,
    a_path,
    a_port,
    a_uuid,
    add_command,
    add_group,
    add_host,
    add_json,
    add_listener,
    add_organization,
    an_object,
)

_ISSUER: Final = (
    "It also lets agents and frontends connect to NATS, if the file issuer.nk is in the folder of "
    "its credentials; they can't connect while no gateway has it."
)


def parser() -> argparse.ArgumentParser:
    """Return the parser; `command` of what it parses is a name that `dispatch` knows, or None."""
    parser = Parser(
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
    add_operating(commands)
    _add_demo(commands)
    return parser


def _add_servers(commands: Any) -> None:
    up = add_command(
        commands,
        "up",
        "run everything on this machine: PostgreSQL, NATS, worker, gateway, local provisioner",
        "Prints one line of JSON on stdout when ready. SIGINT or SIGTERM ends all of it; workspaces "
        "and their agents go on and find the next `up`.",
    )
    up.add_argument("--nats-port", type=a_port, metavar="N", help="port of NATS; kept from then on")
    up.add_argument("--http-port", type=a_port, metavar="N", help="port of /healthz and /readyz")
    up.add_argument(
        "--websocket-port", type=a_port, metavar="N", help="port of NATS for browsers; likewise"
    )
    for what in ("nats", "websocket"):
        add_host(up, what)
    up.add_argument(
        "--nats-name",
        metavar="NAME",
        help="as what clients reach NATS, and its certificate names it (default: its address)",
    )
    add_listener(up)
    up.set_defaults(serves=True, tells_settings=True)
    for name, words, more in (
        ("worker", "run a worker: any number share the work", ""),
        (
            "gateway",
            "run a gateway: it answers workspaced.rpc.*; any number share the work",
            _ISSUER,
        ),
        ("provisioner", "run a local provisioner: builds workspaces on this machine", ""),
    ):
        role = add_command(commands, name, words, more)
        role.set_defaults(serves=True, tells_settings=True)
        role.add_argument(
            "--http-port", type=a_port, metavar="N", help="serve /healthz and /readyz there"
        )
        add_listener(role)
        if name == "provisioner":
            role.add_argument(
                "--name", default="local", help="its name on the bus (default: local)"
            )
            role.add_argument(
                "--pool", default="local", help="whose jobs it takes (default: local)"
            )
    agent = add_command(
        commands, "agent", "run one agent of a workspace (provisioners start these)"
    )
    agent.add_argument(
        "config", type=a_path, help="the agent's config.json, written by its provisioner"
    )
    agent.set_defaults(serves=True)


def _add_tool(commands: Any) -> None:
    tool = add_command(
        commands,
        "tool",
        "call a tool for a chat and wait for the answer",
        "Shows states and build log on stderr while waiting, the answer as JSON on stdout, and "
        "then on stderr what it says. "
        "Example: workspaced tool create_workspace --chat new --arg template_id=… "
        "--arg parameters.branch=main",
    )
    tool.add_argument(
        "tool",
        help="create_workspace, start_workspace, stop_workspace, list_templates or read_template",
    )
    tool.add_argument(
        "--chat", required=True, type=a_chat, metavar="UUID", help="the chat, or `new`"
    )
    tool.add_argument(
        "--arg",
        action="append",
        type=a_pair,
        default=[],
        metavar="K=V",
        help="an argument of the tool; parameters.K=V for a template's parameter. In parameters, name, "
        'query and ids V is text as typed, or JSON if it begins with " or [; in others it is JSON',
    )
    tool.add_argument(
        "--args",
        type=an_object,
        metavar="JSON",
        help="all arguments of the tool as a JSON object; --arg adds to it",
    )
    tool.add_argument(
        "--call-id",
        type=a_call_id,
        metavar="ID",
        help="to ask again for the answer of an earlier call",
    )
    tool.add_argument(
        "--json",
        "--quiet",
        action="store_true",
        help="only the JSON on stdout, and on stderr only why there is none",
    )
    tool.add_argument(
        "--organization",
        type=a_uuid,
        default=ORGANIZATION,
        metavar="UUID",
        help="the chat's organization",
    )
    tool.add_argument(
        "--owner", type=a_uuid, default=OWNER, metavar="UUID", help="the chat's owner"
    )
    tool.add_argument(
        "--owner-name", default="me", metavar="NAME", help="the owner's name (default: me)"
    )


def _add_templates(commands: Any) -> None:
    verbs = add_group(commands, "template", "push or list templates, or choose the active version")
    push = add_command(
        verbs,
        "template push",
        "make a folder's content the active version of its template",
        "Prints JSON with template_id and version_id. An unchanged folder gives the same version.",
    )
    push.add_argument("folder", type=a_path, metavar="DIR", help="a folder with template.toml")
    listing = add_command(verbs, "template list", "list an organization's templates")
    versions = add_command(
        verbs, "template versions", "list a template's versions, the oldest first"
    )
    versions.add_argument("template", metavar="NAME|ID", help="its name, or its id")
    for verb in (push, listing, versions):
        add_organization(verb)
    activate = add_command(
        verbs,
        "template activate",
        "make an earlier version the active one again",
        "Prints JSON with template_id and version_id. Workspaces that were built keep theirs.",
    )
    activate.add_argument("version", type=a_uuid, metavar="VERSION_ID", help="a version's id")
    for verb in (listing, versions):
        add_json(verb)


def _add_demo(commands: Any) -> None:
    demo = add_command(
        commands,
        "demo",
        "show the whole thing on real servers, in a directory of its own",
        "Creates, joins, fails, stops and starts workspaces, replays the log, and ends with a table "
        "of how long each state took to reach the caller, beside polling every 2 s.",
        somewhere=False,
    )
    demo.add_argument("--keep", action="store_true", help="leave the directory for a look")
