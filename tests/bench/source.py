"""The sources of events (provisioner and agents), in their own process.

Reads one JSON command per line and answers each with one line; see running_system.Source.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from tests.bench.peer import Event, Peer, load

Times = dict[str, tuple[list[int], list[int]]]


async def play(
    peer: Peer,
    plan: Sequence[tuple[str, Sequence[float]]],
    kinds: Sequence[str],
    inflight: int,
    copies: int,
) -> Times:
    """Send the events of each chat in order; return when each was sent and accepted."""
    gate = asyncio.Semaphore(inflight)
    times: Times = {}

    async def one(chat: str, gaps: Sequence[float]) -> None:
        async with gate:
            handed, accepted = [], []
            for kind, gap in zip(kinds, gaps, strict=True):
                if gap:
                    await asyncio.sleep(gap)
                handed.append(time.monotonic_ns())
                for _ in range(copies):
                    await peer.event(chat, kind)
                accepted.append(time.monotonic_ns())
            times[chat] = handed, accepted

    await asyncio.gather(*(one(chat, gaps) for chat, gaps in plan))
    return times


async def answer(peer: Peer, command: Event) -> Event:
    """Carry out a command, and return the reply."""
    reply: Event = {"seq": command["seq"]}
    try:
        match command["do"]:
            case "connect":
                await peer.connect(command["address"])
            case "created":
                await peer.created(command["chats"])
            case "play":
                keys = ("plan", "kinds", "inflight", "copies")
                reply["times"] = await play(peer, *(command[key] for key in keys))
    except Exception:  # noqa: BLE001 — the reply reports any exception
        reply["error"] = traceback.format_exc()
    return reply


async def main(name: str, options: dict[str, Any]) -> None:
    """Answer commands until the input ends."""
    peer = load(name, options)
    reader = asyncio.StreamReader(limit=256 * 2**20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    out = sys.stdout
    sys.stdout = sys.stderr  # output of libraries must not break the protocol
    running = set()

    async def handle(line: bytes) -> None:
        out.write(json.dumps(await answer(peer, json.loads(line))) + "\n")
        out.flush()

    while line := await reader.readline():
        task = asyncio.create_task(handle(line))
        running.add(task)
        task.add_done_callback(running.discard)
    await peer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
