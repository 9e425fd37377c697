"""Calls of the tools that run commands and use files in a workspace, for the command line."""

from __future__ import annotations

from typing import Any

from workspaced import Workspaced

from handlers.errors import WorkspacedError


class CallRefused(WorkspacedError):
    """The workspace cannot do what was asked."""


async def ask_workspace(ws: Workspaced, tool: str, chat: str, /, **args: Any) -> dict[str, Any]:
    """Call a tool in the chat's workspace and return its result.

    Asks again with the same call while nobody answers: the call is done once. Raises CallRefused, and the errors of
    the client.
    """
    answer = await (await ws.chat(chat).call(tool, args))
    if answer.is_error:
        raise CallRefused(f"{tool}: {answer.result['error']}")
    return answer.result
