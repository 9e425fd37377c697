"""workspaced for Python programs: a chat service calls tools, and a provisioner of one's own builds workspaces.

Example::

    async with workspaced.connect("nats://127.0.0.1:4222", key="chat-service.nk", service="mybot") as ws:
        chat = ws.chat(chat_id, owner=workspaced.Owner(id=user_id, name="ada"))
        call = await chat.call("create_workspace", {"template": "python"}, call_id=call_id)
        async for event in call:
            print(event)
        answer = await call
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from workspaced.errors import (
    CallConflict,
    CannotRun,
    Invalid,
    NotFound,
    Refused,
    TooBusy,
    Unavailable,
    WorkspacedError,
)
from workspaced.tools import tools

if TYPE_CHECKING:
    from workspaced.calls import Call
    from workspaced.client import Chat, Workspaced, connect
    from workspaced.models import (
        Agent,
        Answer,
        Build,
        Cause,
        Exit,
        Failure,
        Log,
        State,
        Workspace,
    )
    from workspaced.owner import Owner
    from workspaced.processes import Process
    from workspaced.provisioning import (
        AgentCredential,
        BadTemplate,
        BuildFailed,
        Built,
        BuiltAgent,
        CannotServe,
        Job,
        Provisioner,
        QuotaExceeded,
        provisioner,
    )

__all__ = [
    "Agent",
    "AgentCredential",
    "Answer",
    "BadTemplate",
    "Build",
    "BuildFailed",
    "Built",
    "BuiltAgent",
    "Call",
    "CallConflict",
    "CannotRun",
    "CannotServe",
    "Cause",
    "Chat",
    "Exit",
    "Failure",
    "Invalid",
    "Job",
    "Log",
    "NotFound",
    "Owner",
    "Process",
    "Provisioner",
    "QuotaExceeded",
    "Refused",
    "State",
    "TooBusy",
    "Unavailable",
    "Workspace",
    "Workspaced",
    "WorkspacedError",
    "connect",
    "provisioner",
    "tools",
]


_PLACES: Final = {
    **dict.fromkeys(("Chat", "Workspaced", "connect"), "client"),
    "Call": "calls",
    "Owner": "owner",
    "Process": "processes",
    **dict.fromkeys(
        (
            *("Agent", "Answer", "Build", "Cause", "Exit", "Failure"),
            *("Log", "State", "Workspace"),
        ),
        "models",
    ),
}
"""The module of each name that is imported when it is used first; all others are of the provisioner kit."""


def __getattr__(name: str) -> Any:
    """Import what is used: NATS and pydantic take time to import, and a chat service needs no provisioner kit."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"workspaced.{_PLACES.get(name, 'provisioning')}")
    return globals().setdefault(name, getattr(module, name))
