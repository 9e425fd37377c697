"""`workspaced gateway`: runs a gateway until it is signalled to stop."""

from __future__ import annotations

import asyncio

from bus import Bus
from handlers.app import Endpoints, locate
from handlers.cli.command_table.servers import RunGateway
from handlers.cli.commands.roles import (
    health,
    http_url,
    raise_when_closed,
    restart_on_disconnect,
    run_until_signal,
)
from handlers.gateway.gateway import Gateway
from handlers.runtime.health import database_check, nats_check, started_check
from handlers.runtime.site import site
from handlers.settings import Settings
from statemachine.store import Store


async def gateway(command: RunGateway, settings: Settings) -> None:
    """Run a gateway."""
    endpoints, ready = locate(settings), asyncio.Event()
    checks = {"gateway": started_check(ready)}
    async with (
        health(command, settings, checks, for_clients=True) as http,
        endpoints.store("gateway", wait=True) as store,
        endpoints.bus("gateway", wait=True) as bus,
    ):
        checks |= {"nats": nats_check({"gateway": bus}), "database": database_check(store)}
        page = http_url(command, settings)
        serving = new_gateway(store, bus, settings, endpoints, ready, page)
        async with serving.http() as http.api:
            await run_until_signal(restart_on_disconnect(serving.run), raise_when_closed(bus))


def new_gateway(
    store: Store,
    bus: Bus,
    settings: Settings,
    endpoints: Endpoints,
    ready: asyncio.Event,
    page: str | None,
) -> Gateway:
    """Return a gateway that sets `ready` when it has started; browsers reach its page at the URL `page`."""
    return Gateway(
        store,
        bus,
        issuer_seed=endpoints.issuer_seed(),
        held_calls=settings.held_calls,
        ready=ready,
        site=site(settings.http_hosts, settings.http_origins),
        page=page,
    )
