"""`workspaced tool`: a caller by the contract, with states and log shown while it waits."""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from uuid import uuid4

from bus import Bus, subjects
from bus.urls import redacted
from handlers.app import locate
from handlers.cli.client import publish
from handlers.cli.commands.result_text import told
from handlers.cli.commands.stall_notice import noticing
from handlers.cli.commands.state_text import Describing
from handlers.cli.output import tell, tell_nobody
from handlers.cli.sanitize import as_json
from handlers.cli.words import ORGANIZATION, OWNER, strict_json
from handlers.publishing.build_log import read_ui_message
from handlers.settings import InvalidSettings, Settings

TEXTS: Final = frozenset(("name", "query", "template", "preset"))
"""Arguments that are texts, beside parameters and ids."""


async def call_tool(flags: argparse.Namespace, settings: Settings) -> int:
    """Call the tool; return 0 when it went well."""
    data = {
        "call_id": flags.call_id or uuid4().hex,
        "tool": flags.tool,
        "args": arguments(flags.arg, flags.args),
        "organization_id": flags.organization,
        "owner_id": flags.owner,
        "owner_name": flags.owner_name,
    }
    words = tell_nobody if flags.json else tell
    words(f"chat {flags.chat}, call {data['call_id']}")
    async with locate(settings).bus("chat-service") as bus:
        try:
            resolved = await ask(bus, flags.chat, data, words)
        except asyncio.CancelledError:  # Ctrl-C
            tell(f"the call goes on; to hear its answer: {_again(flags, data['call_id'])}")
            raise
    sys.stdout.write(as_json(resolved["result"], indent=2) + "\n")
    sys.stdout.flush()  # before the words about it
    for line in told(flags.tool, resolved, flags.chat, _where(flags)):
        words(line)
    return 1 if "error" in resolved["result"] else 0


async def ask(
    bus: Bus, chat_id: str, data: dict[str, Any], words: Callable[[str], object]
) -> dict[str, Any]:
    """Ask, tell states and log lines as they come, and return the `data` of tool_resolved.

    Subscribes first, so that nothing is missed; after a reconnect asks again with the same call id.
    """
    asked_again = asyncio.Event()
    bus.on_reconnect(asked_again.set)
    async with (
        bus.subscribe(subjects.result(chat_id, data["call_id"])) as results,
        bus.subscribe(subjects.ui(chat_id)) as watched,
        noticing(bus, chat_id, words) as heard,
    ):

        async def follow() -> None:
            describing = Describing()
            async for message in watched:
                envelope = read_ui_message(message.subject, message.data)
                if envelope is None:
                    continue
                heard(envelope)
                for line in describing.lines(envelope):
                    words(line)

        following = asyncio.create_task(follow())
        answer = asyncio.create_task(results.next())
        try:
            while not answer.done():
                asked_again.clear()
                await publish(bus, "tool_requested", chat_id, data)
                lost = asyncio.create_task(asked_again.wait())
                ends = asyncio.FIRST_COMPLETED
                await asyncio.wait((answer, lost, following), return_when=ends)
                lost.cancel()
                if following.done():  # nobody reads what is told, or NATS is closed for good
                    following.result()
                    await answer
            return json.loads(answer.result().data)["data"]  # type: ignore[no-any-return]
        finally:
            for task in (following, answer):
                task.cancel()
            await asyncio.gather(following, answer, return_exceptions=True)


def arguments(
    pairs: Iterable[tuple[str, str]], whole: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Add key-value pairs to `whole`; a dot in a key goes one level down. Raises InvalidSettings."""
    args: dict[str, Any] = copy.deepcopy(dict(whole or {}))
    for key, text in pairs:
        value = _value(key, text)
        *path, last = key.split(".")
        inner = args
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise InvalidSettings(f"--arg {key}: '{part}' has a value of its own already")
        inner[last] = value
    return args


def _value(key: str, text: str) -> Any:
    """Read what was typed for an argument.

    Where the tool takes a text, that is the text as it was typed: `3.10` must not become `3.1`. Only a
    JSON text or list, known by its first character, is read as JSON. Other arguments are JSON if they
    can be.
    """
    textual = key in TEXTS or key.startswith("parameters.") or key.endswith("_id")
    if textual and not text.startswith(('"', "[")):
        return text
    try:
        return strict_json(text)
    except ValueError:
        return text
    except RecursionError:
        raise InvalidSettings(f"--arg {key}: it is nested too deep") from None


def _again(flags: argparse.Namespace, call_id: str) -> str:
    """Return the command that asks for the answer of the same call."""
    ask = f"workspaced tool {shlex.quote(flags.tool)} --chat {flags.chat} --call-id {call_id}"
    if flags.organization != ORGANIZATION:
        ask += f" --organization {flags.organization}"
    if flags.owner != OWNER:
        ask += f" --owner {flags.owner}"
    return ask + _where(flags)


def _where(flags: argparse.Namespace) -> str:
    """Return the flags that another command needs to come to the same servers."""
    given = {"--data-dir": flags.data_dir, "--nats-url": flags.nats_url}
    given |= {"--database-url": flags.database_url, "--credentials": flags.credentials}
    given |= {"--nats-ca": flags.nats_ca}
    words = [
        word for flag, value in given.items() if value for word in (flag, redacted(str(value)))
    ]
    return f" {shlex.join(words)}" if words else ""
