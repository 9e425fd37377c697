"""Messages of the bus, and their headers: by name, and as bytes on the wire."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from nats.js.api import Header, RetentionPolicy

from bus.errors import Refused

CLOUDEVENT: Final = {"Content-Type": "application/cloudevents+json"}
"""Headers of every CloudEvent in structured mode."""
NAK: Final = b"-NAK"
"""Published on a delivery's `reply`, it makes the server redeliver the message immediately."""
BATCH_LIMIT: Final = 1000
"""The most messages that the server stores as one atomic batch."""
BATCH_WORTHWHILE: Final = 12
"""From this size on, a batch is faster than concurrent publishes: it costs 2.5 ms and one disk write."""

# Plain strings, because a member of an Enum hashes by its name, so it does not find a key of a dict.
MESSAGE_ID: Final = Header.MSG_ID.value
EXPECTED_LAST: Final = Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value
TTL: Final = Header.MSG_TTL.value
SCHEDULE: Final = Header.SCHEDULE.value
SCHEDULE_TARGET: Final = Header.SCHEDULE_TARGET.value
BATCH_ID: Final = Header.BATCH_ID.value
BATCH_SEQUENCE: Final = Header.BATCH_SEQUENCE.value
BATCH_COMMIT: Final = Header.BATCH_COMMIT.value
DESCRIPTION: Final = Header.DESCRIPTION.value
STATUS: Final = Header.STATUS.value

# These headers are set by the server; nats-py does not name them.
MARKER: Final = "Nats-Marker-Reason"
"""Present on a delete marker, which the server stores when a message with a TTL expires."""
STREAM: Final = "Nats-Stream"
SUBJECT: Final = "Nats-Subject"
SEQUENCE: Final = "Nats-Sequence"
TIME_STAMP: Final = "Nats-Time-Stamp"
LAST_SEQUENCE: Final = "Nats-Last-Sequence"
"""On a republished copy: the sequence of the subject's previous message."""
ADDED_BY_DIRECT_GET: Final = frozenset({STREAM, SUBJECT, SEQUENCE, TIME_STAMP})

_NAME: Final = re.compile(r"[!-9;-~]+")
_NEWLINES: Final = str.maketrans({"\r": " ", "\n": " "})
_VERSION: Final = "NATS/1.0"
_PREAMBLE: Final = len(f"{_VERSION} ")


@dataclass(frozen=True, slots=True)
class Message:
    """A message as a subscriber receives it."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    reply: str = ""

    @property
    def is_delete_marker(self) -> bool:
        """Whether the server stored this in place of an expired message."""
        return MARKER in self.headers


@dataclass(frozen=True, slots=True)
class StoredMessage(Message):
    """A message read from a stream, with its sequence there."""

    sequence: int = 0


@dataclass(frozen=True, slots=True)
class PubAck:
    """The stream stored the message, or (`duplicate`) had stored it before."""

    stream: str
    sequence: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Makes the server store a message's data on `target` at the time `at`."""

    target: str
    at: datetime


@dataclass(frozen=True, slots=True)
class BatchMessage:
    """One message of an atomic batch; see `Bus.publish` for the meaning of its fields."""

    subject: str
    data: bytes
    headers: Mapping[str, str] | None = None
    message_id: str | None = None
    expected_last: int | None = None
    scheduled: Scheduled | None = None

    def all_headers(self) -> dict[str, str]:
        """Return the publisher's headers and those with instructions to the stream."""
        when = self.scheduled
        headers = schedule_headers(self.headers, when.target, when.at) if when else self.headers
        return publish_headers(headers, self.message_id, self.expected_last)


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """Identity and range of a stream, to detect later that it was replaced or lost messages."""

    created: str
    """When the server created it. A different value means: another stream, the old one is lost."""
    first: int
    last: int
    """The last assigned sequence. A lower value than before means: the stream lost its tail."""
    messages: int
    """How many messages it holds."""
    size: int
    """The bytes that they use."""
    max_size: int
    """The bytes that they may use; -1: no limit."""
    retention: RetentionPolicy


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """How far a durable consumer is."""

    undelivered: int
    """How many messages of its stream were not delivered yet."""
    unacked: int
    """How many messages were delivered and not acknowledged."""
    ack_floor: int
    """Every message up to this sequence of the stream was acknowledged or deleted."""

    @property
    def backlog(self) -> int:
        """How many messages wait for an acknowledgement."""
        return self.undelivered + self.unacked


def publish_headers(
    headers: Mapping[str, str] | None,
    message_id: str | None,
    expected_last: int | None,
    ttl: float | None = None,
) -> dict[str, str]:
    """Return a copy of `headers` with instructions to the stream added; `ttl` is in seconds."""
    joined = dict(headers) if headers else {}
    if message_id is not None:
        joined[MESSAGE_ID] = message_id
    if expected_last is not None:
        joined[EXPECTED_LAST] = str(expected_last)
    if ttl is not None:
        # The server counts in whole seconds.
        joined[TTL] = f"{max(1, round(ttl))}s"
    return joined


def schedule_headers(
    headers: Mapping[str, str] | None, target: str, at: datetime
) -> dict[str, str]:
    """Return a copy of `headers` with those added that make the server publish at time `at`."""
    joined = dict(headers) if headers else {}
    moment = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    joined[SCHEDULE] = f"@at {moment}"
    joined[SCHEDULE_TARGET] = target
    return joined


def write_headers(headers: Mapping[str, str]) -> bytes:
    """Encode headers for the wire. Raises Refused for an invalid header name.

    nats-py has no public function for this; it writes headers inside `Client.publish`.
    """
    lines = [_VERSION]
    for key, value in headers.items():
        if not _is_name(key):
            raise Refused(f"not a header: {key!r}")
        broken = "\n" in value or "\r" in value
        lines.append(f"{key}: {value.translate(_NEWLINES) if broken else value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@lru_cache(maxsize=256)
def _is_name(key: str) -> bool:
    return _NAME.fullmatch(key) is not None


def read_headers(block: bytes) -> tuple[str, dict[str, str]]:
    """Decode headers from the wire; return the server's status (usually empty) and the headers.

    Only the first line can hold a status: a publisher can't forge one with a header. Written here because
    this is on the hot path: nats-py's reader is private and takes four times as long.
    """
    first, *lines = block.decode("utf-8", "replace").split("\r\n")
    headers = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            headers[key.strip()] = value.strip()
    if len(first) <= _PREAMBLE:
        return "", headers
    status, _, headers[DESCRIPTION] = first[_PREAMBLE:].partition(" ")
    return status, headers
