"""Folding an event log: what the chat's states were, and whether the log agrees.

A log entry is an object of `read_events`: `{seq, event, outcome, state_before, state_after, version, at}`, and
`cause` and `deadline` where the log has them (older logs have neither).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from pydantic import TypeAdapter

from statemachine.chat import Cause, Chat, Limits
from statemachine.codec import event_of
from statemachine.events import OURS, BuildRequested, Event, WaitResumed
from statemachine.fold import Unmoved
from statemachine.machine import Decision, Ignored, Moved, decide
from statemachine.states import STATE_INFO


@dataclass(frozen=True, slots=True)
class Difference:
    """An entry, or the snapshot (`seq` None), that folds to something else than what was recorded."""

    seq: int | None
    key: str
    recorded: object
    folded: object

    def __str__(self) -> str:
        where = "snapshot" if self.seq is None else f"seq {self.seq}"
        return f"{where}: {self.key} was recorded as {self.recorded!r}, folds to {self.folded!r}"


@dataclass(frozen=True, slots=True)
class Replayed:
    """One chat after its log."""

    chat: Chat
    path: tuple[str, ...]
    """The states in the order they were entered, `failed` with its reason."""
    differences: tuple[Difference, ...]


_TIME: Final = TypeAdapter(datetime)


def shown(chat: Chat) -> str:
    """Return the wire state, `failed` with its reason."""
    about = STATE_INFO[chat.state]
    return about.wire if about.reason is None else f"{about.wire}:{about.reason}"


def entry_of(before: Chat, decision: Decision) -> dict[str, Any]:
    """Return what the log records of a decision."""
    return {
        "outcome": decision.outcome,
        "state_before": STATE_INFO[before.state].wire,
        "state_after": STATE_INFO[decision.chat.state].wire,
        "version": decision.chat.version if isinstance(decision, Moved) else None,
    }


def set_deadline(before: Chat, after: Chat) -> datetime | None:
    """Return the limit that an entry set and that still holds after it; the log records it."""
    return after.deadline if after.generation != before.generation else None


@dataclass(slots=True)
class Fold:
    """One chat's log, folded entry by entry; nothing of the log is kept but who spoke."""

    chat_id: str
    limits: Limits = field(default_factory=Limits)
    """For entries of logs that don't say what limit they set."""
    chat: Chat = field(init=False)
    path: list[str] = field(init=False)
    differences: list[Difference] = field(default_factory=list)
    entries: int = 0
    deadline_recorded: bool = False
    """Whether the present deadline stood in the log."""
    _seen: set[tuple[str, str]] = field(default_factory=set)
    _root: Cause | None = None
    """The last event that followed from no other: what an older log's rules acted upon."""

    def __post_init__(self) -> None:
        self.chat = Chat(chat_id=self.chat_id)
        self.path = [shown(self.chat)]

    def take(self, entry: Mapping[str, Any]) -> None:
        """Fold the next entry. Raises ValueError for one that can't be read."""
        try:
            event, at = event_of(entry["event"]), _TIME.validate_python(entry["at"])
            cause = _cause_in(entry)
            deadline = _TIME.validate_python(entry["deadline"]) if entry.get("deadline") else None
        except (AttributeError, KeyError, TypeError, ValueError, msgspec.ValidationError) as bad:
            raise ValueError(str(bad) or type(bad).__name__) from bad
        before, seq = self.chat, self._placed(entry, event)
        self.entries += 1
        identity = (event.source, event.id)
        if identity in self._seen:
            decision: Decision = Ignored(before, Unmoved.REPEAT)
        else:
            decision = decide(before, event, at, self.limits, cause or self._because(event))
        self._seen.add(identity)
        folded = entry_of(before, decision)
        self.differences += [
            Difference(seq, key, entry.get(key), folded[key])
            for key in folded
            if entry.get(key) != folded[key]
        ]
        if isinstance(decision, Moved):
            self.path += [
                shown(step) for step in decision.steps if step.state is not step.previous_state
            ]
        self.chat = replace(decision.chat, seq=seq)
        self._limited(before, deadline)

    def _placed(self, entry: Mapping[str, Any], event: Event) -> int:
        """Return the entry's place in its log, and note when it is another one's."""
        expected = self.chat.seq + 1
        seq = entry.get("seq", expected)
        if seq != expected:
            self.differences.append(Difference(expected, "seq", seq, expected))
        if event.chat_id != self.chat_id:
            self.differences.append(Difference(seq, "event.subject", event.chat_id, self.chat_id))
        return seq if isinstance(seq, int) else expected

    def _because(self, event: Event) -> Cause | None:
        """Return what one of our own events followed from, in a log that does not say.

        The rules act at once, so that is the last event before it that followed from none.
        """
        if event.source == OURS and isinstance(event.data, BuildRequested | WaitResumed):
            return self._root
        self._root = Cause(source=event.source, id=event.id, type=event.type)
        return None

    def _limited(self, before: Chat, deadline: datetime | None) -> None:
        """Take over the limit that was in force then."""
        folded = set_deadline(before, self.chat)
        if folded is None and deadline is not None:
            self.differences.append(
                Difference(self.chat.seq, "deadline", deadline.isoformat(), None)
            )
        if folded is None:
            return
        self.deadline_recorded = deadline is not None
        if deadline is not None:
            self.chat = replace(self.chat, deadline=deadline)


def _cause_in(entry: Mapping[str, Any]) -> Cause | None:
    found = entry.get("cause")
    return None if found is None else msgspec.convert(found, Cause)


def replay(entries: Iterable[Mapping[str, Any]]) -> dict[str, Replayed]:
    """Fold `entries`, of one chat or several, each chat's in order. Raises ValueError for a bad entry."""
    folds: dict[str, Fold] = {}
    for number, entry in enumerate(entries, 1):
        try:
            chat_id = chat_of(entry)
            folds.setdefault(chat_id, Fold(chat_id)).take(entry)
        except ValueError as bad:
            raise ValueError(f"entry {number}: {bad}") from bad
    return {
        chat_id: Replayed(fold.chat, tuple(fold.path), tuple(fold.differences))
        for chat_id, fold in folds.items()
    }


def chat_of(entry: Mapping[str, Any]) -> str:
    """Return whose log an entry is of. Raises ValueError."""
    event = entry.get("event")
    subject = event.get("subject") if isinstance(event, dict) else None
    if not isinstance(subject, str):
        raise ValueError("it is no entry of an event log")  # noqa: TRY004 — as bad as no JSON
    return subject
