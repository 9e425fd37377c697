"""The timers that a chat needs: for its state's limit, its workspace's lifetime, its orphans, and repeated attempts.

The rest of workspaces has no timers: workers find the chats whose workspaces have rested long enough by their rows.

Nobody cancels a timer. Each one has an alarm (`alarm_time`), at which workers look at the chat; then its snapshot tells
whether one of its timers is due. All alarms of a quarter of a second are one message.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from statemachine import lifetimes
from statemachine.chat import Chat, Limits
from statemachine.events import Transition
from statemachine.workspace import WorkspaceRecord

FARTHEST: Final = timedelta(days=30)
"""How far ahead an alarm may be. Workers who look at a chat too early set another alarm."""
_STEP: Final = timedelta(milliseconds=250)


class TimerKind(StrEnum):
    """The purpose of a timer."""

    DEADLINE = "deadline"
    TTL = "ttl"
    ORPHAN = "orphan"
    RETRY = "retry"
    """A stop or delete is requested again, or the build of a replaced workspace exceeds its limit."""


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
        case TimerKind.RETRY:
            times = [at for _, at in _retries(chat)]
            return min((*times, *(at for _, at in _open_builds(chat, limits))), default=None)


def timers_of(chat: Chat, limits: Limits) -> dict[TimerKind, datetime]:
    """Return the timers that the chat needs, with the times at which they are due."""
    found = {TimerKind.DEADLINE: chat.deadline, TimerKind.TTL: chat.expires_at}
    if chat.previous or (chat.current is not None and chat.current.retry is not None):
        found |= {kind: due_at(chat, kind, limits) for kind in (TimerKind.ORPHAN, TimerKind.RETRY)}
    return {kind: at for kind, at in found.items() if at is not None}


def alarm_time(due: datetime, now: datetime) -> datetime:
    """Return when to look at a chat whose timer is due at `due`: up to 250 ms later, 30 days from now at most."""
    due = min(due, now + FARTHEST)
    return due.replace(microsecond=0) + -(-due.microsecond // 250_000) * _STEP


def overdue(chat: Chat, now: datetime, limits: Limits) -> tuple[WorkspaceRecord, ...]:
    """Return the orphans whose grace period is over at `now` and was not handled yet."""
    return tuple(record for record, at in _grace_periods(chat, limits) if at <= now)


def needs_no_timer(chat: Chat) -> bool:
    """Return whether the chat needs no timer: no limit, no lifetime, no orphans, and no builds of replaced workspaces."""
    return (
        chat.deadline is None
        and chat.expires_at is None
        and not chat.orphans
        and next(_retries(chat), None) is None
        and next(_open_builds(chat, Limits()), None) is None
    )


def retries_due(chat: Chat, now: datetime) -> tuple[WorkspaceRecord, ...]:
    """Return the workspaces whose stop or delete has to be requested again at `now`."""
    return tuple(record for record, at in _retries(chat) if at <= now)


def overdue_builds(chat: Chat, now: datetime, limits: Limits) -> tuple[WorkspaceRecord, ...]:
    """Return the replaced workspaces whose stop or delete has exceeded the limit at `now`."""
    return tuple(record for record, at in _open_builds(chat, limits) if at <= now)


def _retries(chat: Chat) -> Iterator[tuple[WorkspaceRecord, datetime]]:
    """Yield each workspace that is stopped or deleted again, with the time. The end of a lifetime is not among them."""
    current = chat.current
    retry = None if current is None else current.retry
    deletes = retry is not None and retry.transition is not Transition.STOP
    if current is not None and retry is not None and retry.at is not None and deletes:
        yield current, retry.at
    for record in chat.previous:
        if record.retry is not None and record.retry.at is not None:
            yield record, record.retry.at


def _open_builds(chat: Chat, limits: Limits) -> Iterator[tuple[WorkspaceRecord, datetime]]:
    """Yield each replaced workspace that is being stopped or deleted, with the time at which that takes too long."""
    for record in chat.previous:
        build, noted = record.build, record.retry is not None and record.retry.at is not None
        attempt = lifetimes.is_attempt(record, replaced=True)
        if build is not None and attempt and build.outcome is None and not noted:
            yield record, build.started_at + limits.build


def _grace_periods(chat: Chat, limits: Limits) -> Iterator[tuple[WorkspaceRecord, datetime]]:
    """Yield each orphan whose grace period was not handled yet, with the end of that period."""
    for record in chat.orphans:
        if record.orphaned_at is not None and not record.grace_over and record.retry is None:
            yield record, record.orphaned_at + limits.orphan_grace
