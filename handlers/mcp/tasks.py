"""Tasks: a call that takes long, as a handle that any replica can look up (extension `io.modelcontextprotocol/tasks`).

Nothing is stored for a task. Its id holds the call's id, signed with a key that is derived from the chat service's
key, so that all processes with the same key know it. Its state is that of the call, or of the process that runs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS
from workspaced import Answer, WorkspacedError

from handlers.mcp.caller import Caller
from handlers.mcp.calls import Outcome, ToolCalls, outcome, was_canceled
from handlers.mcp.results import call_result
from handlers.mcp.status import last_line

EXTENSION: Final = "io.modelcontextprotocol/tasks"
AT_ONCE: Final = 1.0
"""Seconds within which an answer is given plainly, without a task."""
_TTL: Final = 24 * 3600.0
"""Seconds for which an answer is kept, at least."""
_POLL: Final = 2_000
"""Milliseconds after which clients may ask for a task again."""
_NEW: Final = 60.0
"""Seconds for which a call that no worker knows yet counts as just stored."""
_CANCEL: Final = 10.0
"""Seconds for which a cancel waits until it has taken effect."""
_MAC: Final = 16

Status = Literal["working", "completed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Task:
    """What the id of a task stands for."""

    chat: str
    call: str
    tool: str
    at: float
    """Seconds since 1970 at which the task was made."""
    exec: str | None = None
    """The process of `execute`."""

    @property
    def age(self) -> float:
        """Seconds since the task was made."""
        return datetime.now(UTC).timestamp() - self.at


class TaskIds:
    """Writes and reads ids of tasks."""

    def __init__(self, seed: str) -> None:
        """`seed` is the key of the chat service."""
        self._key = hashlib.sha256(b"workspaced mcp tasks:" + seed.encode()).digest()

    def write(self, task: Task) -> str:
        """Return the id of a task."""
        body = json.dumps(asdict(task), separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._mac(body) + body).decode().rstrip("=")

    def read(self, text: str, chat_id: str) -> Task:
        """Return the task of an id. Raises MCPError if there is none such in this chat."""
        with suppress(ValueError, binascii.Error, TypeError):
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            mac, body = raw[:_MAC], raw[_MAC:]
            if hmac.compare_digest(mac, self._mac(body)):
                task = Task(**json.loads(body))
                if task.chat == chat_id:
                    return task
        raise _unknown()

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:_MAC]


class Tasks:
    """Makes tasks, and says what has become of them."""

    def __init__(self, calls: ToolCalls, ids: TaskIds) -> None:
        self._calls, self._ids = calls, ids

    async def made(
        self, caller: Caller, tool: str, call_id: str, exec_id: str | None = None
    ) -> dict[str, Any]:
        """Return the result that stands for a call which goes on. Raises WorkspacedError."""
        task = Task(caller.chat_id, call_id, tool, datetime.now(UTC).timestamp(), exec_id)
        if exec_id is None:
            state, _ = await self._calls.state(caller)
            message = await self._calls.lines.text(state)
        else:
            message = "running"
        return {"resultType": "task", **self._shown(task, "working", message)}

    async def get(self, caller: Caller, task_id: str) -> dict[str, Any]:
        """Return a task's status, with its result if it has one. Raises MCPError, WorkspacedError."""
        task = self._ids.read(task_id, caller.chat_id)
        if task.exec is not None:
            return await self._process(caller, task)
        call = self._calls.ws.call(task.chat, task.call)
        answer = await call.stored_answer()
        if answer is None:
            state, open_calls = await self._calls.state(caller)
            if any(one["call_id"] == task.call for one in open_calls) or task.age < _NEW:
                # It may have been answered between the two questions: the client asks again.
                return self._shown(task, "working", await self._calls.lines.text(state))
            answer = await call.stored_answer()
        if answer is None:
            raise _unknown()
        if was_canceled(answer):
            message = "the wait was canceled; a build goes on: workspace_status shows it"
            return self._shown(task, "cancelled", message)
        return self._completed(task, outcome(answer))

    async def _process(self, caller: Caller, task: Task) -> dict[str, Any]:
        """Return the status of a task whose command runs in the workspace."""
        answer = await self._tool(caller, "process_output", {"exec_id": task.exec})
        result = answer.result
        if answer.is_error or result["status"] == "exited":
            if result.get("signal") == "TERM" and "reason" not in result:
                return self._shown(task, "cancelled", "the command was ended by TERM")
            return self._completed(task, outcome(answer))
        line = None
        while result["output"]:
            line = last_line(result["output"]) or line
            args = {"exec_id": task.exec, "after": result["next"]}
            result = (await self._tool(caller, "process_output", args)).result
            if "output" not in result:
                break
        message = f"running: {task.age:.0f} s"
        return self._shown(task, "working", message if line is None else f"{message}: {line}")

    async def cancel(self, caller: Caller, task_id: str) -> None:
        """End the wait of a task's call, or send TERM to its command. Raises MCPError, WorkspacedError."""
        task = self._ids.read(task_id, caller.chat_id)
        if task.exec is not None:
            await self._tool(caller, "process_signal", {"exec_id": task.exec, "signal": "TERM"})
            return
        call = self._calls.ws.call(task.chat, task.call)
        await call.cancel()
        try:
            with suppress(TimeoutError, WorkspacedError):
                async with asyncio.timeout(_CANCEL):
                    await call
        finally:
            with suppress(WorkspacedError):
                await call.close()

    async def _tool(self, caller: Caller, tool: str, args: dict[str, Any]) -> Answer:
        async with self._calls.asked(caller, tool, args) as asked:
            return await asked.call

    def _completed(self, task: Task, result: Outcome) -> dict[str, Any]:
        shown = call_result(result).model_dump(by_alias=True, mode="json", exclude_none=True)
        return {**self._shown(task, "completed", "completed"), "result": shown}

    def _shown(self, task: Task, status: Status, message: str) -> dict[str, Any]:
        return {
            "taskId": self._ids.write(task),
            "status": status,
            "statusMessage": message,
            "createdAt": _time(task.at),
            "lastUpdatedAt": _time(datetime.now(UTC).timestamp()),
            "ttlMs": int(_TTL * 1000),
            "pollIntervalMs": _POLL,
        }


def _unknown() -> MCPError:
    return MCPError(
        code=INVALID_PARAMS,
        message="there is no such task in this chat, or its result is older than 24 hours",
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
