"""The client's half of the tasks extension, as the SDK lets one write it."""

from __future__ import annotations

from typing import Any, Literal

from mcp import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp_types import CallToolResult, EmptyResult, Request, RequestParams, Result, TextContent

EXTENSION = "io.modelcontextprotocol/tasks"


class TaskParams(RequestParams):
    task_id: str


class GetTask(Request[TaskParams, Literal["tasks/get"]]):
    method: Literal["tasks/get"] = "tasks/get"
    name_param = "taskId"
    params: TaskParams


class CancelTask(Request[TaskParams, Literal["tasks/cancel"]]):
    method: Literal["tasks/cancel"] = "tasks/cancel"
    name_param = "taskId"
    params: TaskParams


class TaskState(Result):
    task_id: str
    status: str
    status_message: str | None = None
    created_at: str
    last_updated_at: str
    ttl_ms: int
    poll_interval_ms: int
    result: dict[str, Any] | None = None


class MadeTask(TaskState):
    result_type: Literal["task"] = "task"


class Tasks(ClientExtension):
    """Declares tasks; `made` holds the tasks that the server made, whose calls return an empty result here."""

    identifier = EXTENSION

    def __init__(self) -> None:
        self.made: list[MadeTask] = []

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=MadeTask, resolve=self._resolve)]

    async def _resolve(self, task: MadeTask, _: ClaimContext) -> CallToolResult:
        self.made.append(task)
        return CallToolResult(content=[TextContent(type="text", text="a task")])


async def get(client: Client, task_id: str) -> TaskState:
    request = GetTask(params=TaskParams(task_id=task_id))
    return await client.session.send_request(request, TaskState)


async def cancel(client: Client, task_id: str) -> None:
    request = CancelTask(params=TaskParams(task_id=task_id))
    await client.session.send_request(request, EmptyResult)
