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
from typing import TYPE_CHECKING, Any

from workspaced.calls import Call
from workspaced.client import Chat, Workspaced, connect
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
from workspaced.models import Agent, Answer, Build, Exit, Failure, Log, Owner, State, Workspace
from workspaced.processes import Process
from workspaced.tools import tools

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    """Import the provisioner kit when it is used first: a chat service does without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("workspaced.provisioning"), name)
