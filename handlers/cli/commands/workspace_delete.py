"""`workspaced workspace delete`: ask for it as a chat service would, and see it through."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from bus import Bus
from handlers.app import locate
from handlers.cli.client import publish, rpc, watching
from handlers.cli.commands import events
from handlers.cli.commands.stall_notice import noticing
from handlers.cli.commands.state_text import Describing, workspace_of
from handlers.cli.output import (
    for_people,
    indented,
    tell,
    tell_nobody,
    write_json,
    write_lines,
)
from handlers.settings import Settings

TAKEN_UP: Final = 5.0
"""Seconds within which a worker that runs has begun the delete build."""


async def delete(flags: argparse.Namespace, settings: Settings) -> int:
    """Delete the chat's workspace; return 0 when it is gone."""
    endpoints = locate(settings)
    async with endpoints.bus("chat-service") as bus, watching(bus, flags.chat) as changes:
        before = await rpc(bus, "get_chat", chat_id=flags.chat)
        if before["workspace"] is None:
            tell(f"workspaced: chat {flags.chat} has no workspace: there is nothing to delete")
            return 1
        data = {} if flags.reason is None else {"reason": flags.reason}
        event_id = await publish(bus, "delete_requested", flags.chat, data)
        words = tell_nobody if flags.json else tell
        limit = asyncio.timeout(TAKEN_UP)
        try:
            async with noticing(bus, flags.chat, words) as heard, limit:
                after = await Deleting(bus, before, words, heard, limit).end(changes)
        except TimeoutError:
            if not limit.expired():
                raise
            tell(f"workspaced: {await _why_not(bus, flags.chat, event_id)}")
            return 1
    return _report(before, after, as_json=flags.json)


@dataclass(slots=True)
class Deleting:
    """A deletion on its way, told while it is watched."""

    bus: Bus
    before: dict[str, Any]
    words: Callable[[str], None]
    heard: Callable[[dict[str, Any]], None]
    """Is told of each message."""
    limit: asyncio.Timeout
    """Ends the wait unless the deletion begins."""
    _build: str | None = None
    """The delete build, once it is seen."""
    _describing: Describing = field(default_factory=Describing)

    async def end(self, changes: AsyncIterator[dict[str, Any] | None]) -> dict[str, Any]:
        """Return the chat as it is when the deletion is over, well or ill."""
        async for change in changes:
            if change is None:
                chat = await rpc(self.bus, "get_chat", chat_id=self.before["chat_id"])
            else:
                self.heard(change)
                for line in self._describing.lines(change):
                    self.words(line)
                if "output" in change["data"]:
                    continue
                chat = change["data"]
            if self._over(chat):
                return chat
        raise AssertionError("who watches a chat hears of it until the bus is closed")

    def _over(self, chat: dict[str, Any]) -> bool:
        if _gone(self.before, chat):
            return True
        build, state = chat["build"], str(chat["state"])
        stood_there = build["id"] == self.before["build"]["id"] and state != "stopping"
        if build["transition"] == "delete" and not stood_there:
            self._build = build["id"]
            self.limit.reschedule(None)
        if self._build is None:
            return False
        return build["id"] != self._build or state == "failed"


def _gone(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Say whether the workspace is no longer the chat's."""
    there = after["workspace"]
    return there is None or there["id"] != before["workspace"]["id"]


def _report(before: dict[str, Any], after: dict[str, Any], *, as_json: bool) -> int:
    people, name = for_people(as_json=as_json), workspace_of(before)
    if not people:
        write_json(after)
    if _gone(before, after):
        if people:
            write_lines([f"{name} is deleted"])
        return 0
    if after["failure"] is None:
        why = f"{after['build']['transition']} build {after['build']['id']} took over"
    else:
        why = after["failure"]["message"]
    tell(f"workspaced: {name} is not deleted:")
    for line in indented(why):
        tell(line)
    return 1


async def _why_not(bus: Bus, chat_id: str, event_id: str) -> str:
    """Say why no delete build began."""
    seen = [e async for e in events.read(bus, chat_id) if e["event"]["id"] == event_id]
    if not seen:
        return (
            "no worker has taken up the request yet; it is kept, and carried out when one runs: "
            f"see `workspaced chat show {chat_id}`"
        )
    return (
        f"the request came to nothing ({seen[0]['outcome']}): the workspace was made elsewhere, "
        "from a template that is not known here; delete it where it was made"
    )
