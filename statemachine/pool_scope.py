"""Whose builds a provisioner may speak of: those of its pool, when its name is bound to one."""

from __future__ import annotations

from statemachine import previous_workspaces
from statemachine.chat import Chat
from statemachine.events import Event


def foreign_pool(workspace: Chat, event: Event) -> str | None:
    """Return the pool that `event` speaks of though its sender is bound to another.

    A build made elsewhere has no pool: anybody's word on it counts.
    """
    if event.pool is None:
        return None
    pool = _pool_of(
        workspace, getattr(event.data, "workspace_id", None), getattr(event.data, "build_id", None)
    )
    return None if pool == event.pool else pool


def _pool_of(workspace: Chat, workspace_id: str | None, build_id: str | None) -> str | None:
    """Return the pool of the build, if it is known, else that of the workspace's newest one."""
    if workspace_id is None:
        return None
    if workspace.ref is not None and workspace.ref.id == workspace_id:
        builds = (workspace.build, workspace.last_start)
    elif (former := previous_workspaces.known(workspace, workspace_id)) is not None:
        builds = (former.build, former.last_start)
    else:
        return None
    pools = {
        build.id: build.template.pool
        for build in reversed(builds)
        if build is not None and build.template is not None
    }
    return pools.get(build_id or "") or next(reversed(pools.values()), None)
