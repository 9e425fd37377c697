"""The plan of a benchmark: its parts, the systems, their measures, and how often and how large."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Measure = tuple[str, dict[str, Any]]

LATENCY: Final = "latency"
THROUGHPUT: Final = "throughput"
IDLE: Final = "idle"
WAITING: Final = "waiting"
AGED: Final = "aged"
STARTS: Final = "starts"
EXEC: Final = "exec"
PARTS: Final = {
    LATENCY: "one call at a time, and each event twice",
    THROUGHPUT: "many calls at once, and the latency at half of that",
    IDLE: "CPU while 1,000 calls wait and nothing happens",
    WAITING: "1,000,000 waiting calls: memory, start of a worker, answers",
    AGED: "the same work after 10 million log rows",
    STARTS: "starts of `up` and `--help`, memory at rest",
    EXEC: "commands in workspaces, beside ssh, and keys in a terminal",
}
"""The parts that can be measured alone."""


@dataclass(frozen=True)
class System:
    """One system, a line in the tables."""

    name: str
    title: str
    peer: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: str = "own"
    largest: int = 5000
    """The largest number of chats open at the same time."""
    why: str = ""
    """The reason for a lower limit."""
    spread: float = 0.0
    """Seconds over which the first event of each chat is spread, in addition to its pause."""


POLLING: Final = System("polling", "polling every 2 s", "polling", spread=2.0)
LISTEN_NOTIFY: Final = System("listen-notify", "LISTEN/NOTIFY by hand", "listen_notify")
DBOS: Final = System(
    "dbos",
    "DBOS",
    "dbos",
    environment="dbos",
    largest=1000,
    why="5,000 at some 18 chats/s take too long",
)
TEMPORAL: Final = System(
    "temporal",
    "Temporal (development server)",
    "temporal",
    environment="temporal",
    largest=1000,
    why="it refuses 5,000 waiting results (namespace concurrent poller limit)",
)
RESTATE: Final = System(
    "restate",
    "Restate",
    "restate",
    environment="restate",
    largest=1000,
    why="5,000 at some 90 chats/s take too long",
)
SKETCH_LAZY: Final = System("sketch-lazy", "sketch, NATS's default sync", "sketch", {"sync": None})
SKETCH: Final = System("sketch-always", "sketch, sync always", "sketch", {"sync": "always"})
PRODUCT_LAZY: Final = System(
    "product-lazy", "workspaced, NATS's default sync", "product", {"sync": None}
)
PRODUCT: Final = System(
    "product-always", "workspaced, sync always (shipped)", "product", {"sync": "always"}
)
PRODUCT_TWO: Final = System(
    "product-always-2",
    "workspaced, two workers",
    "product",
    {"sync": "always", "workers": 2},
)
SYSTEMS: Final = (
    POLLING,
    LISTEN_NOTIFY,
    DBOS,
    TEMPORAL,
    RESTATE,
    SKETCH_LAZY,
    SKETCH,
    PRODUCT_LAZY,
    PRODUCT,
    PRODUCT_TWO,
)
QUICK_SYSTEMS: Final = (LISTEN_NOTIFY, SKETCH_LAZY, SKETCH, PRODUCT_LAZY, PRODUCT)
SYNCED: Final = ((PRODUCT, SKETCH), (PRODUCT_LAZY, SKETCH_LAZY))
"""Pairs of systems that are compared because both sync their storage alike."""


@dataclass(frozen=True)
class Task:
    """One run of one system: its measures in order."""

    system: System
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Plan:
    """The whole plan of one `make bench`."""

    name: str
    tasks: tuple[Task, ...]
    starts: int
    """How often each cold start is timed."""
    sizes: tuple[int, int]
    """Numbers of simultaneous chats for which goals are set."""
    parts: Collection[str] = tuple(PARTS)
    commands: tuple[int, int, int] = (0, 0, 0)
    """Chats that run commands at once, commands one at a time, and keys that are typed."""


def full(
    systems: Sequence[System] = SYSTEMS, runs: int = 3, parts: Collection[str] = tuple(PARTS)
) -> Plan:
    """Return the full plan: about an hour on two cores; the systems alternate in each run."""
    tasks = [
        _task(system, _standard(system, (100, 300, 1000, 2000, 5000), parts))
        for _ in range(runs)
        for system in systems
    ]
    for system in systems if IDLE in parts else ():
        if system.name in {PRODUCT_LAZY.name, PRODUCT_TWO.name, SKETCH_LAZY.name}:
            continue
        chats = min(1000, system.largest)
        seconds, times = (60, runs) if system is PRODUCT else (30, 1)
        tasks += [_task(system, [("idle", {"chats": chats, "seconds": seconds})])] * times
    if PRODUCT in systems:
        waiting = {"calls": 1_000_000, "real": 10_000, "answered": 100, "starts": runs}
        age = {"chats": 1_000_000, "log_rows": 10_000_000, "runs": runs, "size": 1000}
        tasks += [
            _task(PRODUCT, [(part, words)])
            for part, words in ((WAITING, waiting), (AGED, age))
            if part in parts
        ]
    return _plan("full", tasks, parts, starts=5, sizes=(1000, 5000))


def quick(systems: Sequence[System] = QUICK_SYSTEMS, parts: Collection[str] = tuple(PARTS)) -> Plan:
    """Return a plan of three minutes, with all measures at a smaller size.

    The largest size, at which the ratios to the sketch are checked, is measured three times.
    """
    tasks = []
    for system in systems:
        measures: list[Measure] = [("rest", {})] if STARTS in parts and system is PRODUCT else []
        if LATENCY in parts:
            words = {"chats": 20, "seconds": 3, "rounds": 2, "spread": system.spread}
            measures.append(("latency", words))
        if THROUGHPUT in parts:
            sizes = (100, 500, 1000, 1000, 1000)
            measures += [("throughput", {"chats": size}) for size in sizes]
        if system is PRODUCT:
            small: dict[str, Measure] = {
                THROUGHPUT: ("half", {"seconds": 2}),
                IDLE: ("idle", {"chats": 500, "seconds": 4, "settle": 1}),
                WAITING: ("waiting", {"calls": 10_000, "real": 200, "answered": 12, "starts": 1}),
            }
            measures += [measure for part, measure in small.items() if part in parts]
        tasks.append(_task(system, measures))
    if PRODUCT in systems and AGED in parts:
        age = {"chats": 10_000, "log_rows": 100_000, "runs": 1, "size": 500}
        tasks.append(_task(PRODUCT, [("aged", age)]))
    return _plan("quick", tasks, parts, starts=1, sizes=(500, 1000))


def _standard(system: System, sizes: Sequence[int], parts: Collection[str]) -> Sequence[Measure]:
    measures: list[Measure] = [("rest", {})] if STARTS in parts and system is PRODUCT else []
    if LATENCY in parts:
        if system.environment == "own":  # others may reject a second copy after the chat's end
            measures.append(("twice", {"chats": 20}))
        latency = {"chats": 20, "seconds": 5, "rounds": 3, "spread": system.spread}
        measures.append(("latency", latency))
    if THROUGHPUT in parts:
        measures += [("throughput", {"chats": size}) for size in sizes if size <= system.largest]
        if system.peer == "product":
            # After the largest throughput measure, because `half` uses the result before it.
            measures.append(("half", {"seconds": 5}))
    return measures


def _task(system: System, measures: Sequence[Measure]) -> Task:
    """Return a task that warms the system up, but measures it at rest before."""
    at_rest = [measure for measure in measures if measure[0] == "rest"]
    others = [measure for measure in measures if measure[0] != "rest"]
    return Task(system, (*at_rest, ("warm", {}), *others))


def _plan(
    name: str,
    tasks: Sequence[Task],
    parts: Collection[str],
    *,
    starts: int,
    sizes: tuple[int, int],
) -> Plan:
    measured = tuple(task for task in tasks if len(task.measures) > 1)  # more than the warming up
    commands = (200, 500, 500) if name == "full" else (10, 50, 50)
    return Plan(
        name,
        measured,
        starts if STARTS in parts else 0,
        sizes,
        parts,
        commands if EXEC in parts else (0, 0, 0),
    )
