"""The cost of waiting calls."""

from __future__ import annotations

import asyncio
import time

from tests.bench.measures import Figures, all_ready, create_all, names, resident, verified
from tests.bench.peer import KINDS
from tests.bench.running_system import RunningSystem, Usage

TOLD = 12.0
"""Seconds after which idle PostgreSQL backends have reported their statistics."""


async def idle(rig: RunningSystem, chats: int, seconds: float, settle: float = TOLD) -> Figures:
    """Measure idle processes, first without calls, then with calls that wait for agents."""
    without = await _watched(rig, seconds, settle)
    new = names("i", chats)
    pending = await create_all(rig, new, 256)
    await rig.source.created(new)
    await rig.source.play(new, kinds=KINDS[:2])
    with_calls = await _watched(rig, seconds, settle)
    memories = resident(rig)
    began = time.monotonic()
    await rig.source.play(new, kinds=KINDS[2:])
    await all_ready(pending)
    return {
        "chats": chats,
        "seconds": seconds,
        "without": without,
        "with": with_calls,
        "more_cpu": round(with_calls["cpu"] - without["cpu"], 3),
        "mib": memories,
        "finish_s": round(time.monotonic() - began, 2),
        "verify": await verified(rig, new),
    }


async def _watched(rig: RunningSystem, seconds: float, settle: float) -> Figures:
    await asyncio.sleep(settle)
    before, usage = await rig.peer.counters(), Usage(rig)
    then = await rig.peer.now()
    await asyncio.sleep(seconds)
    used, asked = usage.since(), await rig.peer.asked_since(then)
    after = await rig.peer.counters()
    return {**used, "asked": asked, **{name: after[name] - before[name] for name in after}}
