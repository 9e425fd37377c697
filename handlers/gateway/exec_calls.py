"""The tools that run commands and use files in a workspace: the gateway asks the chat's agent and returns its answer.

Such a call is no row: the agent sees to it that each `call_id` is done once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from bus import Bus, Message, NoResponder, Refused, ServiceError, subjects
from handlers.access.issued_keys import caller, caller_credential
from handlers.gateway.exec_history import kept_output
from handlers.gateway.replies import naming_ignored
from handlers.gateway.requests import ExecBody
from statemachine.chat import Chat
from statemachine.exec_tools import (
    EXEC_TOOLS,
    LARGEST_BODY,
    LONGEST_WAIT,
    ONLY_LOOK,
    ExecError,
    ProcessOutputArguments,
)
from statemachine.leniency import UnreadableError, read, unknown_keys
from statemachine.states import STATE_INFO, Phase, State
from statemachine.store import Store

log = logging.getLogger(__name__)

PATIENCE: Final = 10.0
"""Seconds that the gateway waits for an agent beyond the time for which the call itself waits."""
_OF_THE_AGENT: Final = frozenset((409, 413, 429))
"""Service errors of an agent that its caller gets: nothing was done."""
_ACCEPTING: Final = frozenset(
    (State.SCRIPTS_RUNNING, State.READY, State.SCRIPTS_FAILED, State.SCRIPTS_TIMED_OUT)
)
_NEXT_STEPS: Final = {
    Phase.NOTHING: "create_workspace",
    Phase.FAILED_DELETE: "create_workspace",
    Phase.STOPPED: "start_workspace",
    Phase.FAILED_BUILD: "start_workspace",
    Phase.BEING_BUILT: "start_workspace",
    Phase.BEING_STOPPED: "start_workspace",
    Phase.RUNNING: "stop_workspace",
}
_REASONS: Final = {
    "create_workspace": "the chat has no workspace: call create_workspace first",
    "start_workspace": "the workspace does not run yet: call start_workspace, which waits until it does",
    "stop_workspace": "the agent of the workspace is not connected: call stop_workspace, then start_workspace",
    None: "the workspace has no agent that could do this",
}


@dataclass(frozen=True, slots=True)
class ExecCalls:
    """Answers the rpcs that run commands and use files."""

    bus: Bus
    store: Store

    async def call(self, tool: str, body: ExecBody, message: Message) -> Mapping[str, object]:
        """Let the chat's agent do what a tool does, and return the answer in the shape of `tool_resolved`.

        Raises ServiceError 403 if the caller's key was issued without the right to run commands, 504 if the
        agent does not answer, 502 if its answer cannot be used, and 409, 413 or 429 if the agent refuses the
        request.
        """
        credential = await caller_credential(self.store, message.reply, message.headers)
        if credential is not None and not credential.exec:
            raise ServiceError(
                403, "this key was issued without the right to run commands (--no-exec)"
            )
        call_id = body.call_id or uuid4().hex
        is_error, result = await self._answer(tool, call_id, body, message)
        resolved = {"call_id": call_id, "tool": tool, "is_error": is_error, "result": result}
        return naming_ignored(resolved, unknown_keys(EXEC_TOOLS[tool], body.args))

    async def _answer(
        self, tool: str, call_id: str, body: ExecBody, message: Message
    ) -> tuple[bool, Mapping[str, object]]:
        try:
            args = read(EXEC_TOOLS[tool], body.args, "args")
        except UnreadableError as error:
            return True, {"error": str(error)}
        chat = await self.store.chats.get(body.chat_id) or Chat(chat_id=body.chat_id)
        for key in ("organization_id", "owner_id"):
            given, known = getattr(body, key), getattr(chat, key)
            if given is not None and known is not None and given != known:
                return True, {"error": f"{key} {given} is not that of chat {body.chat_id}"}
        if not accepts_commands(chat):
            if isinstance(args, ProcessOutputArguments):
                found = await kept_output(self.bus, chat, args)
                if found is not None:
                    return False, {**found}
            return True, {**unavailable(chat)}
        assert chat.chosen is not None  # noqa: S101 — for mypy
        given_args = args.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        wait = min(getattr(args, "wait_seconds", 0.0), LONGEST_WAIT)
        if "wait_seconds" in given_args:
            given_args["wait_seconds"] = wait
        if tool not in ONLY_LOOK:
            _log_request(tool, call_id, chat, message)
        return await self._ask_agent(chat.chat_id, chat.chosen.id, tool, call_id, given_args, wait)

    async def _ask_agent(
        self,
        chat_id: str,
        agent_id: str,
        tool: str,
        call_id: str,
        args: Mapping[str, Any],
        wait: float,
    ) -> tuple[bool, Mapping[str, object]]:
        request = {"chat_id": chat_id, "agent_id": agent_id, "call_id": call_id, "args": args}
        encoded = json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()
        if len(encoded) > LARGEST_BODY:
            raise ServiceError(413, f"the request to the agent is larger than {LARGEST_BODY} bytes")
        again = f"nobody knows whether it was done; ask again with call_id {call_id}"
        subject = subjects.agent_request(chat_id, agent_id, tool)
        try:
            reply = await self.bus.request(subject, encoded, timeout=wait + PATIENCE)
        except NoResponder:
            raise ServiceError(
                504, f"agent {agent_id} is not connected to NATS: ask again with call_id {call_id}"
            ) from None
        except TimeoutError:
            raise ServiceError(504, f"agent {agent_id} did not answer in time: {again}") from None
        except ServiceError as error:
            if error.code in _OF_THE_AGENT:
                raise
            raise ServiceError(
                502, f"agent {agent_id} failed ({error.code} {error.description}): {again}"
            ) from None
        except Refused as error:
            raise ServiceError(413, f"the request can't be sent to the agent: {error}") from error
        answer = _read_answer(reply.data)
        if answer is None:
            raise ServiceError(502, f"the answer of agent {agent_id} can't be read: {again}")
        return answer


def accepts_commands(chat: Chat) -> bool:
    """Return whether the chat's workspace takes commands: its agent is connected and its start is over or under way."""
    return (
        chat.state in _ACCEPTING and chat.chosen is not None and chat.agent_status() == "connected"
    )


def unavailable(chat: Chat) -> ExecError:
    """Return the result of a call that the chat's workspace cannot take, with the tool to call first."""
    step = _next_step(chat)
    return {"error": _REASONS[step], "state": STATE_INFO[chat.state].wire, "next_step": step}


def _next_step(chat: Chat) -> str | None:
    if chat.state is State.SELECTION_ERROR:
        return None
    if chat.state is State.AGENT_CONNECTING:
        return "start_workspace"
    if chat.state in _ACCEPTING and chat.chosen is None:
        return None
    return _NEXT_STEPS[chat.phase]


def _read_answer(data: bytes) -> tuple[bool, Mapping[str, object]] | None:
    """Return `is_error` and `result` of an agent's answer, or None if they can't be read."""
    if len(data) > LARGEST_BODY:
        return None
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return None
    is_error, result = answer.get("is_error"), answer.get("result")
    if not isinstance(is_error, bool) or not isinstance(result, dict):
        return None
    if is_error and not isinstance(result.get("error"), str):
        return None
    return is_error, result


def _log_request(tool: str, call_id: str, chat: Chat, message: Message) -> None:
    """Log who asks for what. The command itself is not logged: it may contain secrets."""
    who = caller(message.reply, message.headers)
    workspace_id = chat.current.id if chat.current else ""
    log.info(
        "%s in workspace %s of chat %s, call %s, asked by %s",
        tool,
        workspace_id,
        chat.chat_id,
        call_id,
        who,
        extra={
            "tool": tool,
            "chat_id": chat.chat_id,
            "workspace_id": workspace_id,
            "call_id": call_id,
            "asked_by": who,
        },
    )
