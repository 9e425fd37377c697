"""The output of a run: a line every few seconds, and a table at the end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tests.faults.calls import Calls
from tests.faults.checks import Findings
from tests.faults.faults import Faults
from tests.faults.processes import Program

EVERY = 5.0


def tell(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


async def progress(calls: Calls, faults: Faults) -> None:
    """Print the progress every few seconds, until cancelled."""
    began = time.monotonic()
    while True:
        await asyncio.sleep(EVERY)
        by_kind = Counter[str]()
        for (kind, _), times in faults.struck.items():
            by_kind[kind] += times
        struck = ", ".join(f"{kind} {times}" for kind, times in sorted(by_kind.items()))
        tell(
            f"{time.monotonic() - began:6.0f} s  calls {len(calls.all)}, answered {calls.answered}, "
            f"open {len(calls.open)}  faults {faults.total}: {struck}"
        )


def table(faults: Faults) -> list[str]:
    """Return a table of how often each kind of process was struck, by kind of fault."""
    ways = ("kill", "pause", "cut", "hold", "restart", "wipe")
    kinds = sorted({kind for kind, _ in faults.struck})
    lines = [f"{'':22}" + "".join(f"{way:>9}" for way in ways)]
    for kind in kinds:
        cells = (faults.struck.get((kind, way), 0) for way in ways)
        lines.append(f"{kind:22}" + "".join(f"{cell or '-':>9}" for cell in cells))
    totals = (sum(n for (_, w), n in faults.struck.items() if w == way) for way in ways)
    lines.append(f"{'all':22}" + "".join(f"{total:>9}" for total in totals))
    return lines


def summary(
    calls: Calls, chats: int, faults: Faults, found: Findings, programs: Sequence[Program]
) -> list[str]:
    """Return the final part of the report."""
    longest = max(calls.all.values(), key=lambda call: call.waited, default=None)
    unasked = Counter(f"{p.kind} ended with {status}" for p in programs for status in p.unasked)
    lines = [
        "",
        *table(faults),
        "",
        (
            f"calls {len(calls.all)}, answered {calls.answered}, of these by rpc "
            f"{sum(call.by_rpc for call in calls.all.values())}, answers that came "
            f"{sum(call.copies for call in calls.all.values())}"
        ),
        f"chats {chats}, faults {faults.total}",
        *(f"{what} {number}" for what, number in found.notes.items()),
        (
            f"lost {len(found.lost)}, doubled {len(found.doubled)}, stuck {len(found.stuck)}, "
            f"other {len(found.other)}"
        ),
        f"longest wait of a call {longest.waited if longest else 0:.1f} s ({longest})",
        f"longest time without an answer while calls were open {calls.longest_gap:.1f} s",
    ]
    if unasked:
        lines.append(f"ended unasked, started again: {dict(unasked)}")
    lines += [f"  {wrong}" for wrong in found.all]
    return lines
