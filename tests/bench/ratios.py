"""The ratios of workspaced to the sketch, and the check of them against recorded figures.

`make bench` judges these ratios by its goals. `make bench-quick` compares them with `ratios.json`, so that
a change that makes workspaced slower is noticed; `make bench-quick ARGS=--record` writes that file anew.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.figures import brief
from tests.bench.peer import ROOT
from tests.bench.plan import PRODUCT, SKETCH, Plan, System
from tests.bench.runs import Line, Results

RECORDED: Final = Path(__file__).with_name("ratios.json")
SLACK: Final = 0.3
"""How much worse than recorded a ratio may be: the figures of one machine vary by this much."""
HEAD: Final = ("", "recorded", "measured", "allowed", "")

Pick = Callable[[Line], float]


@dataclass(frozen=True)
class Ratio:
    """A figure of workspaced divided by the same figure of a system beside it."""

    name: str
    title: str
    measure: str
    pick: Pick
    unit: str = ""
    more_is_better: bool = False

    def figure(self, results: Results, system: System, size: int) -> float | None:
        """Return the median of a system's runs, or None without runs; `size` is a number of chats."""
        words = {"chats": size} if self.measure == "throughput" else {}
        lines = results.of(system, self.measure, **words)
        return statistics.median(self.pick(line) for line in lines) if lines else None

    def allowed(self, recorded: float) -> float:
        """Return the worst value that is not worse than the recorded one by more than the slack."""
        return recorded * (1 - SLACK if self.more_is_better else 1 + SLACK)


EVENTS: Final = Ratio(
    "events_s", "events/s", "throughput", lambda line: line["events_s"], "", more_is_better=True
)
CHATS: Final = Ratio(
    "chats_s", "chats/s", "throughput", lambda line: line["chats_s"], "", more_is_better=True
)
CPU: Final = Ratio(
    "cpu_per_1000", "CPU s per 1,000 chats", "throughput", lambda line: line["cpu_per_1000"], " s"
)
READY_P50: Final = Ratio(
    "ready_p50_ms",
    "ready fact to caller, p50, light load",
    "latency",
    lambda line: line["ready_ms"]["p50"],
    " ms",
)
CHECKED: Final = (CHATS, EVENTS, CPU, READY_P50)


@dataclass(frozen=True)
class Check:
    """One ratio as recorded and as measured; None where it is missing."""

    ratio: Ratio
    recorded: float | None
    measured: float | None

    @property
    def failure(self) -> str | None:
        """Say what is wrong; None if the ratio is within the slack."""
        title = self.ratio.title
        if self.measured is None:
            return f"{title}: not measured, because a system did not run to its end (see above)"
        if self.recorded is None:
            return (
                f"{title}: {_times(self.measured)} the sketch's, but no figure is recorded for it"
            )
        allowed = self.ratio.allowed(self.recorded)
        more = self.ratio.more_is_better
        if self.measured >= allowed if more else self.measured <= allowed:
            return None
        return (
            f"{title}: {_times(self.measured)} the sketch's; {_times(self.recorded)} is recorded, so "
            f"at {'least' if more else 'most'} {_times(allowed)} is allowed ({SLACK:.0%} slack)"
        )

    def cells(self) -> list[str]:
        """Return the check as a row of a table with `HEAD`."""
        sign = "≥" if self.ratio.more_is_better else "≤"
        allowed = "" if self.recorded is None else self.ratio.allowed(self.recorded)
        return [
            self.ratio.title,
            "" if self.recorded is None else _times(self.recorded),
            "" if self.measured is None else _times(self.measured),
            f"{sign} {_times(allowed)}" if allowed else "",
            "worse" if self.failure else "as recorded or better",
        ]


def comparable(plan: Plan) -> bool:
    """Return whether the plan measures all that is compared."""
    systems = [task.system for task in plan.tasks]
    parts = {ratio.measure for ratio in CHECKED}
    return PRODUCT in systems and SKETCH in systems and parts.issubset(plan.parts)


def measured(plan: Plan, results: Results) -> dict[str, float | None]:
    """Return each checked ratio of this run, by name, at the largest number of chats of the plan."""
    found = {}
    for ratio in CHECKED:
        ours, theirs = (
            ratio.figure(results, system, max(plan.sizes)) for system in (PRODUCT, SKETCH)
        )
        found[ratio.name] = None if ours is None or not theirs else ours / theirs
    return found


def checks(found: Mapping[str, float | None], recorded: Mapping[str, float]) -> list[Check]:
    """Return the comparison of each ratio of a run with the recorded one."""
    return [Check(ratio, recorded.get(ratio.name), found.get(ratio.name)) for ratio in CHECKED]


def complaint(found: Sequence[Check], path: Path = RECORDED) -> str:
    """Return the message for ratios that are worse than allowed or missing; empty if there are none."""
    failures = [check.failure for check in found if check.failure]
    if not failures:
        return ""
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return (
        "\n".join(
            [
                f"workspaced compares worse with the sketch than {name} records:",
                *(f"  {failure}" for failure in failures),
                "Measure again on a machine that does nothing else. If a change is meant to cost this much,",
                f"write the new figures to {name}: make bench-quick ARGS=--record",
            ]
        )
        + "\n"
    )


def load(path: Path = RECORDED) -> dict[str, float]:
    """Return the recorded ratios by name; none if the file is missing."""
    if not path.exists():
        return {}
    ratios: dict[str, float] = json.loads(path.read_text())["ratios"]
    return ratios


def record(
    found: Mapping[str, float | None], machine: Mapping[str, Any], path: Path = RECORDED
) -> None:
    """Write the ratios of this run, and the machine on which they were measured."""
    words = {
        "machine": f"{machine['cores']} cores, {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, fdatasync p50 {machine['fsync_p50_us']} µs",
        "commit": machine["commit"],
        "ratios": {name: round(ratio, 2) for name, ratio in found.items() if ratio is not None},
    }
    path.write_text(json.dumps(words, indent=2, ensure_ascii=False) + "\n")


def _times(value: float) -> str:
    return f"{brief(value)} x"
