"""When workspaces are stopped and deleted without a request: lifetimes, rest, and attempts that failed.

All functions are pure. `fold` and `machine` change records with them, and `timers` derives timers from the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from statemachine import events
from statemachine.chat import Chat
from statemachine.events import Retried, Transition
from statemachine.states import STATE_INFO, Phase
from statemachine.workspace import Build, Retry, WorkspaceRecord

LONGEST_KEEP: Final = timedelta(days=7)
"""A request to keep a workspace for longer counts as this."""
_WORTH: Final = 10
"""An end is put off only if that gains one part of so many of what activity puts it off by."""
_DELAYS: Final = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=25))
"""From the first, second and third failed stop or delete to the next one."""
_LATER_DELAY: Final = timedelta(days=1)


# -- putting the end of a lifetime off ----------------------------------------------------------


def bump(start: Build) -> timedelta:
    """Return how far activity puts the end of the lifetime off; 0 if it does not."""
    return timedelta(milliseconds=min(start.bump_ms, start.ttl_ms or 0))


def activity_seconds(ttl_ms: int | None, bump_ms: int) -> int:
    """Return how often agents report activity while it lasts; 0: never, because it puts no end off."""
    put_off_by = min(bump_ms, ttl_ms or 0)
    return max(1, put_off_by // 3000) if put_off_by else 0


def used(chat: Chat, at: datetime) -> Chat | None:
    """Return the chat whose workspace is used at `at`; None if that does not put the end of its lifetime off."""
    stops_at, start = _lifetime(chat)
    if stops_at is None or start is None or not (by := bump(start)):
        return None
    return _put_off(chat, at + by) if at + by - stops_at >= by / _WORTH else None


def kept(chat: Chat, seconds: float, at: datetime) -> Chat | None:
    """Return the chat whose workspace is kept for some seconds; None if its lifetime does not end earlier."""
    stops_at, _ = _lifetime(chat)
    end = end_of_keep(seconds, at)
    return _put_off(chat, end) if stops_at is not None and end > stops_at else None


def end_of_keep(seconds: float, at: datetime) -> datetime:
    """Return until when a request made at `at` keeps a workspace."""
    return at + timedelta(seconds=min(seconds, LONGEST_KEEP.total_seconds()))


def active(chat: Chat, fact: events.AgentActivity, at: datetime) -> Chat | None:
    """Return the chat whose workspace an agent reports to be in use; None if that does not count.

    Every agent of the start build counts, not only the chosen one.
    """
    current, start = chat.current, chat.start_build
    if current is None or current.id != fact.workspace_id:
        return None
    if start is None or start.outcome is None or start.id != fact.build_id:
        return None
    facts = chat.agent_facts(fact.agent_id)
    if facts is not None and fact.sequence <= facts.activity_sequence:
        return None
    if all(agent.id != fact.agent_id for agent in start.outcome.agents):
        return None
    return used(chat, at)


def _lifetime(chat: Chat) -> tuple[datetime | None, Build | None]:
    """Return when the lifetime of the running workspace ends, and the start that it belongs to."""
    return (chat.stops_at, chat.start_build) if chat.phase is Phase.RUNNING else (None, None)


def _put_off(chat: Chat, end: datetime) -> Chat:
    current = chat.current
    if current is None or (start := current.start_build) is None:
        return chat
    return replace(chat, current=_with_start(current, replace(start, put_off_to=end), retry=None))


def _with_start(record: WorkspaceRecord, start: Build, *, retry: Retry | None) -> WorkspaceRecord:
    if record.build is not None and record.build.id == start.id:
        return replace(record, build=start, retry=retry)
    return replace(record, last_start=start, retry=retry)


# -- attempts that failed -----------------------------------------------------------------------


def with_attempt(record: WorkspaceRecord, earlier: Retry | None) -> WorkspaceRecord:
    """Return a workspace that has a new build; `earlier` is the retry that was due before it.

    Failed attempts are counted as long as the workers make the same kind of build.
    """
    build = record.build
    same = (
        build is not None
        and earlier is not None
        and build.retried is Retried.ALWAYS
        and build.transition is earlier.transition
    )
    return replace(record, retry=replace(earlier, at=None) if same and earlier else None)


def impossible(record: WorkspaceRecord, transition: Transition, at: datetime) -> WorkspaceRecord:
    """Return a workspace for which no build of this kind could be requested: workers try again later."""
    before = record.retry
    same = before is not None and before.transition is transition
    count = before.count + 1 if before is not None and same else 1
    counted = before.counted if before is not None else None
    return _with_retry(record, Retry(transition=transition, count=count, counted=counted), at)


def overdue(record: WorkspaceRecord, at: datetime) -> WorkspaceRecord:
    """Return a replaced workspace whose open build has exceeded the limit."""
    if record.build is None or record.build.outcome is not None:
        return record
    return _ended_badly(record, record.build, at)


def with_end(record: WorkspaceRecord, at: datetime) -> WorkspaceRecord:
    """Return a replaced workspace whose newest build has ended."""
    build = record.build
    if build is None or build.outcome is None:
        return record
    if build.succeeded or not _is_retried(record, replaced=True):
        return record if record.retry is None else replace(record, retry=None)
    if record.retry is not None and record.retry.at is not None:
        return record  # its end comes after its limit, from which the next attempt is counted
    return _ended_badly(record, build, at)


def entered(chat: Chat, at: datetime) -> Chat:
    """Return a chat that has entered a new state: a stop or delete may have failed, or a new one may be made."""
    current, info = chat.current, STATE_INFO[chat.state]
    if current is None or (build := current.build) is None:
        return chat
    retry = current.retry
    if Phase.FAILED_STOP in (info.phase, info.end_rejected):
        if not _is_retried(current, replaced=False) and not _lifetime_is_over(current, at):
            # After its limit the attempt counted as failed, until somebody canceled it.
            return chat if retry is None else replace(chat, current=replace(current, retry=None))
        if retry is not None and retry.at is not None:
            return chat  # its end comes after its limit, from which the next attempt is counted
        return replace(chat, current=_ended_badly(current, build, at))
    if retry is None:
        return chat
    changed = replace(retry, at=None) if info.phase is Phase.BEING_STOPPED else None
    return replace(chat, current=replace(current, retry=changed))


def begun_after_all(chat: Chat, before: Build, at: datetime) -> Chat:
    """Return a chat after a fact about its delete, `before`: one that counted as not begun may have begun."""
    build = chat.build
    failed = STATE_INFO[chat.state].phase is Phase.FAILED_STOP
    if failed and build is not None and before.changed_nothing and not build.changed_nothing:
        return entered(chat, at)
    return chat


def is_attempt(record: WorkspaceRecord, *, replaced: bool) -> bool:
    """Return whether workers request the newest build, a stop or delete, again if it does not succeed.

    They do so for each delete, also for one made elsewhere, for each stop that they requested on their own, and for
    each stop of a workspace that the chat has `replaced`.
    """
    build = record.build
    if build is None or not build.elsewhere:
        return build is not None and build.retried is not None
    ends = build.transition is Transition.DELETE or (
        replaced and build.transition is Transition.STOP
    )
    return ends and record.ours


def _is_retried(record: WorkspaceRecord, *, replaced: bool) -> bool:
    """Return whether workers request the newest build again, a stop or delete that has ended without success.

    They do not if somebody asked for it and revoked it before it began, here or elsewhere: then all is as before.
    """
    build = record.build
    if build is None or not is_attempt(record, replaced=replaced):
        return False
    by_others = build.elsewhere or build.cancel_requested_at is not None
    return build.retried is Retried.ALWAYS or not (by_others and build.changed_nothing)


def _lifetime_is_over(record: WorkspaceRecord, at: datetime) -> bool:
    """Return whether a stop failed after the end of the lifetime, whoever requested it."""
    build, start = record.build, record.start_build
    if build is None or build.transition is not Transition.STOP:
        return False
    if start is None or not start.succeeded or not start.ttl_ms or start.ended_at is None:
        return False
    end = start.put_off_to or start.ended_at + timedelta(milliseconds=start.ttl_ms)
    return end <= at and not start.expired


def _ended_badly(record: WorkspaceRecord, build: Build, at: datetime) -> WorkspaceRecord:
    """Return a workspace whose stop or delete ended without success, or exceeded its limit.

    A build counts once, however often that happens: a call that waits for it gives it a new limit, and it may be
    canceled after that.
    """
    before = record.retry
    count = before.count if before is not None and before.transition is build.transition else 0
    if before is None or before.counted != build.id:
        count += 1
    return _with_retry(
        record, Retry(transition=build.transition, count=count, counted=build.id), at
    )


def _with_retry(record: WorkspaceRecord, retry: Retry, at: datetime) -> WorkspaceRecord:
    """Return a workspace whose stop or delete is requested again after the delay that its count gives, from `at`."""
    failed = max(retry.count, 1)
    delay = _DELAYS[failed - 1] if failed <= len(_DELAYS) else _LATER_DELAY
    return replace(record, retry=replace(retry, at=at + delay))


# -- rest ---------------------------------------------------------------------------------------


def resting(chat: Chat) -> Iterator[tuple[WorkspaceRecord, datetime]]:
    """Yield the workspaces that rest, the chat's own and replaced ones, with the time since when."""
    current = chat.current
    build = None if current is None or current.retry is not None else current.build
    if current is not None and build is not None and chat.phase in _RESTS:
        # Workers may have given its last build up; then the chat has changed at that time, and not since then.
        yield current, build.ended_at or chat.changed_at or build.started_at
    for record in chat.previous:
        build = record.build
        at_rest = record.ours and record.orphaned_at is None and record.retry is None
        if at_rest and build is not None and build.ended_at is not None:
            yield record, build.ended_at


def rests_since(chat: Chat) -> datetime | None:
    """Return since when the workspace rests that has rested longest; None if none does."""
    return min((since for _, since in resting(chat)), default=None)


_RESTS: Final = frozenset((Phase.STOPPED, Phase.FAILED_BUILD))
