"""Measures of a running system: latency, throughput, memory, and whether the results are right."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from tests.bench.figures import summary
from tests.bench.peer import KINDS
from tests.bench.processes import memory
from tests.bench.running_system import RunningSystem, Usage, paced

Figures = dict[str, Any]
LIMIT = 600.0
"""Seconds after which a measure fails."""


def names(letter: str, number: int) -> list[str]:
    """Return new chat ids, each the id of the run and a number."""
    run = f"{letter}{uuid4().hex[:8]}"
    return [f"{run}-{i}" for i in range(number)]


async def create_all(
    rig: RunningSystem, chats: Sequence[str], inflight: int
) -> list[Awaitable[Mapping[str, Any]]]:
    """Make the calls of all chats; return their pending results."""
    gate = asyncio.Semaphore(inflight)

    async def one(chat: str) -> Awaitable[Mapping[str, Any]]:
        async with gate:
            return await rig.peer.create(chat)

    return list(await asyncio.gather(*(one(chat) for chat in chats)))


async def all_ready(pending: Sequence[Awaitable[Mapping[str, Any]]]) -> None:
    """Wait for the results of all calls."""
    results = await asyncio.wait_for(asyncio.gather(*pending), LIMIT)
    wrong = [result for result in results if result["state"] != "ready"]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(results)} calls ended otherwise: {wrong[0]}")


async def verified(rig: RunningSystem, chats: Sequence[str]) -> str:
    """Return `ok` if each chat is ready and each event is logged once, else the counts."""
    facts = await rig.peer.verify(chats)
    number = facts.pop("sampled", len(chats))
    fine = facts == {"ready": number, "logged": number * len(KINDS)}
    return "ok" if fine else f"{facts} of {number} chats"


async def latency(
    rig: RunningSystem, chats: int, seconds: float, rounds: int = 1, spread: float = 0.0
) -> Figures:
    """Start `chats` calls evenly over `seconds`, each with its events 50 to 100 ms apart.

    `spread`: the first event is delayed by up to so many seconds, as in a real build. Without it, a
    poller would always be measured at the same phase of its interval.

    `ready_ms`: from just before the last event is sent until the caller has its result.
    `overhead_ms`: the whole call without the pauses.
    """
    ready, overhead = [], []
    done: list[str] = []

    async def one(chat: str) -> None:
        asked = time.monotonic_ns()
        pending = await rig.peer.create(chat)
        accepted = time.monotonic_ns()
        playing = asyncio.create_task(rig.source.play([chat], gaps=paced(spread)))
        await all_ready([pending])
        held = time.monotonic_ns()
        handed, stored = (await playing)[chat]
        ready.append((held - handed[-1]) / 1e6)
        between = sum(s - h for h, s in zip(handed[:-1], stored[:-1], strict=True))
        overhead.append((accepted - asked + between + held - handed[-1]) / 1e6)

    async def later(number: int, chat: str) -> None:
        await asyncio.sleep(number * seconds / chats)
        await one(chat)

    for _ in range(rounds):
        new = names("l", chats)
        done += new
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(*(later(*pair) for pair in enumerate(new)))
    return {
        "rate": round(chats / seconds, 1),
        "ready_ms": summary(ready),
        "overhead_ms": summary(overhead),
        "verify": await verified(rig, done),
    }


async def throughput(rig: RunningSystem, chats: int, inflight: int = 256) -> Figures:
    """Make all calls, then send all events, as fast as the system accepts them.

    `events_s` counts from the first event sent until the last has taken effect, `chats_s` from the
    first call to the last result. CPU is given per 1,000 chats, without the load generator.
    """
    new = names("t", chats)
    before, usage = await rig.peer.counters(), Usage(rig)
    began = time.monotonic_ns()
    pending = await create_all(rig, new, inflight)
    await rig.source.created(new)
    created = time.monotonic_ns()
    playing = asyncio.create_task(rig.source.play(new, inflight=inflight))
    await all_ready(pending)
    ended = time.monotonic_ns()
    used = usage.since()
    times = await playing
    after = await rig.peer.counters()
    first = min(handed[0] for handed, _ in times.values())
    last = max(stored[-1] for _, stored in times.values())
    in_effect = last if rig.peer.processed_on == "ack" else max(ended, last)
    thousands = chats / 1000
    return {
        "chats": chats,
        "creates_s": round(chats / (created - began) * 1e9, 1),
        "accepted_s": round(len(KINDS) * chats / (last - first) * 1e9, 1),
        "events_s": round(len(KINDS) * chats / (in_effect - first) * 1e9, 1),
        "chats_s": round(chats / (ended - began) * 1e9, 1),
        "cpu_per_1000": round(used["cpu"] / thousands, 3),
        "load_per_1000": round(used["cpu_load"] / thousands, 3),
        "of_per_1000": {name: round(cpu / thousands, 3) for name, cpu in used["cpu_of"].items()},
        "writes_per_chat": round((after.get("writes", 0) - before.get("writes", 0)) / chats, 3),
        "mib": resident(rig),
        "verify": await verified(rig, new),
    }


async def half(rig: RunningSystem, chats_s: float, seconds: float) -> Figures:
    """Measure the latency at half of the throughput that the system reached."""
    rate = chats_s / 2
    figures = await latency(rig, max(20, int(rate * seconds)), seconds)
    return {**figures, "full": chats_s}


async def twice(rig: RunningSystem, chats: int) -> Figures:
    """Send each event twice: the system must apply it once."""
    new = names("d", chats)
    pending = await create_all(rig, new, chats)
    playing = asyncio.create_task(rig.source.play(new, gaps=[0.005] * len(KINDS), copies=2))
    await all_ready(pending)
    await playing
    return {"chats": chats, "verify": await verified(rig, new)}


async def warm(rig: RunningSystem, chats: int = 30) -> None:
    """Run some chats unmeasured, so that every code path has run once."""
    new = names("w", chats)
    pending = await create_all(rig, new, 64)
    await rig.source.play(new)
    await all_ready(pending)


def resident(rig: RunningSystem) -> dict[str, float]:
    """Return MiB by process tree; shared pages count once."""
    found = {name: memory(pid) for name, pid in rig.peer.pids().items()}
    if not rig.peer.app_is_load:
        found["app"] = memory(os.getpid()) - memory(rig.source.pid) - sum(found.values())
    return {name: round(mib) for name, mib in found.items()}
