"""The plan of a benchmark: the systems, their measures, and how often and how large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Measure = tuple[str, dict[str, Any]]


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


def full(systems: Sequence[System] = SYSTEMS, runs: int = 3) -> Plan:
    """Return the full plan: about 50 minutes on two cores; the systems alternate in each run."""
    tasks = [
        Task(system, _standard(system, (100, 300, 1000, 2000, 5000)))
        for _ in range(runs)
        for system in systems
    ]
    for system in systems:
        if system.name in {PRODUCT_LAZY.name, PRODUCT_TWO.name, SKETCH_LAZY.name}:
            continue
        chats = min(1000, system.largest)
        seconds, times = (60, runs) if system is PRODUCT else (30, 1)
        idle: Measure = "idle", {"chats": chats, "seconds": seconds}
        tasks += [Task(system, (("warm", {}), idle))] * times
    if PRODUCT in systems:
        crowd: Measure = "crowd", {"chats": 100_000, "answered": 100}
        age = {"chats": 1_000_000, "log_rows": 10_000_000, "runs": runs, "size": 1000}
        tasks.append(Task(PRODUCT, (("warm", {}), crowd)))
        tasks.append(Task(PRODUCT, (("warm", {}), ("aged", age))))
    return Plan("full", tuple(tasks), starts=5, sizes=(1000, 5000))


def quick(systems: Sequence[System] = QUICK_SYSTEMS) -> Plan:
    """Return a plan of two minutes, with all measures at a smaller size."""
    tasks = []
    age = {"chats": 10_000, "log_rows": 100_000, "runs": 1, "size": 500}
    for system in systems:
        measures: list[Measure] = [("rest", {}), ("warm", {})]
        measures.append(("latency", {"chats": 20, "seconds": 3, "spread": system.spread}))
        measures += [("throughput", {"chats": size}) for size in (100, 500, 1000)]
        if system is PRODUCT:
            measures += [
                ("half", {"seconds": 2}),
                ("idle", {"chats": 500, "seconds": 4, "settle": 1}),
                ("crowd", {"chats": 1000, "answered": 12}),
            ]
        tasks.append(Task(system, tuple(measures)))
    if PRODUCT in systems:
        tasks.append(Task(PRODUCT, (("warm", {}), ("aged", age))))
    return Plan("quick", tuple(tasks), starts=1, sizes=(500, 1000))


def _standard(system: System, sizes: Sequence[int]) -> tuple[Measure, ...]:
    measures: list[Measure] = [("rest", {}), ("warm", {})]
    if system.environment == "own":  # others may reject a second copy after the chat's end
        measures.append(("twice", {"chats": 20}))
    latency = {"chats": 20, "seconds": 5, "rounds": 3, "spread": system.spread}
    measures.append(("latency", latency))
    measures += [("throughput", {"chats": size}) for size in sizes if size <= system.largest]
    if system.peer == "product":
        # After the largest throughput measure, because `half` uses the result before it.
        measures.append(("half", {"seconds": 5}))
    return tuple(measures)
