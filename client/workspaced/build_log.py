"""The log of one build as one origin writes it: lines collected for a moment, numbered, and sent in order."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

from workspaced import subjects
from workspaced.errors import Unavailable, WorkspacedError
from workspaced.events import cloud_event, encode, identity
from workspaced.files import write_atomically
from workspaced.retrying import Backoff

Level = Literal["info", "warn", "error"]
COLLECT_SECONDS: Final = 0.05
"""Seconds that a line waits at most for more lines of the same message."""
MESSAGE_SIZE: Final = 32 * 1024
"""Largest number of bytes of output in one message."""
BUILD_LOG_SIZE: Final = 10 * 1024 * 1024
"""Largest number of bytes of output of one build, of all its senders together."""
VERDICT_SIZE: Final = 1024
"""Bytes that each sender may write beyond its limit to report how something ended."""
_LEFT_OUT: Final = b"[the limit of this build's log is reached: what follows is left out]\n"
_NUMBERS_RESERVED: Final = 256
_SAVE_EVERY: Final = 256 * 1024

Send = Callable[[str, bytes, str], Awaitable[None]]
"""Sends an event: subject, body and identity. Raises Unavailable to have it sent again, another WorkspacedError
if that would not help."""
_log = logging.getLogger(__name__)


class BuildLog:
    """The log of one build as one origin writes it. `write` never waits; `run` is the task that sends.

    `ledger` is a file from which a restarted sender continues the numbers and the limit of a killed one.

    """

    def __init__(
        self,
        chat_id: str,
        build_id: str,
        origin: Literal["provisioner", "agent"],
        source: str,
        send: Send,
        *,
        ledger: Path,
        limit: int = BUILD_LOG_SIZE,
        traceparent: str | None = None,
    ) -> None:
        self._chat_id, self._build_id, self._origin, self._source = (
            chat_id,
            build_id,
            origin,
            source,
        )
        self._send, self._traceparent, self._ledger = send, traceparent, ledger
        self._pending: deque[tuple[str, Level, bytearray]] = deque()
        self._pending_event, self._flush, self._empty = (
            asyncio.Event(),
            asyncio.Event(),
            asyncio.Event(),
        )
        self._empty.set()
        stored = {"sequence": 0, "left": limit, "limit_reported": 0, "verdict_left": VERDICT_SIZE}
        with suppress(FileNotFoundError, ValueError):
            stored |= json.loads(ledger.read_bytes())
        self._sequence = self._reserved = int(stored["sequence"])
        self._left, self._limit_reported = int(stored["left"]), bool(stored["limit_reported"])
        self._saved_left, self._verdict_left = self._left, int(stored["verdict_left"])
        self._refused = False

    @property
    def left(self) -> int:
        """Bytes that may still be written before the limit."""
        return self._left

    def write(self, stage: str, level: Level, text: str) -> None:
        """Add text without secrets; past the limit, one line reports that the rest is left out."""
        if self._limit_reported or not text:
            return
        output = _encoded(text)
        if len(output) > self._left:
            self._append(stage, level, output[: _cut(output, self._left)])
            self._append(stage, "warn", _LEFT_OUT)
            self._left, self._limit_reported = 0, True
        else:
            self._append(stage, level, output)
            self._left -= len(output)
        self._wake()

    def verdict(self, stage: str, text: str) -> None:
        """Add a line that reports how something ended. A few bytes beyond the limit are reserved for it."""
        output = _encoded(text)
        if len(output) <= self._left:
            self.write(stage, "error", text)
        elif output := output[: _cut(output, self._verdict_left)]:
            self._verdict_left -= len(output)
            self._append(stage, "error", output)
            self._wake()

    async def drained(self, within: float) -> None:
        """Wait until everything that was written has been sent, but at most `within` seconds."""
        self._flush.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._empty.wait()

    async def run(self) -> None:
        """Send what is written, in order and with retries, until cancelled."""
        backoff = Backoff()
        while True:
            await self._pending_event.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(COLLECT_SECONDS):
                    await self._flush.wait()
            self._flush.clear()
            while self._pending:
                stage, level, output = self._take()
                event = self._event(stage, level, output)
                while not await self._sent(event):
                    await backoff.wait()
                backoff.reset()
            self._pending_event.clear()
            self._empty.set()

    def close(self) -> None:
        """Save the exact position of this sender."""
        self._save_ledger(self._sequence)

    async def _sent(self, event: Mapping[str, Any]) -> bool:
        """Send a message; return False to retry. A message that NATS refuses for good counts as sent."""
        subject = subjects.log(self._chat_id, self._build_id)
        try:
            await self._send(subject, encode(event).encode(), identity(event))
        except Unavailable:
            return False
        except WorkspacedError as error:
            if not self._refused:
                _log.error(
                    "NATS refuses lines of the log of build %s, so they are lost: %s",
                    self._build_id,
                    error,
                )
            self._refused = True
        return True

    def _wake(self) -> None:
        self._empty.clear()
        self._pending_event.set()
        if len(self._pending) > 1 or len(self._pending[0][2]) >= MESSAGE_SIZE:
            self._flush.set()

    def _append(self, stage: str, level: Level, output: bytes) -> None:
        if self._pending and self._pending[-1][:2] == (stage, level):
            self._pending[-1][2].extend(output)
        elif output:
            self._pending.append((stage, level, bytearray(output)))

    def _take(self) -> tuple[str, Level, bytes]:
        stage, level, output = self._pending[0]
        end = len(output)
        if end > MESSAGE_SIZE:
            # Cut after a line if one ends in the second half.
            end = output.rfind(b"\n", MESSAGE_SIZE // 2, MESSAGE_SIZE) + 1 or _cut(
                output, MESSAGE_SIZE
            )
        taken = bytes(output[:end])
        del output[:end]
        if not output:
            self._pending.popleft()
        return stage, level, taken

    def _event(self, stage: str, level: Level, output: bytes) -> Mapping[str, Any]:
        self._sequence += 1
        if self._sequence > self._reserved or self._saved_left - self._left > _SAVE_EVERY:
            # Saved in steps: a killed sender leaves a gap, but never uses a number twice.
            self._save_ledger(self._sequence + _NUMBERS_RESERVED)
        data = {
            "build_id": self._build_id,
            "origin": self._origin,
            "stage": stage,
            "level": level,
            "output": output.decode(),
            "sequence": self._sequence,
        }
        return cloud_event("log_appended", self._source, self._chat_id, data, self._traceparent)

    def _save_ledger(self, reserved: int) -> None:
        self._reserved, self._saved_left = reserved, self._left
        position = {
            "sequence": reserved,
            "left": self._left,
            "limit_reported": int(self._limit_reported),
            "verdict_left": self._verdict_left,
        }
        with suppress(OSError):  # a full disk must not fail a build because of its log
            write_atomically(self._ledger, json.dumps(position).encode(), durable=False)


def _encoded(text: str) -> bytes:
    return text.replace("\0", "\ufffd").encode(errors="replace")


def _cut(output: bytes | bytearray, limit: int) -> int:
    """Return where to cut the output at or before `limit`, never inside a character."""
    limit = min(limit, len(output))
    while 0 < limit < len(output) and output[limit] & 0xC0 == 0x80:  # noqa: PLR2004 — UTF-8 inside
        limit -= 1
    return limit
