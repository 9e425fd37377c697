"""What a chat must be woken for: the limit of its state, its workspace's lifetime, its orphans.

A wake has a generation, so that the timer of an older one is told from the present one's.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from statemachine import formers
from statemachine.workspace import Former, Limits, Workspace


class Purpose(StrEnum):
    """Why a timer is set; a token of its subject."""

    DEADLINE = "deadline"
    TTL = "ttl"
    ORPHAN = "orphan"


class Wake(NamedTuple):
    """When to look at the chat again, and which timer says so."""

    generation: int
    at: datetime


def wake(chat: Workspace, purpose: Purpose, now: datetime, limits: Limits) -> Wake | None:
    """Return the open wake of `purpose`, if there is one."""
    match purpose:
        case Purpose.DEADLINE:
            at = chat.deadline
            return None if at is None else Wake(chat.generation, at)
        case Purpose.TTL:
            return _named_by_time(chat.expires_at)
        case Purpose.ORPHAN:
            times = sorted(_ends(former, limits.orphan_grace) for former in formers.orphans(chat))
            ahead = [time for time in times if time > now]
            return _named_by_time(next(iter(ahead or times), None))


def overdue(chat: Workspace, now: datetime, limits: Limits) -> tuple[Former, ...]:
    """Return the orphans whose grace is over."""
    return tuple(f for f in formers.orphans(chat) if _ends(f, limits.orphan_grace) <= now)


def rests(chat: Workspace) -> bool:
    """Say whether there is nothing to wake the chat for."""
    return chat.deadline is None and chat.expires_at is None and not formers.orphans(chat)


def _ends(former: Former, grace: timedelta) -> datetime:
    if former.orphaned_at is None:
        raise ValueError(f"workspace {former.id} is no orphan")
    return former.orphaned_at + grace


def _named_by_time(at: datetime | None) -> Wake | None:
    return None if at is None else Wake(int(at.timestamp() * 1000), at)
