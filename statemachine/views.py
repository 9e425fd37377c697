"""What the world sees of a snapshot: the `data` of state_changed (contract §3)."""

from __future__ import annotations

from statemachine import messages
from statemachine.chat import Build, Cause, Chat, Failure
from statemachine.codec import timestamp
from statemachine.messages import (
    ShownAgent,
    ShownBuild,
    ShownFailure,
    ShownWorkspace,
    StateChanged,
)
from statemachine.states import STATE_INFO, Limit


def visible(workspace: Chat) -> tuple[object, ...]:
    """Return all that is shown; two snapshots that show the same have the same version."""
    build = workspace.build
    return (
        workspace.state,
        workspace.ref,
        None if workspace.ref is None else owner_of(workspace),
        None if build is None else (build.id, build.number, build.transition),
        workspace.chosen,
        workspace.agent_status(),
        workspace.agent_lifecycle(),
        workspace.failure,
        workspace.deadline,
    )


def full_name(workspace: Chat) -> str:
    """Return `<owner>/<name>`."""
    return f"{owner_of(workspace) or ''}/{name_of(workspace)}"


def owner_of(workspace: Chat) -> str | None:
    """Return the owner's name: the workspace's, else the chat's."""
    return (workspace.ref.owner_name if workspace.ref else None) or workspace.owner_name


def name_of(workspace: Chat) -> str:
    """Return the workspace's name, or its id when nobody has told the name."""
    return "" if workspace.ref is None else workspace.ref.name or workspace.ref.id


def state_changed(workspace: Chat) -> StateChanged:
    """Return the data of `workspaced.state_changed.v1`."""
    return {
        "chat_id": workspace.chat_id,
        "version": workspace.version,
        "state": STATE_INFO[workspace.state].wire,
        "previous_state": STATE_INFO[workspace.previous_state].wire,
        "workspace": _workspace(workspace),
        "build": None if workspace.build is None else _build(workspace.build),
        "agent": _agent(workspace),
        "failure": None if workspace.failure is None else _failure(workspace.failure),
        "deadline": None if workspace.deadline is None else timestamp(workspace.deadline),
        "cause": None if workspace.cause is None else _cause(workspace.cause),
    }


def _workspace(workspace: Chat) -> ShownWorkspace | None:
    ref = workspace.ref
    if ref is None:
        return None
    return {
        "id": ref.id,
        "name": name_of(workspace),
        "owner_name": owner_of(workspace),
        "template_id": ref.template_id,
    }


def _build(build: Build) -> ShownBuild:
    return {
        "id": build.id,
        "number": build.number,
        "transition": build.transition,
        "started_at": timestamp(build.started_at),
    }


def _agent(workspace: Chat) -> ShownAgent | None:
    chosen, status = workspace.chosen, workspace.agent_status()
    if chosen is None or status is None:
        return None
    return {
        "id": chosen.id,
        "name": chosen.name,
        "status": status,
        "lifecycle": workspace.agent_lifecycle(),
    }


def _failure(failure: Failure) -> ShownFailure:
    shown: ShownFailure = {"reason": failure.reason, "message": failure.message}
    if failure.error_code is not None:
        shown["error_code"] = failure.error_code
    return shown


def _cause(cause: Cause) -> messages.Cause:
    return {"source": cause.source, "id": cause.id, "type": cause.type}


def notice(workspace: Chat) -> str | None:
    """Say what holds up the followed build, or what was said of it and could not be accepted."""
    build, rejection = workspace.build, workspace.rejection
    if build is not None and rejection is not None:
        what = rejection.fact or "fact"
        return (
            f"a {what} of build {build.number} was not accepted and is a dead letter: "
            f"{rejection.detail}; its sender must send it again, corrected, with a new event id"
        )
    if build is None or build.taken or STATE_INFO[workspace.state].limit is not Limit.BUILD:
        return None
    pool = f" of pool '{build.template.pool}'" if build.template else ""
    return f"no provisioner{pool} has begun build {build.number} yet"
