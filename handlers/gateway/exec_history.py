"""Output of a process whose workspace cannot be asked, from what its agent has published."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
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
    first: dict[str, Any] | None = None
    ended: dict[str, Any] | None = None
    page, known, size = _Page(args.after, min(args.limit, PAGE)), _Extent(), 0
    async for event in _events(bus, subjects.exec_output(chat.chat_id, "*", args.exec_id)):
        first = first or event
        data = event["data"]
        if _is(event, "exec_exited"):
            # Not always the last event: what the command left running may write more.
            ended = data
            size = data["size"] if isinstance(data.get("size"), int) else 0
        elif _is(event, "exec_output"):
            known.add(data["offset"], data["next"])
            page.add(data["offset"], data["output"])
    if first is None:
        return None
    end = max(size, known.end)
    result: ProcessState = {
        "exec_id": args.exec_id,
        "status": "running",
        "output": "".join(page.texts),
        "offset": min(page.begin, end),
        "next": min(page.end, end),
    }
    if dropped := end - known.bytes:
        result["dropped"] = dropped
    if ended is not None:
        result["status"] = "exited"
        return cast(ProcessState, {**result, **{k: ended[k] for k in _HOW_IT_ENDED if k in ended}})
    if not _may_run(chat, args.exec_id, first):
        result["status"], result["reason"] = "exited", "stopped"
    return result


class _Page:
    """A page of at most `limit` bytes, put together from pieces in the order of the stream.

    It ends where something was left out, and has at least one character if there is any.
    """

    def __init__(self, after: int, limit: int) -> None:
        self.texts: list[str] = []
        self.begin = self.end = after
        self._left, self._full = limit, False

    def add(self, offset: int, text: str) -> None:
        """Add what the page lacks of a piece."""
        if self._full or (self.texts and offset > self.end):
            self._full = True
            return
        text, skipped = _from(text, self.end - offset)
        if not text:
            return
        taken = _beginning(text, self._left) or ("" if self.texts else text[0])
        if not self.texts:
            self.begin = self.end = offset + skipped
        self.texts.append(taken)
        size = len(taken.encode())
        self.end, self._left = self.end + size, self._left - size
        self._full = len(taken) < len(text)


class _Extent:
    """How many bytes of an output its pieces hold, and where the last one ends; a piece may come twice."""

    def __init__(self) -> None:
        self.bytes = self.end = 0

    def add(self, offset: int, end: int) -> None:
        """Count a piece. Pieces come in order, but for repeated ones."""
        self.bytes += max(0, end - max(offset, self.end))
        self.end = max(self.end, end)


def _is(event: Mapping[str, Any], name: str) -> bool:
    return str(event["type"]).startswith(f"workspaced.{name}.")


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
    if not _is(event, "exec_output"):
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
