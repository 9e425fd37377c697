"""`workspaced tool`, `create`, `start` and `stop`: call a tool, and show states and log while they wait."""

from __future__ import annotations

import asyncio
import copy
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final
from uuid import uuid4

import workspaced

from bus.connect import redacted
from handlers.app import Endpoints, locate
from handlers.cli.arguments import strict_json
from handlers.cli.client import connected, find_owner
from handlers.cli.command_table.tools import (
    CallTool,
    CreateWorkspace,
    StartWorkspace,
    StopWorkspace,
    ToolCommand,
)
from handlers.cli.commands.texts import ChangeDescriber, describe_result
from handlers.cli.output import as_json, no_note, note
from handlers.cli.pool_queue import notice_delays
from handlers.cli.status_line import status_line
from handlers.errors import InvalidSettings
from handlers.setting_flags import DEFAULT_OWNER
from handlers.settings import Settings, organization_of
from statemachine.naming import is_uuid

TEXT_ARGUMENTS: Final = frozenset(("name", "query", "template", "preset"))
"""Arguments that are text; parameters and ids are as well."""
_WITH_BUILDS: Final = ("create_workspace", "start_workspace", "stop_workspace")
"""The tools that may wait for a build, whose states and log are shown."""


async def call_tool(command: CallTool, settings: Settings) -> int:
    """Call the tool and print its answer; return 1 if the answer is an error. With --schema, print the tools."""
    if command.schema:
        return print_tools(command)
    if command.tool is None or command.chat is None:
        raise InvalidSettings(
            "name a tool and a chat, as in `workspaced tool list_templates --chat new`, or give --schema"
        )
    words = f"tool {shlex.quote(command.tool)} --chat {command.chat}"
    call = _ToolCall(command, settings, command.chat, words)
    return await call.run(command.tool, arguments(command.arg, command.args))


def print_tools(command: CallTool) -> int:
    """Print the tools for a model; return 1 if the one that is named does not exist."""
    found = workspaced.tools(command.format)
    if command.tool is not None:
        names = [tool.get("function", tool)["name"] for tool in found]
        if command.tool not in names:
            note(f"workspaced: there is no tool {command.tool!r}: there are {', '.join(names)}")
            return 1
        found = [found[names.index(command.tool)]]
    sys.stdout.write(as_json(found, indent=2) + "\n")
    return 0


async def create(command: CreateWorkspace, settings: Settings) -> int:
    """Create a workspace; return 1 if that fails."""
    args: dict[str, Any] = {
        "template_id" if is_uuid(command.template) else "template": command.template
    }
    if command.workspace_name is not None:
        args["name"] = command.workspace_name
    if command.preset is not None:
        args["preset_id" if is_uuid(command.preset) else "preset"] = command.preset
    words = f"create {shlex.quote(command.template)} --chat {command.chat}"
    call = _ToolCall(command, settings, command.chat, words)
    return await call.run("create_workspace", with_parameters(args, command.parameters))


async def start(command: StartWorkspace, settings: Settings) -> int:
    """Start a chat's workspace; return 1 if that fails."""
    call = _ToolCall(command, settings, command.chat, f"start {command.chat}")
    return await call.run("start_workspace", with_parameters({}, command.parameters))


async def stop(command: StopWorkspace, settings: Settings) -> int:
    """Stop a chat's workspace; return 1 if that fails."""
    call = _ToolCall(command, settings, command.chat, f"stop {command.chat}")
    return await call.run("stop_workspace", {})


class _ToolCall:
    """A call of a tool, as a command makes it."""

    def __init__(self, command: ToolCommand, settings: Settings, chat_id: str, words: str) -> None:
        """`words`: the command, without its flags, that asks for the same call again."""
        self._command, self._settings = command, settings
        self._chat_id, self._words = chat_id, words
        self._call_id = command.call_id or uuid4().hex

    async def run(self, tool: str, args: Mapping[str, Any]) -> int:
        """Call the tool and print its answer; return 1 if the answer is an error."""
        command, endpoints = self._command, locate(self._settings)
        report = no_note if command.json else note
        async with connected(endpoints, "chat-service") as ws:
            report(f"chat {self._chat_id}, call {self._call_id}")
            chat = ws.chat(self._chat_id, owner=await self._owner(ws))
            try:
                with status_line(f"waiting for {tool}", shown=not command.json) as shown:
                    answer = await request_and_wait(
                        ws, chat, tool, args, self._call_id, endpoints, report, shown.heard
                    )
            except asyncio.CancelledError:  # Ctrl-C
                note(f"the call goes on; to get its answer: {self._same_call(given=bool(args))}")
                raise
        sys.stdout.write(as_json(answer.result, indent=2) + "\n")
        sys.stdout.flush()  # before the explanation on stderr
        for line in describe_result(answer, self._chat_id, _server_flags(command)):
            report(line)
        return 1 if "error" in answer.result else 0

    async def _owner(self, ws: workspaced.Workspaced) -> workspaced.Owner:
        """Return the owner that the flags name; for the rest that of the chat, or the default one."""
        command = self._command
        if command.finds_owner and command.owner is None and command.organization is None:
            owner = await find_owner(ws, self._chat_id)
            if owner is not None:
                return owner
        return workspaced.Owner(
            id=command.owner or DEFAULT_OWNER,
            name=command.owner_name,
            organization=organization_of(self._settings),
        )

    def _same_call(self, *, given: bool) -> str:
        """Return the command that asks for the answer of the same call, without values, which may be secret."""
        command = self._command
        words = f"workspaced {self._words} --call-id {self._call_id}"
        if self._settings.organization is not None:
            words += f" --organization {self._settings.organization}"
        if command.owner not in (None, DEFAULT_OWNER):
            words += f" --owner {command.owner}"
        again = " (with the same arguments)" if given else ""
        return f"{words}{_server_flags(command)}{again}"


async def request_and_wait(
    ws: workspaced.Workspaced,
    chat: workspaced.Chat,
    tool: str,
    args: Mapping[str, Any],
    call_id: str,
    endpoints: Endpoints,
    report: Callable[[str], object],
    show: Callable[[workspaced.State | workspaced.Log], object] = lambda _: None,
) -> workspaced.Answer:
    """Call a tool, report states and log lines, and return the answer, also one to another request.

    `show` is called with each event of the chat.
    """
    describer = ChangeDescriber()
    connect_operator = partial(endpoints.bus, "operator")
    async with notice_delays(ws, chat.id, connect_operator, report) as heard:
        call = await chat.call(tool, args, call_id=call_id)
        try:
            if tool in _WITH_BUILDS:
                async for event in call:
                    heard(event)
                    show(event)
                    for line in describer.lines(event):
                        report(line)
            return await call
        except (workspaced.CallConflict, workspaced.TooBusy) as error:
            if error.answer is None:
                raise
            return error.answer
        finally:
            await call.close()


def arguments(
    pairs: Iterable[tuple[str, str]], base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Add keys and values to `base`; a dot in a key leads one level down. Raises InvalidSettings."""
    args: dict[str, Any] = copy.deepcopy(dict(base or {}))
    for key, text in pairs:
        value = _read_value(key, text)
        *path, last = key.split(".")
        inner = args
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise InvalidSettings(f"--arg {key}: '{part}' has a value of its own already")
        inner[last] = value
    return args


def with_parameters(args: dict[str, Any], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Add the parameters of a template to the arguments of a tool, if there are any."""
    values = {name: _read_value(f"parameters.{name}", text) for name, text in pairs}
    return {**args, "parameters": values} if values else args


def _read_value(key: str, text: str) -> Any:
    """Return the value that the text of an argument means.

    If the tool takes text, it is the text as typed: `3.10` must not become `3.1`. Only a JSON string
    or array, recognized by its first character, is read as JSON. Other arguments are JSON if possible.
    """
    is_text = key in TEXT_ARGUMENTS or key.startswith("parameters.") or key.endswith("_id")
    if is_text and not text.startswith(('"', "[")):
        return text
    try:
        return strict_json(text)
    except ValueError:
        return text
    except RecursionError:
        raise InvalidSettings(f"--arg {key}: it is nested too deep") from None


def _server_flags(command: ToolCommand) -> str:
    """Return the flags with which another command uses the same servers."""
    flags = {
        "--data-dir": command.data_dir,
        "--nats-url": command.nats_url,
        "--database-url": command.database_url,
        "--credentials": command.credentials,
        "--nats-ca": command.nats_ca,
    }
    words = [
        word for flag, value in flags.items() if value for word in (flag, redacted(str(value)))
    ]
    return f" {shlex.join(words)}" if words else ""
