"""The timers that a chat needs: for its state's limit, its workspace's lifetime and its orphans.

Nobody cancels a timer. Each one has an alarm (`alarm_time`), at which workers look at the chat; then its snapshot tells
whether one of its timers is due. All alarms of a quarter of a second are one message.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from statemachine.chat import Chat, Limits
from statemachine.workspace import WorkspaceRecord

FARTHEST: Final = timedelta(days=30)
"""How far ahead an alarm may be. Workers who look at a chat too early set another alarm."""
_STEP: Final = timedelta(milliseconds=250)


class TimerKind(StrEnum):
    """The purpose of a timer."""

    DEADLINE = "deadline"
    TTL = "ttl"
    ORPHAN = "orphan"


KINDS: Final = tuple(TimerKind)


def due_at(chat: Chat, purpose: TimerKind, limits: Limits) -> datetime | None:
    """Return when the chat's timer for `purpose` is due; None if it needs none."""
    match purpose:
        case TimerKind.DEADLINE:
            return chat.deadline
        case TimerKind.TTL:
            return chat.expires_at
        case TimerKind.ORPHAN:
            return min((at for _, at in _grace_periods(chat, limits)), default=None)


def timers_of(chat: Chat, limits: Limits) -> dict[TimerKind, datetime]:
    """Return the timers that the chat needs, with the times at which they are due."""
    if needs_no_timer(chat):
        return {}
    found = {purpose: due_at(chat, purpose, limits) for purpose in KINDS}
    return {purpose: at for purpose, at in found.items() if at is not None}


def alarm_time(due: datetime, now: datetime) -> datetime:
    """Return when to look at a chat whose timer is due at `due`: up to 250 ms later, 30 days from now at most."""
    due = min(due, now + FARTHEST)
    return due.replace(microsecond=0) + -(-due.microsecond // 250_000) * _STEP


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
