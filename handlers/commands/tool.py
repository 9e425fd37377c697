"""`workspaced tool`: a caller by the contract, with states and log shown while it waits."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from bus import CLOUDEVENT, Bus, subjects
from handlers.app import locate
from handlers.settings import InvalidSettings, Settings
from statemachine.codec import encode

SOURCE: Final = "cli"
"""The chat service that the command line is."""


async def call_tool(flags: argparse.Namespace, settings: Settings) -> int:
    """Call the tool; return 0 when it went well."""
    data = {
        "call_id": flags.call_id or uuid4().hex,
        "tool": flags.tool,
        "args": arguments(flags.arg),
        "organization_id": flags.organization,
        "owner_id": flags.owner,
        "owner_name": flags.owner_name,
    }
    tell: Callable[[str], object] = _silent if flags.quiet else _tell
    tell(f"chat {flags.chat}, call {data['call_id']}")
    async with locate(settings).bus("chat-service") as bus:
        resolved = await ask(bus, flags.chat, data, tell)
    sys.stdout.write(json.dumps(resolved["result"], indent=2, ensure_ascii=False) + "\n")
    return 1 if "error" in resolved["result"] else 0


async def ask(
    bus: Bus, chat_id: str, data: dict[str, Any], tell: Callable[[str], object]
) -> dict[str, Any]:
    """Ask, tell states and log lines as they come, and return the `data` of tool_resolved.

    Subscribes first, so that nothing is missed; after a reconnect asks again with the same call id.
    """
    asked_again = asyncio.Event()
    bus.on_reconnect(asked_again.set)
    async with (
        bus.subscribe(subjects.result(chat_id, data["call_id"])) as results,
        bus.subscribe(subjects.ui(chat_id)) as watched,
    ):

        async def follow() -> None:
            async for message in watched:
                for line in described(json.loads(message.data)):
                    tell(line)

        following = asyncio.create_task(follow())
        answer = asyncio.create_task(results.next())
        try:
            while not answer.done():
                asked_again.clear()
                await _publish(bus, chat_id, data)
                lost = asyncio.create_task(asked_again.wait())
                await asyncio.wait((answer, lost), return_when=asyncio.FIRST_COMPLETED)
                lost.cancel()
            return json.loads(answer.result().data)["data"]  # type: ignore[no-any-return]
        finally:
            for task in (following, answer):
                task.cancel()
            await asyncio.gather(following, answer, return_exceptions=True)


def arguments(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Join key-value pairs; a dot in a key goes one level down. Raises InvalidSettings."""
    args: dict[str, Any] = {}
    for key, text in pairs:
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *path, last = key.split(".")
        inner = args
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise InvalidSettings(f"--arg {key}: '{part}' has a value of its own already")
        inner[last] = value
    return args


def described(envelope: dict[str, Any]) -> list[str]:
    """Put a state change or a piece of log into lines for people."""
    data = envelope["data"]
    if envelope["type"].startswith("workspaced.log_appended"):
        return [f"  | {line}" for line in data["output"].splitlines()]
    at = datetime.fromisoformat(envelope["time"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    line = f"{at}  {data['state']}"
    if data["agent"] is not None:
        line += f"  (agent {data['agent']['name']}: {data['agent']['status']})"
    if data["failure"] is not None:
        line += f"  {data['failure']['reason']}: {data['failure']['message']}"
    return [line]


async def _publish(bus: Bus, chat_id: str, data: dict[str, Any]) -> None:
    source, event_id = f"/chat/{SOURCE}", str(uuid4())
    await bus.publish(
        subjects.inbound("tool", chat_id, SOURCE),
        encode("tool_requested", source, chat_id, data, event_id=event_id, time=datetime.now(UTC)),
        headers=CLOUDEVENT,
        message_id=f"{source}:{event_id}",
    )


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def _silent(line: str) -> None:
    del line
