"""Measures for workspaced only: very many waiting calls, and a database with a long history."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.cold import up
from tests.bench.figures import summary
from tests.bench.measures import (
    Figures,
    all_ready,
    create_all,
    latency,
    names,
    resident,
    throughput,
)
from tests.bench.peer import KINDS
from tests.bench.peers.product import Driver
from tests.bench.running_system import RunningSystem

PART = 5000
"""Builds open at the same time: a pool's consumer delivers at most 10,000 unacked jobs."""
AGING = Path(__file__).with_name("aging.sql")
WAITING = Path(__file__).with_name("waiting.sql")


async def waiting(rig: RunningSystem, calls: int, real: int, answered: int, starts: int) -> Figures:
    """Measure what waiting calls cost: memory, the start of a worker, and the time of answers.

    `real` of the calls are made over the wire and wait for their agents; the rest are copies of one of
    them in the database. NATS has no state and no timer of a copy until a worker starts and arms the
    timers. `few`, `before` and `without` were measured before; `few` are `answered` waiting calls. By then the worker
    has answered `real` other calls, so that its memory of the last chats is not counted as that of waiting calls.
    """
    peer = rig.peer
    assert isinstance(peer, Driver)
    before = await latency(rig, 20, 5)
    few = names("f", answered)
    few_answered = await _answered(rig, few, await _wait_for_agents(rig, few))
    starts_before = [await peer.started_worker() for _ in range(starts)]
    await throughput(rig, real)
    resident_before = peer.resident()
    new = names("c", real)
    began = time.monotonic()
    pending = await _wait_for_agents(rig, new)
    made = time.monotonic()
    await _run(peer, WAITING, model=peer.id_of(new[0]), copies=calls - real)
    copied = time.monotonic()
    async with peer.database() as database:
        open_calls = await database.fetchval("select count(*) from call where resolved_at is null")
    first = await _answered(rig, new[:1], pending[:1])
    among = slice(1, 1 + answered)
    some = await _answered(rig, new[among], pending[among])
    after = await latency(rig, 20, 5)
    resident_after = peer.resident()
    starts_after = [await peer.started_worker() for _ in range(starts)]
    return {
        "calls": open_calls,
        "real": real,
        "made_s": round(made - began, 1),
        "copied_s": round(copied - made, 1),
        "few_ms": few_answered,
        "first_ms": first,
        "some_ms": some,
        "before_ms": before["ready_ms"],
        "after_ms": after["ready_ms"],
        "resident": {"without": resident_before, "with": resident_after},
        "starts": {"without": starts_before, "with": starts_after},
        "mib": resident(rig),
    }


async def _wait_for_agents(rig: RunningSystem, chats: Sequence[str]) -> list[Awaitable[Any]]:
    """Make calls that wait for their agents; return their pending results."""
    peer = rig.peer
    assert isinstance(peer, Driver)
    pending: list[Awaitable[Any]] = []
    for part in (chats[start : start + PART] for start in range(0, len(chats), PART)):
        pending += await create_all(rig, part, 1000)
        await rig.source.created(part)
        await rig.source.play(part, kinds=KINDS[:2], inflight=1000)
    await peer.wait_for_agents(len(chats))
    return pending


async def _answered(
    rig: RunningSystem, chats: Sequence[str], pending: Sequence[Any]
) -> dict[str, float]:
    """Make chats ready that wait for their agents, four a second; return the latencies in ms."""
    waits = []

    async def one(number: int) -> None:
        await asyncio.sleep(number / 4)
        playing = asyncio.create_task(
            rig.source.play([chats[number]], kinds=KINDS[2:], gaps=[0.05, 0.05])
        )
        await all_ready([pending[number]])
        held = time.monotonic_ns()
        handed, _ = (await playing)[chats[number]]
        waits.append((held - handed[-1]) / 1e6)

    await asyncio.gather(*(one(number) for number in range(len(chats))))
    return summary(waits)


async def aged(rig: RunningSystem, chats: int, log_rows: int, runs: int, size: int) -> Figures:
    """Measure before and after a database is filled with history; then start `up` on it."""
    peer = rig.peer
    assert isinstance(peer, Driver)
    new = await _measured(rig, runs, size)
    model = names("m", 1)
    pending = await create_all(rig, model, 1)
    await rig.source.play(model)
    await all_ready(pending)
    await rig.source.play(model, kinds=["agent_disconnected"])
    await peer.stop_workspace(model[0])
    began = time.monotonic()
    await _run(peer, AGING, model=peer.id_of(model[0]), chats=chats, rows=log_rows // chats)
    async with peer.database() as database:
        size_of = await database.fetchval("select pg_database_size(current_database())")
        counted = await database.fetchrow(
            "select (select count(*) from chat) as chats, (select count(*) from event_log) as rows"
        )
    aging = time.monotonic() - began
    old = await _measured(rig, runs, size)
    await peer.stop()
    return {
        "new": new,
        "old": old,
        "aging_s": round(aging, 1),
        "gib": round(size_of / 2**30, 2),
        "up_s": [round(up(peer.processes.directory), 3) for _ in range(runs)],
        **dict(counted),
    }


async def _run(peer: Driver, file: Path, **words: object) -> None:
    """Run the statements of a file one by one, with `:name` replaced by its value."""
    async with peer.database() as database:
        for statement in file.read_text().split(";\n\n"):
            filled = statement
            for name, value in words.items():
                filled = filled.replace(f":{name}", str(value))
            await database.execute(filled)


async def _measured(rig: RunningSystem, runs: int, size: int) -> list[Figures]:
    return [
        {"latency": await latency(rig, 20, 5), "throughput": await throughput(rig, size)}
        for _ in range(runs)
    ]
