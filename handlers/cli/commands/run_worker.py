"""`workspaced worker`: runs a worker until it is signalled to stop."""

from __future__ import annotations

import asyncio

from bus import Bus
from handlers.app import Endpoints, limits, locate, tuning, waiting_limits
from handlers.cli.command_table.servers import RunWorker
from handlers.cli.commands.roles import health, raise_when_closed, run_until_signal
from handlers.runtime.health import database_check, first_problem, nats_check, started_check
from handlers.settings import Settings
from handlers.worker.status import StatusAnswers
from handlers.worker.worker import Worker
from statemachine.store import Store


async def worker(command: RunWorker, settings: Settings) -> None:
    """Run a worker."""
    endpoints, ready = locate(settings), asyncio.Event()
    checks = {"worker": started_check(ready)}
    async with (
        health(command, settings, checks),
        endpoints.store("worker", wait=True) as store,
        endpoints.bus("worker", wait=True) as bus,
    ):
        working = new_worker(store, bus, settings, endpoints, ready)
        problems = working.problems
        checks |= {
            "nats": first_problem(nats_check({"worker": bus}), lambda: problems.of("nats")),
            "database": first_problem(database_check(store), lambda: problems.of("database")),
        }
        status = StatusAnswers(store, bus, working.waiting_limits).run()
        await run_until_signal(working.run(), status, raise_when_closed(bus))


def new_worker(
    store: Store, bus: Bus, settings: Settings, endpoints: Endpoints, ready: asyncio.Event
) -> Worker:
    """Return a worker that sets `ready` when it has started."""
    return Worker(
        store,
        bus,
        limits(settings),
        tuning(settings, endpoints),
        waiting_limits(settings),
        ready,
    )
