"""Replays event logs: folds the events again, and compares the result with what was recorded.

A log entry is an object as `read_events` returns it: `{seq, event, outcome, state_before,
state_after, version, at}`, and optionally `cause` and `deadline`. Logs of older versions have
neither of these two.
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
from statemachine.machine import Decision, Ignored, Moved, decide, enters_state
from statemachine.states import STATE_INFO


@dataclass(frozen=True, slots=True)
class Difference:
    """A value in a log entry, or in the snapshot (`seq` None), for which replay yields another."""

    seq: int | None
    key: str
    recorded: object
    folded: object

    def __str__(self) -> str:
        where = "snapshot" if self.seq is None else f"seq {self.seq}"
        return f"{where}: {self.key} was recorded as {self.recorded!r}, folds to {self.folded!r}"


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result of the replay of one chat's event log."""

    chat: Chat
    path: tuple[str, ...]
    """The states in the order in which they were entered; `failed` includes the reason."""
    differences: tuple[Difference, ...]


_DECIDED: Final = ("outcome", "state_before", "state_after", "version")
"""The keys of a log entry that `entry_of` returns."""
_TIME: Final = TypeAdapter(datetime)


def shown(chat: Chat) -> str:
    """Return the state as messages name it, with the reason if it is `failed:<reason>`."""
    return STATE_INFO[chat.state].shown


def entry_of(before: Chat, decision: Decision) -> dict[str, Any]:
    """Return the keys of a log entry that describe a decision."""
    return {
        "outcome": decision.outcome,
        "state_before": STATE_INFO[before.state].wire,
        "state_after": STATE_INFO[decision.chat.state].wire,
        "version": decision.chat.version if isinstance(decision, Moved) else None,
    }


def set_deadline(before: Chat, after: Chat) -> datetime | None:
    """Return the deadline that the log records: the one that an event set, if it still holds."""
    return after.deadline if after.generation != before.generation else None


@dataclass(slots=True)
class Fold:
    """Folds the event log of one chat, entry by entry.

    It keeps only the identities of the events, to recognize repeats, not the entries.
    """

    chat_id: str
    limits: Limits = field(default_factory=Limits)
    """The limits for entries that set a deadline but do not record it."""
    chat: Chat = field(init=False)
    path: list[str] = field(init=False)
    differences: list[Difference] = field(default_factory=list)
    entries: int = 0
    deadline_recorded: bool = False
    """Whether the log recorded the present deadline."""
    _seen: set[tuple[str, str]] = field(default_factory=set)
    _root: Cause | None = None
    """The last event that no other event caused. In logs without causes, it is the cause of the
    builds and waits that the rules derived."""

    def __post_init__(self) -> None:
        self.chat = Chat(chat_id=self.chat_id)
        self.path = [shown(self.chat)]

    def take(self, entry: Mapping[str, Any]) -> None:
        """Fold the next entry. Raises ValueError if it is not a valid log entry."""
        try:
            event, at = event_of(entry["event"]), _TIME.validate_python(entry["at"])
            cause = _cause_in(entry)
            deadline = _TIME.validate_python(entry["deadline"]) if entry.get("deadline") else None
        except (AttributeError, KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
            raise ValueError(str(error) or type(error).__name__) from error
        before, seq = self.chat, self._placed(entry, event)
        self.entries += 1
        identity = (event.source, event.id)
        if identity in self._seen:
            decision: Decision = Ignored(before, Unmoved.REPEAT)
        else:
            decision = self._decided(entry, event, at, cause or self._because(event))
        self._seen.add(identity)
        folded = entry_of(before, decision)
        self.differences += [
            Difference(seq, key, entry.get(key), folded[key])
            for key in folded
            if entry.get(key) != folded[key]
        ]
        if isinstance(decision, Moved):
            self.path += [shown(step) for step in decision.steps if enters_state(step)]
        self.chat = replace(decision.chat, seq=seq)
        self._limited(before, deadline)

    def _decided(
        self, entry: Mapping[str, Any], event: Event, at: datetime, because: Cause | None
    ) -> Decision:
        """Decide as this version does, or as an earlier one if the entry is what that version recorded."""
        decision = decide(self.chat, event, at, self.limits, because)
        recorded = {key: entry.get(key) for key in _DECIDED}
        if entry_of(self.chat, decision) == recorded:
            return decision
        earlier = decide(self.chat, event, at, self.limits, because, earlier=True)
        return earlier if entry_of(self.chat, earlier) == recorded else decision

    def _placed(self, entry: Mapping[str, Any], event: Event) -> int:
        """Return the entry's number in its log.

        Add a difference if the number is not the next one, or if the entry belongs to another chat.
        """
        expected = self.chat.seq + 1
        seq = entry.get("seq", expected)
        if seq != expected:
            self.differences.append(Difference(expected, "seq", seq, expected))
        if event.chat_id != self.chat_id:
            self.differences.append(Difference(seq, "event.subject", event.chat_id, self.chat_id))
        return seq if isinstance(seq, int) else expected

    def _because(self, event: Event) -> Cause | None:
        """Return the cause of an event that workspaced created, for a log without causes.

        The rules are applied immediately after an event, so the cause is the last event before this
        one that has no cause itself.
        """
        if event.source == OURS and isinstance(event.data, BuildRequested | WaitResumed):
            return self._root
        self._root = Cause(source=event.source, id=event.id, type=event.type)
        return None

    def _limited(self, before: Chat, deadline: datetime | None) -> None:
        """Replace the folded deadline by the recorded one: the limits may have changed since."""
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
    """Replay `entries` of one or several chats, and return the result for each chat id.

    The entries of each chat must be in their order. Raises ValueError for an invalid entry.
    """
    folds: dict[str, Fold] = {}
    for number, entry in enumerate(entries, 1):
        try:
            chat_id = chat_of(entry)
            folds.setdefault(chat_id, Fold(chat_id)).take(entry)
        except ValueError as error:
            raise ValueError(f"entry {number}: {error}") from error
    return {
        chat_id: Replayed(fold.chat, tuple(fold.path), tuple(fold.differences))
        for chat_id, fold in folds.items()
    }


def chat_of(entry: Mapping[str, Any]) -> str:
    """Return the id of the chat to which a log entry belongs. Raises ValueError if it has none."""
    event = entry.get("event")
    subject = event.get("subject") if isinstance(event, dict) else None
    if not isinstance(subject, str):
        raise ValueError("it is no entry of an event log")  # noqa: TRY004 — as for invalid JSON
    return subject
