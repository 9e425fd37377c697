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
        epilog="A WORKSPACED_ variable in the environment can replace the flag that names it. If both are "
        "given, the flag takes precedence. `workspaced COMMAND --help` describes a command.",
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
        "Prints one line of JSON on stdout when everything is ready. SIGINT (Ctrl-C) or SIGTERM stops the "
        "servers; workspaces and their agents keep running and connect to the next `up`.",
    )
    up.add_argument(
        "--nats-port",
        type=a_port,
        metavar="N",
        help="port of NATS; later starts of `up` use the same port",
    )
    up.add_argument(
        "--http-port",
        type=a_port,
        metavar="N",
        help="port of /healthz and /readyz; later starts of `up` use the same port",
    )
    up.add_argument(
        "--websocket-port",
        type=a_port,
        metavar="N",
        help="port of NATS's WebSocket for browsers; later starts of `up` use the same port",
    )
    for what in ("nats", "websocket"):
        add_host(up, what)
    up.add_argument(
        "--nats-name",
        metavar="NAME",
        help="host name by which clients reach NATS; the TLS certificate must contain it (default: the "
        "address of --nats-host)",
    )
    add_listener(up)
    up.set_defaults(serves=True, tells_settings=True)
    for name, words, more in (
        ("worker", "run a worker; you may run any number of them", ""),
        (
            "gateway",
            "run a gateway, which answers workspaced.rpc.*; you may run any number of them",
            _ISSUER,
        ),
        ("provisioner", "run a local provisioner, which builds workspaces on this machine", ""),
    ):
        role = add_command(commands, name, words, more)
        role.set_defaults(serves=True, tells_settings=True)
        role.add_argument(
            "--http-port", type=a_port, metavar="N", help="serve /healthz and /readyz on this port"
        )
        add_listener(role)
        if name == "provisioner":
            role.add_argument(
                "--name", default="local", help="the provisioner's name on the bus (default: local)"
            )
            role.add_argument(
                "--pool", default="local", help="the pool that it takes jobs from (default: local)"
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
        "While it waits, it shows the chat's states and the build's log on stderr. Then it prints the answer "
        "as JSON on stdout, and explains it on stderr. "
        "Example: workspaced tool create_workspace --chat new --arg template_id=… "
        "--arg parameters.branch=main",
    )
    tool.add_argument(
        "tool",
        help="create_workspace, start_workspace, stop_workspace, list_templates or read_template",
    )
    tool.add_argument(
        "--chat",
        required=True,
        type=a_chat,
        metavar="UUID",
        help="the chat's id, or `new` to begin a new chat",
    )
    tool.add_argument(
        "--arg",
        action="append",
        type=a_pair,
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the tool; parameters.NAME=VALUE sets a parameter of the template. For "
        "parameters, name, query and ids, VALUE is the text exactly as you type it, but is read as JSON "
        'if it begins with " or [. For all other arguments, VALUE is read as JSON',
    )
    tool.add_argument(
        "--args",
        type=an_object,
        metavar="JSON",
        help="all arguments of the tool as one JSON object; --arg adds to it",
    )
    tool.add_argument(
        "--call-id",
        type=a_call_id,
        metavar="ID",
        help="the id of an earlier call of this chat, to get its answer again (default: a new id)",
    )
    tool.add_argument(
        "--json",
        "--quiet",
        action="store_true",
        help="print only the JSON answer, and on stderr only why there is no answer",
    )
    tool.add_argument(
        "--organization",
        type=a_uuid,
        default=ORGANIZATION,
        metavar="UUID",
        help="the organization that the chat belongs to",
    )
    tool.add_argument(
        "--owner",
        type=a_uuid,
        default=OWNER,
        metavar="UUID",
        help="the id of the user who owns the chat",
    )
    tool.add_argument(
        "--owner-name", default="me", metavar="NAME", help="the name of that user (default: me)"
    )


def _add_templates(commands: Any) -> None:
    verbs = add_group(commands, "template", "push or list templates, or activate a version")
    push = add_command(
        verbs,
        "template push",
        "store a folder as a new version of its template and activate it",
        "Prints JSON with template_id and version_id. If the folder has not changed, the version stays the same.",
    )
    push.add_argument(
        "folder", type=a_path, metavar="DIR", help="the folder that contains template.toml"
    )
    listing = add_command(verbs, "template list", "list an organization's templates")
    versions = add_command(
        verbs, "template versions", "list the versions of a template, oldest first"
    )
    versions.add_argument("template", metavar="NAME|ID", help="the template's name or id")
    for verb in (push, listing, versions):
        add_organization(verb)
    activate = add_command(
        verbs,
        "template activate",
        "activate an earlier version of a template",
        "Prints JSON with template_id and version_id. Existing workspaces keep the version that they have.",
    )
    activate.add_argument(
        "version",
        type=a_uuid,
        metavar="VERSION_ID",
        help="the id of the version, as `template versions` lists it",
    )
    for verb in (listing, versions):
        add_json(verb)


def _add_demo(commands: Any) -> None:
    demo = add_command(
        commands,
        "demo",
        "demonstrate workspaced on real servers, in a temporary directory",
        "Creates, stops and starts a workspace, lets a build fail, replays the event log, and ends with a "
        "table that compares how soon the caller knew of each state with polling every 2 s.",
        somewhere=False,
    )
    demo.add_argument(
        "--keep", action="store_true", help="do not delete the temporary directory at the end"
    )
