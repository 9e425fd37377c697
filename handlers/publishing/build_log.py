"""A build's log with masked output of commands, over the bus, and the validation of its lines for display.

The functions at the end are for readers. A client with the permission to publish to a build's log can publish any
bytes there, so readers validate a message before they show it.
"""

from __future__ import annotations

import codecs
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from workspaced import build_log
from workspaced.build_log import BUILD_LOG_SIZE
from workspaced.errors import Refused, Unavailable

from bus import BusError, is_final
from statemachine.mask import Mask, MaskedStream

Send = Callable[[str, bytes], Awaitable[None]]


class BuildLog(build_log.BuildLog):
    """The log of one build as one origin writes it, over the bus."""

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
        async def send_event(subject: str, body: bytes, _identity: str) -> None:
            try:
                await send(subject, body)
            except BusError as error:
                raise (Refused if is_final(error) else Unavailable)(str(error)) from error

        super().__init__(
            chat_id,
            build_id,
            origin,
            source,
            send_event,
            ledger=ledger,
            limit=limit,
            traceparent=traceparent,
        )
        self.mask = mask or Mask()

    def stream(self, stage: str) -> Output:
        """Return an object that takes the raw output of one command."""
        return Output(self, stage)


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
