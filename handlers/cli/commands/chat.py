"""`workspaced chat list`, `chat show`, `build cancel` and `events`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from handlers.app import locate, store_from_settings
from handlers.cli.client import connected, get_known_chat, read_events, rpc_pages, unknown_chat
from handlers.cli.command_table.chats import CancelBuild, KeepWorkspace, ListChats, ShowChat
from handlers.cli.command_table.event_logs import ExportEvents
from handlers.cli.commands.texts import workspace_name
from handlers.cli.output import (
    Progress,
    counted,
    for_people,
    local_time,
    note,
    write_entries,
    write_fields,
    write_json,
    write_lines,
)
from handlers.cli.pool_queue import PoolQueues
from handlers.settings import Settings

_TITLES: Final = ("CHAT", "STATE", "WORKSPACE", "BUILD", "AGENT", "NOTE")


async def list_chats(command: ListChats, settings: Settings) -> None:
    """Print the chats that match the flags."""
    endpoints = locate(settings)
    async with connected(endpoints, "operator") as ws:
        queues = PoolQueues(ws, partial(endpoints.bus, "operator"))
        chats = (
            await queues.add_notice(chat)
            async for chat in rpc_pages(
                ws,
                "list_chats",
                "chats",
                "cursor",
                state=command.state,
                organization_id=settings.organization,
                owner_id=command.owner,
            )
        )
        await write_entries(chats, _TITLES, chat_row, none="no such chats", as_json=command.json)


async def show_chat(command: ShowChat, settings: Settings) -> None:
    """Print everything that `get_chat` returns. Raises NotFoundError."""
    endpoints = locate(settings)
    async with connected(endpoints, "operator") as ws:
        queues = PoolQueues(ws, partial(endpoints.bus, "operator"))
        chat = await queues.add_notice(await get_known_chat(ws, command.chat))
    if for_people(as_json=command.json):
        write_fields(chat_fields(chat))
    else:
        write_json(chat)


async def keep(command: KeepWorkspace, settings: Settings) -> int:
    """Keep the chat's workspace running; return 0 if that has an effect."""
    async with connected(locate(settings), "chat-service") as ws:
        kept = await ws.rpc("keep", chat_id=command.chat, seconds=command.lifetime)
    stops_at = kept["stops_at"]
    if not for_people(as_json=command.json):
        write_json(kept)
    elif stops_at is not None:
        write_lines(
            [f"the workspace runs until {local_time(stops_at)}, longer if somebody uses it"]
        )
    if stops_at is None:
        note(
            f"workspaced: nothing was changed: the workspace of chat {command.chat} does not run, or has no lifetime; "
            f"see `workspaced chat show {command.chat}`"
        )
        return 1
    return 0


async def cancel_build(command: CancelBuild, settings: Settings) -> None:
    """Cancel the chat's build, and print the reply of `cancel_build`."""
    async with connected(locate(settings), "operator") as ws:
        reply = await ws.rpc(
            "cancel_build", chat_id=command.chat, build_id=command.build, reason=command.reason
        )
    if not reply["canceled"]:
        which = "that build of it is not" if command.build else "no build of it is"
        note(f"nothing was canceled in chat {command.chat}: {which} in flight")
    elif for_people(as_json=False):
        note(f"`workspaced chat show {command.chat}` tells when it has ended, and how")
    write_json(reply)


async def export_events(command: ExportEvents, settings: Settings) -> None:
    """Print the event log of one chat or of all. Raises NotFoundError."""
    if command.chat is None:
        await _export_all(settings)
        return
    found = False
    async with connected(locate(settings), "operator") as ws:
        async for entry in read_events(ws, command.chat):
            write_json(entry)
            found = True
    if not found:
        raise unknown_chat(command.chat)


async def _export_all(settings: Settings) -> None:
    """Print all event logs, chat by chat, each as it was when its page was read."""
    progress, chats, entries, last = Progress("{} entries"), 0, 0, ""
    async with store_from_settings(settings) as store:
        async for chat_id, entry in store.audit.logs():
            write_json(entry)
            chats, last = chats + (chat_id != last), chat_id
            entries += 1
            progress.at(entries)
    note(f"{counted(entries, 'entry', 'entries')} of {counted(chats, 'chat')}")


def chat_row(chat: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a chat in the table of chats."""
    failure, agent = chat["failure"], chat["agent"]
    return (
        chat["chat_id"],
        _state(chat),
        workspace_name(chat),
        _build(chat),
        "-" if agent is None else f"{agent['name']} {agent['status']}",
        chat.get("notice") or (failure["message"] if failure else ""),
    )


def chat_fields(chat: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what `get_chat` replied as names and values."""
    fields = [("chat", chat["chat_id"]), ("state", f"{_state(chat)}, version {chat['version']}")]
    if chat["workspace"] is not None:
        fields += [("workspace", f"{workspace_name(chat)}  {chat['workspace']['id']}")]
        fields += [("template", chat["workspace"]["template_id"] or "not known here")]
    if chat["build"] is not None:
        started = local_time(chat["build"]["started_at"])
        fields += [("build", f"{_build(chat)}, since {started}  {chat['build']['id']}")]
    if (agent := chat["agent"]) is not None:
        lifecycle = f", {agent['lifecycle']}" if agent["lifecycle"] else ""
        reason = f"; {agent['reason']}" if agent["reason"] else ""
        fields += [("agent", f"{agent['name']}: {agent['status']}{lifecycle}{reason}")]
    if (failure := chat["failure"]) is not None:
        code, message = failure.get("error_code"), failure["message"]
        fields += [("failure", f"{code}: {message}" if code else message)]
    if chat["deadline"] is not None:
        fields += [("deadline", local_time(chat["deadline"]))]
    if chat.get("stops_at") is not None:
        fields += [("stops at", f"{local_time(chat['stops_at'])}, if nobody uses it until then")]
    if "notice" in chat:
        fields += [("notice", chat["notice"])]
    calls = [
        f"{call['tool']}, since {local_time(call['asked_at'])}  {call['call_id']}"
        for call in chat["open_calls"]
    ]
    fields += [("open calls", "\n".join(calls) or "none")]
    if (cause := chat["cause"]) is not None:
        fields += [("last cause", f"{cause['type']} from {cause['source']}")]
    return fields


def _state(chat: Mapping[str, Any]) -> str:
    failure = chat["failure"]
    return f"failed: {failure['reason']}" if failure else str(chat["state"])


def _build(chat: Mapping[str, Any]) -> str:
    build = chat["build"]
    return "-" if build is None else f"{build['number']} {build['transition']}"
