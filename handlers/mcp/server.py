"""The MCP server: what each request of the protocol does, on stdio and over HTTP, in both eras of the protocol."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any, Final, TypeVar

import anyio
from mcp.server import Server
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    CallToolRequestParams,
    CancelledNotificationParams,
    EmptyResult,
    ListToolsResult,
    PaginatedRequestParams,
    RequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from workspaced import Answer, WorkspacedError
from workspaced.processes import TOOLS as WORKSPACE_TOOLS

from handlers.mcp import catalog
from handlers.mcp.caller import Caller
from handlers.mcp.calls import (
    LONG,
    Outcome,
    Report,
    ToolCalls,
    call_id_of,
    error_outcome,
    outcome,
    refuse_commands,
)
from handlers.mcp.results import call_result
from handlers.mcp.tasks import AT_ONCE, EXTENSION, Tasks
from handlers.runtime.supervise import cancel_and_wait, first_to_end
from statemachine.codec import is_traceparent

_INSTRUCTIONS: Final = (
    "This chat has at most one development workspace. Choose a template with list_templates, then call "
    "create_workspace; then run commands and use files in it. A result's `next_step` says what to call next. If a "
    "result says `status: in_progress`, call wait_for_workspace until it does not."
)
_TOOL_USE_ID: Final = "claudecode/toolUseId"

Context = ServerRequestContext[Any, Any]
Result = TypeVar("Result")


class TaskParams(RequestParams):
    """The parameters of `tasks/get` and `tasks/cancel`."""

    task_id: str


class McpServer:
    """Answers the requests of MCP clients."""

    def __init__(
        self,
        calls: ToolCalls,
        tasks: Tasks,
        caller_of: Callable[[Context], Caller],
        *,
        honors_cancelled: bool,
    ) -> None:
        """`caller_of` says whom a request comes from.

        `honors_cancelled`: whether `notifications/cancelled` ends a call's wait; over HTTP it names a request of
        nobody knows which client.
        """
        self._calls, self._tasks, self._caller_of = calls, tasks, caller_of
        self._in_flight: dict[str, tuple[Caller, str]] = {}
        """By the id of a request on stdio: its caller, and the call that it waits for."""
        self._honors_cancelled = honors_cancelled

    def protocol(self) -> Server[Any]:
        """Return the server of the SDK."""
        server: Server[Any] = Server(
            "workspaced",
            version=version("workspaced"),
            instructions=_INSTRUCTIONS,
            on_list_tools=self._list_tools,
        )
        server.extensions[EXTENSION] = {}
        server.add_request_handler("tools/call", CallToolRequestParams, self._call_tool)
        server.add_request_handler("tasks/get", TaskParams, self._get_task)
        server.add_request_handler("tasks/cancel", TaskParams, self._cancel_task)
        if self._honors_cancelled:
            server.add_notification_handler(
                "notifications/cancelled", CancelledNotificationParams, self._cancelled
            )
        return server

    async def _list_tools(
        self, context: Context, _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        caller = self._caller_of(context)
        return ListToolsResult(tools=catalog.listed(may_execute=caller.may_execute))

    async def _call_tool(self, context: Context, params: CallToolRequestParams) -> HandlerResult:
        if params.name not in catalog.ALL_NAMES:
            raise MCPError(code=INVALID_PARAMS, message=f"there is no tool {params.name!r}")
        caller = self._caller_of(context)
        work = self._result(context, caller, params.name, params.arguments or {})
        try:
            result = await _while_admitted(caller, work)
        except WorkspacedError as error:
            result = error_outcome(error)
        return call_result(result) if isinstance(result, Outcome) else result

    async def _result(
        self, context: Context, caller: Caller, tool: str, args: Mapping[str, Any]
    ) -> Outcome | dict[str, Any]:
        """Return the outcome of a call, or the task that stands for it. Raises WorkspacedError."""
        report = _reporter(context)
        if tool == catalog.WAIT:
            return await self._calls.wait_for_workspace(caller, report)
        if tool == catalog.STATUS:
            return await self._calls.status(caller)
        if tool in WORKSPACE_TOOLS and not caller.may_execute:
            return refuse_commands()
        meta = _meta(context)
        call_id, trace = call_id_of(meta.get(_TOOL_USE_ID)), meta.get("traceparent")
        traceparent = trace if isinstance(trace, str) and is_traceparent(trace) else None
        as_task = _has_tasks(context)
        if as_task and tool == "execute":
            wait = args.get("wait_seconds")
            short = min(wait, AT_ONCE) if isinstance(wait, int | float) else AT_ONCE
            args = {**args, "wait_seconds": short}
        async with self._calls.asked(
            caller, tool, args, call_id=call_id, traceparent=traceparent
        ) as asked:
            if as_task and tool == "execute":
                return await self._execute_task(caller, asked.call.call_id, await asked.call)
            if as_task and tool in LONG:
                answer = await self._calls.answer(asked, AT_ONCE)
                if answer is not None:
                    return outcome(answer)
                return await self._tasks.made(caller, tool, asked.call.call_id)
            if not self._honors_cancelled or context.request_id is None or tool not in LONG:
                return await self._calls.wait(caller, asked, report)
            number = str(context.request_id)
            self._in_flight[number] = (caller, asked.call.call_id)
            result = await self._calls.wait(caller, asked, report)
            self._in_flight.pop(
                number, None
            )  # one that was canceled stays: `_cancelled` looks for it
            return result

    async def _execute_task(
        self, caller: Caller, call_id: str, answer: Answer
    ) -> Outcome | dict[str, Any]:
        if answer.ok and answer.result["status"] == "running":
            return await self._tasks.made(caller, "execute", call_id, answer.result["exec_id"])
        return outcome(answer)

    async def _cancelled(self, _context: Context, params: CancelledNotificationParams) -> None:
        """End the wait of a call because the client has canceled its request. The build goes on."""
        found = self._in_flight.pop(str(params.request_id), None)
        if found is None:
            return
        caller, call_id = found
        with anyio.CancelScope(shield=True), suppress(WorkspacedError):  # stdin may close next
            await self._calls.ws.call(caller.chat_id, call_id).cancel()

    async def _get_task(self, context: Context, params: TaskParams) -> HandlerResult:
        caller = self._caller_of(context)
        try:
            return await _while_admitted(caller, self._tasks.get(caller, params.task_id))
        except WorkspacedError as error:
            raise MCPError(code=INTERNAL_ERROR, message=str(error)) from error

    async def _cancel_task(self, context: Context, params: TaskParams) -> HandlerResult:
        caller = self._caller_of(context)
        try:
            await _while_admitted(caller, self._tasks.cancel(caller, params.task_id))
        except WorkspacedError as error:
            raise MCPError(code=INTERNAL_ERROR, message=str(error)) from error
        return EmptyResult()


async def _while_admitted(caller: Caller, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`. Raises MCPError as soon as the caller's token has ended."""
    working = asyncio.create_task(work)
    ended = asyncio.create_task(caller.ended.wait())
    try:
        if await first_to_end(working, ended) is ended:
            raise MCPError(code=INVALID_REQUEST, message="the token was revoked or has expired")
        return working.result()
    finally:
        await cancel_and_wait(working, ended)


def _reporter(context: Context) -> Report | None:
    """Return what sends progress to the client, None if it gave no token for it."""
    if "progressToken" not in _meta(context):
        return None
    numbers = itertools.count(1)

    async def report(text: str) -> None:
        await context.session.report_progress(next(numbers), None, text)

    return report


def _has_tasks(context: Context) -> bool:
    """Return whether the client of a request declares tasks, which older versions of the protocol cannot carry."""
    capabilities = context.session.client_capabilities
    declared = None if capabilities is None else capabilities.extensions
    return context.protocol_version in MODERN_PROTOCOL_VERSIONS and EXTENSION in (declared or {})


def _meta(context: Context) -> Mapping[str, Any]:
    meta = (context.params or {}).get("_meta")
    return meta if isinstance(meta, Mapping) else {}
