"""What a client that waits is told: the phase, how long it has lasted, its limit, and the last line of the log."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Final

from workspaced import Log, State, Workspaced

_KEPT: Final = 1_000
"""Builds whose place in the log is remembered."""
_LINE: Final = 400
"""Characters of a log line that are shown."""


def last_line(text: str) -> str | None:
    """Return the last line of a text that is not blank, shortened."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:_LINE] if lines else None


def phase_text(state: State, line: str | None) -> str:
    """Return one line such as `building: 12 s of at most 600 s: Step 3/7`."""
    text = state.state
    build = state.build
    if state.deadline is not None and build is not None:
        elapsed = (datetime.now(UTC) - build.started_at).total_seconds()
        limit = (state.deadline - build.started_at).total_seconds()
        text += f": {max(elapsed, 0):.0f} s of at most {limit:.0f} s"
    if build is not None and build.cancel_requested_at is not None:
        text += ", being canceled"
    return text if line is None else f"{text}: {line}"


class News:
    """The newest state and log line of a chat, and a signal when one of them is new."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._state: State | None = None
        self._line: str | None = None

    def add(self, event: State | Log) -> None:
        """Take a state or log lines."""
        if isinstance(event, State):
            self._state = event
        elif (line := last_line(event.output)) is not None:
            self._line = line
        self.changed.set()

    def text(self) -> str:
        """Return what to tell the client now."""
        return "waiting" if self._state is None else phase_text(self._state, self._line)


class LastLines:
    """Finds the last line of a build's log; it reads each page but the last one once."""

    def __init__(self, ws: Workspaced) -> None:
        self._ws = ws
        self._places: OrderedDict[str, tuple[int | None, str | None]] = OrderedDict()
        """By build: where its last page begins, and the last line before that page."""

    async def of_build(self, chat_id: str, build_id: str) -> str | None:
        """Return the last line of the log. Raises WorkspacedError."""
        after, line = self._places.get(build_id, (None, None))
        while True:
            page = await self._ws.rpc("read_log", chat_id=chat_id, build_id=build_id, after=after)
            before = line
            for one in page["lines"]:
                line = last_line(one["output"]) or line
            if "next" not in page:
                break
            after = page["next"]
        self._places[build_id] = (after, before)
        self._places.move_to_end(build_id)
        if len(self._places) > _KEPT:
            self._places.popitem(last=False)
        return line

    async def text(self, state: State) -> str:
        """Return the phase of a chat with the last line of its build's log. Raises WorkspacedError."""
        build = state.build
        line = None if build is None else await self.of_build(state.chat_id, build.id)
        return phase_text(state, line)
