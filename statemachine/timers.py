"""What a chat must be woken for: the limit of its state, its workspace's lifetime, its orphans.

A wake has a generation, so that the timer of an older one is told from the present one's.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from statemachine.chat import Chat, Limits
from statemachine.workspace import WorkspaceRecord


class TimerKind(StrEnum):
    """Why a timer is set; a token of its subject."""

    DEADLINE = "deadline"
    TTL = "ttl"
    ORPHAN = "orphan"


class ChatTimer(NamedTuple):
    """When to look at the chat again, and which timer says so."""

    generation: int
    at: datetime


def open_timer(chat: Chat, purpose: TimerKind, limits: Limits) -> ChatTimer | None:
    """Return the open wake of `purpose`, if there is one."""
    match purpose:
        case TimerKind.DEADLINE:
            at = chat.deadline
            return None if at is None else ChatTimer(chat.generation, at)
        case TimerKind.TTL:
            return _named_by_time(chat.expires_at)
        case TimerKind.ORPHAN:
            graces = [at for _, at in _graces(chat, limits)]
            return _named_by_time(min(graces, default=None))


def overdue(chat: Chat, now: datetime, limits: Limits) -> tuple[WorkspaceRecord, ...]:
    """Return the orphans whose grace is over."""
    return tuple(record for record, at in _graces(chat, limits) if at <= now)


def rests(chat: Chat) -> bool:
    """Say whether there is nothing to wake the chat for."""
    return chat.deadline is None and chat.expires_at is None and not chat.orphans


def _graces(chat: Chat, limits: Limits) -> Iterator[tuple[WorkspaceRecord, datetime]]:
    """Yield the orphans that were not seen to yet, each with the end of its grace."""
    for record in chat.orphans:
        if record.orphaned_at is not None and not record.grace_over:
            yield record, record.orphaned_at + limits.orphan_grace


def _named_by_time(at: datetime | None) -> ChatTimer | None:
    return None if at is None else ChatTimer(int(at.timestamp() * 1000), at)
