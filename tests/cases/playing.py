"""Plays a recorded case, `inputs/<case>/input.jsonl`, against a running workspaced.

Each line is one of:

- `{"subject": ..., "event": ..., "bom": true?}`: publish the event; `bom` adds a byte order mark.
- `{"presence": true, "ttl": "2s"}`: one presence message of agent `@a1`, which expires after `ttl`.
- `{"lost": true}`: wait until workers have noticed that the agent is gone.

`@chat`, `@ws`, `@a1`, `@b1` ... stand for UUIDs that stay the same during a run, `@new` for a new
UUID each time, and `@repeat:x:70000` for a long text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rigs.client import Chat
from tests.rigs.messages import CONTENT_TYPE, Event, new_id
from tests.rigs.world import World

INPUTS = Path(__file__).parent / "inputs"
_SENDERS = {"tool": "service", "provisioner": "provisioner", "agent": "operator"}
"""The participant that publishes a line, by the third token of its subject."""


@dataclass
class Case:
    """A played case, as its chat service and frontend see it."""

    chat: Chat
    names: dict[str, str] = field(default_factory=dict)
    """The UUIDs of this run, by their placeholder without `@`."""

    async def answer(self, call_id: str) -> Event:
        """Wait for the answer to a call; return the data of tool_resolved."""
        return await self.chat.answer(call_id)

    def filled(self, value: Any) -> Any:
        """Return a JSON value with its placeholders replaced."""
        if isinstance(value, dict):
            return {key: self.filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.filled(item) for item in value]
        if not isinstance(value, str):
            return value
        if repeat := re.fullmatch(r"@repeat:(.):(\d+)", value):
            return repeat[1] * int(repeat[2])
        value = re.sub(r"@new\b", lambda _: new_id(), value)
        return re.sub(
            r"@(chat|ws|org|owner|[ab]\d+)\b",
            lambda found: self.names.setdefault(found[1], new_id()),
            value,
        )


async def play(world: World, name: str) -> Case:
    """Publish the lines of a case one after the other; return when the last one is stored."""
    chat = await world.service.chat()
    case = Case(chat, {"chat": chat.id})
    for line in (INPUTS / name / "input.jsonl").read_text().splitlines():
        await _send(world, case, case.filled(json.loads(line)))
    return case


async def _send(world: World, case: Case, line: Event) -> None:
    if "lost" in line:
        await case.chat.states.first(
            lambda state: (
                (state["data"]["agent"] or {}).get("status") == "disconnected"
                and state["data"]["cause"]["source"] == "/workspaced"
            )
        )
    elif "presence" in line:
        names = case.names
        body = {
            "chat_id": names["chat"],
            "workspace_id": names["ws"],
            "build_id": names["b1"],
            "agent_id": names["a1"],
        }
        await world.operator.js.publish(
            f"workspaced.presence.{names['chat']}.{names['a1']}",
            json.dumps(body).encode(),
            headers={"Nats-TTL": line["ttl"]},
        )
    else:
        sender = getattr(world, _SENDERS[line["subject"].split(".")[2]])
        raw = (b"\xef\xbb\xbf" if line.get("bom") else b"") + json.dumps(line["event"]).encode()
        await sender.js.publish(line["subject"], raw, headers={"Content-Type": CONTENT_TYPE})
