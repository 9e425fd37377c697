"""The client: a connection of a chat service, and the chats that it serves."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from workspaced import subjects
from workspaced.calls import Call, store_event
from workspaced.connection import Connection, open_connection
from workspaced.errors import Invalid
from workspaced.following import Follower
from workspaced.models import Answer, Log, Owner, State
from workspaced.processes import TOOLS, Process, executing
from workspaced.tools import Format, tools


class Workspaced:
    """A connection to workspaced. `connect` makes one."""

    def __init__(self, connection: Connection, service: str) -> None:
        self._connection, self._service = connection, service

    def chat(self, chat_id: str, *, owner: Owner | None = None) -> Chat:
        """Return a chat, which need not exist yet. `chat_id` is a UUID of your choice.

        Only the tools that create, start, stop, list and read need the owner. Raises Invalid.
        """
        subjects.check_uuid("chat_id", chat_id)
        if owner is not None:
            subjects.check_uuid("owner.id", owner.id)
            subjects.check_uuid("owner.organization", owner.organization)
        return Chat(self._connection, self._service, chat_id, owner)

    def call(self, chat_id: str, call_id: str) -> Call:
        """Return a call that this or another process asked for; nothing is asked again. Raises Invalid."""
        subjects.check_uuid("chat_id", chat_id)
        subjects.check_token("call_id", call_id)
        return Call(self._connection, self._service, chat_id, call_id, None)

    async def last_answer(self, chat_id: str) -> Answer | None:
        """Return the newest answer to any call of a chat, None if there was none in the last 24 hours."""
        event = await self._connection.last(subjects.LAST_RESULTS, subjects.results_of(chat_id))
        return None if event is None else Answer.model_validate(event["data"])

    def tools(self, format: Format = "anthropic", *, execute: bool = True) -> list[dict[str, Any]]:  # noqa: A002
        """Return the tools for a model: `openai`, `anthropic` or `mcp`; without `execute`, no commands."""
        return tools(format, execute=execute)

    async def rpc(self, name: str, /, **body: Any) -> Any:
        """Call an rpc and return its reply; arguments that are None are left out.

        Raises WorkspacedError: at once also if the key does not permit the rpc or nobody serves it.
        """
        return await self._connection.rpc(name, body)


class Chat:
    """A chat, for which its owner's tools are called."""

    def __init__(
        self, connection: Connection, service: str, chat_id: str, owner: Owner | None
    ) -> None:
        self.id, self.owner = chat_id, owner
        self._connection, self._service = connection, service

    async def call(
        self,
        tool: str,
        args: Mapping[str, Any] | None = None,
        *,
        call_id: str | None = None,
        traceparent: str | None = None,
    ) -> Call:
        """Ask for a tool; return when the request is stored.

        `call_id` identifies the call within the chat for ever: asking again with the same one does nothing twice
        and gives the same answer. Without one, a new one is made. `traceparent` is a W3C trace context, which all
        events that the call causes carry on. Raises Refused, Invalid, Unavailable.
        """
        call_id = call_id or uuid4().hex
        subjects.check_token("call_id", call_id)
        request = {"call_id": call_id, "tool": tool, "args": dict(args or {})}
        if self.owner is not None:
            request |= {
                "organization_id": self.owner.organization,
                "owner_id": self.owner.id,
                "owner_name": self.owner.name,
            }
        elif tool not in TOOLS:
            raise Invalid(
                f"{tool} needs the chat's owner: ws.chat(chat_id, owner=workspaced.Owner(…))"
            )
        call = Call(self._connection, self._service, self.id, call_id, request, traceparent)
        await call.ask()
        return call

    def execute(
        self,
        command: str,
        *,
        call_id: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        open_stdin: bool | None = None,
        pty: Mapping[str, int] | None = None,
        timeout_seconds: float | None = None,
    ) -> AbstractAsyncContextManager[Process]:
        """Run a command in the workspace: `async with chat.execute("pytest -q") as process`.

        The block's end sends TERM to a command that still runs. The same `call_id` is the same command. Raises
        CannotRun, whose `next_step` says which tool to call first.
        """
        args = {
            "command": command,
            "cwd": cwd,
            "env": env,
            "stdin": stdin,
            "open_stdin": open_stdin,
            "pty": pty,
            "timeout_seconds": timeout_seconds,
        }
        return executing(self._connection, self.id, call_id or uuid4().hex, args)

    def process(self, exec_id: str) -> Process:
        """Return a command that this or another process started."""
        return Process(
            self._connection, self.id, {"exec_id": exec_id, "status": "running", "next": 0}
        )

    async def watch(self, *, old_log: bool = True) -> AsyncGenerator[State | Log, None]:
        """Yield the present state and the log of its build, then every state and log line, without end.

        Without `old_log` the log of a build that has ended before is left out.
        """
        follower = await Follower.start(self._connection, self.id, old_log=old_log)
        try:
            async for event in follower.events():
                yield event
        finally:
            await follower.stop()

    async def delete_workspace(
        self, reason: str | None = None, *, workspace_id: str | None = None
    ) -> str:
        """Request the deletion of the workspace with all its files; return the id of the event.

        The states that follow show what becomes of it. `workspace_id` names one that the chat had before. Raises
        Refused, Unavailable.
        """
        given = {"reason": reason, "workspace_id": workspace_id}
        data = {key: value for key, value in given.items() if value is not None}
        return await store_event(self._connection, self._service, self.id, "delete_requested", data)

    async def keep(self, duration: timedelta) -> datetime | None:
        """Stop the workspace no sooner than that; return when it is stopped, None if it has no such time."""
        body = {"chat_id": self.id, "seconds": duration.total_seconds()}
        stops_at = (await self._connection.rpc("keep", body))["stops_at"]
        return None if stops_at is None else datetime.fromisoformat(stops_at)

    async def frontend_key(
        self,
        ttl: timedelta = timedelta(hours=1),
        *,
        exec: bool | None = None,  # noqa: A002  # the rpc's name
    ) -> dict[str, Any]:
        """Return a key with which a page can follow this chat: `seed`, `inbox_prefix`, `expires_at`.

        With `exec` the page also sees the output of commands, which may hold secrets.
        """
        body = {"chat_ids": [self.id], "ttl_seconds": ttl.total_seconds(), "exec": exec}
        return dict(await self._connection.rpc("frontend_credential", body))


@asynccontextmanager
async def connect(
    url: str,
    *,
    key: str | Path | Mapping[str, Any],
    service: str,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Workspaced]:
    """Connect to the NATS server of workspaced; close the connection at the end of the block.

    `key` is the path of an NKey seed, the seed itself, or the object that issued the key. `service` is a name of
    your choice, `[A-Za-z0-9_-]{1,128}`. The connection is made again when it breaks. Raises Refused if the key is
    not accepted, and Unavailable if there is no server.
    """
    subjects.check_token("service", service)
    connection = await open_connection(url, key=key, name=service, tls=tls)
    try:
        yield Workspaced(connection, service)
    finally:
        await connection.close()
