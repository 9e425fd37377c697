"""Folds a fact into a snapshot, before any move of the chat.

Nothing here depends on the state. `fold` returns the snapshot that contains the fact. If the fact itself is a
trigger (a newer build was reported, the workspace is gone, a limit has passed), it also returns that trigger; if
the fact changes nothing that is published, the reason for that.

Facts about the current workspace and about previous ones go through one algorithm, `_with_fact`. What differs is
what the chat does with the result: it follows the current workspace's newest build, and watches whether a
previous workspace is left running.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from msgspec.structs import replace

from statemachine import events, lifetimes
from statemachine.chat import (
    MAX_AGENTS,
    MAX_BEFORE_DELETE,
    MAX_CANCELED,
    MAX_PREVIOUS,
    MAX_REJECTED,
    AgentFacts,
    Chat,
    Rejection,
)
from statemachine.events import Data, Event, Transition
from statemachine.states import Phase
from statemachine.table import Trigger
from statemachine.workspace import (
    Build,
    BuiltAgent,
    BuiltTemplate,
    Ending,
    Outcome,
    QuotaUse,
    Value,
    WorkspaceRecord,
)


class Unmoved(StrEnum):
    """The reason why a fact moves nothing: the `outcome` of its log entry."""

    REPEAT = "repeat"
    STALE = "stale"
    FOREIGN = "foreign"
    IGNORED = "ignored"


class Folded(Value, frozen=True):
    """The snapshot that contains the fact, and the trigger, if the fact itself is one."""

    chat: Chat
    trigger: Trigger | None = None
    unmoved: Unmoved | None = None
    """Set if the fact changes nothing that is published. The snapshot may keep it for later."""
    republish: bool = False
    """Publish a new version even if nothing that is published has changed."""


def fold(chat: Chat, event: Event, at: datetime) -> Folded:  # noqa: C901, PLR0912 — one arm for each type
    """Fold `event` into `chat`. `at` is the time now; the event's own time is its sender's."""
    data: Data = event.data
    match data:
        case events.BuildRequested():
            return _requested(chat, data, event.time, at)
        case (
            events.BuildStarted()
            | events.BuildSucceeded()
            | events.BuildFailed()
            | events.BuildCanceled()
        ):
            return _build_fact(chat, data, at)
        case events.WorkspaceDeleted():
            return _deleted(chat, data)
        case (
            events.AgentConnected()
            | events.AgentDisconnected()
            | events.AgentLifecycle()
            | events.AgentExited()
        ):
            return _agent_fact(chat, data)
        case events.AgentActivity():
            return _activity(chat, data, at)
        case events.KeepRequested(seconds=seconds):
            return _put_off(chat, lifetimes.kept(chat, seconds, at))
        case events.WorkspaceUsed():
            return _put_off(chat, lifetimes.used(chat, at))
        case events.BuildCancelRequested():
            return _cancel_requested(chat, data, at)
        case events.DeadlinePassed(generation=generation):
            if generation != chat.generation or chat.deadline is None:
                return Folded(chat=chat, unmoved=Unmoved.STALE)
            return Folded(chat=chat, trigger=Trigger.DEADLINE_PASSED)
        case events.WaitResumed():
            return Folded(chat=chat, trigger=Trigger.WAIT_RESUMED)
        case events.TtlPassed():
            return Folded(chat=_with_lifetime_over(chat, data, at))
        case events.RetentionPassed(workspace_id=workspace, possible=possible):
            return Folded(chat=_with_attempt(chat, workspace, at, possible=possible))
        case events.RetryDue(workspace_id=workspace, possible=possible):
            return Folded(chat=_with_attempt(chat, workspace, at, possible=possible))
        case events.BuildOverdue():
            return _overdue(chat, data, at)
        case events.OrphanGracePassed(workspace_id=orphan):
            return Folded(chat=_with_grace_over(chat, orphan))
        case events.FactRejected():
            return _rejected(chat, data, event.pool)
        case events.DatabaseRestored(published_version=published):
            if published < chat.version:
                return Folded(chat=chat, unmoved=Unmoved.STALE)
            return Folded(chat=replace(chat, version=published), republish=True)
        case events.ToolCanceled() | events.DeleteRequested():
            return Folded(chat=chat)  # the rules of the tools act on these
        case events.ToolRequested():
            return Folded(chat=_with_owner(chat, data))


# -- one workspace ------------------------------------------------------------------------------


def _with_fact(
    record: WorkspaceRecord, fact: events.ProvisionerFact, at: datetime
) -> WorkspaceRecord:
    """Fold a provisioner's fact about one of a workspace's builds."""
    record = _with_names(record, fact)
    if isinstance(fact, events.BuildSucceeded) and fact.transition is Transition.START:
        record = replace(record, never_started=False)
    if record.canceled and not isinstance(fact, events.BuildStarted):
        canceled = tuple(build for build in record.canceled if build.id != fact.build_id)
        record = replace(record, canceled=canceled)
    newest = record.build
    if newest is not None and newest.id == fact.build_id:
        return replace(record, build=_build_with_fact(newest, fact, at))
    seen = first_seen(newest, fact, at)
    if newest is None or fact.build_number > newest.number:
        return _with_newer_build(record, seen)
    return replace(
        record,
        last_start=_start_with_late_fact(record, seen, fact, at),
        before_delete=_before_delete_with_late_fact(record, seen, fact, at),
    )


def _with_names(record: WorkspaceRecord, fact: events.ProvisionerFact) -> WorkspaceRecord:
    """Add the names that `build_started` reports for a workspace made elsewhere."""
    if not isinstance(fact, events.BuildStarted):
        return record
    named = replace(
        record,
        name=record.name or fact.workspace_name,
        owner_name=record.owner_name or fact.owner_name,
        template_id=record.template_id or fact.template_id,
    )
    if named.template_id != record.template_id:
        # Without a template it could not be stopped; now that it has one, it can.
        return replace(named, grace_over=False)
    return named


def _with_newer_build(record: WorkspaceRecord, build: Build) -> WorkspaceRecord:
    starts = build.transition is Transition.START
    return replace(
        record,
        build=build,
        last_start=None if starts else record.start_build,
        before_delete=_before_delete(record, build),
        canceled=_canceled(record),
    )


def _canceled(record: WorkspaceRecord) -> tuple[Build, ...]:
    """Return the canceled builds without end, before a newer build follows or the chat leaves the workspace."""
    found = [build for build in (record.last_start, record.build) if build and build.being_canceled]
    if not found:
        return record.canceled
    kept = {build.id: build for build in record.canceled}
    for build in found:
        kept[build.id] = replace(
            _only_ending(build), template=build.template, elsewhere=build.elsewhere
        )
    return tuple(kept.values())[-MAX_CANCELED:]


def first_seen(previous: Build | None, fact: events.ProvisionerFact, at: datetime) -> Build:
    """Return the new build that `fact` is the first to report. Other data are taken from the build `previous`."""
    build = Build(
        id=fact.build_id,
        number=fact.build_number,
        transition=fact.transition,
        started_at=at,
        elsewhere=True,
    )
    if previous is not None:
        build = replace(
            build,
            template=previous.template,
            template_version_id=previous.template_version_id,
            parameters=previous.parameters,
            preset_id=previous.preset_id,
            ttl_ms=previous.ttl_ms,
            bump_ms=previous.bump_ms,
        )
    return _build_with_fact(build, fact, at)


def _build_with_fact(build: Build, fact: events.ProvisionerFact, at: datetime) -> Build:
    """Fold a fact into its build. Of two terminal facts the first one stored counts."""
    if build.outcome is not None:
        late = isinstance(fact, events.BuildStarted) and build.untouched
        return replace(build, untouched=False) if late else build
    version = getattr(fact, "template_version_id", None) or build.template_version_id
    begun = replace(build, begun_at=build.begun_at or at, template_version_id=version)
    match fact:
        case events.BuildStarted():
            return begun
        case events.BuildSucceeded(agents=agents):
            made = tuple(
                BuiltAgent(
                    id=agent.id,
                    name=agent.name,
                    parent_id=agent.parent_id,
                    display_order=agent.display_order,
                )
                for agent in agents
            )
            outcome = Outcome(ending=Ending.SUCCEEDED, agents=made)
        case events.BuildFailed(error=error, error_code=error_code, quota=quota):
            use = (
                None
                if quota is None
                else QuotaUse(credits_consumed=quota.credits_consumed, budget=quota.budget)
            )
            outcome = Outcome(ending=Ending.FAILED, error=error, error_code=error_code, quota=use)
        case events.BuildCanceled():
            outcome = Outcome(ending=Ending.CANCELED)
            # Before the end, only a `build_started` can have reported that the build has begun.
            untouched = build.transition is Transition.DELETE and build.begun_at is None
            begun = replace(begun, untouched=untouched)
    return replace(begun, outcome=outcome, ended_at=at)


def _start_with_late_fact(
    record: WorkspaceRecord, seen: Build, fact: events.ProvisionerFact, at: datetime
) -> Build | None:
    """Return the last start with a late fact in it: after a failed stop it matters whether it succeeded.

    `seen` is the build that the fact is about, as if nothing else were known of it.
    """
    newest, last = record.build, record.last_start
    starts = seen.transition is Transition.START
    if not starts or newest is None or newest.transition is Transition.START:
        return last
    if last is not None and last.id == seen.id:
        return _build_with_fact(last, fact, at)
    return seen if last is None or seen.number > last.number else last


def _before_delete(record: WorkspaceRecord, build: Build) -> tuple[Build, ...]:
    """Return the stops and deletes before `build`, which becomes the newest build."""
    newest = record.build
    if build.transition is not Transition.DELETE or newest is None:
        return ()
    match newest.transition:
        case Transition.START:
            return ()
        case Transition.STOP:
            return (_only_ending(newest),)
        case Transition.DELETE:
            return _newest_builds((*record.before_delete, _only_ending(newest)))


def _before_delete_with_late_fact(
    record: WorkspaceRecord, seen: Build, fact: events.ProvisionerFact, at: datetime
) -> tuple[Build, ...]:
    """Return the stops and deletes before the delete that is the newest build, with a late fact in them."""
    newest, earlier = record.build, record.before_delete
    if newest is None or newest.transition is not Transition.DELETE:
        return ()
    if seen.transition is Transition.START:
        return earlier
    known = next((build for build in earlier if build.id == seen.id), None)
    if known is None:
        return _newest_builds((*earlier, _only_ending(seen)))
    changed = _only_ending(_build_with_fact(known, fact, at))
    return tuple(changed if build is known else build for build in earlier)


def _newest_builds(builds: tuple[Build, ...]) -> tuple[Build, ...]:
    return tuple(sorted(builds, key=lambda build: build.number))[-MAX_BEFORE_DELETE:]


def _only_ending(build: Build) -> Build:
    """Return a build with nothing but how it ended."""
    return Build(
        id=build.id,
        number=build.number,
        transition=build.transition,
        started_at=build.started_at,
        begun_at=build.begun_at,
        cancel_requested_at=build.cancel_requested_at,
        untouched=build.untouched,
        outcome=Outcome(ending=build.outcome.ending) if build.outcome else None,
    )


# -- the current workspace and the previous ones ------------------------------------------------


def _requested(chat: Chat, asked: events.BuildRequested, time: datetime, at: datetime) -> Folded:
    starts = asked.transition is Transition.START
    last, template = chat.build, asked.template
    build = Build(
        id=asked.build_id,
        number=asked.build_number,
        transition=asked.transition,
        started_at=time,
        template=None
        if template is None
        else BuiltTemplate(
            id=template.id, name=template.name, version_id=template.version_id, pool=template.pool
        ),
        template_version_id=template.version_id if template else None,
        parameters=asked.parameters,
        preset_id=asked.preset_id,
        ttl_ms=asked.ttl_ms if starts or last is None else last.ttl_ms,
        bump_ms=asked.activity_bump_ms if starts or last is None else last.bump_ms,
        retried=asked.retried,
    )
    if (previous := chat.previous_workspace(asked.workspace_id)) is not None:
        newer = replace(previous, build=build, canceled=_canceled(previous))
        newer = lifetimes.with_attempt(newer, previous.retry)
        requested = _with_orphan_mark(newer, at)
        return Folded(chat=_remember(chat, requested), unmoved=Unmoved.FOREIGN)
    if chat.current is None or chat.current.id != asked.workspace_id:
        record = WorkspaceRecord(
            id=asked.workspace_id,
            name=asked.workspace_name,
            owner_name=asked.owner_name,
            template_id=template.id if template else None,
            never_started=asked.creates,
        )
        chat, current = _bind(leave(chat, at, deleted=False), record), record
    else:
        current = chat.current
    return _follow(chat, current, _with_newer_build(current, build))


def _build_fact(chat: Chat, fact: events.ProvisionerFact, at: datetime) -> Folded:
    if (unmoved := _not_current(chat, fact.workspace_id)) is not None:
        return Folded(chat=_previous_with_fact(chat, fact, at), unmoved=unmoved)
    if chat.current is None:
        chat = _bind(chat, WorkspaceRecord(id=fact.workspace_id))
    before = chat.current or WorkspaceRecord(id=fact.workspace_id)
    after = _with_fact(before, fact, at)
    build = before.build
    if after.build is not None and (build is None or after.build.id != build.id):
        return _follow(chat, before, after)
    folded = replace(chat, current=after)
    if build is None or build.id != fact.build_id:
        return Folded(chat=folded, unmoved=Unmoved.STALE)
    folded = lifetimes.begun_after_all(folded, build, at)
    # It adds nothing, or only that a canceled delete had begun, which is not published.
    ignored = after.build == build or build.outcome is not None
    return Folded(chat=folded, unmoved=Unmoved.IGNORED if ignored else None)


def _cancel_requested(chat: Chat, asked: events.BuildCancelRequested, at: datetime) -> Folded:
    """Note on the followed build that it was canceled, if it is the one that is meant and has not ended."""
    current, build = chat.current, chat.build
    if current is None or build is None or asked.build_id not in (None, build.id):
        return Folded(chat=chat, unmoved=Unmoved.STALE)
    if build.outcome is not None or build.cancel_requested_at is not None:
        return Folded(chat=chat, unmoved=Unmoved.IGNORED)
    canceled = replace(build, cancel_requested_at=at, cancel_reason=asked.reason)
    unbegun = canceled.canceled_unbegun
    return Folded(
        chat=replace(chat, current=replace(current, build=canceled)),
        trigger=Trigger.CANCELED_UNBEGUN if unbegun else Trigger.CANCEL_REQUESTED,
    )


def _previous_with_fact(chat: Chat, fact: events.ProvisionerFact, at: datetime) -> Chat:
    """Fold a provisioner's fact about a workspace that is not the chat's."""
    known = chat.previous_workspace(fact.workspace_id)
    before = known or WorkspaceRecord(id=fact.workspace_id, ours=False)
    if before.deleted:
        return chat
    after = _with_fact(before, fact, at)
    if after.build is None or after.build.id != fact.build_id:
        return _remember(chat, after)
    if before.build is None or before.build.id != fact.build_id:
        after = lifetimes.with_attempt(after, before.retry)
    return _remember(chat, _with_orphan_mark(after, at))


def _with_orphan_mark(record: WorkspaceRecord, at: datetime) -> WorkspaceRecord:
    """Return a previous workspace as its newest build leaves it: deleted, running as an orphan, or neither."""
    build = record.build
    if build is None:
        return record
    if build.succeeded and build.transition is Transition.DELETE:
        return WorkspaceRecord(id=record.id, deleted=True, ours=record.ours)
    record = lifetimes.with_end(record, at)
    if not build.leaves_running:
        return replace(record, orphaned_at=None, grace_over=False)
    was_running = record.orphaned_at is not None
    return replace(
        record,
        orphaned_at=record.orphaned_at or at,
        grace_over=was_running and record.grace_over,
    )


def _follow(chat: Chat, before: WorkspaceRecord, after: WorkspaceRecord) -> Folded:
    """Make `after`, which has a newer build than `before`, the current workspace, and follow that build."""
    build, superseded = after.build, before.superseded
    if build is None:
        return Folded(chat=chat)
    if before.build is not None:
        superseded = (*superseded, before.build.id)[-MAX_PREVIOUS:]
    kept = after.last_start.id if after.last_start is not None else None
    after = lifetimes.with_attempt(after, before.retry)
    following = replace(
        chat,
        current=replace(after, superseded=superseded, chosen=None),
        latest_build=build.id,
        # Agents of superseded builds are forgotten, except those of the last start.
        agents=tuple(f for f in chat.agents if f.build_id == kept or f.build_id not in superseded),
        rejected=tuple(r for r in chat.rejected if r.build_id not in superseded),
        failure=None,
    )
    starts = build.transition is Transition.START
    trigger = Trigger.START_FOLLOWED if starts else Trigger.STOP_FOLLOWED
    return Folded(chat=following, trigger=trigger)


def successor(chat: Chat) -> WorkspaceRecord | None:
    """Return the workspace that a chat gets when its own was deleted.

    It was made elsewhere, and a build of it is known. Of several it is the one with the lowest id, so that the
    order of their facts does not matter. (A chat without a workspace waits for nothing: it binds the first
    workspace that a fact reports.)
    """
    made_elsewhere = (
        r for r in chat.previous if not r.ours and not r.deleted and r.build is not None
    )
    return min(made_elsewhere, key=lambda record: record.id, default=None)


def bind_successor(chat: Chat, before: Chat) -> Folded | None:
    """Bind the workspace that facts reported before the chat's own was deleted, in the state it has reached.

    So the chat ends as if the deletion had come first. `before`: the chat while it still had the other.
    The new workspace has no lifetime, like any that is built elsewhere: only workspaced's own jobs set one.
    """
    found = successor(chat) if chat.current is None else None
    if found is None:
        return None
    record = WorkspaceRecord(
        id=found.id,
        name=found.name,
        owner_name=found.owner_name,
        template_id=found.template_id,
        build=found.build,
        last_start=found.last_start,
        before_delete=found.before_delete,
    )
    left = before.current or WorkspaceRecord(id="")
    builds = (*left.superseded, left.build.id if left.build else None, chat.latest_build)
    folded = _follow(_bind(chat, record), WorkspaceRecord(id=record.id), record)
    deleted_builds = tuple(build for build in builds if build is not None)
    return replace(folded, chat=replace(folded.chat, deleted_builds=deleted_builds))


def _bind(chat: Chat, record: WorkspaceRecord) -> Chat:
    """Return the chat with this workspace. What its agents reported already takes effect."""
    others = tuple(previous for previous in chat.previous if previous.id != record.id)
    return replace(chat, current=record, previous=others, deleted_builds=())


def leave(chat: Chat, at: datetime, *, deleted: bool) -> Chat:
    """Return the chat without its workspace, which it remembers as a previous one.

    One that runs is an orphan from here on, unless a stop of it is requested in the same step.
    """
    current = chat.current
    if current is None:
        return chat
    record = WorkspaceRecord(id=current.id, deleted=True)
    if not deleted:
        record = WorkspaceRecord(
            id=current.id,
            name=current.name,
            owner_name=current.owner_name,
            template_id=current.template_id,
            build=current.build,
            canceled=_canceled(current),
            orphaned_at=at if _is_left_running(chat, current) else None,
        )
    agents = _agents_of_others(chat, current.id)
    return replace(_remember(chat, record), current=None, agents=agents)


def _is_left_running(chat: Chat, current: WorkspaceRecord) -> bool:
    """Return whether the workspace runs, or may run because the end of its start is unknown."""
    start, build = current.start_build, current.build
    unknown = start is not None and start.outcome is None and start is not build
    if start is not None and start.succeeded:
        return chat.phase in (Phase.RUNNING, Phase.FAILED_DELETE)
    return unknown and build is not None and build.leaves_running


def _remember(chat: Chat, record: WorkspaceRecord) -> Chat:
    """Return the chat with `record` as the newest of its previous workspaces."""
    others = [previous for previous in chat.previous if previous.id != record.id]
    while len(others) >= MAX_PREVIOUS:
        others.remove(min(others, key=_importance))
    remembering = replace(chat, previous=(*others, record))
    if record.deleted:
        return replace(remembering, agents=_agents_of_others(chat, record.id))
    return remembering


def _importance(record: WorkspaceRecord) -> int:
    """Return how important a record is: most if the workspace runs, less if it must not become current again."""
    return 2 * (record.orphaned_at is not None) + record.ours


def _agents_of_others(chat: Chat, workspace_id: str) -> tuple[AgentFacts, ...]:
    return tuple(facts for facts in chat.agents if facts.workspace_id != workspace_id)


def _not_current(chat: Chat, workspace_id: str) -> Unmoved | None:
    """Return why a fact about this workspace moves nothing; None if it is, or may become, the current one."""
    previous = chat.previous_workspace(workspace_id)
    if previous is not None and previous.deleted:
        return Unmoved.STALE
    if previous is not None and previous.ours:
        return Unmoved.FOREIGN
    if chat.current is not None and chat.current.id != workspace_id:
        return Unmoved.FOREIGN
    return None


def _deleted(chat: Chat, fact: events.WorkspaceDeleted) -> Folded:
    if chat.current is not None and chat.current.id == fact.workspace_id:
        return Folded(chat=chat, trigger=Trigger.WORKSPACE_DELETED)
    known = chat.previous_workspace(fact.workspace_id)
    if known is not None and known.deleted:
        return Folded(chat=chat, unmoved=Unmoved.STALE)
    foreign = chat.current is not None or known is not None
    return Folded(
        chat=_remember(chat, WorkspaceRecord(id=fact.workspace_id, deleted=True)),
        unmoved=Unmoved.FOREIGN if foreign else None,
    )


# -- the chat -----------------------------------------------------------------------------------


def _with_owner(chat: Chat, asked: events.ToolRequested) -> Chat:
    """Let the first request fix the chat's organization and owner."""
    if chat.organization_id is not None:
        return chat
    return replace(
        chat,
        organization_id=asked.organization_id,
        owner_id=asked.owner_id,
        owner_name=asked.owner_name,
    )


def _put_off(chat: Chat, put_off: Chat | None) -> Folded:
    """Return the chat with the end of its lifetime put off, if that is so."""
    if put_off is None:
        return Folded(chat=chat, unmoved=Unmoved.IGNORED)
    return Folded(chat=put_off)


def _with_attempt(chat: Chat, workspace_id: str, at: datetime, *, possible: bool) -> Chat:
    """Note that no build could be requested for a workspace whose time has come; else the build follows."""
    current, previous = chat.current, chat.previous_workspace(workspace_id)
    if possible:
        return chat
    if current is not None and current.id == workspace_id:
        due = current.retry.transition if current.retry else Transition.DELETE
        return replace(chat, current=lifetimes.impossible(current, due, at))
    if previous is None:
        return chat
    due = previous.retry.transition if previous.retry else Transition.DELETE
    return _remember(chat, lifetimes.impossible(previous, due, at))


def _overdue(chat: Chat, passed: events.BuildOverdue, at: datetime) -> Folded:
    """Note that the build of a replaced workspace has exceeded the limit."""
    record = chat.previous_workspace(passed.workspace_id)
    if record is None or record.build is None or record.build.id != passed.build_id:
        return Folded(chat=chat, unmoved=Unmoved.STALE)
    return Folded(chat=_remember(chat, lifetimes.overdue(record, at)))


def _with_lifetime_over(chat: Chat, passed: events.TtlPassed, at: datetime) -> Chat:
    """Note that no stop could be requested after the lifetime. Earlier versions noted each end on the start."""
    current = chat.current
    if current is None or (start := current.start_build) is None:
        return chat
    if passed.workspace_id is not None:
        if passed.possible:
            return chat
        return replace(chat, current=lifetimes.impossible(current, Transition.STOP, at))
    expired = replace(start, expired=True)
    if start is current.build:
        return replace(chat, current=replace(current, build=expired))
    return replace(chat, current=replace(current, last_start=expired))


def _with_grace_over(chat: Chat, workspace_id: str) -> Chat:
    """Note on an orphan that its grace period has passed."""
    record = chat.previous_workspace(workspace_id)
    if record is None or record.orphaned_at is None:
        return chat
    return _remember(chat, replace(record, grace_over=True))


def _rejected(chat: Chat, fact: events.FactRejected, pool: str | None) -> Folded:
    """Remember a rejected fact about a build, also about one that is not known yet."""
    build = chat.build
    new = Rejection(build_id=fact.build_id, fact=fact.fact, detail=fact.detail, pool=pool)
    superseded = chat.current is not None and fact.build_id in chat.current.superseded
    followed = build is not None and build.id == fact.build_id
    if superseded or (followed and build and not new.concerns(build)):
        return Folded(chat=chat, unmoved=Unmoved.STALE)
    key = (new.build_id, new.pool, new.is_end)
    kept = [r for r in chat.rejected if (r.build_id, r.pool, r.is_end) != key]
    if len(kept) == MAX_REJECTED:
        kept.remove(min(kept, key=lambda r: build is not None and r.build_id == build.id))
    rejected = (*kept, new)
    if rejected == chat.rejected:
        return Folded(chat=chat, unmoved=Unmoved.REPEAT)
    return Folded(chat=replace(chat, rejected=rejected))


# -- agents -------------------------------------------------------------------------------------


def _agent_fact(chat: Chat, fact: events.AgentFact | events.AgentExited) -> Folded:
    unmoved = _not_current(chat, fact.workspace_id)
    if unmoved is not None:
        previous = chat.previous_workspace(fact.workspace_id)
        if previous is not None and (previous.ours or previous.deleted):
            return Folded(chat=chat, unmoved=unmoved)
        return Folded(chat=_with_report(chat, fact), unmoved=unmoved)  # the chat may get it later
    if _is_superseded(chat, fact):
        return Folded(chat=chat, unmoved=Unmoved.STALE)
    if _is_other_than_chosen(chat, fact):
        return Folded(chat=chat, unmoved=Unmoved.IGNORED)
    reported = _with_report(chat, fact)
    if reported is chat:
        return Folded(chat=chat, unmoved=Unmoved.STALE)  # a higher sequence came before
    stale = _disconnected_before_loss(chat, fact)
    return Folded(chat=reported, unmoved=Unmoved.STALE if stale else None)


def _activity(chat: Chat, fact: events.AgentActivity, at: datetime) -> Folded:
    """Put the end of the lifetime off, and keep the sequence of the report that did it."""
    put_off = lifetimes.active(chat, fact, at)
    if put_off is None:
        return Folded(chat=chat, unmoved=Unmoved.IGNORED)
    known = chat.agent_facts(fact.agent_id)
    facts = known or AgentFacts(
        id=fact.agent_id, workspace_id=fact.workspace_id, build_id=fact.build_id
    )
    return Folded(chat=_with_facts(put_off, known, replace(facts, activity_sequence=fact.sequence)))


def _is_superseded(chat: Chat, fact: events.AgentFact | events.AgentExited) -> bool:
    """Return whether the fact is about a superseded build other than the last start."""
    current = chat.current
    if current is None or fact.build_id not in current.superseded:
        return False
    return current.last_start is None or current.last_start.id != fact.build_id


def _disconnected_before_loss(chat: Chat, fact: events.AgentFact | events.AgentExited) -> bool:
    """Return whether a lost agent reports with a lower sequence that it disconnected: then it stays disconnected.

    Earlier versions recorded this as `stale`, so their logs fold to what they recorded.
    """
    facts = chat.agent_facts(fact.agent_id)
    lost_at = facts.lost_at if facts is not None else None
    if not isinstance(fact, events.AgentDisconnected) or fact.sequence is None:
        return False
    return lost_at is not None and fact.sequence <= lost_at


def _with_report(chat: Chat, fact: events.AgentFact | events.AgentExited) -> Chat:
    """Keep an agent's report. If there are too many agents, forget the oldest, those of other workspaces first."""
    of = (fact.workspace_id, fact.agent_id)
    known = next((f for f in chat.agents if (f.workspace_id, f.id) == of), None)
    before = known or AgentFacts(
        id=fact.agent_id, workspace_id=fact.workspace_id, build_id=fact.build_id
    )
    after = before.after(fact)
    return chat if after == known else _with_facts(chat, known, after)


def _with_facts(chat: Chat, known: AgentFacts | None, after: AgentFacts) -> Chat:
    """Replace what an agent has reported; if there are too many agents, forget the oldest."""
    kept = [*(facts for facts in chat.agents if facts is not known), after]
    current = chat.current.id if chat.current else None
    chosen = chat.chosen.id if chat.chosen else None
    while len(kept) > MAX_AGENTS:
        kept.remove(min(kept, key=lambda f: (f.workspace_id == current, f.id == chosen)))
    return replace(chat, agents=tuple(kept))


def _is_other_than_chosen(chat: Chat, fact: events.AgentFact | events.AgentExited) -> bool:
    """Say whether the followed build ended and another agent, or none, was chosen."""
    build = chat.build
    if build is None or build.id != fact.build_id or build.outcome is None:
        return False
    return chat.chosen is None or chat.chosen.id != fact.agent_id


# -- what a fold changed ------------------------------------------------------------------------


def newly_deleted(before: Chat, after: Chat) -> tuple[str, ...]:
    """Return the ids of the workspaces that became known as deleted since `before`."""
    gone = {record.id for record in before.previous if record.deleted}
    return tuple(r.id for r in after.previous if r.deleted and r.id not in gone)


def newly_named(before: Chat, after: Chat) -> tuple[str, str, str, str] | None:
    """Return (workspace, chat, owner, name) if the current workspace got a name of an owner since `before`."""
    now, then, owner = after.current, before.current, after.owner_id
    if now is None or now.name is None or owner is None:
        return None
    if then is not None and (then.id, then.name, before.owner_id) == (now.id, now.name, owner):
        return None
    # Names are indexed, and an index entry has a size limit. workspaced's own names are never as long as this.
    return now.id, after.chat_id, owner, now.name[:255]
