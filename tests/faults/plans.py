"""The plan of a build and its agent, drawn from the build id: all provisioners draw the same."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

Step = tuple[float, str, dict[str, Any]]
"""Seconds to wait, the type of the agent's fact, and its data."""

CONNECTED: Step = (0.0, "agent_connected", {})
STARTING: Step = (0.05, "agent_lifecycle", {"lifecycle": "starting"})
READY: Step = (0.1, "agent_lifecycle", {"lifecycle": "ready"})
BROKEN: Step = (0.1, "agent_lifecycle", {"lifecycle": "start_error"})
LOST: Step = (1.5, "agent_disconnected", {"reason": "a walk"})
BACK: Step = (3.0, "agent_connected", {})

LIVES: dict[str, tuple[Step, ...]] = {
    "well": (CONNECTED, STARTING, READY),
    "hasty": (READY, CONNECTED),
    "broken": (CONNECTED, STARTING, BROKEN),
    "mended": (CONNECTED, BROKEN, READY),
    "lost": (CONNECTED, STARTING, READY, LOST),
    "back": (CONNECTED, STARTING, READY, LOST, BACK),
    "silent": (),
}


class Plan(NamedTuple):
    """How a build ends, and what its agent does then."""

    outcome: str
    seconds: float
    agents: int
    life: str
    after: float
    """Seconds that the agent waits before it connects; the build may end earlier or later."""


def plan(build_id: str, transition: str, slow: float) -> Plan:
    """Return the plan of a build; one build in a hundred takes `slow` seconds."""
    rng = Random(build_id)
    failing = 6 if transition == "start" else 2
    outcome = rng.choices(("succeeded", "failed", "canceled"), (100 - failing, failing - 1, 1))[0]
    seconds = slow if rng.random() < 0.01 else rng.uniform(0.02, 0.5)
    agents = 0 if rng.random() < 0.02 else 1
    life = rng.choices(tuple(LIVES), (70, 6, 5, 5, 6, 6, 2))[0]
    return Plan(outcome, seconds, agents, life, rng.choice((0.0, 0.5)))
