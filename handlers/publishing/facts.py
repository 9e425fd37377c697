"""Facts that provisioners and agents publish: encoded once, stored by the sender, sent until NATS has them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from bus import CLOUDEVENT, Backoff, Bus, Unavailable, subjects
from statemachine import codec

_log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class FactMessage:
    """A fact as it is published: the same bytes and the same identity on every attempt.

    `identity` is `<source>:<id>` of the CloudEvent, and the message id.

    """

    subject: str
    identity: str
    body: bytes

    def to_json(self) -> dict[str, str]:
        """Return the fact as a JSON object for a journal."""
        return {"subject": self.subject, "identity": self.identity, "body": self.body.decode()}

    @classmethod
    def from_json(cls, content: Mapping[str, str]) -> FactMessage:
        """Read a fact from a journal, byte for byte."""
        return cls(content["subject"], content["identity"], content["body"].encode())


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
    """Encode an event that `sender` publishes for the first time.

    `kind` is `provisioner` or `agent`; `data` is the CloudEvent's data.

    """
    source, event_id = f"/{kind}/{sender}", str(uuid4())
    body = codec.encode(
        type_name, source, chat_id, data, event_id=event_id, time=clock(), traceparent=traceparent
    )
    return FactMessage(subjects.inbound(kind, chat_id, sender), f"{source}:{event_id}", body)


async def publish_once(bus: Bus, fact: FactMessage) -> None:
    """Publish the fact and return when the stream has stored it. Raises Refused, Unavailable.

    The server drops a message whose id it has seen, whoever sent it: another sender that knows the id of a
    fact could suppress it. So a message that the server takes for a duplicate is published again without an
    id; workers recognize duplicates by the event itself.

    """
    ack = await bus.publish(fact.subject, fact.body, headers=CLOUDEVENT, message_id=fact.identity)
    if ack.duplicate:
        await bus.publish(fact.subject, fact.body, headers=CLOUDEVENT)


async def deliver(bus: Bus, fact: FactMessage) -> None:
    """Publish the fact, with retries, until the stream has stored it.

    Raises Refused when NATS refuses it for a reason that stays: a permission or a limit.

    """
    backoff = Backoff()
    while True:
        try:
            await publish_once(bus, fact)
        except Unavailable as error:
            _log.info("fact %s waits for NATS: %s", fact.identity, error)
        else:
            return
        await backoff.wait()
