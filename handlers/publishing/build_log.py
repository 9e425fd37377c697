"""Lines of a build's log: publishing them in numbered batches within a limit, and validating them for display.

`BuildLog` is the sender. The functions at the end are for readers. A client with the permission to publish to a
build's log can publish any bytes there, so readers validate a message before they show it.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal
from uuid import uuid4

from bus import Backoff, BusError, is_final, subjects
from handlers.publishing.atomic_files import write_atomically
from statemachine import codec
from statemachine.mask import Mask, MaskedStream
from statemachine.messages import LogAppended

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

Level = Literal["info", "warn", "error"]
_log = logging.getLogger(__name__)

Send = Callable[[str, bytes], Awaitable[None]]


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
        mask: Mask | None = None,
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
        self.mask = mask or Mask()
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

    def stream(self, stage: str) -> Output:
        """Return an object that takes the raw output of one command."""
        return Output(self, stage)

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
                body = self._message(stage, level, output)
                while not await self._sent(body):
                    await backoff.wait()
                backoff.reset()
            self._pending_event.clear()
            self._empty.set()

    def close(self) -> None:
        """Save the exact position of this sender."""
        self._save_ledger(self._sequence)

    async def _sent(self, body: bytes) -> bool:
        """Send a message; return False to retry. A message that NATS refuses for good counts as sent."""
        try:
            await self._send(subjects.log(self._chat_id, self._build_id), body)
        except BusError as error:
            if not is_final(error):
                return False
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

    def _message(self, stage: str, level: Level, output: bytes) -> bytes:
        self._sequence += 1
        if self._sequence > self._reserved or self._saved_left - self._left > _SAVE_EVERY:
            # Saved in steps: a killed sender leaves a gap, but never uses a number twice.
            self._save_ledger(self._sequence + _NUMBERS_RESERVED)
        data: LogAppended = {
            "build_id": self._build_id,
            "origin": self._origin,
            "stage": stage,
            "level": level,
            "output": output.decode(),
            "sequence": self._sequence,
        }
        return codec.encode(
            "log_appended",
            self._source,
            self._chat_id,
            data,
            event_id=str(uuid4()),
            time=datetime.now(UTC),
            traceparent=self._traceparent,
        )

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


class Output:
    """The output of one command: decoded and masked as it arrives."""

    def __init__(self, log: BuildLog, stage: str) -> None:
        self._log, self._stage = log, stage
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._mask = MaskedStream(log.mask)
        self._last = deque[str](maxlen=64)

    def feed(self, chunk: bytes) -> None:
        """Take a piece of output; `b""` at the end."""
        text = self._mask.feed(self._decoder.decode(chunk, final=not chunk))
        if not chunk:
            text += self._mask.release()
        self._last.append(text[-4096:])
        self._log.write(self._stage, "info", text)

    def last_lines(self) -> str:
        """Return the last ten lines, for the error of a command that failed."""
        return "\n".join("".join(self._last)[-4096:].splitlines()[-10:]).strip()


def _encoded(text: str) -> bytes:
    return text.replace("\0", "\ufffd").encode(errors="replace")


def _cut(output: bytes | bytearray, limit: int) -> int:
    """Return where to cut the output at or before `limit`, never inside a character."""
    limit = min(limit, len(output))
    while 0 < limit < len(output) and output[limit] & 0xC0 == 0x80:  # noqa: PLR2004 — UTF-8 inside
        limit -= 1
    return limit


_TEXTS: Final = ("stage", "level", "output")
_ORIGINS: Final = ("provisioner", "agent")


def read_log_line(message: bytes, build_id: str) -> dict[str, Any] | None:
    """Return the data of a log_appended event of that build, or None if it is invalid.

    It is as lenient as the reading of other data: a null counts as absent, and 2.0 as an integer.

    """
    envelope = read_envelope(message)
    data = envelope.get("data") if envelope else None
    if not isinstance(data, dict):
        return None
    line = {key: value for key, value in data.items() if value is not None}
    if line.get("build_id") == "":
        del line["build_id"]
    number = line.get("sequence")
    if isinstance(number, float) and number.is_integer():
        line["sequence"] = int(number)
    sound = (
        line.get("build_id", build_id) == build_id
        and line.get("origin", "agent") in _ORIGINS
        and type(line.get("sequence", 0)) is int
        and all(isinstance(line.get(key, ""), str) for key in _TEXTS)
    )
    return line if sound else None


def is_complete_line(line: Mapping[str, Any]) -> bool:
    """Return whether a line has every key that a log line must have."""
    return line.keys() >= {"build_id", "origin", "sequence", *_TEXTS}


def read_envelope(message: bytes) -> dict[str, Any] | None:
    """Return a message's JSON object, or None if it is not one."""
    try:
        envelope = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return envelope if isinstance(envelope, dict) else None


def read_ui_message(subject: str, message: bytes) -> dict[str, Any] | None:
    """Return a message of a chat's ui subject: a state, or a valid log line; None if it is neither."""
    *_, what, last = subject.split(".")
    envelope = read_envelope(message)
    if envelope is None:
        return None
    if what != "log":
        return envelope
    line = read_log_line(message, last)
    if line is None or not is_complete_line(line):
        return None
    return {**envelope, "type": "workspaced.log_appended.v1", "data": line}
