"""`workspaced tool`: calls a tool as a chat service, and shows states and log while it waits."""

from __future__ import annotations

import asyncio
import copy
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final
from uuid import uuid4

from bus import Bus, subjects
from bus.connect import redacted
from handlers.app import locate
from handlers.cli.arguments import strict_json
from handlers.cli.client import publish
from handlers.cli.command_table import DEFAULT_OWNER, CallTool
from handlers.cli.commands.texts import ChangeDescriber, describe_result
from handlers.cli.output import as_json, no_note, note, waiting
from handlers.cli.pool_queue import ConnectOperator, notice_delays
from handlers.errors import InvalidSettings
from handlers.publishing.build_log import read_ui_message
from handlers.runtime.supervise import cancel_and_wait
from handlers.settings import Settings, organization_of

TEXT_ARGUMENTS: Final = frozenset(("name", "query", "template", "preset"))
"""Arguments that are text; parameters and ids are as well."""


async def call_tool(command: CallTool, settings: Settings) -> int:
    """Call the tool and print its answer; return 1 if the answer is an error."""
    call_id = command.call_id or uuid4().hex
    data = {
        "call_id": call_id,
        "tool": command.tool,
        "args": arguments(command.arg, command.args),
        "organization_id": organization_of(settings),
        "owner_id": command.owner,
        "owner_name": command.owner_name,
    }
    report = no_note if command.json else note
    endpoints = locate(settings)
    connect_operator = partial(endpoints.bus, "operator")
    async with endpoints.bus("chat-service") as bus:
        report(f"chat {command.chat}, call {call_id}")
        try:
            with waiting(f"waiting for {command.tool}", shown=not command.json):
                resolved = await request_and_wait(bus, command.chat, data, connect_operator, report)
        except asyncio.CancelledError:  # Ctrl-C
            same = _same_call(command, call_id, settings.organization)
            note(f"the call goes on; to get its answer: {same}")
            raise
    sys.stdout.write(as_json(resolved["result"], indent=2) + "\n")
    sys.stdout.flush()  # before the explanation on stderr
    for line in describe_result(command.tool, resolved, command.chat, _server_flags(command)):
        report(line)
    return 1 if "error" in resolved["result"] else 0


async def request_and_wait(
    bus: Bus,
    chat_id: str,
    data: dict[str, Any],
    connect_operator: ConnectOperator,
    report: Callable[[str], object],
) -> dict[str, Any]:
    """Publish tool_requested, report states and log lines, and return the `data` of tool_resolved.

    Subscribes first, so that it misses nothing. After a reconnect it publishes the same call again.
    """
    async with (
        bus.subscribe(subjects.result(chat_id, data["call_id"])) as results,
        bus.subscribe(subjects.ui(chat_id)) as changes,
        notice_delays(bus, chat_id, connect_operator, report) as heard,
    ):

        async def follow() -> None:
            describer = ChangeDescriber()
            async for message in changes:
                envelope = read_ui_message(message.subject, message.data)
                if envelope is None:
                    continue
                heard(envelope)
                for line in describer.lines(envelope):
                    report(line)

        async def resolve() -> dict[str, Any]:
            while True:
                await publish(bus, "tool_requested", chat_id, data)
                if (message := await results.next_or_reconnect()) is not None:
                    return json.loads(message.data)["data"]  # type: ignore[no-any-return]

        following, answer = asyncio.create_task(follow()), asyncio.create_task(resolve())
        try:
            await asyncio.wait((answer, following), return_when=asyncio.FIRST_COMPLETED)
            if following.done() and not answer.done():
                following.result()  # raises: the output is closed, or NATS is closed for good
            return await answer
        finally:
            await cancel_and_wait(following, answer)


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


def _same_call(command: CallTool, call_id: str, organization: str | None) -> str:
    """Return the command that asks for the answer of the same call, without values, which may be secret."""
    words = f"workspaced tool {shlex.quote(command.tool)} --chat {command.chat} --call-id {call_id}"
    if organization is not None:
        words += f" --organization {organization}"
    if command.owner != DEFAULT_OWNER:
        words += f" --owner {command.owner}"
    again = " (with the same arguments)" if command.arg or command.args else ""
    return f"{words}{_server_flags(command)}{again}"


def _server_flags(command: CallTool) -> str:
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
