"""Runs one system in its own environment; prints a line of JSON for each measure.

Run as `python -m tests.bench.measure NAME OPTIONS MEASURES`; measures are given as
`[["latency", {…}], …]`. `half` uses the result of the last throughput measure of this run.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench import measures
from tests.bench.idle import idle
from tests.bench.running_system import RunningSystem

Measure = tuple[str, dict[str, Any]]


async def measured(
    rig: RunningSystem, kind: str, words: dict[str, Any], chats_s: float
) -> dict[str, Any]:
    """Take one measure."""
    match kind:
        case "latency":
            return await measures.latency(rig, **words)
        case "throughput":
            return await measures.throughput(rig, **words)
        case "half":
            return await measures.half(rig, chats_s, **words)
        case "twice":
            return await measures.twice(rig, **words)
        case "rest":
            return {"resident": getattr(rig.peer, "resident", dict)()}
        case "idle":
            return await idle(rig, **words)
    from tests.bench import endurance  # noqa: PLC0415 — not in the peers' environments

    match kind:
        case "waiting":
            return await endurance.waiting(rig, **words)
        case "aged":
            return await endurance.aged(rig, **words)
    raise ValueError(kind)


async def run(name: str, options: Mapping[str, Any], asked: Sequence[Measure]) -> None:
    """Start a system, take the measures in the given order, and stop the system."""
    most = max([words.get("chats", 0) for _, words in asked], default=0)
    chats_s = 0.0
    async with RunningSystem(name, options, most) as rig:
        for kind, words in asked:
            if kind == "warm":
                await measures.warm(rig, **words)
                continue
            figures = await measured(rig, kind, words, chats_s)
            chats_s = figures.get("chats_s", chats_s)
            sys.stdout.write(json.dumps({"measure": kind, **figures}) + "\n")
            sys.stdout.flush()


async def main() -> None:
    """Run the measures; SIGTERM also stops the system and its servers."""
    name, options, asked = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    task = asyncio.create_task(run(name, options, asked))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


if __name__ == "__main__":
    asyncio.run(main())
