"""An in-memory stream, with the limits, message ids, schedules and TTLs of nats-server."""

from __future__ import annotations

import heapq
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from nats.js.api import DiscardPolicy, Header

from bus import (
    MARKER,
    Conflict,
    Message,
    PubAck,
    Refused,
    StoredMessage,
    StreamInfo,
    Unavailable,
    messages,
)
from bus.streams import Stream
from bus.subscription import Timer
from tests.doubles.clock import Clock
from tests.doubles.memory_consumer import MemoryConsumer
from tests.doubles.subjects import matches

_SCHEDULER: Final = Header.SCHEDULER.value
_SCHEDULE_NEXT: Final = Header.SCHEDULE_NEXT.value
_ROLLUP: Final = Header.ROLLUP.value
_NOT_FIRED: Final = frozenset(
    {
        messages.MESSAGE_ID,
        messages.EXPECTED_LAST,
        messages.SCHEDULE,
        messages.SCHEDULE_TARGET,
        messages.TTL,
    }
)
_WILDCARD: Final = re.compile(r"\{\{wildcard\((\d+)\)\}\}")

Publish = Callable[[Message], object]
"""Delivers a message to its subscribers."""


class MemoryStream:
    """One stream and its consumers."""

    def __init__(
        self, declared: Stream, clock: Clock, created: str, publish: Publish, last: int = 0
    ) -> None:
        self.declared = declared
        self.consumers: dict[str, MemoryConsumer] = {}
        self.messages: dict[int, StoredMessage] = {}
        """By sequence, in order."""
        self.last_sequence = last
        self._created = created
        self._clock = clock
        self._publish = publish
        self._by_subject: dict[str, dict[int, None]] = {}
        self._bytes = 0
        self._replaced: deque[tuple[int, StoredMessage]] = deque(maxlen=64)
        """Sequences of the latest replacing messages, and the messages that they replaced."""
        self._message_ids: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._expiries: list[tuple[float, int]] = []
        self._expiry: Timer | None = None

    def info(self) -> StreamInfo:
        """Return the stream's identity, and its first and last sequence."""
        first = next(iter(self.messages), self.last_sequence + 1 if self.last_sequence else 0)
        return StreamInfo(
            self._created,
            first,
            self.last_sequence,
            messages=len(self.messages),
            size=self._bytes,
            max_size=self.declared.max_bytes,
            retention=self.declared.retention,
        )

    def takes(self, subject: str) -> bool:
        """Return whether the stream stores messages of that subject."""
        return any(matches(pattern, subject) for pattern in self.declared.subjects)

    def store(self, subject: str, data: bytes, fields: Mapping[str, str]) -> PubAck:
        """Store a message. Raises Conflict, Refused, Unavailable."""
        size = len(data) + len(messages.write_headers(fields))
        self._check_headers(subject, fields, size)
        expected = fields.get(messages.EXPECTED_LAST)
        there = self.last_of(subject)
        last = there.sequence if there else 0
        if expected is not None and int(expected) != last:
            raise Conflict(f"{subject}: wrong last sequence: {last}", last)
        message_id = fields.get(messages.MESSAGE_ID)
        if message_id is not None:
            self._forget_old_ids()
            if message_id in self._message_ids:
                return PubAck(self.declared.name, self._message_ids[message_id][1], duplicate=True)
        self._make_room(size)
        stored = self._append(subject, data, fields, last)
        if message_id is not None:
            self._message_ids[message_id] = (self._clock.now(), stored.sequence)
        if messages.SCHEDULE in fields:
            self._arm(stored)
        return PubAck(self.declared.name, stored.sequence)

    def last_of(self, subject: str) -> StoredMessage | None:
        """Return the subject's last message."""
        sequences = self._by_subject.get(subject)
        return self.messages[next(reversed(sequences))] if sequences else None

    def get_next(self, subject: str, after: int) -> StoredMessage | None:
        """Return the subject's first message above that sequence; wildcards are allowed."""
        for sequence, message in self.messages.items():
            if sequence > after and matches(subject, message.subject):
                return message
        return None

    def remove(self, sequence: int) -> None:
        """Delete a message."""
        message = self.messages.pop(sequence, None)
        if message is None:
            return
        self._bytes -= _size(message)
        sequences = self._by_subject[message.subject]
        del sequences[sequence]
        if not sequences:
            del self._by_subject[message.subject]

    def purge(self, last: int) -> None:
        """Delete the messages up to and including that sequence."""
        for sequence in [s for s in self.messages if s <= last]:
            self.remove(sequence)
        for consumer in self.consumers.values():
            consumer.forget(last)

    def lose_tail(self, count: int) -> None:
        """Drop the last `count` sequences, as a server does that lost power before writing them.

        The ids of deleted messages are forgotten too, as they are on disk only with the messages.
        """
        self.last_sequence = last = max(0, self.last_sequence - count)
        for sequence in [s for s in self.messages if s > last]:
            self.remove(sequence)
        while self._replaced and self._replaced[-1][0] > last:
            _, replaced = (
                self._replaced.pop()
            )  # the replacement is lost, so the replaced message is back
            if replaced.sequence <= last:
                self._keep(replaced)
        there = sorted(self.messages.items())
        self.messages.clear()
        self.messages.update(there)
        for consumer in self.consumers.values():
            consumer.truncate(self.last_sequence)
        for name, (_, sequence) in list(self._message_ids.items()):
            if sequence not in self.messages:
                del self._message_ids[name]

    def _check_headers(self, subject: str, fields: Mapping[str, str], size: int) -> None:
        declared = self.declared
        if 0 <= declared.max_msg_size < size:
            raise Refused(f"{subject}: message size exceeds maximum allowed")
        if messages.TTL in fields and not declared.allow_msg_ttl:
            raise Refused(f"{subject}: per-message TTL is disabled")
        if messages.SCHEDULE in fields:
            target = fields.get(messages.SCHEDULE_TARGET, "")
            if not declared.allow_msg_schedules:
                raise Refused(f"{subject}: message schedules is disabled")
            if target == subject or not self.takes(target):
                raise Refused(f"{subject}: message schedules target is invalid")
        if _ROLLUP in fields and not (declared.allow_msg_schedules or declared.allow_msg_ttl):
            raise Refused(f"{subject}: rollup not permitted")

    def _append(
        self, subject: str, data: bytes, fields: Mapping[str, str], last: int
    ) -> StoredMessage:
        self.last_sequence += 1
        stored = StoredMessage(subject, data, dict(fields), sequence=self.last_sequence)
        sequences = self._keep(stored)
        limit = 1 if messages.SCHEDULE in fields else self.declared.max_msgs_per_subject
        while 0 < limit < len(sequences):
            oldest = next(iter(sequences))
            self._replaced.append((stored.sequence, self.messages[oldest]))
            self.remove(oldest)
        self._let_expire(stored)
        self._republish(stored, last)
        for consumer in self.consumers.values():
            consumer.offer()
        return stored

    def _keep(self, stored: StoredMessage) -> dict[int, None]:
        """Store a message; return the sequences of its subject."""
        self.messages[stored.sequence] = stored
        self._bytes += _size(stored)
        sequences = self._by_subject.setdefault(stored.subject, {})
        sequences[stored.sequence] = None
        return sequences

    def _make_room(self, size: int) -> None:
        limit = self.declared.max_bytes
        if limit < 0:
            return
        if self.declared.discard is DiscardPolicy.NEW and self._bytes + size > limit:
            raise Unavailable(f"{self.declared.name}: maximum bytes exceeded")
        while self.messages and self._bytes + size > limit:
            self.remove(next(iter(self.messages)))

    def _forget_old_ids(self) -> None:
        since = self._clock.now() - self.declared.duplicate_window
        while self._message_ids:
            oldest = next(iter(self._message_ids))
            if self._message_ids[oldest][0] > since:
                return
            del self._message_ids[oldest]

    def _republish(self, stored: StoredMessage, last: int) -> None:
        rule = self.declared.republish
        if rule is None or not matches(rule.src, stored.subject):
            return
        tokens = zip(rule.src.split("."), stored.subject.split("."), strict=True)
        found = [token for pattern, token in tokens if pattern == "*"]
        destination = _WILDCARD.sub(lambda at: found[int(at[1]) - 1], rule.dest)
        fields = {
            **stored.headers,
            messages.STREAM: self.declared.name,
            messages.SUBJECT: stored.subject,
            messages.SEQUENCE: str(stored.sequence),
            messages.LAST_SEQUENCE: str(last),
        }
        self._publish(Message(destination, stored.data, fields))

    # -- time ----------------------------------------------------------------------------------

    def _let_expire(self, stored: StoredMessage) -> None:
        lives = [self.declared.max_age] if self.declared.max_age else []
        if messages.TTL in stored.headers:
            lives.append(float(stored.headers[messages.TTL].removesuffix("s")))
        if lives:
            heapq.heappush(self._expiries, (self._clock.now() + min(lives), stored.sequence))
            self._watch_expiries()

    def _watch_expiries(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        while self._expiries and self._expiries[0][1] not in self.messages:
            heapq.heappop(self._expiries)
        if self._expiries:
            delay = self._expiries[0][0] - self._clock.now()
            self._expiry = self._clock.call_later(delay, self._expire)

    def _expire(self) -> None:
        now = self._clock.now()
        self._expiry = None
        while self._expiries and self._expiries[0][0] <= now:
            gone = self.messages.get(heapq.heappop(self._expiries)[1])
            if gone is not None:
                self.remove(gone.sequence)
                self._mark(gone)
        self._watch_expiries()

    def _mark(self, gone: StoredMessage) -> None:
        lives = self.declared.subject_delete_marker_ttl
        if not lives or MARKER in gone.headers or gone.subject in self._by_subject:
            return
        fields = {MARKER: "MaxAge", messages.TTL: f"{round(lives)}s", _ROLLUP: "sub"}
        self._append(gone.subject, b"", fields, gone.sequence)

    def _arm(self, armed: StoredMessage) -> None:
        at = datetime.fromisoformat(armed.headers[messages.SCHEDULE].removeprefix("@at "))
        self._clock.call_later(
            max(0.0, at.timestamp() - self._clock.now()), lambda: self._fire(armed)
        )

    def _fire(self, armed: StoredMessage) -> None:
        if self.messages.get(armed.sequence) is not armed:
            return
        self.remove(armed.sequence)
        fields = {key: value for key, value in armed.headers.items() if key not in _NOT_FIRED}
        fields |= {_SCHEDULER: armed.subject, _SCHEDULE_NEXT: "purge"}
        there = self.last_of(armed.headers[messages.SCHEDULE_TARGET])
        last = there.sequence if there else 0
        self._append(armed.headers[messages.SCHEDULE_TARGET], armed.data, fields, last)


def _size(message: Message) -> int:
    return len(message.data) + len(messages.write_headers(message.headers))
