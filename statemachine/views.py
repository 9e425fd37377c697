"""What the world sees of a snapshot: the `data` of state_changed (contract §3)."""

from __future__ import annotations

from typing import Any

from statemachine.codec import timestamp
from statemachine.states import ABOUT, Limit
from statemachine.workspace import Workspace


def visible(workspace: Workspace) -> tuple[object, ...]:
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


def full_name(workspace: Workspace) -> str:
    """Return `<owner>/<name>`."""
    return f"{owner_of(workspace) or ''}/{name_of(workspace)}"


def owner_of(workspace: Workspace) -> str | None:
    """Return the owner's name: the workspace's, else the chat's."""
    return (workspace.ref.owner_name if workspace.ref else None) or workspace.owner_name


def name_of(workspace: Workspace) -> str:
    """Return the workspace's name, or its id when nobody has told the name."""
    return "" if workspace.ref is None else workspace.ref.name or workspace.ref.id


def state_changed(workspace: Workspace) -> dict[str, Any]:
    """Return the data of `workspaced.state_changed.v1`."""
    about, build, ref, chosen = (
        ABOUT[workspace.state],
        workspace.build,
        workspace.ref,
        workspace.chosen,
    )
    failure: dict[str, Any] | None = None
    if workspace.failure is not None:
        failure = {
            "reason": str(workspace.failure.reason),
            "message": workspace.failure.message,
        }
        if workspace.failure.error_code is not None:
            failure["error_code"] = workspace.failure.error_code
    return {
        "chat_id": workspace.chat_id,
        "version": workspace.version,
        "state": about.wire,
        "previous_state": ABOUT[workspace.previous_state].wire,
        "workspace": None
        if ref is None
        else {
            "id": ref.id,
            "name": name_of(workspace),
            "owner_name": owner_of(workspace),
            "template_id": ref.template_id,
        },
        "build": None
        if build is None
        else {
            "id": build.id,
            "number": build.number,
            "transition": str(build.transition),
            "started_at": timestamp(build.started_at),
        },
        "agent": None
        if chosen is None
        else {
            "id": chosen.id,
            "name": chosen.name,
            "status": workspace.agent_status(),
            "lifecycle": workspace.agent_lifecycle(),
        },
        "failure": failure,
        "deadline": None if workspace.deadline is None else timestamp(workspace.deadline),
        "cause": None if workspace.cause is None else workspace.cause.model_dump(),
    }


def notice(workspace: Workspace) -> str | None:
    """Say what holds up the followed build, or what was said of it and could not be accepted."""
    build, rejection = workspace.build, workspace.rejection
    if build is not None and rejection is not None:
        what = rejection.fact or "fact"
        return (
            f"a {what} of build {build.number} was not accepted and is a dead letter: "
            f"{rejection.detail}; its sender must send it again, corrected, with a new event id"
        )
    if build is None or build.taken or ABOUT[workspace.state].limit is not Limit.BUILD:
        return None
    pool = f" of pool '{build.template.pool}'" if build.template else ""
    return f"no provisioner{pool} has begun build {build.number} yet"
