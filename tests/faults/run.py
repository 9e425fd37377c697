"""`make faults`: chats put load on real servers while faults kill and pause every process.

    python -m tests.faults.run [--minutes 10] [--seed N] [--chats 500]

Afterwards checks verify from outside that nothing accepted is lost, that nothing is done twice,
and that every call is answered. If a check fails, the exit status is 1 and the data directory is
kept.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

from tests.faults.calls import Calls
from tests.faults.chats import Chat
from tests.faults.checks import Checks, Findings
from tests.faults.faults import Faults
from tests.faults.report import progress, summary, tell
from tests.faults.scenario import LOCAL_POOLS, FaultScenario, Settings, running_scenario

LAST_CHAT = 0.7
"""Share of the run's time after which the last chat begins."""
STEPS = (8, 16)
WIPES = (0.35, 0.7)
"""Shares of the run's time after which NATS loses everything it has stored."""
JOB_COMES_AGAIN = 30.0


@dataclass(frozen=True)
class Wanted:
    """The parameters of a run."""

    minutes: float
    seed: int
    chats: int
    every: float
    """Seconds between two faults, on average."""
    settings: Settings
    act: float = 30.0
    """Seconds after which the selection of faults changes."""
    spare_builders: bool = False


FULL = Settings()
QUICK = Settings(build=12.0, connect=8.0, scripts=8.0)


async def run(wanted: Wanted, directory: Path) -> Findings:
    """Run the scenario once, print the report, and return the findings."""
    rng = Random(wanted.seed)
    tell(f"seed {wanted.seed}, {wanted.minutes:g} minutes, data in {directory}")
    async with running_scenario(directory, wanted.settings, Random(rng.random())) as place:
        calls = Calls(place.wire_url("caller"), place.role_options("chat-service"))
        faults = Faults(
            Random(rng.random()),
            place.programs,
            place.nats,
            place.postgresql,
            place.wires,
            directory,
            place.database_url,
            wanted.every,
            spare_builders=wanted.spare_builders,
            moment=calls.moment,
            act=wanted.act,
        )
        beside = [
            asyncio.create_task(calls.line.run()),
            asyncio.create_task(progress(calls, faults)),
        ]
        try:
            chats = await _load(wanted, place, calls, faults, rng)
            ids, wiped = [chat.id for chat in chats], ("nats-server", "wipe") in faults.struck
            checks = Checks(place, calls, ids, wiped=wiped)
            # A slow build may have begun at the end, and no call waits for a delete.
            found = await checks.judge(2 * (place.settings.build + JOB_COMES_AGAIN))
            own = sum(chat.pool in LOCAL_POOLS for chat in chats)
            found.notes["chats of workspaced's own provisioners and agents"] = own
        finally:
            for task in beside:
                task.cancel()
        (directory / "faults.txt").write_text("\n".join(faults.history))
        for line in summary(calls, len(chats), faults, found, place.programs):
            tell(line)
    return found


async def _load(
    wanted: Wanted, place: FaultScenario, calls: Calls, faults: Faults, rng: Random
) -> list[Chat]:
    """Run the chats under faults; return when no call is open, or when the patience is used up."""
    ending, chats = asyncio.Event(), list[Chat]()
    lives: set[asyncio.Task[None]] = set()

    async def begin() -> None:
        for number in range(wanted.chats):
            # workspaced's own provisioners build every fourth chat.
            name = LOCAL_POOLS[number // 4 % 2] if number % 4 == 0 else "plain"
            steps = rng.randint(*STEPS) // (2 if number % 4 == 0 else 1)
            more = (place.organization_id, place.templates[name], name, steps, ending)
            chat = Chat(calls, Random(rng.random()), *more)
            chats.append(chat)
            lives.add(asyncio.create_task(chat.live()))
            await asyncio.sleep(LAST_CHAT * wanted.minutes * 60 / wanted.chats)

    beginning, striking = asyncio.create_task(begin()), asyncio.create_task(faults.run())

    async def wipe() -> None:
        for before, part in pairwise((0.0, *WIPES)):
            await asyncio.sleep((part - before) * wanted.minutes * 60)
            await faults.wipe(place.nats_store)

    wiping = asyncio.create_task(wipe())
    await asyncio.wait((striking,), timeout=wanted.minutes * 60)
    await wiping
    if striking.done():
        striking.result()
    striking.cancel()
    ending.set()
    await asyncio.gather(beginning, striking, return_exceptions=True)
    limits = place.settings
    patience = limits.build + limits.connect + limits.scripts + JOB_COMES_AGAIN
    tell(f"no more faults; {len(calls.open)} calls are open")
    with suppress(TimeoutError):
        async with asyncio.timeout(patience):
            await calls.quiet.wait()
            await asyncio.gather(*lives, return_exceptions=True)
    for life in lives:
        life.cancel()
    for ended in await asyncio.gather(*lives, return_exceptions=True):
        if isinstance(ended, Exception) and not isinstance(ended, TimeoutError):
            raise ended
    return chats


def main() -> int:
    """Run the command line; return the exit status."""
    flags = argparse.ArgumentParser(description="Faults on real servers.")
    flags.add_argument("--minutes", type=float, default=10.0)
    flags.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    flags.add_argument("--chats", type=int, default=500)
    flags.add_argument("--quick", action="store_true", help="about a minute in all")
    given = flags.parse_args()
    wanted = (
        Wanted(0.4, given.seed, 40, 0.5, QUICK, act=12.0, spare_builders=True)
        if given.quick
        else Wanted(given.minutes, given.seed, given.chats, 0.85, FULL)
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell's background job ignores SIGINT
        signal.signal(number, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix="workspaced-faults-"))
    found = asyncio.run(run(wanted, directory))
    if found.all:
        tell(f"FAILED: seed {wanted.seed}; logs and data are kept in {directory}")
        return 1
    shutil.rmtree(directory, ignore_errors=True)
    tell("well: nothing lost, nothing doubled, nothing stuck")
    return 0


if __name__ == "__main__":
    sys.exit(main())
