"""Calls of tools for MCP clients: asking, joining a call that is still open, and waiting for a limited time."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from workspaced import Answer, Call, Refused, State, Unavailable, Workspaced, WorkspacedError

from handlers.mcp.caller import Caller
from handlers.mcp.status import LastLines, News
from handlers.runtime.supervise import cancel_and_wait, first_to_end, running

LONG: Final = frozenset({"create_workspace", "start_workspace", "stop_workspace"})
"""The tools that wait for a build."""
_HEARTBEAT: Final = 10.0
"""Seconds after which a client that asked for progress hears something even if nothing is new."""
_REMEMBERED: Final = 10_000
"""Chats whose last unfinished call is remembered."""
_CALL_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_CALLER_REFUSED: Final = "this token was issued without the right to run commands and use files"

Report = Callable[[str], Awaitable[None]]
"""Sends a text about the progress to the client."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds for which a request without tasks waits for an answer."""

    plain: float
    with_progress: float
    """If the client asked for progress notifications, which keep most clients from giving up."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A call whose answer is awaited."""

    call: Call
    tool: str
    asked_at: datetime


class Outcome(dict[str, Any]):
    """The result of a tool call as MCP clients get it."""

    def __init__(self, result: Mapping[str, Any], *, failed: bool = False) -> None:
        super().__init__(result)
        self.failed = failed
        """Whether the client is told that it is an error."""


def outcome(answer: Answer) -> Outcome:
    """Return an answer as an outcome; a build that failed and refused values are errors for the model too."""
    result = dict(answer.result)
    if answer.ignored:
        result["ignored"] = list(answer.ignored)
    if "next_step" not in result and (step := _next_step(answer)) is not None:
        result["next_step"] = step
    return Outcome(result, failed=not answer.ok)


def error_outcome(error: WorkspacedError) -> Outcome:
    """Return what a client is told of a call that was not done, or of which nobody knows."""
    if isinstance(error, Unavailable):
        return Outcome({"error": f"{error}", "next_step": "call again"}, failed=True)
    return Outcome({"error": f"{error}"}, failed=True)


def _next_step(answer: Answer) -> str | None:
    result, error = answer.result, str(answer.result.get("error", ""))
    if "validations" in result:
        return f"call {answer.tool} with corrected values"
    if result.get("status") == "stopped":
        return "call start_workspace"
    if result.get("status") == "running" and "exec_id" in result:
        return "call process_output"
    if answer.is_error and answer.tool in LONG and "create_workspace" in error:
        return "call create_workspace"
    if result.get("agent_status") == "not_ready":
        return "call stop_workspace, then start_workspace"
    return None


def was_canceled(answer: Answer) -> bool:
    """Return whether a call was answered because its wait was canceled: section 5 of the contract, Cancel."""
    result = answer.result
    return (
        str(result.get("error", "")).startswith("the call was canceled")
        or result.get("startup_scripts") == "startup_scripts_unknown"
        or (result.get("agent_status") == "not_ready" and "agent_error" not in result)
    )


def call_id_of(tool_use_id: object) -> str | None:
    """Return the call id for the id that a client gave to its tool call, None if it gave none."""
    if not isinstance(tool_use_id, str) or not tool_use_id:
        return None
    if _CALL_ID.fullmatch(tool_use_id):
        return tool_use_id
    return hashlib.sha256(tool_use_id.encode(errors="replace")).hexdigest()


class ToolCalls:
    """Calls tools for MCP clients."""

    def __init__(self, ws: Workspaced, waits: Waits) -> None:
        self.ws, self.waits = ws, waits
        self.lines = LastLines(ws)
        self._leaving = asyncio.Event()
        self._unfinished: OrderedDict[str, str] = OrderedDict()
        """By chat: the call of which a client was last told that it goes on."""

    def leave(self) -> None:
        """End all waits: clients are told that their calls go on."""
        self._leaving.set()

    async def state(self, caller: Caller) -> tuple[State, list[Mapping[str, Any]]]:
        """Return the state of the caller's chat, and its open calls that wait for a build. Raises WorkspacedError."""
        chat = await self.ws.rpc("get_chat", chat_id=caller.chat_id)
        return State.model_validate(chat), [c for c in chat["open_calls"] if c["tool"] in LONG]

    @asynccontextmanager
    async def asked(
        self,
        caller: Caller,
        tool: str,
        args: Mapping[str, Any],
        *,
        call_id: str | None = None,
        traceparent: str | None = None,
    ) -> AsyncIterator[Asked]:
        """Ask for a tool, or join the open call that asked for the same; the block waits for it.

        The block's end does not end the call. Raises WorkspacedError.
        """
        found = await self._open_call(caller, tool, args, call_id) if tool in LONG else None
        if found is not None:
            call = self.ws.call(caller.chat_id, found["call_id"])
            asked = Asked(call, tool, datetime.fromisoformat(found["asked_at"]))
        else:
            chat = self.ws.chat(caller.chat_id, owner=caller.owner)
            call_id = call_id or f"mcp-{_digest(tool, args)}-{uuid4().hex}"
            call = await chat.call(tool, args, call_id=call_id, traceparent=traceparent)
            asked = Asked(call, tool, datetime.now(UTC))
        try:
            yield asked
        finally:
            with suppress(WorkspacedError):
                await call.close()

    async def _open_call(
        self, caller: Caller, tool: str, args: Mapping[str, Any], call_id: str | None
    ) -> Mapping[str, Any] | None:
        """Return the open call that asks for the same as this one.

        A client whose connection broke asks again. It shall get the answer to its first request, not that the
        workspace exists already. A call with the id of another client may have other arguments.
        """
        _, calls = await self.state(caller)
        if call_id is not None and any(one["call_id"] == call_id for one in calls):
            return None  # asking again with its own id joins it, and notices other arguments
        if call_id is not None:
            before = await self.ws.call(caller.chat_id, call_id).stored_answer()
            if before is not None:
                return None
        mine = f"mcp-{_digest(tool, args)}-"
        for one in calls:
            known_others = one["call_id"].startswith("mcp-") and not one["call_id"].startswith(mine)
            if one["tool"] == tool and not known_others:
                return one
        return None

    async def answer(
        self, asked: Asked, seconds: float, report: Report | None = None
    ) -> Answer | None:
        """Wait for the answer; None if it has not come in time, or this process leaves. Raises WorkspacedError."""
        work: list[Coroutine[Any, Any, Answer | None]] = [_answer(asked.call), self._leaves()]
        if report is not None:
            work.append(_follow(asked.call, report))
        answering, *others = [asyncio.create_task(one) for one in work]
        try:
            async with asyncio.timeout(seconds):
                first = await first_to_end(answering, *others)
            return first.result()
        except TimeoutError:
            return None
        finally:
            await cancel_and_wait(answering, *others)

    async def _leaves(self) -> None:
        await self._leaving.wait()

    async def wait(self, caller: Caller, asked: Asked, report: Report | None) -> Outcome:
        """Wait for a call as long as a client without tasks waits."""
        if asked.tool not in LONG:
            return outcome(await asked.call)
        seconds = self.waits.plain if report is None else self.waits.with_progress
        answer = await self.answer(asked, seconds, report)
        if answer is not None:
            return outcome(answer)
        self._unfinished[caller.chat_id] = asked.call.call_id
        self._unfinished.move_to_end(caller.chat_id)
        if len(self._unfinished) > _REMEMBERED:
            self._unfinished.popitem(last=False)
        return await self._in_progress(caller, asked)

    async def _in_progress(self, caller: Caller, asked: Asked) -> Outcome:
        state: State | None = None
        with suppress(Unavailable):
            state, _ = await self.state(caller)
        elapsed = (datetime.now(UTC) - asked.asked_at).total_seconds()
        return Outcome(
            {
                "status": "in_progress",
                "state": None if state is None else state.state,
                "build_id": None if state is None or state.build is None else state.build.id,
                "elapsed_ms": max(round(elapsed * 1000), 0),
                "deadline": None if state is None else _time(state.deadline),
                "next_step": "call wait_for_workspace",
            }
        )

    async def wait_for_workspace(self, caller: Caller, report: Report | None) -> Outcome:
        """Wait for the open call of the chat; without one, return the last answer, or the state.

        Raises WorkspacedError.
        """
        state, calls = await self.state(caller)
        unfinished = self._unfinished.get(caller.chat_id)
        if not calls:
            answer = await self._last_answer(caller, unfinished)
            return await self._shown(state, []) if answer is None else outcome(answer)
        one = next((call for call in calls if call["call_id"] == unfinished), calls[-1])
        call = self.ws.call(caller.chat_id, one["call_id"])
        try:
            asked = Asked(call, one["tool"], datetime.fromisoformat(one["asked_at"]))
            return await self.wait(caller, asked, report)
        finally:
            with suppress(WorkspacedError):
                await call.close()

    async def _last_answer(self, caller: Caller, unfinished: str | None) -> Answer | None:
        """Return the answer of the call that a client was told about, here or by another replica."""
        if unfinished is not None:
            answer = await self.ws.call(caller.chat_id, unfinished).stored_answer()
        else:
            answer = await self.ws.last_answer(caller.chat_id)
        return answer if answer is not None and answer.tool in LONG else None

    async def status(self, caller: Caller) -> Outcome:
        """Return the state of the chat's workspace. Raises WorkspacedError."""
        return await self._shown(*await self.state(caller))

    async def _shown(self, state: State, calls: list[Mapping[str, Any]]) -> Outcome:
        build = state.build
        shown = {
            "state": state.state,
            "build_id": None if build is None else build.id,
            "deadline": _time(state.deadline),
            "last_log_line": None
            if build is None
            else await self.lines.of_build(state.chat_id, build.id),
        }
        if calls:
            shown["next_step"] = "call wait_for_workspace"
        return Outcome(shown)


def refuse_commands() -> Outcome:
    """Return what a caller is told who may not run commands."""
    return error_outcome(Refused(_CALLER_REFUSED))


def _digest(tool: str, args: Mapping[str, Any]) -> str:
    text = json.dumps([tool, args], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


async def _answer(call: Call) -> Answer | None:
    return await call


async def _follow(call: Call, report: Report) -> None:
    """Tell the client what happens, until cancelled; something also when nothing does, so that it goes on waiting."""
    news = News()

    async def read() -> None:
        with suppress(Unavailable):
            async for event in call:
                news.add(event)

    async with running(read()):
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT):
                    await news.changed.wait()
            news.changed.clear()
            await report(news.text())


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat().replace("+00:00", "Z")
