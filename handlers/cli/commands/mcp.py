"""`workspaced mcp`: offers the tools to clients of the Model Context Protocol."""

from __future__ import annotations

import getpass
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import workspaced

from handlers.app import Endpoints, locate
from handlers.cli.command_table.servers import RunMcp
from handlers.cli.commands.roles import run_until_signal
from handlers.errors import CannotServe, InvalidSettings, NotFoundError
from handlers.runtime.listeners import client_context, listen_address, server_certificate
from handlers.runtime.site import site
from handlers.settings import Settings, organization_of

try:
    from handlers.mcp.caller import Caller, local_caller
    from handlers.mcp.calls import ToolCalls, Waits
    from handlers.mcp.http import McpHttp
    from handlers.mcp.server import McpServer
    from handlers.mcp.stdio import serve_stdio
    from handlers.mcp.tasks import TaskIds, Tasks
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("mcp", "mcp_types", "anyio", "uvicorn"):
        raise
    raise CannotServe(
        "`workspaced mcp` needs the extra `mcp`, which is not installed: pip install 'workspaced[mcp]'"
    ) from error

_ONLY_ON_STDIO = ("chat", "owner", "owner_name")


async def serve(command: RunMcp, settings: Settings) -> None:
    """Serve MCP on stdio, or over HTTP if the command names a port."""
    for name in ("mcp", "uvicorn"):  # they log every request
        logging.getLogger(name).setLevel(logging.WARNING)
    endpoints = locate(settings)
    waits = Waits(settings.mcp_wait, settings.mcp_wait_with_progress)
    if command.http_port is None:
        caller = _local_caller(command, settings)
        async with _connected(endpoints) as ws:
            calls = ToolCalls(ws, waits)
            tasks = Tasks(calls, TaskIds(endpoints.seed("chat-service")))
            server = McpServer(calls, tasks, lambda _: caller, honors_cancelled=True)
            await run_until_signal(serve_stdio(server.protocol()))
        return
    if given := [name for name in _ONLY_ON_STDIO if getattr(command, name) is not None]:
        flag = f"--{given[0].replace('_', '-')}"
        raise InvalidSettings(
            f"{flag} has no effect with --http-port: there the token names the chat and its owner"
        )
    certificate = server_certificate(settings)
    address = listen_address(
        "--http-host", command.http_host, certificate, insecure=command.insecure
    )
    async with _connected(endpoints) as ws:
        calls = ToolCalls(ws, waits)
        tasks = Tasks(calls, TaskIds(endpoints.seed("chat-service")))
        http = McpHttp(calls, tasks, site(settings.http_hosts, settings.http_origins))
        await run_until_signal(http.serve(address, command.http_port, certificate, _print_ready))


def _print_ready(url: str) -> None:
    sys.stdout.write(f"{json.dumps({'ready': True, 'mcp': url})}\n")
    sys.stdout.flush()


def _local_caller(command: RunMcp, settings: Settings) -> Caller:
    name = command.owner_name or _login_name()
    return local_caller(
        command.chat or str(Path.cwd()),
        organization=organization_of(settings),
        owner=command.owner,
        owner_name=name,
    )


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in /etc/passwd
        return f"user-{os.getuid()}"


@asynccontextmanager
async def _connected(endpoints: Endpoints) -> AsyncIterator[workspaced.Workspaced]:
    """Connect to NATS with the key of a chat service. Raises NotFoundError, CannotServe."""
    key = endpoints.seed_file("chat-service")
    try:
        async with workspaced.connect(
            endpoints.nats_url, key=key, service="mcp", tls=client_context(endpoints.nats_ca)
        ) as ws:
            yield ws
    except workspaced.Refused as error:
        raise NotFoundError(
            f"{error}; name a key of role chat-service with --credentials, not {key}"
        ) from error
    except workspaced.WorkspacedError as error:
        raise CannotServe(str(error)) from error
