"""The faults of a run, drawn from a seed: which process is struck, how and when."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import asyncpg

from tests.faults.processes import AgentProcess, Program, Server
from tests.rigs.processes import agents_using
from tests.rigs.proxy import Proxy

AGENT = "agent"
WEIGHTS = {
    ("worker", "kill"): 6,
    ("worker", "pause"): 6,
    ("gateway", "kill"): 4,
    ("gateway", "pause"): 4,
    ("local provisioner", "kill"): 3,
    ("local provisioner", "pause"): 3,
    (AGENT, "kill"): 4,
    (AGENT, "pause"): 4,
    ("provisioner", "kill"): 4,
    ("provisioner", "pause"): 4,
    ("machine", "kill"): 3,
    ("machine", "pause"): 3,
    ("nats-server", "kill"): 5,
    ("nats-server", "pause"): 3,
    ("postgresql", "kill"): 3,
    ("postgresql", "pause"): 2,
    ("postgresql", "restart"): 1,
    ("wire", "cut"): 6,
    ("wire", "hold"): 5,
    ("database connections", "cut"): 2,
}
MENDING = ("nats-server", "wire", "provisioner", "machine", "local provisioner")
"""After these faults, senders publish again whatever may be lost. In every second act these faults
are left out, so that a message which a worker loses stays lost and the checks find it."""
INSTANT = 0.025
"""The longest delay, in seconds, between a request and a fault that should hit a worker at work."""
PATIENCE = 2.0
LOST = 0.15
"""Share of the agents' pauses that last so long that workers consider the agent lost."""
MISSED = (21.0, 27.0)
BUILDERS = ("local provisioner", "provisioner")
"""A job that one of these had taken is redelivered only after half a minute, which is too long for
a short run."""


@dataclass
class Faults:
    """Injects faults at random until cancelled."""

    rng: Random
    programs: Sequence[Program]
    nats: Server
    postgresql: Server
    wires: Mapping[str, Proxy]
    """The proxies to NATS, by kind of program."""
    directory: Path
    database_url: str
    every: float
    """Seconds between two faults, on average."""
    spare_builders: bool
    moment: Callable[[], Awaitable[None]]
    """Returns when a request is being published."""
    act: float
    """Seconds after which the selection of faults changes."""
    struck: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many faults were injected, by kind of process and kind of fault."""
    history: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Inject faults at random; several may last at the same time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self.rng.expovariate(1 / self.every))
                calm = int((loop.time() - began) / self.act) % 2 == 1
                kind, fault = self._draw(MENDING if calm else ())
                strike = self._strike(kind, fault)
                if strike is not None:
                    self.struck[kind, fault] += 1
                    group.create_task(strike)

    async def wipe(self, store: Path) -> None:
        """Make NATS lose everything it has stored."""
        self.struck["nats-server", "wipe"] += 1
        self._note("wipe", "nats-server")
        await self.nats.wipe(store)

    @property
    def total(self) -> int:
        return sum(self.struck.values())

    def _draw(self, spared: Sequence[str]) -> tuple[str, str]:
        spared = (*spared, *(BUILDERS if self.spare_builders else ()))
        weights = {who: weight for who, weight in WEIGHTS.items() if who[0] not in spared}
        return self.rng.choices(tuple(weights), tuple(weights.values()))[0]

    def _strike(self, kind: str, fault: str) -> Coroutine[Any, Any, None] | None:
        if kind == "wire":
            program = self.rng.choice(tuple(self.wires))
            seconds = self._long() if fault == "hold" else 0.0
            self._note(fault, f"wire of {program}", seconds)
            return _interrupt(self.wires[program], seconds)
        if kind == "database connections":
            self._note(fault, kind)
            return self._cut_database()
        one = self._one(kind)
        if one is None:
            return None
        seconds = 0.0 if fault != "pause" else self._long()
        if seconds and kind == AGENT and self.rng.random() < LOST:
            seconds = self.rng.uniform(*MISSED)
        self._note(fault, one.name, seconds)
        return self._on(one, fault, seconds)

    def _note(self, fault: str, whom: str, seconds: float = 0.0) -> None:
        at = datetime.now(UTC).strftime("%H:%M:%S.%f")[:-3]
        self.history.append(f"{at} {fault} {whom}" + (f" {seconds:.1f} s" if seconds else ""))

    def _long(self) -> float:
        """Return a pause's length; some outlast `ack_wait` and the limit of a transaction."""
        return self.rng.choice((self.rng.uniform(0.2, 2), self.rng.uniform(2, 8)))

    def _one(self, kind: str) -> Program | Server | AgentProcess | None:
        idle: list[Program | Server | AgentProcess]
        if kind == AGENT:
            pids = agents_using(self.directory)
            idle = [AgentProcess(AGENT, pid) for pid in pids]
        else:
            every = (*self.programs, self.nats, self.postgresql)
            idle = [one for one in every if one.kind == kind and one.pid and not one.busy]
        return self.rng.choice(idle) if idle else None

    async def _on(self, one: Program | Server | AgentProcess, fault: str, seconds: float) -> None:
        one.busy = True
        try:
            if one.kind == "worker":
                with suppress(TimeoutError):
                    async with asyncio.timeout(PATIENCE):
                        await self.moment()
                await asyncio.sleep(self.rng.uniform(0, INSTANT))
            match fault:
                case "kill":
                    await one.kill()
                case "restart" if isinstance(one, Server):
                    await one.restart()
                case _:
                    await one.pause(seconds)
        finally:
            one.busy = False

    async def _cut_database(self) -> None:
        """Make PostgreSQL terminate every client connection, if it is up."""
        away = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
        with suppress(OSError, TimeoutError, *away):
            async with asyncio.timeout(5):
                connection = await asyncpg.connect(self.database_url)
                try:
                    await connection.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity "
                        "where backend_type = 'client backend' and pid <> pg_backend_pid()"
                    )
                finally:
                    await connection.close()


async def _interrupt(wire: Proxy, seconds: float) -> None:
    """Hold all data for some seconds; for 0 seconds, reset every connection instead."""
    if not seconds:
        wire.drop()
        return
    wire.freeze()
    try:
        await asyncio.sleep(seconds)
    finally:
        wire.release()
