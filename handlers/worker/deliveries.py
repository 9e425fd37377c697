"""What deliveries say: events, fired timers, missed agents, and what can't be accepted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from bus import Delivery, subjects
from bus.streams import IN, TIMER
from statemachine.codec import Rejected, decode
from statemachine.events import Event, FactRejected, ToolCanceled, ToolRequested
from statemachine.ids import is_canonical
from statemachine.store import event_digest
from statemachine.strict_json import Reason
from statemachine.timers import TimerKind

DETAIL_LIMIT: Final = 1024
"""Characters of a dead letter's detail."""
NOTICE_LIMIT: Final = 512
"""Characters of it that stay on the chat."""


@dataclass(frozen=True, slots=True)
class Fact:
    """An event to be applied."""

    event: Event
    digest: bytes


@dataclass(frozen=True, slots=True)
class Fired:
    """A timer came up; whether its time has come is for the database's clock to say."""

    chat_id: str
    purpose: TimerKind
    generation: int


@dataclass(frozen=True, slots=True)
class Missed:
    """An agent's presence ran out."""

    chat_id: str
    agent_id: str
    """Place of the server's mark in its stream: names this loss."""
    highest: int | None = None
    """The agent's highest sequence before its presence was looked for in vain; None: it is there."""


@dataclass(frozen=True, slots=True)
class Published:
    """A state that stands on the bus, to be compared with what the database holds."""

    chat_id: str
    state: Mapping[str, Any]
    """The data of state_changed."""

    @property
    def version(self) -> int:
        """The version that was published."""
        return int(self.state["version"])


@dataclass(frozen=True, slots=True)
class Dead:
    """What can't be accepted, as it came."""

    kind: str
    chat_id: str
    subject: str
    data: bytes
    headers: Mapping[str, str]
    rejected: Rejected


@dataclass(frozen=True, slots=True)
class Noted:
    """A dead letter that tells something of a build, to be noted on its chat."""

    chat_id: str
    sender: str
    """By the subject, as the server let it through."""
    fact: FactRejected


@dataclass(frozen=True, slots=True)
class Nothing:
    """A message that needs no work, like a sign of life."""


Item = Fact | Fired | Missed | Published | Noted | Dead | Nothing


def chat_of(item: Item) -> str | None:
    """Return the chat that an item is about, if it is about one."""
    if isinstance(item, Nothing):
        return None
    return item.event.chat_id if isinstance(item, Fact) else item.chat_id or None


def read(delivery: Delivery, now: datetime) -> Item:
    """Read a delivery of one of the worker's consumers. Never raises for what it holds."""
    if delivery.stream == IN.name:
        return _inbound(delivery, now)
    if delivery.stream == TIMER.name:
        return _timer(delivery)
    if not delivery.is_delete_marker:
        return Nothing()
    chat_id, agent_id = subjects.parse_presence(delivery.subject)
    if not (is_canonical(chat_id) and is_canonical(agent_id)):
        return Nothing()  # whoever may publish may set a mark's header too
    return Missed(chat_id, agent_id)


def noted(letter: Dead) -> Noted | None:
    """Return what a dead letter leaves on its chat, if it names a build."""
    rejected, inbound = letter.rejected, subjects.parse_inbound(letter.subject)
    if rejected.build_id is None or inbound is None or not is_canonical(inbound.chat):
        return None
    detail = f"{rejected.reason}: {rejected.detail}"[:NOTICE_LIMIT]
    fact = FactRejected(build_id=rejected.build_id, fact=rejected.fact, detail=detail)
    return Noted(inbound.chat, inbound.sender, fact)


def dead(delivery: Delivery, reason: Reason, detail: str, item: Item | None = None) -> Dead:
    """Give up on a delivery, read as `item` if it could be read."""
    rejected = Rejected(reason, detail)
    if isinstance(item, Fact):
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


def _inbound(delivery: Delivery, now: datetime) -> Item:
    inbound = subjects.parse_inbound(delivery.subject)
    if inbound is None:
        return dead(delivery, Reason.BAD_DATA, "not a subject of the contract")
    found = decode(
        inbound.kind,
        inbound.chat,
        inbound.sender,
        delivery.data,
        content_type=delivery.headers.get("Content-Type"),
        now=now,
    )
    if isinstance(found, Event):
        return Fact(found, event_digest(found.source, found.id))
    return Dead(
        inbound.kind, inbound.chat, delivery.subject, delivery.data, delivery.headers, found
    )


def _timer(delivery: Delivery) -> Item:
    chat_id, purpose = subjects.parse_timer_fired(delivery.subject)
    try:
        return Fired(chat_id, TimerKind(purpose), int(json.loads(delivery.data)["generation"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return dead(delivery, Reason.BAD_DATA, "not a timer of ours")
