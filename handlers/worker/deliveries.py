"""Decodes deliveries into inputs of the chats (`statemachine.step`) and dead letters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from msgspec import structs

from bus import Delivery, subjects
from bus.streams import IN, TIMER
from statemachine.codec import Rejected, decode
from statemachine.events import Event, FactRejected, ToolCanceled, ToolRequested, event_digest
from statemachine.naming import is_canonical
from statemachine.step import AlarmRang, FactNotice, InboundEvent, Input, PresenceExpired
from statemachine.strict_json import RejectReason

DEAD_LETTER_LIMIT: Final = 1_000_000
"""Maximum size of a dead letter's body and original headers in bytes. NATS accepts messages of 1
MiB."""
DETAIL_LIMIT: Final = 1024
"""Maximum number of characters of a dead letter's detail."""
NOTICE_LIMIT: Final = 512
"""Maximum number of characters of the detail in the chat's notice."""


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter: a message that cannot be accepted, unchanged, with the reason."""

    kind: str
    chat_id: str
    subject: str
    data: bytes
    headers: Mapping[str, str]
    rejected: Rejected


@dataclass(frozen=True, slots=True)
class Nothing:
    """A message that requires no action, such as a presence message that has not expired."""


@dataclass(frozen=True, slots=True)
class AlarmMessage:
    """NATS rang an alarm: chats whose alarms are due have to be looked at."""

    at: datetime | None
    """The time for which it was set; None for a timer that an earlier version armed."""


Item = Input | Dead | Nothing | AlarmMessage


def chat_of(item: Item) -> str | None:
    """Return the id of the chat that an item concerns, or None."""
    return None if isinstance(item, Nothing | AlarmMessage) else item.chat_id or None


def repeated(item: Item) -> Item:
    """Return an item as one that may have been committed before."""
    match item:
        case InboundEvent():
            return structs.replace(item, redelivered=True)
        case AlarmRang():
            return structs.replace(item, handled=True)
        case _:
            return item


def read(delivery: Delivery, now: datetime, unsure: int = 0) -> Item:
    """Decode a delivery of one of the worker's consumers.

    `now` is the time of an event that has none. Of events up to the sequence `unsure`, NATS may have forgotten that it
    delivered them. Invalid content does not raise an error: the item
    is then a `Dead`.
    """
    if delivery.stream == IN.name:
        return _inbound(delivery, now, unsure)
    if delivery.stream == TIMER.name:
        return _alarm(delivery)
    if not delivery.is_delete_marker:
        return Nothing()
    chat_id, agent_id = subjects.parse_presence(delivery.subject)
    if not (is_canonical(chat_id) and is_canonical(agent_id)):
        return Nothing()  # any sender may set the header that marks an expiry
    return PresenceExpired(chat_id, agent_id)


def notice_of(letter: Dead) -> FactNotice | None:
    """Return the input that records a rejected fact on its chat; None if the fact names no chat or build."""
    rejected, inbound = letter.rejected, subjects.parse_inbound(letter.subject)
    if rejected.build_id is None or inbound is None or not is_canonical(inbound.chat):
        return None
    detail = f"{rejected.reason}: {rejected.detail}"[:NOTICE_LIMIT]
    fact = FactRejected(build_id=rejected.build_id, fact=rejected.fact, detail=detail)
    return FactNotice(inbound.chat, inbound.sender, fact)


def dead(delivery: Delivery, reason: RejectReason, detail: str, item: Item | None = None) -> Dead:
    """Return a delivery as a dead letter. `item` is the item decoded from it, if that succeeded."""
    rejected = Rejected(reason, detail)
    if isinstance(item, InboundEvent):
        data = item.event.data
        if isinstance(data, ToolRequested | ToolCanceled):
            rejected = replace(rejected, call_id=data.call_id, tool=getattr(data, "tool", None))
        elif (build_id := getattr(data, "build_id", None)) is not None:
            rejected = replace(rejected, build_id=build_id, fact=data.name)
    inbound = subjects.parse_inbound(delivery.subject)
    return Dead(
        inbound.kind if inbound else delivery.subject.split(".")[1],
        inbound.chat if inbound else "",
        delivery.subject,
        delivery.data,
        delivery.headers,
        rejected,
    )


def _inbound(delivery: Delivery, now: datetime, unsure: int) -> Item:
    inbound = subjects.parse_inbound(delivery.subject)
    if inbound is None:
        return dead(delivery, RejectReason.BAD_DATA, "not a subject of the contract")
    found = decode(
        inbound.kind,
        inbound.chat,
        inbound.sender,
        delivery.data,
        content_type=delivery.headers.get("Content-Type"),
        now=now,
    )
    if isinstance(found, Event):
        digest = event_digest(found.source, found.id)
        return InboundEvent(found, digest, delivery.redelivered or delivery.sequence <= unsure)
    return Dead(
        inbound.kind, inbound.chat, delivery.subject, delivery.data, delivery.headers, found
    )


def _alarm(delivery: Delivery) -> Item:
    if delivery.subject != subjects.ALARM_RANG:
        return AlarmMessage(None)
    try:
        return AlarmMessage(datetime.fromtimestamp(json.loads(delivery.data)["at"] / 1000, UTC))
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
        return dead(delivery, RejectReason.BAD_DATA, "not an alarm of ours")


def dead_letter_headers(letter: Dead) -> dict[str, str]:
    """Return the headers of a published dead letter.

    The original headers become the JSON value of one header, so that NATS does not interpret them.
    """
    return {
        "Workspaced-Subject": letter.subject,
        "Workspaced-Reason": str(letter.rejected.reason),
        "Workspaced-Detail": letter.rejected.detail[:DETAIL_LIMIT],
        "Workspaced-Headers": _fit_headers(letter.headers, DEAD_LETTER_LIMIT - len(letter.data)),
    }


def _fit_headers(headers: Mapping[str, str], limit: int) -> str:
    """Return headers as a JSON object, without those that do not fit into `limit` bytes."""
    kept: dict[str, str] = {}
    for name, value in headers.items():
        size = len(json.dumps({name: value}, ensure_ascii=False).encode())
        if size <= limit:
            kept[name] = value
            limit -= size
    return json.dumps(kept, ensure_ascii=False)
