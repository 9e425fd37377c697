"""The goals of the benchmark, and how each is judged."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench import plan as parts
from tests.bench import ratios
from tests.bench.figures import brief
from tests.bench.plan import LISTEN_NOTIFY, PRODUCT, SYNCED, Plan, System
from tests.bench.ratios import Pick, Ratio
from tests.bench.runs import Line, Results


@dataclass(frozen=True)
class Verdict:
    """One goal: the measured value, what it must reach, and the goal beyond; None where there is none."""

    part: str
    """The part of the benchmark that measures it."""
    goal: str
    ours: str
    theirs: str
    found: float | None
    must: float | None = None
    aim: float | None = None
    at_least: bool = False
    is_ratio: bool = True

    @property
    def word(self) -> str:
        """The verdict as a word."""
        if self.found is None:
            return "not measured"
        if not self._reaches(self.must):
            return "missed"
        if not self._reaches(self.aim):
            return "goal missed" if self.must is None else "must met"
        return "met"

    def cells(self) -> list[str]:
        """Return the goal as a row of the table."""
        found = "" if self.found is None else self._words(self.found)
        sign = "≥" if self.at_least else "≤"
        bounds = [
            "" if bound is None else f"{sign} {self._words(bound)}"
            for bound in (self.must, self.aim)
        ]
        return [self.part, self.goal, self.ours, self.theirs, found, *bounds, self.word]

    def _reaches(self, bound: float | None) -> bool:
        if bound is None or self.found is None:
            return True
        return self.found >= bound if self.at_least else self.found <= bound

    def _words(self, value: float) -> str:
        return f"{brief(value)}{' x' if self.is_ratio else ''}"


HEAD = ("part", "", "workspaced", "beside it", "found", "must", "goal", "")
_BOUNDS = ((ratios.EVENTS, 0.65, None), (ratios.CHATS, 0.5, 0.6), (ratios.CPU, 3.3, 2.5))
"""What the ratios to the sketch must reach, and the goals beyond."""


def verdicts(
    plan: Plan, results: Results, starts: dict[str, list[float]], keys: list[float]
) -> list[Verdict]:
    """Judge every goal of the plan's parts by the medians of this run."""
    found = [
        *_latency(results),
        *_throughput(plan, results),
        *_idle(results),
        *_waiting(results),
        *_age(results),
        *_starts(results, starts),
        _absolute(
            parts.EXEC,
            "key to echo through `workspaced exec -t`, median",
            statistics.median(keys) if keys else None,
            5.0,
            unit=" ms",
        ),
    ]
    return [verdict for verdict in found if verdict.part in plan.parts]


def median(lines: list[Line], pick: Pick) -> float | None:
    """Return the median over runs, or None if there are no runs."""
    return statistics.median(pick(line) for line in lines) if lines else None


def _compared(
    part: str,
    goal: str,
    ours: float | None,
    theirs: float | None,
    must: float | None,
    aim: float | None = None,
    *,
    unit: str = "",
    at_least: bool = False,
) -> Verdict:
    words = ["" if value is None else f"{brief(value)}{unit}" for value in (ours, theirs)]
    found = None if ours is None or not theirs else ours / theirs
    return Verdict(part, goal, *words, found, must, aim, at_least)


def _absolute(
    part: str,
    goal: str,
    found: float | None,
    must: float | None,
    aim: float | None = None,
    *,
    unit: str = "",
    theirs: str = "",
) -> Verdict:
    ours = "" if found is None else f"{brief(found)}{unit}"
    return Verdict(part, goal, ours, theirs, found, must, aim, is_ratio=False)


def _sync(system: System) -> str:
    return "sync always" if system.options["sync"] else "default sync"


def _ready(quantile: str) -> Pick:
    return lambda line: line["ready_ms"][quantile]


def _latency(results: Results) -> Iterator[Verdict]:
    for ours, theirs in SYNCED:
        for quantile, must, aim in (("p50", 2.0, 1.5), ("p99", None, 3.0)):
            pair = [
                median(results.of(system, "latency"), _ready(quantile)) for system in (ours, theirs)
            ]
            title = f"ready fact to caller, {quantile}, light load, {_sync(ours)}"
            yield _compared(parts.LATENCY, title, *pair, must, aim, unit=" ms")


def _throughput(plan: Plan, results: Results) -> Iterator[Verdict]:
    def compared(
        ratio: Ratio, systems: tuple[System, System], size: int, *bounds: float | None, by: str = ""
    ) -> Verdict:
        pair = [ratio.figure(results, system, size) for system in systems]
        title = f"{ratio.title}{by}, {size:,} chats at once, {_sync(systems[0])}"
        return _compared(
            parts.THROUGHPUT, title, *pair, *bounds, unit=ratio.unit, at_least=ratio.more_is_better
        )

    for ours, theirs in SYNCED:
        for size in plan.sizes:
            for ratio, must, aim in _BOUNDS:
                yield compared(ratio, (ours, theirs), size, must, aim)
            by = ", beside LISTEN/NOTIFY"
            yield compared(ratios.CHATS, (ours, LISTEN_NOTIFY), size, None, 1.0, by=by)
    half = results.of(PRODUCT, "half")
    rate = median(half, lambda line: line["rate"])
    at = f"at {brief(rate)} chats/s" if rate else ""
    p99 = median(half, _ready("p99"))
    title = "ready fact to caller, p99 in ms, half of full load"
    yield _absolute(parts.THROUGHPUT, title, p99, None, 50, unit=" ms", theirs=at)


def _idle(results: Results) -> Iterator[Verdict]:
    idle = results.of(PRODUCT, "idle")
    without = median(idle, lambda line: line["without"]["cpu"])
    beside = "" if without is None else f"{brief(without)} s with none"
    seconds = idle[0]["seconds"] if idle else 60
    calls = idle[0]["chats"] if idle else 1000
    more = median(idle, lambda line: line["more_cpu"])
    title = f"CPU s that {calls:,} calls waiting {seconds} s add"
    yield _absolute(parts.IDLE, title, more, 0.1, theirs=beside)
    asked = median(idle, lambda line: line["with"]["asked"])
    yield _absolute(parts.IDLE, "connections that made a query meanwhile", asked, 0)


def _waiting(results: Results) -> Iterator[Verdict]:
    lines = results.of(PRODUCT, "waiting")
    number = f"{lines[0]['calls']:,}" if lines else "1,000,000"
    for role in ("worker", "gateway"):
        pair = [
            median(lines, lambda line, role=role, when=when: line["resident"][when][role])
            for when in ("with", "without")
        ]
        title = f"MiB of the {role} with {number} calls waiting, and before"
        yield _compared(parts.WAITING, title, *pair, 1.2, unit=" MiB")
    for key, title, unit in (
        ("ready_s", "a worker starts with them, and before", " s"),
        ("resident", "MiB of that worker", " MiB"),
    ):
        pair = [
            median(
                [one for line in lines for one in line["starts"][when]],
                lambda one, key=key: one[key],
            )
            for when in ("with", "without")
        ]
        yield _compared(parts.WAITING, title, *pair, 1.2, unit=unit)
    rest = median(
        [one for line in lines for one in line["starts"]["with"]], lambda one: one["rest_s"]
    )
    title = "a worker that starts with them has armed all timers, s"
    yield _absolute(parts.WAITING, title, rest, None, 10, unit=" s")
    for title, new, old in (
        ("the first of them is answered, and p99 of answers before", "first_ms p50", "few_ms p99"),
        ("p50 of more answers, and before", "some_ms p50", "few_ms p50"),
        ("p50 of new calls beside them, and before", "after_ms p50", "before_ms p50"),
    ):
        yield _compared(
            parts.WAITING,
            title,
            *(median(lines, _quantile(*key.split())) for key in (new, old)),
            1.2,
            unit=" ms",
        )


def _quantile(key: str, quantile: str) -> Pick:
    return lambda line: line[key][quantile]


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
        title = f"ready fact to caller, {quantile}, after {of}"
        yield _compared(parts.AGED, title, *pair, 1.2, unit=" ms")
    for ratio, bound in ((ratios.CHATS, 1 / 1.2), (ratios.EVENTS, 1 / 1.2), (ratios.CPU, 1.2)):
        pair = [
            median(lines, lambda line, ratio=ratio: ratio.pick(line["throughput"]))
            for lines in (old, new)
        ]
        yield _compared(
            parts.AGED,
            f"{ratio.title}, the same",
            *pair,
            bound,
            unit=ratio.unit,
            at_least=ratio.more_is_better,
        )
    ready = median(aged, lambda line: statistics.median(line["up_s"]))
    title = f"`up` ready on a data directory with {of}, s"
    yield _absolute(parts.AGED, title, ready, 1.5, unit=" s")


def _starts(results: Results, starts: dict[str, list[float]]) -> Iterator[Verdict]:
    for key, title, must in (
        ("used", "`up` ready on a used data directory, s", 1.5),
        ("new", "`up` ready on a new data directory, s", 4.0),
        ("help", "`workspaced --help`, s", 0.15),
    ):
        found = statistics.median(starts[key]) if starts.get(key) else None
        yield _absolute(parts.STARTS, title, found, must, unit=" s")
    rest = results.of(PRODUCT, "rest")
    for role in ("worker", "gateway"):
        mib = median(rest, lambda line, role=role: line["resident"][role])
        yield _absolute(parts.STARTS, f"MiB resident of a {role} at rest", mib, 80)
