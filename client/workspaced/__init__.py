"""workspaced for Python programs: a chat service calls tools and follows what happens.

Example::

    async with workspaced.connect("nats://127.0.0.1:4222", key="chat-service.nk", service="mybot") as ws:
        chat = ws.chat(chat_id, owner=workspaced.Owner(id=user_id, name="ada"))
        call = await chat.call("create_workspace", {"template": "python"}, call_id=call_id)
        async for event in call:
            print(event)
        answer = await call
"""

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

__all__ = [
    "Agent",
    "Answer",
    "Build",
    "Call",
    "CallConflict",
    "CannotRun",
    "Chat",
    "Exit",
    "Failure",
    "Invalid",
    "Log",
    "NotFound",
    "Owner",
    "Process",
    "Refused",
    "State",
    "TooBusy",
    "Unavailable",
    "Workspace",
    "Workspaced",
    "WorkspacedError",
    "connect",
    "tools",
]
