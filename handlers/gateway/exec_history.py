"""Output of a process whose workspace cannot be asked, from what its agent has published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, cast

from bus import Bus, subjects
from bus.streams import EXEC
from statemachine.chat import Chat
from statemachine.exec_tools import PAGE, ProcessOutputArguments, ProcessState
from statemachine.naming import is_uuid
from statemachine.states import Phase

_HOW_IT_ENDED: Final = ("exit_code", "signal", "reason")
_TAIL: Final = 256
"""Sequences at the end of a process's events that are read for its end, also if the page is full before them."""


async def kept_output(bus: Bus, chat: Chat, args: ProcessOutputArguments) -> ProcessState | None:
    """Return a page of the published output of a process, or None if nothing of it is stored.

    Between a full page and the last `_TAIL` sequences nothing is read, and `dropped` does not count what is missing
    there.

    Raises Unavailable.
    """
    if not is_uuid(args.exec_id):
        return None
    anyones = subjects.exec_output(chat.chat_id, "*", args.exec_id)
    stored = await bus.get_next(EXEC.name, anyones, 0)
    if stored is None:
        return None
    subject = stored.subject
    last = await bus.get_last(EXEC.name, subject)
    tail = 0 if last is None else last.sequence - _TAIL
    kept = _Kept(args.after, min(args.limit, PAGE))
    while stored is not None:
        after = stored.sequence
        kept.take(stored.data)
        if kept.page.full and after < tail:
            after = tail
            kept.skip()
        stored = await bus.get_next(EXEC.name, subject, after)
    if not kept.is_readable:
        return None
    result = kept.shown(args.exec_id)
    if result["status"] == "running" and not _may_run(chat, subjects.exec_agent(subject)):
        result["status"], result["reason"] = "exited", "stopped"
    return result


class _Kept:
    """What the published events of a process say about its output and its end."""

    def __init__(self, after: int, limit: int) -> None:
        self.page = _Page(after, limit)
        self.is_readable = False
        """Whether at least one event could be read."""
        self._ended: dict[str, Any] | None = None
        self._end = self._missing = self._size = 0
        self._skipped = False

    def take(self, stored: bytes) -> None:
        """Take the next event. Pieces of output come in order, but for repeated ones."""
        event = _event(stored)
        if event is None:
            return
        self.is_readable, data = True, event["data"]
        if _is(event, "exec_exited"):
            # Not always the last event: what the command left running may write more.
            self._ended = data
            self._size = data["size"] if isinstance(data.get("size"), int) else 0
        elif _is(event, "exec_output"):
            if not self._skipped:
                self._missing += max(0, data["offset"] - self._end)
            self._skipped = False
            self._end = max(self._end, data["next"])
            self.page.add(data["offset"], data["output"])

    def skip(self) -> None:
        """Note that events before the next one are not read, so that they do not count as missing."""
        self._skipped = True

    def shown(self, exec_id: str) -> ProcessState:
        """Return the page; the process counts as running if its end was not published."""
        end = max(self._size, self._end)
        result: ProcessState = {
            "exec_id": exec_id,
            "status": "running",
            "output": "".join(self.page.texts),
            "offset": min(self.page.begin, end),
            "next": min(self.page.end, end),
        }
        if dropped := self._missing + end - self._end:
            result["dropped"] = dropped
        if self._ended is None:
            return result
        how = {key: self._ended[key] for key in _HOW_IT_ENDED if key in self._ended}
        return cast(ProcessState, {**result, "status": "exited", **how})


class _Page:
    """A page of at most `limit` bytes, put together from pieces in the order of the stream.

    It ends where something was left out, and has at least one character if there is any.
    """

    def __init__(self, after: int, limit: int) -> None:
        self.texts: list[str] = []
        self.begin = self.end = after
        self._left = limit
        self.full = False
        """Whether nothing more can be added."""

    def add(self, offset: int, text: str) -> None:
        """Add what the page lacks of a piece."""
        if self.full or (self.texts and offset > self.end):
            self.full = True
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
        self.full = len(taken) < len(text)


def _is(event: Mapping[str, Any], name: str) -> bool:
    return str(event["type"]).startswith(f"workspaced.{name}.")


def _event(stored: bytes) -> dict[str, Any] | None:
    """Return a stored event, or None if it is unreadable: an agent of another make may publish anything."""
    try:
        event = json.loads(stored)
    except ValueError:
        return None
    return event if isinstance(event, dict) and _is_readable(event) else None


def _is_readable(event: dict[str, Any]) -> bool:
    data = event.get("data")
    if not isinstance(data, dict) or not isinstance(event.get("type"), str):
        return False
    if not _is(event, "exec_output"):
        return True
    numbers = (data.get("offset"), data.get("next"))
    return all(isinstance(n, int) for n in numbers) and isinstance(data.get("output"), str)


def _may_run(chat: Chat, agent_id: str) -> bool:
    """Return whether the agent belongs to the chat's last start build, and nothing has ended that.

    Every build gives its agents new ids, so no clocks are compared.
    """
    start = chat.start_build
    if start is None or start.outcome is None or not start.succeeded:
        return False
    if all(agent.id != agent_id for agent in start.outcome.agents):
        return False
    return chat.phase in (Phase.RUNNING, Phase.BEING_STOPPED)


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
