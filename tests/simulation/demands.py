"""The faults and states that a number of seeds must have produced; otherwise they prove little."""

from __future__ import annotations

from collections import Counter
from typing import Final

from statemachine.states import STATE_INFO, State
from tests.simulation.troubles import CHANCES, KINDS

SELDOM: Final = 1000
"""Number of seeds from which on rare faults and states are required too."""
_STATES: Final = {
    f"state {about.wire}:{about.reason}" if about.reason else f"state {about.wire}"
    for about in (STATE_INFO[state] for state in State)
}
_OUTCOMES: Final = {
    f"outcome {outcome}" for outcome in ("moved", "changed", "kept", "repeat", "stale", "foreign")
}
_EVENTS: Final = {
    f"event {name}"
    for name in (
        "agent_disconnected",
        "agent_activity",
        "agent_exited",
        "build_cancel_requested",
        "build_canceled",
        "build_overdue",
        "deadline_passed",
        "keep_requested",
        "orphan_grace_passed",
        "retention_passed",
        "retry_due",
        "tool_canceled",
        "ttl_passed",
        "wait_resumed",
        "workspace_used",
    )
}
_OTHERS: Final = {
    "calls",
    "cancel changed",
    "cancel ignored",
    "cancel moved",
    "cancel stale",
    "asked again",
    "chats that changed while others applied events",
    "published twice",
}


def missing(met: Counter[str], seeds: int) -> list[str]:
    """Return the names of required faults and states that these seeds did not produce."""
    wanted = set(KINDS) | set(CHANCES)
    if seeds >= SELDOM:
        wanted |= _STATES | _OUTCOMES | _EVENTS | _OTHERS
    return sorted(name for name in wanted if not met[name]) if seeds >= SELDOM // 10 else []
