"""The commands that run until they are stopped: `up`, one for each role, and `mcp`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from handlers.cli import arguments as types
from handlers.cli.arguments import Command, flag, positional, setting, switch
from handlers.cli.command_table.connecting import ConnectingCommand, organization_flag

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


def _host(name: str, listener: str) -> Any:
    return flag(
        f"--{name}-host",
        metavar="ADDRESS",
        help=f"address on which {listener} accepts connections (default: 127.0.0.1, or ::1 without "
        "IPv4); any other address requires TLS",
    )


class ServerCommand(ConnectingCommand):
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
    function = "handlers.cli.commands.run_worker:worker"
    variables = _WORKER_VARIABLES


class RunGateway(ServerCommand):
    """Run a gateway, which answers workspaced.rpc.*; you may run any number of them.

    It also lets agents and frontends connect to NATS, if the file issuer.nk is in the folder of its
    credentials; they can't connect while no gateway has it.
    """

    name = "gateway"
    function = "handlers.cli.commands.run_gateway:gateway"
    variables = _GATEWAY_VARIABLES


class RunProvisioner(ServerCommand):
    """Run a local provisioner, which builds workspaces on this machine."""

    name = "provisioner"
    function = "handlers.cli.commands.run_provisioner:provisioner"
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
        help="serve MCP over HTTP on this port at /mcp, and also /healthz and /readyz (default: stdin and stdout)",
    )
    http_host: str | None = _host("http", "the HTTP server")
    chat: str | None = flag(
        "--chat",
        metavar="NAME",
        help="on stdio, the chat: any text, which stands for the same chat each time, or a chat's UUID (default: the "
        "working directory)",
    )
    organization: str | None = organization_flag(
        "on stdio, the organization that the chat belongs to"
    )
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
