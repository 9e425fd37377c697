"""`workspaced workspace delete` and `workspace orphans`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bus import Bus
from handlers.app import locate
from handlers.cli.client import notice_stalls, publish, read_events, rpc, rpc_pages, watch_chat
from handlers.cli.command_table import DeleteWorkspace, ListOrphans
from handlers.cli.commands.texts import ChangeDescriber, workspace_name
from handlers.cli.output import (
    for_people,
    indented,
    local_time,
    no_note,
    note,
    waiting,
    write_entries,
    write_json,
    write_lines,
)
from handlers.settings import Settings

START_TIMEOUT: Final = 5.0
"""Seconds within which a running worker starts the delete build."""
_ORPHAN_TITLES: Final = ("WORKSPACE", "NAME", "CHAT", "SINCE", "IS STOPPED AT")


async def delete(command: DeleteWorkspace, settings: Settings) -> int:
    """Delete the chat's workspace; return 0 when it is deleted."""
    endpoints = locate(settings)
    async with endpoints.bus("chat-service") as bus, watch_chat(bus, command.chat) as changes:
        before = await rpc(bus, "get_chat", chat_id=command.chat)
        if before["workspace"] is None:
            note(f"workspaced: chat {command.chat} has no workspace: there is nothing to delete")
            return 1
        data = {} if command.reason is None else {"reason": command.reason}
        event_id = await publish(bus, "delete_requested", command.chat, data)
        report = no_note if command.json else note
        limit = asyncio.timeout(START_TIMEOUT)
        try:
            with waiting(f"deleting {workspace_name(before)}", shown=not command.json):
                async with notice_stalls(bus, command.chat, report) as heard, limit:
                    after = await _Deletion(bus, before, report, heard, limit).wait(changes)
        except TimeoutError:
            if not limit.expired():
                raise
            note(f"workspaced: {await _why_not_started(bus, command.chat, event_id)}")
            return 1
    return _print_result(before, after, as_json=command.json)


@dataclass(slots=True)
class _Deletion:
    """Waits for a deletion and reports the chat's messages meanwhile."""

    bus: Bus
    before: dict[str, Any]
    report: Callable[[str], None]
    heard: Callable[[dict[str, Any]], None]
    """Called with each message of the chat."""
    limit: asyncio.Timeout
    """Ends the wait unless a delete build starts."""
    _build: str | None = None
    """The delete build, once it has started."""
    _describer: ChangeDescriber = field(default_factory=ChangeDescriber)

    async def wait(self, changes: AsyncIterator[dict[str, Any] | None]) -> dict[str, Any]:
        """Return the chat when the deletion has succeeded or failed."""
        async for change in changes:
            if change is None:
                chat = await rpc(self.bus, "get_chat", chat_id=self.before["chat_id"])
            else:
                self.heard(change)
                for line in self._describer.lines(change):
                    self.report(line)
                if "output" in change["data"]:
                    continue
                chat = change["data"]
            if self._has_ended(chat):
                return chat
        raise AssertionError("changes of a chat end only when the bus is closed")

    def _has_ended(self, chat: dict[str, Any]) -> bool:
        if _is_deleted(self.before, chat):
            return True
        build, state = chat["build"], str(chat["state"])
        is_earlier = build["id"] == self.before["build"]["id"] and state != "stopping"
        if build["transition"] == "delete" and not is_earlier:
            self._build = build["id"]
            self.limit.reschedule(None)
        if self._build is None:
            return False
        return build["id"] != self._build or state == "failed"


def _is_deleted(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Return whether the workspace no longer belongs to the chat."""
    workspace = after["workspace"]
    return workspace is None or workspace["id"] != before["workspace"]["id"]


def _print_result(before: dict[str, Any], after: dict[str, Any], *, as_json: bool) -> int:
    people, name = for_people(as_json=as_json), workspace_name(before)
    if not people:
        write_json(after)
    if _is_deleted(before, after):
        if people:
            write_lines([f"{name} is deleted"])
        return 0
    if after["failure"] is None:
        reason = f"{after['build']['transition']} build {after['build']['id']} took over"
    else:
        reason = after["failure"]["message"]
    note(f"workspaced: {name} is not deleted:")
    for line in indented(reason):
        note(line)
    return 1


async def _why_not_started(bus: Bus, chat_id: str, event_id: str) -> str:
    """Return why no delete build started."""
    logged = [e async for e in read_events(bus, chat_id) if e["event"]["id"] == event_id]
    if not logged:
        return (
            "no worker has taken the request yet; it is stored, and a worker carries it out when it "
            f"runs: see `workspaced chat show {chat_id}`"
        )
    return (
        f"the request had no effect ({logged[0]['outcome']}): the workspace was created elsewhere, "
        "from a template that is not known here; delete it where it was created"
    )


async def list_orphans(command: ListOrphans, settings: Settings) -> None:
    """Print the running workspaces that belong to no chat."""
    async with locate(settings).bus("operator") as bus:
        orphans = rpc_pages(bus, "list_orphans", "orphans", "cursor")
        none = "every running workspace belongs to a chat"
        await write_entries(orphans, _ORPHAN_TITLES, _orphan, none=none, as_json=command.json)


def _orphan(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        entry["workspace_id"],
        f"{entry['owner_name'] or '?'}/{entry['name'] or '?'}",
        entry["chat_id"],
        local_time(entry["since"]),
        local_time(entry["stops_at"]) if "stops_at" in entry else "not known",
    )
