"""The client: a connection of a chat service, and the chats that it serves."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from workspaced import subjects
from workspaced.calls import Call
from workspaced.connection import open_connection
from workspaced.errors import Invalid
from workspaced.following import Follower
from workspaced.models import Answer, Log, State
from workspaced.owner import Owner
from workspaced.processes import TOOLS, Process, executing
from workspaced.service import Service
from workspaced.tools import Format, tools


class Workspaced:
    """A connection to workspaced. `connect` makes one."""

    def __init__(self, service: Service) -> None:
        self._service, self._connection = service, service.connection

    def chat(self, chat_id: str | UUID, *, owner: Owner | None = None) -> Chat:
        """Return a chat, which need not exist yet. `chat_id` is a UUID of your choice.

        Only the tools that create, start, stop, list and read need the owner. Raises Invalid.
        """
        chat_id = subjects.uuid_text("chat_id", chat_id)
        if owner is not None:
            if not isinstance(owner, Owner):
                raise Invalid(f"owner must be a workspaced.Owner(id=…, name=…), and is {owner!r}")
            subjects.check_uuid("owner.id", owner.id)
            subjects.check_uuid("owner.organization", owner.organization)
        return Chat(self._service, chat_id, owner)

    def call(self, chat_id: str | UUID, call_id: str) -> Call:
        """Return a call that this or another process asked for; nothing is asked again. Raises Invalid.

        To await it raises NotFound, after 5 s, if nobody has asked for it.
        """
        chat_id = subjects.uuid_text("chat_id", chat_id)
        subjects.check_token("call_id", call_id)
        return Call(self._service, chat_id, call_id, None)

    async def last_answer(self, chat_id: str | UUID) -> Answer | None:
        """Return the newest answer to any call of a chat, None if there was none in the last 24 hours."""
        chat_id = subjects.uuid_text("chat_id", chat_id)
        event = await self._connection.last(subjects.LAST_RESULTS, subjects.results_of(chat_id))
        return None if event is None else Answer.model_validate(event["data"])

    async def revoked_tokens(self) -> AsyncGenerator[str | None, None]:
        """Yield the id of each bearer token that is revoked from now on, as `check_token` names it, without end.

        None comes first, and after each reconnect: tokens that were checked before may have been revoked, so check
        them again. Raises Refused, Unavailable.
        """
        subscription = await self._connection.subscribe(subjects.REVOCATIONS)
        try:
            yield None
            while True:
                message = await subscription.next()
                yield None if message is None else str(json.loads(message.data)["id"])
        finally:
            await self._connection.unsubscribe(subscription)

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

    def __init__(self, service: Service, chat_id: str, owner: Owner | None) -> None:
        self.id, self.owner = chat_id, owner
        self._service, self._connection = service, service.connection

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
        request = {"call_id": call_id, "tool": tool, "args": _checked(tool, args)}
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
        call = Call(self._service, self.id, call_id, request, traceparent)
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
        return await self._service.store_event(self.id, "delete_requested", data)

    async def keep(self, duration: timedelta) -> datetime | None:
        """Stop the workspace no sooner than that; return when it is stopped, None if it has no such time."""
        body = {"chat_id": self.id, "seconds": _seconds("duration", duration)}
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
        body = {"chat_ids": [self.id], "ttl_seconds": _seconds("ttl", ttl), "exec": exec}
        return dict(await self._connection.rpc("frontend_credential", body))


def _checked(tool: str, args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of a tool as they are sent. Raises Invalid."""
    if not isinstance(tool, str) or not tool:
        raise Invalid(f"tool must be the name of a tool, and is {tool!r}")
    if args is not None and not isinstance(args, Mapping):
        raise Invalid(f"args must be a dict with the arguments of {tool}, and is {args!r}")
    try:
        json.dumps(args, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Invalid(f"the arguments of {tool} are no JSON: {error}") from None
    return dict(args or {})


def _seconds(field: str, value: timedelta) -> float:
    if not isinstance(value, timedelta):
        raise Invalid(f"{field} must be a datetime.timedelta, and is {value!r}")
    return value.total_seconds()


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
    not accepted, Unavailable if there is no server, and Invalid for what can be none of a URL, key or name.
    """
    subjects.check_token("service", service)
    connected = Service(await open_connection(url, key=key, name=service, tls=tls), service)
    try:
        yield Workspaced(connected)
    finally:
        await connected.close()
