"""Measures for workspaced only: very many waiting calls, and a database with a long history."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.cold import up
from tests.bench.figures import summary
from tests.bench.measures import Figures, all_ready, create_all, latency, names, throughput
from tests.bench.peer import KINDS
from tests.bench.peers.product import Driver
from tests.bench.running_system import RunningSystem

PART = 5000
"""Builds open at the same time: a pool's consumer delivers at most 10,000 unacked jobs."""
AGING = Path(__file__).with_name("aging.sql")


async def crowd(rig: RunningSystem, chats: int, answered: int) -> Figures:
    """Measure the memory that waiting calls take, and how fast the first of them are answered."""
    peer = rig.peer
    assert isinstance(peer, Driver)
    before = await latency(rig, 20, 5)
    resident_before = peer.resident()
    new = names("c", chats)
    began = time.monotonic()
    pending: list[Awaitable[Any]] = []
    for part in (new[start : start + PART] for start in range(0, chats, PART)):
        pending += await create_all(rig, part, 1000)
        await rig.source.created(part)
        await rig.source.play(part, kinds=KINDS[:2], inflight=1000)
    await peer.wait_for_agents(chats)
    asked_in = time.monotonic() - began
    resident_after = peer.resident()
    first = await _answered(rig, new[:1], pending[:1])
    among = slice(1, 1 + answered)
    some = await _answered(rig, new[among], pending[among])
    return {
        "chats": chats,
        "asked_s": round(asked_in, 1),
        "before_ms": before["ready_ms"],
        "first_ms": first,
        "after_ms": some,
        "resident_before": resident_before,
        "resident_after": resident_after,
        "growth": {
            name: round(resident_after[name] - was, 1) for name, was in resident_before.items()
        },
    }


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
    async with peer.database() as database:
        for statement in AGING.read_text().split(";\n\n"):
            words = statement.replace(":chats", str(chats)).replace(":rows", str(log_rows // chats))
            await database.execute(words.replace(":model", peer.id_of(model[0])))
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


async def _measured(rig: RunningSystem, runs: int, size: int) -> list[Figures]:
    return [
        {"latency": await latency(rig, 20, 5), "throughput": await throughput(rig, size)}
        for _ in range(runs)
    ]
