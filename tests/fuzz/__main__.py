"""`make fuzz MESSAGES=100000 SEED=n`: send hostile messages to each subject and rpc.

It prints how many messages were accepted, dead-lettered or refused.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from handlers.embedded import embedded_servers
from tests.fuzz.fuzz_run import PIECE, FuzzRun, Harm, fuzz_run_on, kept
from tests.fuzz.hostile import INBOUND, RPCS
from tests.fuzz.pure import ask_who, read_alarms
from tests.rigs.fleet import fleet_on
from tests.rigs.servers import new_database


async def run(messages: int, seed: int, only: list[str]) -> int:
    """Send all messages and print their outcomes; return 1 if a message did harm."""
    begun = time.monotonic()
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="workspaced-fuzz-")))
        servers = await stack.enter_async_context(embedded_servers(home / "servers"))
        database_url = await stack.enter_async_context(new_database(servers))
        fleet = await stack.enter_async_context(fleet_on(servers, database_url, home))
        rig = await stack.enter_async_context(fuzz_run_on(fleet, seed))
        try:
            for one in kept():
                await rig.send_all(one.target, [one])
            rig.figures.clear()
            for target in only or (*INBOUND, "presence", *RPCS):
                await _attack(rig, target, messages)
            await rig.check()
            rig.flat()
        except Harm as error:
            print(f"HARM: {error}")
            return 1
        if not only:
            print(f"callout, as a function: {dict(await ask_who(seed, messages))}")
            print(f"alarms, as a function: {dict(read_alarms(seed, messages))}")
    for role, seen in rig.memory.items():
        print(
            f"{role}: {seen[0]:.0f} MiB after the first {PIECE} messages, "
            f"{seen[len(seen) // 2]:.0f} in the middle, {seen[-1]:.0f} at the end, at most {max(seen):.0f}"
        )
    sent = sum(figures.sent for figures in rig.figures.values())
    print(
        f"seed {seed}: {sent} messages in {time.monotonic() - begun:.0f} s, no harm done; "
        f"a healthy chat was served {rig.served} times among them"
    )
    return 0


async def _attack(rig: FuzzRun, target: str, messages: int) -> None:
    for first in range(0, messages, 10 * PIECE):
        healthy = asyncio.create_task(rig.healthy())
        figures = await rig.send(target, range(first, min(messages, first + 10 * PIECE)))
        await healthy
    print(f"{target}: {figures}", flush=True)


def main() -> int:
    """Run the command line; return the exit status."""
    words = argparse.ArgumentParser(prog="python -m tests.fuzz")
    words.add_argument("--messages", type=int, default=100_000)
    words.add_argument("--seed", type=int, default=int(time.time()))
    words.add_argument("--only", action="append", default=[], help="one subject kind or rpc")
    found = words.parse_args()
    return asyncio.run(run(found.messages, found.seed, found.only))


if __name__ == "__main__":
    sys.exit(main())
