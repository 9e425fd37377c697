"""Folding one fact into a snapshot, before any move: what is known now, and what that amounts to.

Nothing here looks at the state. A fold returns the snapshot with the fact in it and, when the fact
itself is a trigger (a newer build is seen, the workspace is gone, a limit is over), that trigger;
or the reason why the fact has nothing to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from statemachine import events, previous_workspaces
from statemachine.builds import before_delete, seen_by, start_before, with_earlier, with_fact
from statemachine.chat import (
    MOST_AGENTS,
    MOST_PAST,
    MOST_REJECTED,
    AgentFacts,
    Build,
    Chat,
    PreviousWorkspace,
    Rejection,
    WorkspaceRef,
)
from statemachine.events import Data, Event, Transition
from statemachine.table import Trigger


class Unmoved(StrEnum):
    """Why a fact moves nothing: the `outcome` of its log entry."""

    REPEAT = "repeat"
    STALE = "stale"
    FOREIGN = "foreign"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Folded:
    """The snapshot that knows the fact, and the trigger that the fact itself is."""

    workspace: Chat
    trigger: Trigger | None = None
    unmoved: Unmoved | None = None
    """Set when the fact has no say in what is seen (its folding may still matter later)."""
    anew: bool = False
    """What is seen is shown anew, though nothing of it changed."""


def fold(workspace: Chat, event: Event, at: datetime) -> Folded:  # noqa: C901, PLR0912 — one arm a type
    """Fold `event` into `workspace`. `at` is when: an event's own time is its sender's affair."""
    data: Data = event.data
    match data:
        case events.BuildRequested():
            return _requested(workspace, data, event.time, at)
        case (
            events.BuildStarted()
            | events.BuildSucceeded()
            | events.BuildFailed()
            | events.BuildCanceled()
        ):
            return _build(workspace, data, event.time, at)
        case events.WorkspaceDeleted():
            return _deleted(workspace, data)
        case events.AgentConnected() | events.AgentDisconnected() | events.AgentLifecycle():
            return _agent(workspace, data)
        case events.DeadlinePassed(generation=generation):
            if generation != workspace.generation or workspace.deadline is None:
                return Folded(workspace, unmoved=Unmoved.STALE)
            return Folded(workspace, Trigger.DEADLINE_PASSED)
        case events.WaitResumed():
            return Folded(workspace, Trigger.WAIT_RESUMED)
        case events.TtlPassed():
            return Folded(_expired(workspace))
        case events.OrphanGracePassed(workspace_id=orphan):
            return Folded(previous_workspaces.overdue(workspace, orphan))
        case events.FactRejected():
            return _rejected(workspace, data, event.pool)
        case events.DatabaseRestored(published_version=published):
            if published < workspace.version:
                return Folded(workspace, unmoved=Unmoved.STALE)
            return Folded(workspace.model_copy(update={"version": published}), anew=True)
        case events.ToolCanceled() | events.DeleteRequested():
            return Folded(workspace)  # the rules act on these
        case events.ToolRequested():
            return Folded(_introduced(workspace, data))


def _introduced(workspace: Chat, asked: events.ToolRequested) -> Chat:
    """Let the first request fix whose chat it is."""
    if workspace.organization_id is not None:
        return workspace
    return workspace.model_copy(
        update={
            "organization_id": asked.organization_id,
            "owner_id": asked.owner_id,
            "owner_name": asked.owner_name,
        }
    )


def _expired(workspace: Chat) -> Chat:
    """Let the lifetime of the last start be over."""
    start = workspace.start_build
    if start is None:
        return workspace
    which = "build" if start is workspace.build else "last_start"
    return workspace.model_copy(update={which: start.model_copy(update={"expired": True})})


def _requested(
    workspace: Chat, asked: events.BuildRequested, time: datetime, at: datetime
) -> Folded:
    starts = asked.transition is Transition.START
    last = workspace.build
    build = Build(
        id=asked.build_id,
        number=asked.build_number,
        transition=asked.transition,
        started_at=time,
        template=asked.template,
        template_version_id=asked.template.version_id if asked.template else None,
        parameters=asked.parameters,
        preset_id=asked.preset_id,
        ttl_ms=asked.ttl_ms if starts or last is None else last.ttl_ms,
    )
    if (former := previous_workspaces.known(workspace, asked.workspace_id)) is not None:
        stopping = previous_workspaces.requested(workspace, former, build, at)
        return Folded(stopping, unmoved=Unmoved.FOREIGN)
    ref = workspace.ref
    if ref is None or ref.id != asked.workspace_id:
        workspace = _bound(
            previous_workspaces.left(workspace, at, deleted=False),
            WorkspaceRef(
                id=asked.workspace_id,
                name=asked.workspace_name,
                owner_name=asked.owner_name,
                template_id=asked.template.id if asked.template else None,
            ),
        )
    return _follow(workspace, build)


def _build(workspace: Chat, fact: events.ProvisionerFact, time: datetime, at: datetime) -> Folded:
    if (unmoved := _elsewhere(workspace, fact.workspace_id)) is not None:
        return Folded(previous_workspaces.told(workspace, fact, time, at), unmoved=unmoved)
    if workspace.ref is None:
        workspace = _bound(workspace, WorkspaceRef(id=fact.workspace_id))
    workspace = _named(workspace, fact)
    current = workspace.build
    if current is not None and current.id == fact.build_id:
        known = with_fact(current, fact, at)
        # It says nothing new, or only whether a canceled delete had begun, which nothing shows.
        over = known == current or current.outcome is not None
        return Folded(
            workspace.model_copy(update={"build": known}),
            unmoved=Unmoved.IGNORED if over else None,
        )
    seen = seen_by(current, fact, time, at)
    if current is None or fact.build_number > current.number:
        return _follow(workspace, seen)
    new = {
        "last_start": start_before(current, workspace.last_start, seen, fact, at),
        "before_delete": with_earlier(current, workspace.before_delete, seen, fact, at),
    }
    return Folded(workspace.model_copy(update=new), unmoved=Unmoved.STALE)


def joined(workspace: Chat, before: Chat) -> Folded | None:
    """Bind a workspace that was spoken of before the chat's own was deleted, as far as it has come.

    So the chat ends as if the deletion had come first. `before`: the chat when it still had the other.
    The new one has no lifetime, like any that is built elsewhere: a `ttl_ms` goes with a job of ours.
    """
    heir = previous_workspaces.heir(workspace) if workspace.ref is None else None
    if heir is None or heir.ref is None or heir.build is None:
        return None
    folded = _follow(_bound(workspace, heir.ref), heir.build)
    builds = (*before.past, before.build.id if before.build else None, workspace.latest_build)
    new = {
        "last_start": heir.last_start,
        "before_delete": heir.before_delete,
        "deleted_builds": tuple(build for build in builds if build is not None),
    }
    return replace(folded, workspace=folded.workspace.model_copy(update=new))


def _bound(workspace: Chat, ref: WorkspaceRef) -> Chat:
    """Return the chat with this workspace; what its agents have said already takes effect."""
    others = tuple(former for former in workspace.former if former.id != ref.id)
    return workspace.model_copy(update={"ref": ref, "former": others, "deleted_builds": ()})


def _elsewhere(workspace: Chat, workspace_id: str) -> Unmoved | None:
    """Say whether a fact speaks of a workspace that is not (any more) this chat's."""
    former = previous_workspaces.known(workspace, workspace_id)
    if former is not None and former.deleted:
        return Unmoved.STALE
    if former is not None and former.ours:
        return Unmoved.FOREIGN
    if workspace.ref is not None and workspace.ref.id != workspace_id:
        return Unmoved.FOREIGN
    return None


def _named(workspace: Chat, fact: events.ProvisionerFact) -> Chat:
    """Fill in what nobody had told of a workspace made elsewhere."""
    ref = workspace.ref
    if ref is None or not isinstance(fact, events.BuildStarted):
        return workspace
    told = WorkspaceRef(
        id=ref.id,
        name=ref.name or fact.workspace_name,
        owner_name=ref.owner_name or fact.owner_name,
        template_id=ref.template_id or fact.template_id,
    )
    return workspace if told == ref else workspace.model_copy(update={"ref": told})


def _follow(workspace: Chat, build: Build) -> Folded:
    past, last_start = workspace.past, workspace.start_build
    if workspace.build is not None:
        past = (*past, workspace.build.id)[-MOST_PAST:]
    starts = build.transition is Transition.START
    following = workspace.model_copy(
        update={
            "build": build,
            "latest_build": build.id,
            "agents": _without(workspace, past, None if starts else last_start),
            "past": past,
            "rejected": tuple(r for r in workspace.rejected if r.build_id not in past),
            "last_start": None if starts else last_start,
            "before_delete": before_delete(workspace.build, workspace.before_delete, build),
            "chosen": None,
            "failure": None,
        }
    )
    return Folded(following, Trigger.START_FOLLOWED if starts else Trigger.STOP_FOLLOWED)


def _without(workspace: Chat, past: tuple[str, ...], start: Build | None) -> tuple[AgentFacts, ...]:
    """Forget the agents of superseded builds, but for the last start's."""
    kept = start.id if start is not None else None
    return tuple(f for f in workspace.agents if f.build_id == kept or f.build_id not in past)


def _deleted(workspace: Chat, fact: events.WorkspaceDeleted) -> Folded:
    if workspace.ref is not None and workspace.ref.id == fact.workspace_id:
        return Folded(workspace, Trigger.WORKSPACE_DELETED)
    known = previous_workspaces.known(workspace, fact.workspace_id)
    if known is not None and known.deleted:
        return Folded(workspace, unmoved=Unmoved.STALE)
    kept = previous_workspaces.remembered(
        workspace, PreviousWorkspace(id=fact.workspace_id, deleted=True)
    )
    foreign = workspace.ref is not None or known is not None
    return Folded(kept, unmoved=Unmoved.FOREIGN if foreign else None)


def _rejected(workspace: Chat, fact: events.FactRejected, pool: str | None) -> Folded:
    """Remember what could not be accepted about a build, also of one that is not known yet."""
    build = workspace.build
    new = Rejection(build_id=fact.build_id, fact=fact.fact, detail=fact.detail, pool=pool)
    followed = build is not None and build.id == fact.build_id
    if fact.build_id in workspace.past or (followed and build and not new.concerns(build)):
        return Folded(workspace, unmoved=Unmoved.STALE)
    place = (new.build_id, new.pool, new.ends)
    kept = [r for r in workspace.rejected if (r.build_id, r.pool, r.ends) != place]
    if len(kept) == MOST_REJECTED:
        kept.remove(min(kept, key=lambda r: build is not None and r.build_id == build.id))
    rejected = (*kept, new)
    if rejected == workspace.rejected:
        return Folded(workspace, unmoved=Unmoved.REPEAT)
    return Folded(workspace.model_copy(update={"rejected": rejected}))


def _agent(workspace: Chat, fact: events.AgentFact) -> Folded:
    unmoved = _elsewhere(workspace, fact.workspace_id)
    if unmoved is not None:
        former = previous_workspaces.known(workspace, fact.workspace_id)
        if former is not None and (former.ours or former.deleted):
            return Folded(workspace, unmoved=unmoved)
        return Folded(_heard(workspace, fact), unmoved=unmoved)  # the chat may have it one day
    if fact.build_id in workspace.past and not _of_last_start(workspace, fact):
        return Folded(workspace, unmoved=Unmoved.STALE)
    if _is_other_than_chosen(workspace, fact):
        return Folded(workspace, unmoved=Unmoved.IGNORED)
    heard = _heard(workspace, fact)
    if heard is workspace:
        return Folded(workspace, unmoved=Unmoved.STALE)  # a higher sequence has spoken already
    return Folded(heard, unmoved=Unmoved.STALE if _left_before_loss(workspace, fact) else None)


def _left_before_loss(workspace: Chat, fact: events.AgentFact) -> bool:
    """Say whether a lost agent reports with a lower sequence that it left: it is away either way.

    Earlier versions recorded this as `stale`, so their logs fold to what they recorded.
    """
    facts = workspace.facts_of(fact.agent_id)
    lost_at = facts.lost_at if facts is not None else None
    left = isinstance(fact, events.AgentDisconnected) and fact.sequence is not None
    return left and lost_at is not None and (fact.sequence or 0) <= lost_at


def _heard(workspace: Chat, fact: events.AgentFact) -> Chat:
    """Keep what an agent says; of too many the oldest go, and first those of other workspaces."""
    of = (fact.workspace_id, fact.agent_id)
    known = next((f for f in workspace.agents if (f.workspace_id, f.id) == of), None)
    before = known or AgentFacts(
        id=fact.agent_id, workspace_id=fact.workspace_id, build_id=fact.build_id
    )
    after = before.after(fact)
    if after == known:
        return workspace
    kept = [*(facts for facts in workspace.agents if facts is not known), after]
    mine = workspace.ref.id if workspace.ref else None
    chosen = workspace.chosen.id if workspace.chosen else None
    while len(kept) > MOST_AGENTS:
        kept.remove(min(kept, key=lambda f: (f.workspace_id == mine, f.id == chosen)))
    return workspace.model_copy(update={"agents": tuple(kept)})


def _of_last_start(workspace: Chat, fact: events.AgentFact) -> bool:
    return workspace.last_start is not None and workspace.last_start.id == fact.build_id


def _is_other_than_chosen(workspace: Chat, fact: events.AgentFact) -> bool:
    """Say whether the followed build ended without choosing this agent."""
    build = workspace.build
    if build is None or build.id != fact.build_id or build.outcome is None:
        return False
    return workspace.chosen is None or workspace.chosen.id != fact.agent_id
