"""A fact as its sender keeps it: the exact bytes under one identity, sent until they are stored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from bus import CLOUDEVENT, Bus, Unavailable, subjects
from bus.backoff import Backoff
from statemachine import codec

_log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class FactMessage:
    """One event for one subject; `identity` is its `<source>:<id>`."""

    subject: str
    identity: str
    body: bytes

    def kept(self) -> dict[str, str]:
        """Return it as a journal writes it."""
        return {"subject": self.subject, "identity": self.identity, "body": self.body.decode()}

    @classmethod
    def from_kept(cls, kept: Mapping[str, str]) -> FactMessage:
        """Read it back, byte for byte."""
        return cls(kept["subject"], kept["identity"], kept["body"].encode())


def new_fact(
    kind: str,
    sender: str,
    chat_id: str,
    type_name: str,
    data: Mapping[str, Any],
    *,
    traceparent: str | None = None,
    clock: Callable[[], datetime] = _now,
) -> FactMessage:
    """Make an event that `sender` of `kind` (provisioner or agent) states for the first time."""
    source, event_id = f"/{kind}/{sender}", str(uuid4())
    body = codec.encode(
        type_name, source, chat_id, data, event_id=event_id, time=clock(), traceparent=traceparent
    )
    return FactMessage(subjects.inbound(kind, chat_id, sender), f"{source}:{event_id}", body)


async def publish_once(bus: Bus, fact: FactMessage) -> None:
    """Publish the fact once, and return when the stream has it. Raises Refused, Unavailable.

    The server knows a message by its id alone, whoever sent it and where: another sender who has seen
    the id of a fact could keep that from being sent again. So what is taken for a repeat goes out
    once more without an id; a worker knows its repeats by themselves.
    """
    ack = await bus.publish(fact.subject, fact.body, headers=CLOUDEVENT, message_id=fact.identity)
    if ack.duplicate:
        await bus.publish(fact.subject, fact.body, headers=CLOUDEVENT)


async def deliver(bus: Bus, fact: FactMessage) -> None:
    """Return when the stream has stored the fact, however often it takes to ask.

    Raises Refused when NATS says no, and would again: a permission, or a limit of its own.
    """
    backoff = Backoff()
    while True:
        try:
            await publish_once(bus, fact)
        except Unavailable as gone:
            _log.info("fact %s waits for the bus: %s", fact.identity, gone)
        else:
            return
        await backoff.wait()
