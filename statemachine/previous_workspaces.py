"""Workspaces that a chat no longer has: whether they still run, and cost money.

A replaced workspace gets a stop; when that fails, or a provisioner reports a running workspace that no
chat has, it is an orphan: operators see it, and it is stopped after a grace time.
"""

from __future__ import annotations

from datetime import datetime

from statemachine import events
from statemachine.builds import before_delete, seen_by, start_before, with_earlier, with_fact
from statemachine.chat import MOST_PAST, AgentFacts, Build, Chat, PreviousWorkspace, WorkspaceRef
from statemachine.events import Transition
from statemachine.phase import phase_of
from statemachine.states import Phase


def known(workspace: Chat, workspace_id: str) -> PreviousWorkspace | None:
    """Return what is remembered of a workspace that the chat does not have."""
    return next((f for f in workspace.former if f.id == workspace_id), None)


def remembered(workspace: Chat, former: PreviousWorkspace) -> Chat:
    """Return the chat with `former` as the newest it remembers."""
    others = [f for f in workspace.former if f.id != former.id]
    while len(others) >= MOST_PAST:
        others.remove(min(others, key=_weight))
    new: dict[str, object] = {"former": (*others, former)}
    if former.deleted:
        new["agents"] = _agents_but_of(workspace, former.id)
    return workspace.model_copy(update=new)


def _agents_but_of(workspace: Chat, workspace_id: str) -> tuple[AgentFacts, ...]:
    return tuple(facts for facts in workspace.agents if facts.workspace_id != workspace_id)


def _weight(former: PreviousWorkspace) -> int:
    """Say how much is lost with it: that it runs, or that it was ours and must not come back."""
    return 2 * (former.orphaned_at is not None) + former.ours


def left(workspace: Chat, at: datetime, *, deleted: bool) -> Chat:
    """Return the chat without its workspace, remembering that it had it.

    One that runs is an orphan from here on, unless a stop of it is asked for in the same breath.
    """
    ref = workspace.ref
    if ref is None:
        return workspace
    former = PreviousWorkspace(id=ref.id, deleted=True)
    if not deleted:
        since = at if _may_run(workspace) else None
        former = PreviousWorkspace(
            id=ref.id, deleted=False, ref=ref, build=workspace.build, orphaned_at=since
        )
    return remembered(workspace, former).model_copy(
        update={
            "ref": None,
            "build": None,
            "last_start": None,
            "before_delete": (),
            "chosen": None,
            "agents": _agents_but_of(workspace, ref.id),
            "past": (),
        }
    )


def _may_run(workspace: Chat) -> bool:
    """Say whether the workspace runs, or was not stopped and nobody knows what its start came to."""
    start, build = workspace.start_build, workspace.build
    unknown = start is not None and start.outcome is None and start is not build
    if start is not None and start.succeeded:
        return phase_of(workspace) in (Phase.RUNNING, Phase.FAILED_DELETE)
    return unknown and build is not None and _runs(build)


def told(workspace: Chat, fact: events.ProvisionerFact, time: datetime, at: datetime) -> Chat:
    """Fold a provisioner's fact about a workspace that is not the chat's."""
    former = known(workspace, fact.workspace_id) or PreviousWorkspace(
        id=fact.workspace_id, deleted=False, ours=False, ref=WorkspaceRef(id=fact.workspace_id)
    )
    if former.deleted:
        return workspace
    if isinstance(fact, events.BuildStarted) and former.ref is not None:
        ref = WorkspaceRef(
            id=former.id,
            name=former.ref.name or fact.workspace_name,
            owner_name=former.ref.owner_name or fact.owner_name,
            template_id=former.ref.template_id or fact.template_id,
        )
        # What could not be stopped for want of a template is seen to again, now that it has one.
        overdue = former.overdue and ref.template_id == former.ref.template_id
        former = former.model_copy(update={"ref": ref, "overdue": overdue})
    build = former.build
    if build is not None and build.id == fact.build_id:
        return _with(workspace, former, with_fact(build, fact, at), at)
    seen, start = seen_by(build, fact, time, at), former.last_start
    if build is None or fact.build_number > build.number:
        if build is not None and build.transition is Transition.START:
            start = build
        new: dict[str, object] = {
            "last_start": None if seen.transition is Transition.START else start,
            "before_delete": before_delete(build, former.before_delete, seen),
        }
        return _with(workspace, former.model_copy(update=new), seen, at)
    new = {
        "last_start": start_before(build, start, seen, fact, at),
        "before_delete": with_earlier(build, former.before_delete, seen, fact, at),
    }
    return remembered(workspace, former.model_copy(update=new))


def heir(workspace: Chat) -> PreviousWorkspace | None:
    """Return the workspace that a chat has from here on whose own was deleted.

    One made elsewhere, of which a build is known; of several the one with the lowest id, so that it
    does not matter which was spoken of first. (In `none` there is nothing to wait for: whichever is
    seen first is bound.)
    """
    waiting = (f for f in workspace.former if not f.ours and not f.deleted and f.build is not None)
    return min(waiting, key=lambda former: former.id, default=None)


def newly_deleted(before: Chat, after: Chat) -> tuple[str, ...]:
    """Return the ids of the workspaces that are known as deleted only since `before`."""
    gone = {former.id for former in before.former if former.deleted}
    return tuple(f.id for f in after.former if f.deleted and f.id not in gone)


def newly_named(before: Chat, after: Chat) -> tuple[str, str, str, str] | None:
    """Return (workspace, chat, owner, name) when the chat's workspace has a name of an owner since."""
    ref, owner = after.ref, after.owner_id
    if ref is None or ref.name is None or owner is None:
        return None
    if (before.ref, before.owner_id) == (ref, owner):
        return None
    # Names are indexed, and an index takes no text of any length. One of ours is never as long as this.
    return ref.id, after.chat_id, owner, ref.name[:255]


def requested(workspace: Chat, former: PreviousWorkspace, build: Build, at: datetime) -> Chat:
    """Note that a build of a former workspace was asked for."""
    return _with(workspace, former, build, at)


def awaits(workspace: Chat, build_id: str) -> bool:
    """Say whether the end of that build is still to be heard of, and would matter."""
    builds = (workspace.build, *(former.build for former in workspace.former))
    return any(b is not None and b.id == build_id and b.outcome is None for b in builds)


def orphans(workspace: Chat) -> tuple[PreviousWorkspace, ...]:
    """Return the former workspaces that run though no chat has them."""
    if not workspace.former:  # nearly always: asked several times an event
        return ()
    return tuple(former for former in workspace.former if former.orphaned_at is not None)


def overdue(workspace: Chat, workspace_id: str) -> Chat:
    """Let the grace of an orphan be over."""
    former = known(workspace, workspace_id)
    if former is None or former.orphaned_at is None:
        return workspace
    return remembered(workspace, former.model_copy(update={"overdue": True}))


def _with(workspace: Chat, former: PreviousWorkspace, build: Build, at: datetime) -> Chat:
    if build.succeeded and build.transition is Transition.DELETE:
        return remembered(
            workspace, PreviousWorkspace(id=former.id, deleted=True, ours=former.ours)
        )
    runs, before = _runs(build), former.orphaned_at
    new = {
        "build": build,
        "orphaned_at": (before or at) if runs else None,
        "overdue": runs and before is not None and former.overdue,
    }
    return remembered(workspace, former.model_copy(update=new))


def _runs(build: Build) -> bool:
    """Say whether the workspace is left running by what became of its last build."""
    if build.outcome is None:
        return False  # somebody is at it
    return build.succeeded == (build.transition is Transition.START)
