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

DEAD_LETTER_LIMIT: Final = 1_000_000
"""Bytes of a dead letter's body and original headers: NATS accepts messages of 1 MiB."""
DETAIL_LIMIT: Final = 1024
"""Characters of a dead letter's detail."""
NOTICE_LIMIT: Final = 512
"""Characters of the detail that the chat's notice shows."""


@dataclass(frozen=True, slots=True)
class Fact:
    """An event to be applied."""

    event: Event
    digest: bytes


@dataclass(frozen=True, slots=True)
class Fired:
    """A timer fired; the database's clock decides whether its time has come."""

    chat_id: str
    purpose: TimerKind
    generation: int


@dataclass(frozen=True, slots=True)
class Missed:
    """An agent's presence message expired."""

    chat_id: str
    agent_id: str
    highest: int | None = None
    """The agent's highest sequence before a look that did not find its presence; None: it is present."""


@dataclass(frozen=True, slots=True)
class Published:
    """A published state, to be compared with the database."""

    chat_id: str
    state: Mapping[str, Any]
    """The data of state_changed."""

    @property
    def version(self) -> int:
        """The version that was published."""
        return int(self.state["version"])


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter: a message that can't be accepted, as it came."""

    kind: str
    chat_id: str
    subject: str
    data: bytes
    headers: Mapping[str, str]
    rejected: Rejected


@dataclass(frozen=True, slots=True)
class Noted:
    """A dead letter about a build, to be noted on its chat."""

    chat_id: str
    sender: str
    """The sender according to the subject, which NATS checks."""
    fact: FactRejected


@dataclass(frozen=True, slots=True)
class Nothing:
    """A message that needs no work, like a presence message that did not expire."""


Item = Fact | Fired | Missed | Published | Noted | Dead | Nothing


def chat_of(item: Item) -> str | None:
    """Return the chat that an item is about, if it is about one."""
    if isinstance(item, Nothing):
        return None
    return item.event.chat_id if isinstance(item, Fact) else item.chat_id or None


def read(delivery: Delivery, now: datetime) -> Item:
    """Decode a delivery of one of the worker's consumers. Invalid content becomes a Dead, never an error."""
    if delivery.stream == IN.name:
        return _inbound(delivery, now)
    if delivery.stream == TIMER.name:
        return _timer(delivery)
    if not delivery.is_delete_marker:
        return Nothing()
    chat_id, agent_id = subjects.parse_presence(delivery.subject)
    if not (is_canonical(chat_id) and is_canonical(agent_id)):
        return Nothing()  # any sender may set the header that marks an expiry
    return Missed(chat_id, agent_id)


def noted(letter: Dead) -> Noted | None:
    """Return what a dead letter leaves on its chat; None if it names no build."""
    rejected, inbound = letter.rejected, subjects.parse_inbound(letter.subject)
    if rejected.build_id is None or inbound is None or not is_canonical(inbound.chat):
        return None
    detail = f"{rejected.reason}: {rejected.detail}"[:NOTICE_LIMIT]
    fact = FactRejected(build_id=rejected.build_id, fact=rejected.fact, detail=detail)
    return Noted(inbound.chat, inbound.sender, fact)


def dead(delivery: Delivery, reason: Reason, detail: str, item: Item | None = None) -> Dead:
    """Make a delivery a dead letter. `item`: what was decoded from it, if that succeeded."""
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


def dead_letter_headers(letter: Dead) -> dict[str, str]:
    """Return the headers of a published dead letter.

    The original headers are the JSON value of one header, so that none of them has an effect.
    """
    return {
        "Workspaced-Subject": letter.subject,
        "Workspaced-Reason": str(letter.rejected.reason),
        "Workspaced-Detail": letter.rejected.detail[:DETAIL_LIMIT],
        "Workspaced-Headers": _fit_headers(letter.headers, DEAD_LETTER_LIMIT - len(letter.data)),
    }


def _fit_headers(headers: Mapping[str, str], limit: int) -> str:
    """Return headers as JSON; leave out those that would make the message too large."""
    kept: dict[str, str] = {}
    for name, value in headers.items():
        size = len(json.dumps({name: value}, ensure_ascii=False).encode())
        if size <= limit:
            kept[name] = value
            limit -= size
    return json.dumps(kept, ensure_ascii=False)
