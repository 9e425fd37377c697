"""The goals of the benchmark, and how each is judged."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.bench.figures import brief
from tests.bench.plan import PRODUCT, SYNCED, Plan, System
from tests.bench.runs import Line, Results

Pick = Callable[[Line], float]


@dataclass(frozen=True)
class Verdict:
    """One goal with the measured value and the wanted bound; `found` is None if not measured."""

    number: str
    goal: str
    ours: str
    theirs: str
    found: float | None
    bound: float
    at_least: bool = False
    is_ratio: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if it was not measured."""
        if self.found is None:
            return None
        return self.found >= self.bound if self.at_least else self.found <= self.bound

    @property
    def word(self) -> str:
        """The verdict as a word."""
        return {True: "met", False: "missed", None: "not measured"}[self.met]

    def cells(self) -> list[str]:
        """Return the goal as a row of the table."""
        sign = "≥" if self.at_least else "≤"
        unit = " x" if self.is_ratio else ""
        found = "" if self.found is None else f"{brief(self.found)}{unit}"
        bound = f"{sign} {brief(self.bound)}{unit}"
        return [self.number, self.goal, self.ours, self.theirs, found, bound, self.word]


HEAD = ("", "goal", "workspaced", "beside it", "found", "wanted", "")


def verdicts(plan: Plan, results: Results, starts: dict[str, list[float]]) -> list[Verdict]:
    """Judge every goal by the medians of this run."""
    return [
        *_latency(results),
        *_throughput(plan, results),
        *_waiting(results),
        *_age(results),
        *_cold(starts),
        *_rest(results),
    ]


def median(lines: list[Line], pick: Pick) -> float | None:
    """Return the median over runs, or None if there are no runs."""
    return statistics.median(pick(line) for line in lines) if lines else None


def _compared(
    number: str,
    goal: str,
    ours: float | None,
    theirs: float | None,
    bound: float,
    unit: str = "",
    *,
    at_least: bool = False,
) -> Verdict:
    words = ["" if value is None else f"{brief(value)}{unit}" for value in (ours, theirs)]
    known = ours is not None and theirs
    found = ours / theirs if known and ours is not None and theirs else None
    return Verdict(number, goal, *words, found, bound, at_least)


def _absolute(
    number: str, goal: str, found: float | None, bound: float, unit: str = "", theirs: str = ""
) -> Verdict:
    ours = "" if found is None else f"{brief(found)}{unit}"
    return Verdict(number, goal, ours, theirs, found, bound, is_ratio=False)


def _sync(system: System) -> str:
    return "sync always" if system.options["sync"] else "default sync"


def _ready(quantile: str) -> Pick:
    return lambda line: line["ready_ms"][quantile]


def _latency(results: Results) -> Iterator[Verdict]:
    for ours, theirs in SYNCED:
        for quantile, bound in (("p50", 1.5), ("p99", 3.0)):
            yield _compared(
                "1",
                f"ready fact to caller, {quantile}, light load, {_sync(ours)}",
                *(
                    median(results.of(system, "latency"), _ready(quantile))
                    for system in (ours, theirs)
                ),
                bound,
                " ms",
            )
    half = results.of(PRODUCT, "half")
    rate = median(half, lambda line: line["rate"])
    at = f"at {brief(rate)} chats/s" if rate else ""
    p99 = median(half, _ready("p99"))
    yield _absolute("1", "the same, p99 in ms at half of full load", p99, 50, " ms", at)


def _throughput(plan: Plan, results: Results) -> Iterator[Verdict]:
    for ours, theirs in SYNCED:
        for size in plan.sizes:
            what = f"{size:,} chats at once, {_sync(ours)}"
            runs = [results.of(system, "throughput", chats=size) for system in (ours, theirs)]
            for key, unit in (("events_s", "events/s"), ("chats_s", "chats/s")):
                pair = [median(lines, lambda line, key=key: line[key]) for lines in runs]
                yield _compared("2", f"{unit}, {what}", *pair, 0.6, at_least=True)
            pair = [median(lines, lambda line: line["cpu_per_1000"]) for lines in runs]
            yield _compared("2", f"CPU s per 1,000 chats, {what}", *pair, 2.5)


def _waiting(results: Results) -> Iterator[Verdict]:
    idle = results.of(PRODUCT, "idle")
    without = median(idle, lambda line: line["without"]["cpu"])
    beside = "" if without is None else f"{brief(without)} s with none"
    seconds = idle[0]["seconds"] if idle else 60
    calls = idle[0]["chats"] if idle else 1000
    more = median(idle, lambda line: line["more_cpu"])
    yield _absolute(
        "3", f"CPU s that {calls:,} calls waiting {seconds} s add", more, 0.1, "", beside
    )
    asked = median(idle, lambda line: line["with"]["asked"])
    yield _absolute("3", "connections that made a query meanwhile", asked, 0)
    crowd = results.of(PRODUCT, "crowd")
    number = f"{crowd[0]['chats']:,}" if crowd else "100,000"
    for role in ("worker", "gateway"):
        growth = median(crowd, lambda line, role=role: line["growth"][role])
        yield _absolute("3", f"MiB that the {role} grows with {number} calls waiting", growth, 100)
    pair = [median(crowd, _p50(key)) for key in ("first_ms", "before_ms")]
    yield _compared(
        "3", f"ms until the first of {number} is answered, and before", *pair, 1.2, " ms"
    )
    pair = [median(crowd, _p50(key)) for key in ("after_ms", "before_ms")]
    yield _compared("3", "the same, p50 of some more of them", *pair, 1.2, " ms")


def _p50(key: str) -> Pick:
    return lambda line: line[key]["p50"]


def _age(results: Results) -> Iterator[Verdict]:
    aged = results.of(PRODUCT, "aged")
    of = (
        f"{aged[0]['rows']:,} log rows, {aged[0]['chats']:,} chats"
        if aged
        else "10 million log rows"
    )
    old, new = ([line for one in aged for line in one[age]] for age in ("old", "new"))
    for quantile in ("p50", "p99"):
        pair = [
            median(lines, lambda line, q=quantile: line["latency"]["ready_ms"][q])
            for lines in (old, new)
        ]
        yield _compared("4", f"ready fact to caller, {quantile}, after {of}", *pair, 1.2, " ms")
    pair = [median(lines, lambda line: line["throughput"]["chats_s"]) for lines in (old, new)]
    yield _compared("4", "chats/s, the same", *pair, 1 / 1.2, at_least=True)
    ready = median(aged, lambda line: statistics.median(line["up_s"]))
    yield _absolute("5", f"`up` ready on a data directory with {of}, s", ready, 1.5, " s")


def _cold(starts: dict[str, list[float]]) -> Iterator[Verdict]:
    for key, goal, bound in (
        ("used", "`up` ready on a used data directory, s", 1.5),
        ("new", "`up` ready on a new data directory, s", 4.0),
        ("help", "`workspaced --help`, s", 0.15),
    ):
        found = statistics.median(starts[key]) if starts.get(key) else None
        yield _absolute("5", goal, found, bound, " s")


def _rest(results: Results) -> Iterator[Verdict]:
    lines = results.of(PRODUCT, "rest")
    for role in ("worker", "gateway"):
        mib = median(lines, lambda line, role=role: line["resident"][role])
        yield _absolute("6", f"MiB resident of a {role} at rest", mib, 80)
