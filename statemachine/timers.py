"""The timers that a chat needs: for its state's limit, its workspace's lifetime and its orphans.

Each timer has a generation, by which workers recognize timers that are no longer valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from statemachine.chat import Chat, Limits
from statemachine.workspace import WorkspaceRecord


class TimerKind(StrEnum):
    """The purpose of a timer. The value is a token of the timer's subject."""

    DEADLINE = "deadline"
    TTL = "ttl"
    ORPHAN = "orphan"


class ChatTimer(NamedTuple):
    """The time at which a timer of a chat fires, and its generation."""

    generation: int
    at: datetime


def open_timer(chat: Chat, purpose: TimerKind, limits: Limits) -> ChatTimer | None:
    """Return the timer that the chat needs now for `purpose`, or None."""
    match purpose:
        case TimerKind.DEADLINE:
            at = chat.deadline
            return None if at is None else ChatTimer(chat.generation, at)
        case TimerKind.TTL:
            return _timer_at(chat.expires_at)
        case TimerKind.ORPHAN:
            graces = [at for _, at in _grace_periods(chat, limits)]
            return _timer_at(min(graces, default=None))


def overdue(chat: Chat, now: datetime, limits: Limits) -> tuple[WorkspaceRecord, ...]:
    """Return the orphans whose grace period is over at `now` and was not handled yet."""
    return tuple(record for record, at in _grace_periods(chat, limits) if at <= now)


def needs_no_timer(chat: Chat) -> bool:
    """Return whether the chat needs no timer: no limit, no lifetime and no orphans."""
    return chat.deadline is None and chat.expires_at is None and not chat.orphans


def _grace_periods(chat: Chat, limits: Limits) -> Iterator[tuple[WorkspaceRecord, datetime]]:
    """Yield each orphan whose grace period was not handled yet, with the end of that period."""
    for record in chat.orphans:
        if record.orphaned_at is not None and not record.grace_over:
            yield record, record.orphaned_at + limits.orphan_grace


def _timer_at(at: datetime | None) -> ChatTimer | None:
    return None if at is None else ChatTimer(int(at.timestamp() * 1000), at)
