"""Output of a process whose workspace cannot be asked, from what its agent has published."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final, cast

from bus import Bus, subjects
from bus.streams import EXEC
from statemachine.chat import Chat
from statemachine.exec_tools import PAGE, ProcessOutputArguments, ProcessState, exec_id_of
from statemachine.naming import is_uuid
from statemachine.states import Phase

_HOW_IT_ENDED: Final = ("exit_code", "signal", "reason")


async def kept_output(bus: Bus, chat: Chat, args: ProcessOutputArguments) -> ProcessState | None:
    """Return a page of the published output of a process, or None if nothing of it is stored.

    Raises Unavailable.
    """
    if not is_uuid(args.exec_id):
        return None
    first = last = None
    page, size, begin, end = list[str](), 0, args.after, args.after
    limit = min(args.limit, PAGE)
    full = False
    async for event in _events(bus, subjects.exec_output(chat.chat_id, "*", args.exec_id)):
        first, last = first or event, event
        data = event["data"]
        if (
            full
            or not str(event["type"]).startswith("workspaced.exec_output.")
            or data["next"] <= end
        ):
            continue
        if page and data["offset"] > end:
            full = True  # the page ends where something was left out
            continue
        text, skipped = _from(data["output"], end - data["offset"])
        if not text:
            continue
        if not page:
            begin = end = data["offset"] + skipped
        taken = _beginning(text, limit - size) or ("" if page else text[0])
        page.append(taken)
        size += len(taken.encode())
        end += len(taken.encode())
        full = len(taken) < len(text)
    if first is None or last is None:
        return None
    result: ProcessState = {
        "exec_id": args.exec_id,
        "status": "running",
        "output": "".join(page),
        "offset": begin,
        "next": end,
    }
    if str(last["type"]).startswith("workspaced.exec_exited."):
        result["status"] = "exited"
        ended = {key: last["data"][key] for key in _HOW_IT_ENDED if key in last["data"]}
        return cast(ProcessState, {**result, **ended})
    if not _may_run(chat, args.exec_id, first):
        result["status"], result["reason"] = "exited", "stopped"
    return result


async def _events(bus: Bus, subject: str) -> AsyncIterator[dict[str, Any]]:
    """Return the stored events of a process in the order of the stream."""
    after = 0
    while (stored := await bus.get_next(EXEC.name, subject, after)) is not None:
        after = stored.sequence
        try:
            event = json.loads(stored.data)
            if isinstance(event, dict) and _is_readable(event):
                yield event
        except ValueError:  # an agent of another make may publish anything
            continue


def _is_readable(event: dict[str, Any]) -> bool:
    data = event.get("data")
    if not isinstance(data, dict) or not isinstance(event.get("type"), str):
        return False
    if not event["type"].startswith("workspaced.exec_output."):
        return True
    numbers = (data.get("offset"), data.get("next"))
    return all(isinstance(n, int) for n in numbers) and isinstance(data.get("output"), str)


def _may_run(chat: Chat, exec_id: str, first: dict[str, Any]) -> bool:
    """Return whether the process belongs to the chat's last start build, and nothing has ended that."""
    start = chat.start_build
    if chat.current is None or start is None or not start.succeeded:
        return False
    call_id = first["data"].get("call_id")
    if call_id is not None and exec_id != exec_id_of(chat.current.id, str(call_id)):
        return False  # a workspace that the chat had before
    try:
        began = datetime.fromisoformat(str(first.get("time")))
    except ValueError:
        began = start.started_at
    return chat.phase in (Phase.RUNNING, Phase.BEING_STOPPED) and began >= start.started_at


def _from(text: str, offset: int) -> tuple[str, int]:
    """Return the rest of a text after `offset` bytes, from the next whole character, and where it begins."""
    encoded = text.encode()
    offset = max(offset, 0)
    while offset < len(encoded) and encoded[offset] & 0xC0 == 0x80:  # noqa: PLR2004 — UTF-8
        offset += 1
    return encoded[offset:].decode(), offset


def _beginning(text: str, limit: int) -> str:
    """Return the characters of a text that fit into `limit` bytes."""
    return text.encode()[: max(limit, 0)].decode(errors="ignore")
