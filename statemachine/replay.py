"""Folding an event log: what the chat's states were, and whether the log agrees.

A log entry is an object of `read_events`: `{seq, event, outcome, state_before, state_after, version, at}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter

from statemachine.codec import event_of
from statemachine.folding import Unmoved
from statemachine.machine import Decision, Ignored, Moved, decide
from statemachine.states import ABOUT
from statemachine.workspace import Limits, Workspace


@dataclass(frozen=True, slots=True)
class Difference:
    """An entry that folds to something else than what was recorded."""

    seq: int
    key: str
    recorded: object
    folded: object

    def __str__(self) -> str:
        return f"seq {self.seq}: {self.key} was recorded as {self.recorded!r}, folds to {self.folded!r}"


@dataclass(frozen=True, slots=True)
class Replayed:
    """One chat after its log."""

    workspace: Workspace
    path: tuple[str, ...]
    """The states in the order they were entered, `failed` with its reason."""
    differences: tuple[Difference, ...]


_TIME = TypeAdapter(datetime)


def shown(workspace: Workspace) -> str:
    """Return the wire state, `failed` with its reason."""
    about = ABOUT[workspace.state]
    return about.wire if about.reason is None else f"{about.wire}:{about.reason}"


def entry_of(before: Workspace, decision: Decision) -> dict[str, Any]:
    """Return what the log records of a decision."""
    return {
        "outcome": decision.outcome,
        "state_before": ABOUT[before.state].wire,
        "state_after": ABOUT[decision.workspace.state].wire,
        "version": decision.workspace.version if isinstance(decision, Moved) else None,
    }


def replay(entries: Iterable[Mapping[str, Any]]) -> dict[str, Replayed]:
    """Fold `entries`, of one chat or several, each chat's in order. Raises ValueError for a bad entry."""
    chats: dict[str, Workspace] = {}
    paths: dict[str, list[str]] = {}
    differences: dict[str, list[Difference]] = {}
    seen: set[tuple[str, str, str]] = set()
    for number, entry in enumerate(entries, 1):
        try:
            event, at = event_of(entry["event"]), _TIME.validate_python(entry["at"])
        except (AttributeError, KeyError, TypeError, ValueError) as bad:
            raise ValueError(f"entry {number}: {bad}") from bad
        chat = chats.setdefault(event.chat_id, Workspace(chat_id=event.chat_id))
        path = paths.setdefault(event.chat_id, [shown(chat)])
        identity = (event.chat_id, event.source, event.id)
        decision = (
            Ignored(chat, Unmoved.REPEAT) if identity in seen else decide(chat, event, at, Limits())
        )
        seen.add(identity)
        folded = entry_of(chat, decision)
        differences.setdefault(event.chat_id, []).extend(
            Difference(entry.get("seq", number), key, entry.get(key), folded[key])
            for key in folded
            if entry.get(key) != folded[key]
        )
        if isinstance(decision, Moved):
            path += [
                shown(step) for step in decision.steps if step.state is not step.previous_state
            ]
        chats[event.chat_id] = decision.workspace
    return {
        chat_id: Replayed(chat, tuple(paths[chat_id]), tuple(differences.get(chat_id, ())))
        for chat_id, chat in chats.items()
    }
