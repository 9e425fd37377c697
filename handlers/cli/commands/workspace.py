"""`workspaced workspace delete` and `workspace orphans`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from workspaced import Log, State, Workspaced

from handlers.app import Endpoints, locate
from handlers.cli.client import connected, read_events, rpc_pages
from handlers.cli.command_table.chats import DeleteWorkspace, ListOrphans
from handlers.cli.commands.texts import ChangeDescriber, workspace_name
from handlers.cli.output import (
    counted,
    for_people,
    indented,
    local_time,
    no_note,
    note,
    write_json,
    write_lines,
    write_table,
)
from handlers.cli.pool_queue import notice_delays
from handlers.cli.status_line import status_line
from handlers.errors import InvalidSettings
from handlers.settings import Settings

START_TIMEOUT: Final = 5.0
"""Seconds within which a running worker starts the delete build."""
_ORPHAN_TITLES: Final = ("WORKSPACE", "NAME", "POOL", "STATE", "SINCE")


async def delete(command: DeleteWorkspace, settings: Settings) -> int:
    """Delete workspaces; return 0 when the chat's own is deleted, or the deletion of others is requested."""
    chat, others = command.chat, command.workspace is not None or command.all
    if command.older_than is not None and not command.all:
        raise InvalidSettings(
            "--older-than selects from the workspaces of --all: give --all as well"
        )
    if (chat is None) != others or (command.workspace is not None and command.all):
        raise InvalidSettings("give exactly one of CHAT, --workspace UUID and --all")
    if command.dry_run and not others:
        raise InvalidSettings(
            "--dry-run needs --workspace UUID or --all; `workspaced chat show` shows a chat's workspace"
        )
    endpoints = locate(settings)
    if chat is None:
        async with connected(endpoints, "operator") as ws:
            found = await _find(ws, command)
            if isinstance(found, list):
                return await _delete_orphans(ws, found, command)
        if found is None:
            note(
                f"workspaced: there is no workspace {command.workspace}: it is deleted, or the id is wrong; "
                "`workspaced workspace orphans` and `workspaced chat list --json` show the ids of all others"
            )
            return 1
        chat = str(found["chat_id"])
        if command.dry_run:
            if not for_people(as_json=command.json):
                write_json({"workspaces": [_of_chat(found)]})
            note(f"would delete workspace {command.workspace} of chat {chat}; nothing was deleted")
            return 0
    return await _delete_of_chat(endpoints, chat, command)


async def _find(
    ws: Workspaced, command: DeleteWorkspace
) -> list[dict[str, Any]] | dict[str, Any] | None:
    """Return the workspaces without a chat that the command means, or the chat whose workspace it means."""
    orphans = [entry async for entry in rpc_pages(ws, "list_orphans", "workspaces", "cursor")]
    if command.workspace is None:
        if command.older_than is None:
            return orphans
        age = timedelta(seconds=command.older_than)
        return [entry for entry in orphans if _is_older(entry, age)]
    if found := [entry for entry in orphans if entry["id"] == command.workspace]:
        return found
    async for chat in rpc_pages(ws, "list_chats", "chats", "cursor"):
        if chat["workspace"] is not None and chat["workspace"]["id"] == command.workspace:
            return dict(chat)
    return None


def _of_chat(chat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the workspace of a chat with the keys that workspaces without a chat have."""
    workspace, build = chat["workspace"], chat["build"]
    return {
        "id": workspace["id"],
        "name": workspace["name"],
        "owner_name": workspace["owner_name"],
        "pool": build["pool"],
        "state": chat["state"],
        "since": build["started_at"],
    }


def _is_older(entry: Mapping[str, Any], age: timedelta) -> bool:
    since = entry["since"]
    return since is not None and datetime.now(UTC) - datetime.fromisoformat(since) >= age


async def _delete_orphans(
    ws: Workspaced, orphans: Sequence[Mapping[str, Any]], command: DeleteWorkspace
) -> int:
    """Request the deletion of workspaces without a chat, and print them; return 0 if all could be requested."""
    possible = [entry for entry in orphans if entry["pool"] is not None]
    if not command.dry_run:
        with status_line(
            f"requesting {counted(len(possible), 'deletion')}", shown=not command.json
        ):
            for entry in possible:
                chat = ws.chat(entry["chat_id"])
                await chat.delete_workspace(command.reason, workspace_id=entry["id"])
    if not for_people(as_json=command.json):
        write_json({"workspaces": [_shown(entry) for entry in possible]})
    elif possible:
        write_table(_ORPHAN_TITLES, [_orphan(entry) for entry in possible])
    for entry in orphans:
        if entry["pool"] is None:
            note(
                f"workspaced: workspace {entry['id']} can't be deleted here: its pool is not known"
            )
    count = counted(len(possible), "workspace")
    if not orphans:
        note(
            "every workspace belongs to a chat: there is nothing to delete"
            if command.older_than is None
            else "no workspace without a chat has been in its state for so long: there is nothing to delete"
        )
    elif command.dry_run:
        note(f"would request the deletion of {count}; nothing was deleted")
    else:
        note(
            f"requested the deletion of {count}; `workspaced workspace orphans` lists those that still exist"
        )
    return 0 if len(possible) == len(orphans) else 1


async def _delete_of_chat(endpoints: Endpoints, chat_id: str, command: DeleteWorkspace) -> int:
    """Delete the chat's workspace; return 0 when it is deleted."""
    async with connected(endpoints, "chat-service") as ws:
        chat = ws.chat(chat_id)
        async with aclosing(chat.watch(old_log=False)) as events:
            before = await anext(events)
            if not isinstance(before, State) or before.workspace is None:
                note(f"workspaced: chat {chat_id} has no workspace: there is nothing to delete")
                return 1
            event_id = await chat.delete_workspace(command.reason)
            report = no_note if command.json else note
            limit = asyncio.timeout(START_TIMEOUT)
            try:
                with status_line(
                    f"deleting {workspace_name(before.data)}", shown=not command.json
                ) as line:
                    delays = notice_delays(ws, chat_id, partial(endpoints.bus, "operator"), report)
                    async with delays as delayed, limit:

                        def heard(event: State | Log) -> None:
                            delayed(event)
                            line.heard(event)

                        after = await _Deletion(before, report, heard, limit).wait(events)
            except TimeoutError:
                if not limit.expired():
                    raise
                note(f"workspaced: {await _why_not_started(ws, chat_id, event_id)}")
                return 1
    return _print_result(before, after, as_json=command.json)


@dataclass(slots=True)
class _Deletion:
    """Waits for a deletion and reports the chat's events meanwhile."""

    before: State
    report: Callable[[str], None]
    heard: Callable[[State | Log], None]
    """Called with each event of the chat."""
    limit: asyncio.Timeout
    """Ends the wait unless a delete build starts."""
    _build: str | None = None
    """The delete build, once it has started."""
    _describer: ChangeDescriber = field(default_factory=ChangeDescriber)

    async def wait(self, events: AsyncIterator[State | Log]) -> State:
        """Return the state in which the deletion has succeeded or failed."""
        async for event in events:
            self.heard(event)
            for line in self._describer.lines(event):
                self.report(line)
            if isinstance(event, State) and self._has_ended(event):
                return event
        raise AssertionError("the events of a chat have no end")

    def _has_ended(self, after: State) -> bool:
        if _is_deleted(self.before, after):
            return True
        build = after.build
        if build is None or self.before.build is None:
            return False
        is_earlier = build.id == self.before.build.id and after.state != "stopping"
        if build.transition == "delete" and not is_earlier:
            self._build = build.id
            self.limit.reschedule(None)
        if self._build is None:
            return False
        return build.id != self._build or after.state == "failed"


def _is_deleted(before: State, after: State) -> bool:
    """Return whether the workspace no longer belongs to the chat."""
    had, has = before.workspace, after.workspace
    return had is None or has is None or has.id != had.id


def _print_result(before: State, after: State, *, as_json: bool) -> int:
    people, name = for_people(as_json=as_json), workspace_name(before.data)
    if not people:
        write_json(after.data)
    if _is_deleted(before, after):
        if people:
            write_lines([f"{name} is deleted"])
        return 0
    if after.failure is not None:
        reason = after.failure.message
    elif after.build is not None:
        reason = f"{after.build.transition} build {after.build.id} took over"
    else:
        reason = f"the chat is in state {after.state}"
    note(f"workspaced: {name} is not deleted:")
    for line in indented(reason):
        note(line)
    return 1


async def _why_not_started(ws: Workspaced, chat_id: str, event_id: str) -> str:
    """Return why no delete build started."""
    logged = [e async for e in read_events(ws, chat_id) if e["event"]["id"] == event_id]
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
    """Print the workspaces that belong to no chat."""
    async with connected(locate(settings), "operator") as ws:
        orphans = [entry async for entry in rpc_pages(ws, "list_orphans", "workspaces", "cursor")]
    if not for_people(as_json=command.json):
        write_json({"workspaces": [_shown(entry) for entry in orphans]})
    elif orphans:
        write_table(_ORPHAN_TITLES, [_orphan(entry) for entry in orphans])
    else:
        note("every workspace belongs to a chat")


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("id", "name", "owner_name", "pool", "state", "since")}


def _orphan(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        entry["id"],
        f"{entry['owner_name'] or '?'}/{entry['name'] or '?'}",
        entry["pool"] or "not known",
        entry["state"],
        "not known" if entry["since"] is None else local_time(entry["since"]),
    )
