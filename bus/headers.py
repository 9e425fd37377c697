"""Headers that the server understands, those it adds, and how they look on the wire."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from bus.errors import Refused

MESSAGE_ID: Final = "Nats-Msg-Id"
"""A repeat of it within the stream's duplicate window is dropped."""
EXPECTED_LAST: Final = "Nats-Expected-Last-Subject-Sequence"
"""The message is refused unless this is the subject's last sequence."""
TTL: Final = "Nats-TTL"
"""How long the message lives, as duration text."""
SCHEDULE: Final = "Nats-Schedule"
"""When a message is to be stored on the schedule's target."""
SCHEDULE_TARGET: Final = "Nats-Schedule-Target"
"""Where a schedule's message is to be stored."""
BATCH_ID: Final = "Nats-Batch-Id"
"""Which atomic batch the message belongs to."""
BATCH_SEQUENCE: Final = "Nats-Batch-Sequence"
"""Its place in the batch, from 1."""
BATCH_COMMIT: Final = "Nats-Batch-Commit"
"""Marks the batch's last message."""
STREAM: Final = "Nats-Stream"
"""Which stream a direct get or a republished copy came from."""
SUBJECT: Final = "Nats-Subject"
"""The subject it was stored under."""
SEQUENCE: Final = "Nats-Sequence"
"""Its place in the stream."""
LAST_SEQUENCE: Final = "Nats-Last-Sequence"
"""Of a republished copy: the place of the subject's message before it."""
TIME_STAMP: Final = "Nats-Time-Stamp"
"""When it was stored."""
SERVICE_ERROR: Final = "Nats-Service-Error"
"""A micro service's words about what went wrong."""
SERVICE_ERROR_CODE: Final = "Nats-Service-Error-Code"
"""Its code, as in HTTP."""

ADDED: Final = frozenset({STREAM, SUBJECT, SEQUENCE, TIME_STAMP})
"""What a direct get adds to the headers of the stored message."""

_NAME: Final = re.compile(r"[!-9;-~]+")
_NEWLINES: Final = str.maketrans({"\r": " ", "\n": " "})
_VERSION: Final = "NATS/1.0"
_PREAMBLE: Final = len(f"{_VERSION} ")


def write_block(headers: Mapping[str, str]) -> bytes:
    """Write headers as they go over the wire. Raises Refused for what is no header name."""
    lines = [_VERSION]
    for key, value in headers.items():
        if not _NAME.fullmatch(key):
            raise Refused(f"not a header: {key!r}")
        lines.append(f"{key}: {value.translate(_NEWLINES)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_block(block: bytes) -> tuple[str, dict[str, str]]:
    """Read status and headers; a status is the server's only on the first line, not as a header."""
    first, *lines = block.decode("utf-8", "replace").split("\r\n")
    headers = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            headers[key.strip()] = value.strip()
    if len(first) <= _PREAMBLE:
        return "", headers
    status, _, headers["Description"] = first[_PREAMBLE:].partition(" ")
    return status, headers


def publishing(
    headers: Mapping[str, str] | None,
    message_id: str | None,
    expected_last: int | None,
    ttl: float | None = None,
) -> dict[str, str]:
    """Join a publisher's headers with those that tell the stream what to do."""
    joined = dict(headers) if headers else {}
    if message_id is not None:
        joined[MESSAGE_ID] = message_id
    if expected_last is not None:
        joined[EXPECTED_LAST] = str(expected_last)
    if ttl is not None:
        # Whole seconds are what the server counts in.
        joined[TTL] = f"{max(1, round(ttl))}s"
    return joined


def scheduling(headers: Mapping[str, str] | None, target: str, at: datetime) -> dict[str, str]:
    """Join a publisher's headers with those that make the server publish at that time."""
    joined = dict(headers) if headers else {}
    moment = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    joined[SCHEDULE] = f"@at {moment}"
    joined[SCHEDULE_TARGET] = target
    return joined
