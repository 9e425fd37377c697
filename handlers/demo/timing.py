"""When each state was true, published and known, beside what polling would have given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from typing import Any, Final

from bus import Message

POLL: Final = 2.0
"""Seconds between two looks of the way that this replaces."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A published state as it came to the caller."""

    version: int
    state: str
    cause: Mapping[str, str]
    published: datetime
    known: datetime


@dataclass(slots=True)
class Watch:
    """Collects the states of one chat; `run` names the part of the demo they belong to."""

    run: str = ""
    seen: list[tuple[str, Seen]] = field(default_factory=list)

    def note(self, message: Message) -> Seen:
        """Note a message of `workspaced.ui.<chat>.state`, just now."""
        known = datetime.now(UTC)
        envelope = json.loads(message.data)
        data = envelope["data"]
        stored = message.headers.get("Nats-Time-Stamp") or envelope["time"]
        seen = Seen(
            data["version"],
            data["state"],
            data["cause"],
            datetime.fromisoformat(stored),
            known,
        )
        if not any(other.version == seen.version for _, other in self.seen):
            self.seen.append((self.run, seen))
        return seen


@dataclass(frozen=True, slots=True)
class Line:
    """One state of the table; in milliseconds."""

    run: str
    state: str
    at: float
    """Since the run's first fact."""
    published: float
    """Since its fact was true."""
    known: float
    polled: float

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


def lines(watch: Watch, log: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Join the states that the caller saw with the facts in the chat's event log."""
    facts = {
        (e["event"]["source"], e["event"]["id"]): datetime.fromisoformat(e["event"]["time"])
        for e in log
    }
    found: list[Line] = []
    began: dict[str, datetime] = {}
    entered: dict[str, str] = {}
    for run, seen in watch.seen:
        true = facts.get((seen.cause["source"], seen.cause["id"]))
        if true is None or entered.get(run) == seen.state:
            continue  # the state is the same, something shown with it changed
        entered[run] = seen.state
        start = began.setdefault(run, true)
        since = (true - start).total_seconds()
        # The first look is taken at once, the next every POLL: a fact is seen at the first look after it.
        look = ceil(since / POLL) * POLL
        found.append(
            Line(
                run,
                seen.state,
                since * 1000,
                (seen.published - true).total_seconds() * 1000,
                (seen.known - true).total_seconds() * 1000,
                (look - since) * 1000,
            )
        )
    return found


def table(found: Sequence[Line]) -> str:
    """Return the table, with what became of the mean."""
    waited = [line for line in found if line.at > 0]
    text = "\n".join([HEADER, *map(str, found)])
    if waited:
        known = sum(line.known for line in waited) / len(waited)
        polled = sum(line.polled for line in waited) / len(waited)
        text += (
            f"\nOn average the caller knew {known:.1f} ms after the fact; "
            f"polling every {POLL:g} s would have taken {polled:.0f} ms ({polled / known:.0f} times)."
        )
    return text
