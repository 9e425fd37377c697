"""Code that the commands of all roles share: signals, health, and the end of the connection to NATS.

Nothing here imports a role, so that the process of each role imports only its own.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

from bus import Backoff, Bus, Unavailable
from handlers.cli.command_table.servers import ServerCommand
from handlers.runtime.health import Check, HttpServer, http_server
from handlers.runtime.listeners import (
    Listeners,
    is_host_name,
    listen_address,
    server_certificate,
)
from handlers.runtime.supervise import run_until_one_ends
from handlers.settings import Settings

log = logging.getLogger(__name__)


async def run_until_signal(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run `jobs` until SIGINT or SIGTERM, or until one of them ends; raises its exception."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await run_until_one_ends(*jobs, stop.wait())


async def raise_when_closed(bus: Bus) -> None:
    """Wait until the connection is closed for good, then raise Unavailable.

    The process then ends, so that its supervisor starts it again.
    """
    raise Unavailable(f"NATS closed the connection for good: {await bus.wait_closed()}")


async def restart_on_disconnect(run: Callable[[], Awaitable[None]]) -> None:
    """Run a role; if it loses NATS while it starts, log that and start it again."""
    backoff = Backoff()
    while True:
        try:
            await run()
        except Unavailable as error:
            log.warning("lost NATS while starting, starting again: %s", error)
        else:
            return
        await backoff.wait()


def health(
    command: ServerCommand,
    settings: Settings,
    checks: dict[str, Check],
    *,
    for_clients: bool = False,
) -> AbstractAsyncContextManager[HttpServer]:
    """Serve a role's health on the address that its flags name. Raises InvalidSettings.

    `for_clients`: the role has an interface for clients, too.
    """
    certificate = server_certificate(settings)
    address = listen_address(
        "--http-host", command.http_host, certificate, insecure=command.insecure
    )
    return http_server(address, command.http_port, checks, certificate, for_clients=for_clients)


def http_url(command: ServerCommand, settings: Settings) -> str | None:
    """Return the URL of what a role serves over HTTP; None if it serves nothing. Raises InvalidSettings."""
    if command.http_port is None:
        return None
    host, certificate = command.http_host, server_certificate(settings)
    address = listen_address("--http-host", host, certificate, insecure=command.insecure)
    names = {address: host} if host and is_host_name(host) else {}
    listeners = Listeners(names=names, certificate=certificate)
    return listeners.url("http", address, command.http_port)
