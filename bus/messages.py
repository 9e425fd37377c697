"""Messages of the bus, and their headers: by name, and as bytes on the wire."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from msgspec import Struct
from nats.js.api import Header, RetentionPolicy

from bus.errors import Refused

CLOUDEVENT: Final = {"Content-Type": "application/cloudevents+json"}
"""Headers of every CloudEvent in structured mode."""
NAK: Final = b"-NAK"
"""Published on a delivery's `reply`, it makes the server redeliver the message immediately."""

# Plain strings, because a member of an Enum hashes by its name, so it does not find a key of a dict.
MESSAGE_ID: Final = Header.MSG_ID.value
BATCH: Final = Header.BATCH_ID.value
BATCH_SEQUENCE: Final = Header.BATCH_SEQUENCE.value
BATCH_COMMIT: Final = Header.BATCH_COMMIT.value
EXPECTED_LAST: Final = Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value
TTL: Final = Header.MSG_TTL.value
SCHEDULE: Final = Header.SCHEDULE.value
SCHEDULE_TARGET: Final = Header.SCHEDULE_TARGET.value
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


class Message(Struct, frozen=True):
    """A message as a subscriber receives it."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = {}
    reply: str = ""

    @property
    def is_delete_marker(self) -> bool:
        """Whether the server stored this in place of an expired message."""
        return MARKER in self.headers


class StoredMessage(Message, frozen=True):
    """A message read from a stream, with its sequence there."""

    sequence: int = 0
    stored_at: datetime | None = None
    """When the stream stored it."""


class PubAck(Struct, frozen=True):
    """The stream stored the message, or (`duplicate`) had stored it before."""

    stream: str
    sequence: int
    duplicate: bool = False


class Schedule(Struct, frozen=True):
    """Makes the server store a message's data on `target` at the time `at`.

    The message's own subject identifies the schedule: a later message on it replaces the schedule. The scheduled
    message gets the message's other headers.
    """

    target: str
    at: datetime


class Outbound(Struct, frozen=True):
    """A message for a stream."""

    subject: str
    data: bytes
    headers: Mapping[str, str] | None = None
    message_id: str | None = None
    """The stream drops a message whose id it saw within its duplicate window."""
    expected_last: int | None = None
    """The required sequence of the subject's last message (0: there is none)."""
    ttl: float | None = None
    """In seconds."""
    schedule: Schedule | None = None

    def header_block(self, more: str = "") -> bytes:
        """Return the headers, and `more` lines, as bytes for the wire. Raises Refused for an invalid header name."""
        lines = more + _lines(self.headers) if self.headers else more
        if self.message_id is not None:
            lines += f"{MESSAGE_ID}: {_one_line(self.message_id)}\r\n"
        if self.expected_last is not None:
            lines += f"{EXPECTED_LAST}: {self.expected_last}\r\n"
        if self.ttl is not None:
            # The server counts in whole seconds.
            lines += f"{TTL}: {max(1, round(self.ttl))}s\r\n"
        if (schedule := self.schedule) is not None:
            at = schedule.at.astimezone(UTC).isoformat(timespec="milliseconds")
            lines += f"{SCHEDULE}: @at {at.replace('+00:00', 'Z')}\r\n{SCHEDULE_TARGET}: {schedule.target}\r\n"
        return f"{_VERSION}\r\n{lines}\r\n".encode() if lines else b""


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
    pulls: int = 0
    """How many pulls of clients wait for messages."""
    delivered: int = 0
    """Every message above this sequence of the stream was never delivered."""

    @property
    def backlog(self) -> int:
        """How many messages wait for an acknowledgement."""
        return self.undelivered + self.unacked


def write_headers(headers: Mapping[str, str] | None) -> bytes:
    """Encode headers for the wire; return nothing if there are none. Raises Refused for an invalid name.

    nats-py has no public function for this; it writes headers inside `Client.publish`.
    """
    return f"{_VERSION}\r\n{_lines(headers)}\r\n".encode() if headers else b""


def _lines(headers: Mapping[str, str]) -> str:
    if headers is CLOUDEVENT:  # those of almost all messages
        return _CLOUDEVENT_LINES
    for key in headers:
        if not _NAME.fullmatch(key):
            raise Refused(f"not a header: {key!r}")
    return "".join(f"{key}: {_one_line(value)}\r\n" for key, value in headers.items())


def _one_line(value: str) -> str:
    return value.translate(_NEWLINES) if "\n" in value or "\r" in value else value


_CLOUDEVENT_LINES: Final = "".join(f"{key}: {value}\r\n" for key, value in CLOUDEVENT.items())


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
