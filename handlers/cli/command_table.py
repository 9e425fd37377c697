"""Every command of `workspaced`: its name, help, arguments, and the function that runs it.

A new command is a class here, an entry in `COMMANDS`, and its function in `handlers.cli.commands`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from handlers.cli import arguments as types
from handlers.cli.arguments import Command, flag, make_parser, positional, setting, switch

DEFAULT_OWNER: Final = "0c5d1a5e-0000-4000-8000-000000000002"
"""The owner of chats for commands that name none."""
STATES: Final = (
    *("none", "building", "agent_connecting", "scripts_running"),
    *("ready", "failed", "stopping", "stopped"),
)
"""The states of a chat on the wire; the module that defines them is slow to import."""
ROLES: Final = ("frontend", "chat-service", "provisioner", "operator", "worker", "gateway")
"""The roles that keys are issued for."""
TOKEN_ROLES: Final = ("chat-service", "chat", "frontend", "operator")
"""The roles that bearer tokens are issued for."""

TOOL_FORMATS: Final = ("openai", "anthropic", "mcp")
"""The ways in which `tool --schema` prints tools."""
SIGNALS: Final = ("INT", "TERM", "KILL", "HUP", "QUIT", "USR1", "USR2")
"""The signals that a command in a workspace can get."""

_SERVERS: Final = "which servers to use"
_GROUPS: Final = {
    "template": "push or list templates, or activate a version",
    "chat": "list chats, or show one",
    "build": "cancel a build",
    "workspace": "delete a chat's workspace, or list workspaces that belong to no chat",
    "settings": "show or change the settings that all workers use",
    "credentials": "issue, list and revoke keys for people and services",
    "token": "issue, list and revoke bearer tokens for the HTTP interface",
}
"""The first words that several commands share."""


def _chat() -> Any:
    return positional("CHAT", type=types.uuid, help="the chat's UUID")


def _parameters() -> Any:
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


def _json() -> Any:
    return switch(
        "--json", help="print JSON lines, as this command always does when stdout is not a terminal"
    )


def _organization(help: str) -> Any:  # noqa: A002 — as argparse names it
    return flag(
        "--organization",
        type=types.uuid,
        metavar="UUID",
        help=f"{help} (WORKSPACED_ORGANIZATION; default: the default organization)",
    )


def _host(name: str, listener: str) -> Any:
    return flag(
        f"--{name}-host",
        metavar="ADDRESS",
        help=f"address on which {listener} accepts connections (default: 127.0.0.1, or ::1 without "
        "IPv4); any other address requires TLS",
    )


class _ConnectingCommand(Command):
    """A command that connects to servers."""

    data_dir: str | None = setting("data_dir", _SERVERS)
    nats_url: str | None = setting("nats_url", _SERVERS)
    database_url: str | None = setting("database_url", _SERVERS)
    nats_ca: str | None = setting("nats_ca", _SERVERS)
    credentials: str | None = setting("credentials", _SERVERS)


_WORKER_VARIABLES: Final = (
    "build_timeout",
    "agent_connect_timeout",
    "orphan_grace",
    "startup_scripts_timeout",
    "cancel_timeout",
    "transaction_timeout",
    "ack_wait",
    "duplicate_window",
    "nats_replicas",
    "waiting_calls_per_chat",
    "waiting_calls",
    "job_queue",
)
_GATEWAY_VARIABLES: Final = (
    "transaction_timeout",
    "held_calls",
    "http_hosts",
    "http_origins",
)
_PROVISIONER_VARIABLES: Final = (
    "presence_ttl",
    "workspaces_per_owner",
    "disk_per_owner_mib",
    "confinement",
    "writable",
    "step_cpu_seconds",
    "process_memory_mib",
    "process_files",
    "user_processes",
    "file_size_mib",
)


class ServerCommand(_ConnectingCommand):
    """A command that runs until it is stopped, and serves its health over HTTP."""

    serves = True
    http_port: int | None = flag(
        "--http-port", type=types.port, metavar="N", help="serve /healthz and /readyz on this port"
    )
    http_host: str | None = _host("http", "the HTTP server of /healthz and /readyz")
    tls_certificate: str | None = setting("tls_certificate")
    tls_key: str | None = setting("tls_key")
    insecure: bool = switch(
        "--insecure-no-tls",
        help="accept connections from other machines without TLS; use it only if something else, such "
        "as a private network, protects them",
    )


class Up(ServerCommand):
    """Run everything on this machine: PostgreSQL, NATS, worker, gateway, local provisioner.

    Prints one line of JSON on stdout when everything is ready. SIGINT (Ctrl-C) or SIGTERM stops the
    servers; workspaces and their agents keep running and connect to the next `up`.
    """

    name = "up"
    function = "handlers.cli.commands.up:up"
    variables = (
        "websocket_origins",
        *_WORKER_VARIABLES,
        *_GATEWAY_VARIABLES,
        *_PROVISIONER_VARIABLES,
    )
    nats_port: int | None = flag(
        "--nats-port",
        type=types.port,
        metavar="N",
        help="port of NATS; later starts of `up` use the same port",
    )
    http_port: int | None = flag(
        "--http-port",
        type=types.port,
        metavar="N",
        help="port of /healthz and /readyz; later starts of `up` use the same port",
    )
    websocket_port: int | None = flag(
        "--websocket-port",
        type=types.port,
        metavar="N",
        help="port of NATS's WebSocket for browsers; later starts of `up` use the same port",
    )
    nats_host: str | None = _host("nats", "NATS")
    websocket_host: str | None = _host("websocket", "NATS's WebSocket")
    nats_name: str | None = flag(
        "--nats-name",
        metavar="NAME",
        help="host name by which clients reach NATS; the TLS certificate must contain it (default: "
        "the address of --nats-host)",
    )


class RunWorker(ServerCommand):
    """Run a worker; you may run any number of them."""

    name = "worker"
    function = "handlers.cli.commands.roles:worker"
    variables = _WORKER_VARIABLES


class RunGateway(ServerCommand):
    """Run a gateway, which answers workspaced.rpc.*; you may run any number of them.

    It also lets agents and frontends connect to NATS, if the file issuer.nk is in the folder of its
    credentials; they can't connect while no gateway has it.
    """

    name = "gateway"
    function = "handlers.cli.commands.roles:gateway"
    variables = _GATEWAY_VARIABLES


class RunProvisioner(ServerCommand):
    """Run a local provisioner, which builds workspaces on this machine."""

    name = "provisioner"
    function = "handlers.cli.commands.roles:provisioner"
    variables = _PROVISIONER_VARIABLES
    provisioner: str = flag(
        "--name",
        metavar="NAME",
        default="local",
        help="the provisioner's name on the bus (default: local)",
    )
    pool: str = flag(
        "--pool",
        metavar="POOL",
        default="local",
        help="the pool that it takes jobs from (default: local)",
    )


class RunMcp(ServerCommand):
    """Offer the tools to a model's client over the Model Context Protocol.

    Without --http-port it speaks on stdin and stdout, for one chat: the one of --chat. With --http-port it serves
    http://127.0.0.1:N/mcp for the holders of tokens of role chat (`token issue`), and prints one line of JSON when it is
    ready. It needs the extra workspaced[mcp] and a key of role chat-service. Example:
    claude mcp add workspaced -- workspaced mcp
    """

    name = "mcp"
    function = "handlers.cli.commands.mcp:serve"
    variables = ("mcp_wait", "mcp_wait_with_progress", "http_hosts", "http_origins")
    http_port: int | None = flag(
        "--http-port",
        type=types.port,
        metavar="N",
        help="serve MCP over HTTP on this port, at /mcp, beside /healthz and /readyz (default: stdin and stdout)",
    )
    http_host: str | None = _host("http", "the HTTP server")
    chat: str | None = flag(
        "--chat",
        metavar="NAME",
        help="on stdio, the chat: any text, which stands for the same chat each time, or a chat's UUID (default: the "
        "working directory)",
    )
    organization: str | None = _organization("on stdio, the organization that the chat belongs to")
    owner: str | None = flag(
        "--owner",
        type=types.uuid,
        metavar="UUID",
        help="on stdio, the id of the user who owns the chat (default: one made from the name)",
    )
    owner_name: str | None = flag(
        "--owner-name",
        metavar="NAME",
        help="on stdio, the name of that user (default: your login name)",
    )


class RunAgent(Command):
    """Run one agent of a workspace (provisioners start these)."""

    name = "agent"
    function = "handlers.cli.commands.local:run_agent"
    serves = True
    reads_settings = False
    config: Path = positional(
        "config", type=types.path, help="the agent's config.json, written by its provisioner"
    )


class ToolCommand(_ConnectingCommand):
    """A command that calls a tool and waits for the answer."""

    finds_owner: ClassVar[bool] = True
    """Whether the owner that the chat has is used unless the flags name another."""
    call_id: str | None = flag(
        "--call-id",
        type=types.call_id,
        metavar="ID",
        help="the id of an earlier call of this chat, to get its answer again (default: a new id)",
    )
    json: bool = switch(
        "--json",
        "--quiet",
        help="print only the JSON answer on stdout, and only errors on stderr",
    )
    organization: str | None = _organization("the organization that the chat belongs to")
    owner: str | None = flag(
        "--owner",
        type=types.uuid,
        metavar="UUID",
        help="the id of the user who owns the chat (default: the chat's owner; of a new chat, one for all users of "
        "this command line)",
    )
    owner_name: str = flag(
        "--owner-name", default="me", metavar="NAME", help="the name of that user (default: me)"
    )


class CallTool(ToolCommand):
    """Call a tool for a chat and wait for the answer, or print the tools for a model.

    While it waits, it shows the chat's states and the build's log on stderr. Then it prints the answer
    as JSON on stdout, and explains it on stderr. Example: workspaced tool create_workspace --chat new
    --arg template=python --arg parameters.branch=main
    """

    name = "tool"
    function = "handlers.cli.commands.tool:call_tool"
    finds_owner: ClassVar[bool] = False
    tool: str | None = positional(
        "TOOL",
        nargs="?",
        help="create_workspace, start_workspace, stop_workspace, list_templates or read_template, or a tool that "
        "runs in the workspace, such as execute",
    )
    chat: str | None = flag(
        "--chat",
        type=types.chat_id,
        metavar="UUID",
        help="the chat's id, or `new` to begin a new chat",
    )
    arg: list[tuple[str, str]] = flag(
        "--arg",
        action="append",
        type=types.key_and_value,
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the tool; parameters.NAME=VALUE sets a parameter of the template. For "
        "parameters, name, query and ids, VALUE is the text exactly as you type it, but is read as JSON "
        'if it begins with " or [. For all other arguments, VALUE is read as JSON',
    )
    args: dict[str, Any] | None = flag(
        "--args",
        type=types.json_object,
        metavar="JSON",
        help="all arguments of the tool as one JSON object; --arg adds to it",
    )
    schema: bool = switch(
        "--schema",
        help="call nothing; print the tools (or the one that is named) with descriptions and JSON Schemas for a model",
    )
    format: Literal["openai", "anthropic", "mcp"] = flag(
        "--format",
        choices=TOOL_FORMATS,
        default="anthropic",
        metavar="FORMAT",
        help=f"how --schema prints them: {', '.join(TOOL_FORMATS)} (default: anthropic)",
    )


class CreateWorkspace(ToolCommand):
    """Create a chat's workspace from a template and wait until it is ready.

    While it waits, it shows the chat's states and the build's log on stderr. Then it prints the answer
    as JSON on stdout. Exits with status 1 if there is no new workspace, or an existing one, that can be used.
    Example: workspaced create python -p branch=main
    """

    name = "create"
    function = "handlers.cli.commands.tool:create"
    template: str = positional("TEMPLATE", help="the template's name or id")
    parameters: list[tuple[str, str]] = _parameters()
    chat: str = flag(
        "--chat",
        type=types.chat_id,
        default="new",
        metavar="UUID",
        help="the chat's id (default: a new chat)",
    )
    preset: str | None = flag(
        "--preset", metavar="NAME|ID", help="the preset whose values apply unless -p gives others"
    )
    workspace_name: str | None = flag(
        "--name", metavar="NAME", help="the workspace's name (default: one like the template's)"
    )


class StartWorkspace(ToolCommand):
    """Start a chat's workspace and wait until it is ready.

    It shows and prints the same as `create`.
    """

    name = "start"
    function = "handlers.cli.commands.tool:start"
    chat: str = _chat()
    parameters: list[tuple[str, str]] = _parameters()


class StopWorkspace(ToolCommand):
    """Stop a chat's workspace, whose files are kept, and wait until it is stopped.

    It shows and prints the same as `create`.
    """

    name = "stop"
    function = "handlers.cli.commands.tool:stop"
    chat: str = _chat()


class PushTemplate(_ConnectingCommand):
    """Store a folder as a new version of its template and activate it.

    Prints JSON with template_id and version_id. If the folder has not changed, the version stays the
    same.
    """

    name = "template push"
    function = "handlers.cli.commands.template:push"
    folder: Path = positional("DIR", type=types.path, help="the folder that contains template.toml")
    organization: str | None = _organization("the organization that owns the template")


class ListTemplates(_ConnectingCommand):
    """List an organization's templates."""

    name = "template list"
    function = "handlers.cli.commands.template:list_templates"
    organization: str | None = _organization("the organization that owns the templates")
    json: bool = _json()


class ListVersions(_ConnectingCommand):
    """List the versions of a template, oldest first."""

    name = "template versions"
    function = "handlers.cli.commands.template:list_versions"
    template: str = positional("NAME|ID", help="the template's name or id")
    organization: str | None = _organization("the organization that owns the template")
    json: bool = _json()


class ActivateVersion(_ConnectingCommand):
    """Activate an earlier version of a template.

    Prints JSON with template_id and version_id. Existing workspaces keep the version that they have.
    """

    name = "template activate"
    function = "handlers.cli.commands.template:activate"
    version: str = positional(
        "VERSION_ID", type=types.uuid, help="the id of the version, as `template versions` lists it"
    )


class ListChats(_ConnectingCommand):
    """List chats with their state, workspace and agent."""

    name = "chat list"
    function = "handlers.cli.commands.chat:list_chats"
    state: str | None = flag(
        "--state",
        choices=STATES,
        metavar="S",
        help=f"only chats in this state: {', '.join(STATES)}",
    )
    organization: str | None = flag(
        "--organization",
        type=types.uuid,
        metavar="UUID",
        help="only chats of this organization (WORKSPACED_ORGANIZATION; default: all organizations)",
    )
    owner: str | None = flag(
        "--owner", type=types.uuid, metavar="UUID", help="only chats of this owner"
    )
    json: bool = _json()


class ShowChat(_ConnectingCommand):
    """Show a chat: state, workspace, build, agent, failure, open calls."""

    name = "chat show"
    function = "handlers.cli.commands.chat:show_chat"
    chat: str = _chat()
    json: bool = _json()


class KeepWorkspace(_ConnectingCommand):
    """Keep a chat's workspace running for a while, even if nobody uses it.

    Prints when it is stopped if nobody uses it until then. Exits with status 1 if it does not run, or has no
    lifetime.
    """

    name = "chat keep"
    function = "handlers.cli.commands.chat:keep"
    chat: str = _chat()
    lifetime: float = flag(
        "--for",
        type=types.seconds,
        required=True,
        metavar="TIME",
        help="how long from now: 90s, 2h, 1h30m, 3d; at most 7 days",
    )
    json: bool = _json()


class CancelBuild(_ConnectingCommand):
    """Cancel the build of a chat's workspace that is in flight.

    A build that no provisioner has begun ends at once; the provisioner of any other is asked to end
    it. `chat show` tells what comes of it.
    """

    name = "build cancel"
    function = "handlers.cli.commands.chat:cancel_build"
    chat: str = _chat()
    build: str | None = flag(
        "--build", type=types.uuid, metavar="UUID", help="only if this is the build in flight"
    )
    reason: str | None = flag(
        "--reason", metavar="TEXT", help="the reason, which the failure's message repeats"
    )


class DeleteWorkspace(_ConnectingCommand):
    """Delete a chat's workspace and wait until it is gone, or request the deletion of others.

    While it waits, it shows the chat's states and the build's log on stderr. Exits with status 1 if
    there is no workspace or the delete build fails. With --workspace or --all it deletes workspaces that belong to no
    chat (`workspaced workspace orphans`): workers try again if a delete build fails, and the command does not wait.
    """

    name = "workspace delete"
    function = "handlers.cli.commands.workspace:delete"
    chat: str | None = positional("CHAT", type=types.uuid, nargs="?", help="the chat's UUID")
    workspace: str | None = flag(
        "--workspace",
        type=types.uuid,
        metavar="UUID",
        help="the workspace with this id, whether it belongs to a chat or not",
    )
    all: bool = switch("--all", help="all workspaces that belong to no chat")
    older_than: float | None = flag(
        "--older-than",
        type=types.seconds,
        metavar="TIME",
        help="with --all: only those that have been in their state for so long: 12h, 30d",
    )
    dry_run: bool = switch(
        "--dry-run",
        help="with --workspace or --all: print what would be deleted, and delete nothing",
    )
    reason: str | None = flag(
        "--reason", metavar="TEXT", help="the reason, which the chat's event log keeps"
    )
    json: bool = switch("--json", help="print only JSON, and on stderr only failures")


class ListOrphans(_ConnectingCommand):
    """List all workspaces that exist and belong to no chat, also replaced ones.

    Workers stop those that run after WORKSPACED_ORPHAN_GRACE seconds, and delete replaced ones that have been
    stopped for as long as the setting stopped_workspace_retention says.
    """

    name = "workspace orphans"
    function = "handlers.cli.commands.workspace:list_orphans"
    json: bool = switch(
        "--json", help="print JSON, as this command always does when stdout is not a terminal"
    )


class ShowLog(_ConnectingCommand):
    """Print the log of a build of a chat.

    Prints the text on stdout as the build and the agents wrote it. With --follow it also prints new
    lines as they arrive, of later builds too, until the chat is settled (ready, failed, stopped or
    none).
    """

    name = "log"
    function = "handlers.cli.commands.log:show_log"
    chat: str = _chat()
    build: str | None = positional(
        "BUILD", nargs="?", type=types.uuid, help="the build's id (default: the newest build)"
    )
    follow: bool = switch("--follow", help="print new lines until the chat is settled")
    json: bool = switch("--json", help="print each message of the log as a line of JSON")


class ExportEvents(_ConnectingCommand):
    """Print the event log of one chat or of all chats as JSON lines.

    --all reads the database, chat by chat, and reports its progress on stderr. Event logs show *** in
    place of the values of sensitive parameters.
    """

    name = "events"
    function = "handlers.cli.commands.chat:export_events"
    one_of = ("chat", "all")
    chat: str | None = positional("CHAT", nargs="?", type=types.uuid, help="the chat's UUID")
    all: bool = switch("--all", help="the event logs of all chats")


class Replay(_ConnectingCommand):
    """Check that event logs lead to the recorded states and to the database.

    Applies each event of a log again and compares the outcome, states and version with those that the
    log recorded, and the result with the database's row of the chat. Prints every difference (chat,
    place in the log, key, recorded value, computed value) on stderr and then exits with status 1.
    Prints the path of states of each chat of a file, or of the one chat, on stdout. Workers may keep
    running meanwhile.
    """

    name = "replay"
    function = "handlers.cli.commands.replay:replay"
    one_of = ("file", "chat", "all")
    file: str | None = positional(
        "FILE",
        nargs="?",
        type=types.file_name,
        help="a file with the output of `workspaced events`; - reads stdin",
    )
    chat: str | None = flag(
        "--chat", type=types.uuid, metavar="UUID", help="one chat of the database"
    )
    all: bool = switch("--all", help="all chats of the database")
    rebuild: bool = switch(
        "--rebuild",
        help="rewrite each snapshot that differs, if its log has no differences of its own. Sensitive "
        "values, which logs do not contain, are taken from the old snapshot; the command names those "
        "that are lost. Timers are set again when a worker starts",
    )
    dry_run: bool = switch(
        "--dry-run", help="with --rebuild: print what would be rewritten, and write nothing"
    )


_SETTINGS: Final = "chat_workspace_ttl, chat_workspace_activity_bump, stopped_workspace_retention or chat_template_allowlist"


class IssueToken(_ConnectingCommand):
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
    chat: list[str] = flag(
        "--chat",
        action="append",
        type=types.uuid,
        default=[],
        metavar="UUID",
        help="the chat of a chat token; a chat that a frontend may follow (repeat the flag for several)",
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
    exec: bool | None = flag(
        "--exec",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether its holder may run commands in workspaces (default: yes); for a frontend, whether it "
        "sees the commands that run (default: no)",
    )
    lifetime: float = flag(
        "--for",
        type=types.seconds,
        default=3600.0,
        metavar="TIME",
        help="how long the token is valid: 90s, 1h, 30d (default: 1h; at most 30 days, for operators 7)",
    )


class ListTokens(_ConnectingCommand):
    """List the valid tokens. Prints JSON."""

    name = "token list"
    function = "handlers.cli.commands.token:list_tokens"


class RevokeToken(_ConnectingCommand):
    """Revoke a token for ever. Its streams end, and its waiting requests are refused, within a second."""

    name = "token revoke"
    function = "handlers.cli.commands.token:revoke"
    id: str = positional("ID", type=types.uuid, help="the token's id, as `token list` shows it")


class ChangeSetting(_ConnectingCommand):
    """Change a setting; it takes effect at once."""

    name = "settings set"
    function = "handlers.cli.commands.settings:change_setting"
    key: str = positional("KEY", help=_SETTINGS)
    value: str = positional(
        "VALUE",
        help="chat_workspace_ttl, chat_workspace_activity_bump, stopped_workspace_retention: a duration like 2h, "
        "1h30m or 30d, '' means never; chat_template_allowlist: template ids separated by commas, '' allows all "
        "templates",
    )


class UnsetSetting(_ConnectingCommand):
    """Bring the default of a setting back; it takes effect at once."""

    name = "settings unset"
    function = "handlers.cli.commands.settings:unset_setting"
    key: str = positional("KEY", help=_SETTINGS)


class ListSettings(_ConnectingCommand):
    """List the settings that all workers use."""

    name = "settings list"
    function = "handlers.cli.commands.settings:list_settings"
    json: bool = _json()


class Migrate(_ConnectingCommand):
    """Bring the database schema to this version and grant the roles their rights.

    Give --database-url of the database's owner if workers and gateways use database roles with fewer
    rights; see deploy/postgres. Prints JSON with the steps that were applied.
    """

    name = "migrate"
    function = "handlers.cli.commands.local:migrate_database"


class PrintNatsAuthorization(_ConnectingCommand):
    """Print the authorization block for the configuration of your own NATS servers.

    Creates the seeds that are missing in <data-dir>/credentials. The output contains only public keys;
    see deploy/nats.
    """

    name = "nats-auth"
    function = "handlers.cli.commands.local:print_nats_authorization"


class Execute(_ConnectingCommand):
    """Run a command in a chat's workspace.

    Its output is printed as it comes, it gets this command's standard input, and its exit status is this
    command's, or 128 + the number of the signal that ended it. Ctrl-C sends it INT. A second Ctrl-C detaches: it goes
    on, and --attach comes back to it. It may run for as long as the workspace does.
    """

    name = "exec"
    function = "handlers.cli.commands.processes:run"
    rest = "words"
    chat: str = _chat()
    words: list[str] = positional(
        "COMMAND", nargs="*", help="after --: a line for /bin/sh, or a program and its arguments"
    )
    terminal: bool = switch(
        "-t", help="run it in a terminal, of this one's size; each key goes to it, also Ctrl-C"
    )
    attach: str | None = flag(
        "--attach", metavar="ID", help="follow the process with this id instead, from the beginning"
    )


class ListProcesses(_ConnectingCommand):
    """List the commands that run or ran in a chat's workspace."""

    name = "ps"
    function = "handlers.cli.commands.processes:list_processes"
    chat: str = _chat()
    json: bool = _json()


class KillProcess(_ConnectingCommand):
    """Send a signal to a command in a chat's workspace, and to all that it has started."""

    name = "kill"
    function = "handlers.cli.commands.processes:kill"
    chat: str = _chat()
    process: str = positional("ID", help="the process's id, as `ps` lists it")
    signal: str = flag(
        "--signal",
        type=types.signal_name,
        choices=SIGNALS,
        default="TERM",
        metavar="NAME",
        help=f"one of {', '.join(SIGNALS)}, also with SIG or as a number (default: TERM)",
    )


class Copy(_ConnectingCommand):
    """Copy a file or a directory out of a chat's workspace, or into it.

    One of the two paths is CHAT:PATH. A relative PATH begins at the directory of the workspace's agent. If TARGET is a
    directory, the copy is made in it. Executable files stay executable. Links in a directory are left out, but one that
    leads from this machine's directory to a file is copied as that file.
    """

    name = "cp"
    function = "handlers.cli.commands.copy:copy"
    source: str = positional("SOURCE", help="CHAT:PATH, or a local path")
    target: str = positional("TARGET", help="a local path, or CHAT:PATH")


class IssueCredential(_ConnectingCommand):
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
    chat: list[str] = flag(
        "--chat",
        action="append",
        type=types.uuid,
        default=[],
        metavar="UUID",
        help="a chat that a frontend may follow; repeat the flag for several chats",
    )
    pool: str | None = flag(
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
    exec: bool | None = flag(
        "--exec",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether a chat service may run commands in workspaces (default: yes), or a frontend sees those "
        "that run (default: no)",
    )
    out: Path | None = flag(
        "--out",
        type=types.path,
        metavar="FILE",
        help="write the seed to this new file, which only you may read, instead of to stdout",
    )


class ListCredentials(_ConnectingCommand):
    """List the issued keys."""

    name = "credentials list"
    function = "handlers.cli.commands.credentials:list_credentials"
    all: bool = switch(
        "--all",
        help="also list keys that expired or were revoked, and keys of agents of superseded builds",
    )
    json: bool = _json()


class RevokeCredential(_ConnectingCommand):
    """Revoke a key for ever.

    NATS closes every connection that uses the key at once and accepts no new one.
    """

    name = "credentials revoke"
    function = "handlers.cli.commands.credentials:revoke"
    key: str = positional("KEY", help="the public key, as `credentials list` shows it")


class Demo(Command):
    """Demonstrate workspaced on real servers, in a temporary directory.

    Creates, stops and starts a workspace, lets a build fail, replays the event log, and ends with a
    table that compares how soon the caller knew of each state with polling every 2 s.
    """

    name = "demo"
    function = "handlers.demo.demo:demo"
    keep: bool = switch("--keep", help="do not delete the temporary directory at the end")


class PrintCompletion(Command):
    """Print a script that completes commands and flags in your shell.

    Add `eval "$(workspaced completion bash)"` to ~/.bashrc. For zsh, write the output of
    `workspaced completion zsh` to a file _workspaced in a folder of your $fpath.
    """

    name = "completion"
    function = "handlers.cli.commands.local:print_completion"
    reads_settings = False
    shell: str = positional("SHELL", choices=("bash", "zsh"), help="bash or zsh")


COMMANDS: Final[tuple[type[Command], ...]] = (
    *(Up, RunWorker, RunGateway, RunProvisioner, RunMcp, RunAgent),
    *(CreateWorkspace, StartWorkspace, StopWorkspace, CallTool),
    *(Execute, ListProcesses, KillProcess, Copy),
    *(PushTemplate, ListTemplates, ListVersions, ActivateVersion),
    *(ListChats, ShowChat, KeepWorkspace),
    CancelBuild,
    *(DeleteWorkspace, ListOrphans),
    *(ShowLog, ExportEvents, Replay),
    *(ChangeSetting, UnsetSetting, ListSettings),
    *(Migrate, PrintNatsAuthorization),
    *(IssueCredential, ListCredentials, RevokeCredential),
    *(IssueToken, ListTokens, RevokeToken),
    *(Demo, PrintCompletion),
)
"""All commands, in the order of `workspaced --help`."""


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of `workspaced`; see `make_parser` for what it returns."""
    return make_parser(
        COMMANDS,
        _GROUPS,
        description="Development workspaces for AI chats: a persisted state machine on NATS and "
        "PostgreSQL. Begin with `workspaced demo`, or `workspaced up` and `workspaced create`.",
        epilog="A WORKSPACED_ variable in the environment can replace the flag that names it. If both "
        "are given, the flag takes precedence. `workspaced COMMAND --help` describes a command. "
        "`workspaced completion --help` explains completion in your shell.",
    )
