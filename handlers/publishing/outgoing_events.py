"""Events that chat services, provisioners and agents publish: encoded once, sent until NATS has them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from bus import CLOUDEVENT, Backoff, Bus, Unavailable, subjects
from statemachine import codec

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OutgoingEvent:
    """An event as it is published: the same bytes and the same identity on every attempt.

    `identity` is `<source>:<id>` of the CloudEvent, and the message id.

    """

    subject: str
    identity: str
    body: bytes

    def to_json(self) -> dict[str, str]:
        """Return the event as a JSON object for a journal."""
        return {"subject": self.subject, "identity": self.identity, "body": self.body.decode()}

    @classmethod
    def from_json(cls, content: Mapping[str, str]) -> OutgoingEvent:
        """Read an event from a journal, byte for byte."""
        return cls(content["subject"], content["identity"], content["body"].encode())


def new_event(
    kind: str,
    sender: str,
    chat_id: str,
    type_name: str,
    data: Mapping[str, Any],
    *,
    traceparent: str | None = None,
) -> OutgoingEvent:
    """Encode an event that `sender` publishes for the first time.

    `kind` is that of the subject: `tool`, `provisioner` or `agent`. `data` is the CloudEvent's data.

    """
    source, event_id = f"/{'chat' if kind == 'tool' else kind}/{sender}", str(uuid4())
    body = codec.encode(
        type_name,
        source,
        chat_id,
        data,
        event_id=event_id,
        time=datetime.now(UTC),
        traceparent=traceparent,
    )
    return OutgoingEvent(subjects.inbound(kind, chat_id, sender), f"{source}:{event_id}", body)


async def publish_once(bus: Bus, event: OutgoingEvent) -> None:
    """Publish the event and return when the stream has stored it. Raises Refused, Unavailable.

    The server drops a message whose id it has seen, also from another sender: one that knows the id of an
    event could suppress it. So a message that the server takes for a duplicate is published again without an
    id; workers recognize duplicates by the event itself.

    """
    ack = await bus.publish(
        event.subject, event.body, headers=CLOUDEVENT, message_id=event.identity
    )
    if ack.duplicate:
        await bus.publish(event.subject, event.body, headers=CLOUDEVENT)


async def deliver(bus: Bus, event: OutgoingEvent) -> None:
    """Publish the event, with retries, until the stream has stored it.

    Raises Refused when NATS refuses it for a reason that stays: a permission or a limit.

    """
    backoff = Backoff()
    while True:
        try:
            await publish_once(bus, event)
        except Unavailable as error:
            _log.info("event %s waits for NATS: %s", event.identity, error)
        else:
            return
        await backoff.wait()
