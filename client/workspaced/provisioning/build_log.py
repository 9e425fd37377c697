"""The log of one build: lines collected for a moment, numbered, and sent in order."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Literal

from workspaced import subjects
from workspaced.provisioning.events import cloud_event, encode
from workspaced.provisioning.link import Link, LinkRefused, cancel_and_wait
from workspaced.provisioning.masking import Mask

Level = Literal["info", "warn", "error"]
COLLECT_SECONDS: Final = 0.04
"""Seconds that a line waits for more lines of the same message; the contract allows 0.05."""
MESSAGE_SIZE: Final = 32 * 1024
BUILD_LOG_SIZE: Final = 10 * 1024 * 1024
_LAST_LINES: Final = 2.0
"""Seconds that the end of a build waits at most for its last lines."""
_NUMBERS_RESERVED: Final = 256
_LEFT_OUT: Final = "[the limit of this build's log is reached: what follows is left out]\n"

_log = logging.getLogger(__name__)


class BuildLog:
    """Takes lines at any time without waiting; `running` sends them.

    `ledger` is a file from which the next process continues the numbers and the limit.
    """

    def __init__(self, link: Link, *, name: str, chat_id: str, build_id: str, ledger: Path) -> None:
        self._link, self._source, self._ledger = link, f"/provisioner/{name}", ledger
        self._chat_id, self._build_id = chat_id, build_id
        self.mask = Mask()
        self._pending: deque[tuple[str, Level, bytearray]] = deque()
        self._wake, self._full, self._empty = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._empty.set()
        stored = {"sequence": 0, "left": BUILD_LOG_SIZE}
        with suppress(OSError, ValueError):
            stored |= json.loads(ledger.read_bytes())
        self._sequence = self._reserved = int(stored["sequence"])
        self._left = int(stored["left"])

    def write(self, text: str, stage: str, level: Level) -> None:
        """Add one or many lines, with the values of sensitive parameters masked."""
        if not text or self._left <= 0:
            return
        text = self.mask(text)
        output = (text if text.endswith("\n") else f"{text}\n").encode(errors="replace")
        output = output.replace(b"\0", "\ufffd".encode())
        if len(output) > self._left:
            self._append(stage, level, output[: _cut(output, self._left)])
            self._append(stage, "warn", _LEFT_OUT.encode())
            self._left = 0
        else:
            self._append(stage, level, output)
            self._left -= len(output)
        self._empty.clear()
        self._wake.set()
        if len(self._pending) > 1 or len(self._pending[0][2]) >= MESSAGE_SIZE:
            self._full.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send what is written; at the end, wait a moment for the last lines."""
        sending = asyncio.create_task(self._send())
        try:
            yield
            self._full.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_LINES):
                    await self._empty.wait()
        finally:
            await cancel_and_wait(sending)
            self._save(self._sequence)

    async def _send(self) -> None:
        refused = False
        while True:
            await self._wake.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(COLLECT_SECONDS):
                    await self._full.wait()
            self._full.clear()
            while self._pending:
                subject = subjects.log(self._chat_id, self._build_id)
                identity, body = self._message()
                try:
                    await self._link.store(subject, body, identity, believe_duplicate=True)
                except LinkRefused as error:
                    if not refused:
                        _log.error("lines of build %s are lost: %s", self._build_id, error)
                    refused = True
            self._wake.clear()
            self._empty.set()

    def _append(self, stage: str, level: Level, output: bytes) -> None:
        if self._pending and self._pending[-1][:2] == (stage, level):
            self._pending[-1][2].extend(output)
        elif output:
            self._pending.append((stage, level, bytearray(output)))

    def _message(self) -> tuple[str, bytes]:
        stage, level, output = self._pending[0]
        end = len(output)
        if end > MESSAGE_SIZE:
            # Cut after a line if one ends in the second half.
            end = output.rfind(b"\n", MESSAGE_SIZE // 2, MESSAGE_SIZE) + 1
            end = end or _cut(output, MESSAGE_SIZE)
        taken = bytes(output[:end])
        del output[:end]
        if not output:
            self._pending.popleft()
        self._sequence += 1
        if self._sequence > self._reserved:
            # In steps: a process that is killed leaves a gap, and no number is used twice.
            self._save(self._sequence + _NUMBERS_RESERVED)
        data = {
            "build_id": self._build_id,
            "origin": "provisioner",
            "stage": stage,
            "level": level,
            "output": taken.decode(),
            "sequence": self._sequence,
        }
        event = cloud_event("log_appended", self._source, self._chat_id, data)
        return f"{self._source}:{event['id']}", encode(event).encode()

    def _save(self, reserved: int) -> None:
        self._reserved = reserved
        with suppress(OSError):  # a full disk must not fail a build because of its log
            self._ledger.write_text(json.dumps({"sequence": reserved, "left": self._left}))


def _cut(output: bytes | bytearray, limit: int) -> int:
    """Return where to cut at or before `limit`, never inside a character."""
    limit = min(limit, len(output))
    while 0 < limit < len(output) and output[limit] & 0xC0 == 0x80:  # noqa: PLR2004 — inside one
        limit -= 1
    return limit
