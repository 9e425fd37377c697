"""Measures how soon a caller knows of each state, compared with polling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from typing import Any, Final

from workspaced import State

POLL_INTERVAL: Final = 2.0
"""Seconds between two requests of a caller that polls."""


@dataclass(frozen=True, slots=True)
class ReceivedState:
    """A published state, and when the caller received it."""

    state: State
    received: datetime


@dataclass(slots=True)
class StateRecorder:
    """Records the states of one chat with the part of the demo that they belong to."""

    run: str
    """The current part."""
    states: list[tuple[str, ReceivedState]] = field(default_factory=list)

    def record(self, state: State) -> None:
        """Record a state that has just arrived."""
        self.states.append((self.run, ReceivedState(state, datetime.now(UTC))))


@dataclass(frozen=True, slots=True)
class StateRow:
    """One state in the table; times are in milliseconds."""

    run: str
    state: str
    at: float
    """When it became true, since the first fact of the run."""
    published: float
    """How much later it was published."""
    known: float
    """How much later the caller received it."""
    polled: float
    """How much later a caller that polls would have known."""

    def __str__(self) -> str:
        return (
            f"{self.run:<8} {self.state:<17} {self.at:>10.0f} {self.published:>12.1f} "
            f"{self.known:>12.1f} {self.polled:>14.0f}"
        )


HEADER: Final = (
    f"{'':<8} {'state':<17} {'true at':>10} {'published':>12} {'caller knew':>12} "
    f"{'polling (2 s)':>14}\n"
    f"{'':<8} {'':<17} {'ms':>10} {'ms later':>12} {'ms later':>12} {'ms later':>14}"
)


def compare(recorder: StateRecorder, log: Sequence[Mapping[str, Any]]) -> list[StateRow]:
    """Join the states that the caller received with the facts in the chat's event log."""
    facts = {
        (e["event"]["source"], e["event"]["id"]): datetime.fromisoformat(e["event"]["time"])
        for e in log
    }
    rows: list[StateRow] = []
    first_fact: dict[str, datetime] = {}
    last_state: dict[str, str] = {}
    for run, received in recorder.states:
        state = received.state
        if state.cause is None or state.stored_at is None or last_state.get(run) == state.state:
            continue  # a new version of the same state
        if (true := facts.get((state.cause.source, state.cause.id))) is None:
            continue
        last_state[run] = state.state
        since = (true - first_fact.setdefault(run, true)).total_seconds()
        # The caller polls at once, and then each interval: it learns a fact at the next poll.
        next_poll = ceil(since / POLL_INTERVAL) * POLL_INTERVAL
        rows.append(
            StateRow(
                run,
                state.state,
                since * 1000,
                (state.stored_at - true).total_seconds() * 1000,
                (received.received - true).total_seconds() * 1000,
                (next_poll - since) * 1000,
            )
        )
    return rows


def format_table(rows: Sequence[StateRow]) -> str:
    """Return the table, with the averages of all states after the first of each run."""
    later = [row for row in rows if row.at > 0]
    text = "\n".join([HEADER, *map(str, rows)])
    if later:
        known = sum(row.known for row in later) / len(later)
        polled = sum(row.polled for row in later) / len(later)
        text += (
            f"\nOn average the caller knew {known:.1f} ms after the fact; polling every "
            f"{POLL_INTERVAL:g} s would have taken {polled:.0f} ms ({polled / known:.0f} times)."
        )
    return text
