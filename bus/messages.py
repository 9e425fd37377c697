"""What travels: messages on their way, in a stream, and what is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from bus.headers import publishing, scheduling

CLOUDEVENT: Final = {"Content-Type": "application/cloudevents+json"}
"""Header of every CloudEvent in structured mode."""

MARKER: Final = "Nats-Marker-Reason"
"""Header by which the server marks that a message with a time to live has gone."""
NAK: Final = b"-NAK"
"""Has a message come again at once, sent to its delivery's `reply`."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a subscriber gets."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    reply: str = ""

    @property
    def is_delete_marker(self) -> bool:
        """It is the server's mark that a message with a time to live has gone, not a message."""
        return MARKER in self.headers


@dataclass(frozen=True, slots=True)
class StoredMessage(Message):
    """A message of a stream with its place in it."""

    sequence: int = 0


@dataclass(frozen=True, slots=True)
class PubAck:
    """The stream's word that it stored the message, or (duplicate) had it already."""

    stream: str
    sequence: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Scheduled:
    """When and where the server is to store a message's data."""

    target: str
    at: datetime


@dataclass(frozen=True, slots=True)
class BatchMessage:
    """One of many messages to be stored; see `Bus.publish` for what its parts do."""

    subject: str
    data: bytes
    headers: Mapping[str, str] | None = None
    message_id: str | None = None
    expected_last: int | None = None
    scheduled: Scheduled | None = None

    def fields(self) -> dict[str, str]:
        """Return its headers, and those that tell the stream what to do."""
        when = self.scheduled
        headers = scheduling(self.headers, when.target, when.at) if when else self.headers
        return publishing(headers, self.message_id, self.expected_last)


BATCH_LIMIT: Final = 1000
"""The server stores no more messages at once."""
BATCH_WORTHWHILE: Final = 12
"""From so many on it is faster than side by side: it costs 2.5 ms, and one write to the disk."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """Which stream it is, to tell later whether it is still the same one."""

    created: str
    """When the server made it; another value: another stream, and the old one is lost."""
    first: int
    last: int
    """The sequence given last; lower than before: the stream lost its tail."""
