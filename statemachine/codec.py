"""CloudEvents JSON to and from `Event`: the one place where bytes become values.

What a sender may write is decided in `strictness` (JSON), here (attributes) and in `leniency` (data).
A request is rejected for whatever is wrong with it. Of a provisioner's or agent's fact, what can't be
used is left out where the fact says enough without it; `Event.notice` tells what that was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json

from statemachine import events, leniency
from statemachine.events import Event, Frozen
from statemachine.ids import is_canonical, is_uuid
from statemachine.leniency import UnreadableError
from statemachine.strict_json import Reason, Reject, parse, salvage, storable

MAX_SIZE: Final = 256 * 1024
"""Bytes of an inbound event."""
CONTENT_TYPE: Final = "application/cloudevents+json"

Payload = dict[str, Any]
Upcast = Callable[[Payload], Payload]

UPCASTS: Final[dict[tuple[str, int], Upcast]] = {}
"""(type name, schema version) -> the function that lifts its data by one version.

Stored events are never rewritten, only lifted when read; a frozen event per entry stands in the tests.
"""

FACTS: Final = ("provisioner", "agent")
"""The kinds of senders whose messages tell what has happened; the others ask for something."""
_ATTRIBUTES: Final = ("id", "source", "type", "subject")
_TYPE: Final = re.compile(r"workspaced\.([a-z_]+)\.v([1-9][0-9]{0,3})")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_RFC_3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII
)
"""An absent offset is taken for UTC."""
_LEAP: Final = re.compile(r"(?<=\d\d:\d\d:)60(\.\d+)?")
_TIME: Final = TypeAdapter(datetime)
_TRACE: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_OWN: Final = (
    events.BuildRequested,
    events.WaitResumed,
    events.DeadlinePassed,
    events.TtlPassed,
    events.OrphanGracePassed,
    events.FactRejected,
    events.DatabaseRestored,
)
_KINDS: Final[dict[str, dict[str, type[Frozen]]]] = {
    kind: {model.name: model for model in models}  # type: ignore[attr-defined]
    for kind, models in events.BY_KIND.items()
}
_MODELS: Final[dict[str, type[Frozen]]] = {
    model.name: model  # type: ignore[attr-defined]
    for models in (*events.BY_KIND.values(), _OWN)
    for model in models
}


@dataclass(frozen=True, slots=True)
class Rejected:
    """What can't be accepted: the reason, words for people, and what may be told to whom."""

    reason: Reason
    detail: str
    call_id: str | None = None
    """The call that may be answered."""
    tool: str | None = None
    build_id: str | None = None
    """The build that a fact speaks of."""
    fact: str = ""
    """What the fact is, e.g. `build_failed`; empty if that can't be read."""


def decode(
    kind: str, chat_id: str, sender: str, data: bytes, *, content_type: str | None, now: datetime
) -> Event | Rejected:
    """Read what came on `workspaced.in.<kind>.<chat_id>.<sender>`.

    `now` stands in for an absent `time`. Never raises.
    """
    forgiving = kind in FACTS
    try:
        if len(data) > MAX_SIZE:
            raise Reject(Reason.TOO_LARGE, f"{len(data)} bytes; at most {MAX_SIZE} are accepted")
        media_type = (content_type or CONTENT_TYPE).partition(";")[0].strip().lower()
        if media_type != CONTENT_TYPE:
            raise Reject(
                Reason.NOT_CLOUDEVENTS,
                f"Content-Type is {content_type!r}, expected {CONTENT_TYPE!r}",
            )
        body, lost = _parsed(data, forgiving=forgiving)
        envelope = _envelope(body)
        model, payload = _typed(kind, envelope)
        _source(kind, sender, envelope["source"])
        if envelope["subject"] != chat_id:
            raise Reject(
                Reason.CHAT_MISMATCH,
                f"attribute 'subject' is {envelope['subject']!r}, the NATS subject says {chat_id!r}",
            )
        if not is_canonical(chat_id):
            raise Reject(Reason.BAD_DATA, f"chat id {chat_id!r} is not a lower-case canonical UUID")
        notices: list[str] = []
        time = _time(envelope.get("time"), now, notices, forgiving=forgiving)
        trace = _trace(envelope.get("traceparent"), notices, forgiving=forgiving)
        accepted = _accepted(model, payload, lost, forgiving=forgiving)
        fact, notices = accepted.value, [*notices, *accepted.changed]
        if isinstance(fact, events.AgentDisconnected) and fact.sequence is None:
            raise Reject(Reason.BAD_DATA, "data.sequence is required of an agent")
        if kind == "agent" and fact.agent_id != sender:
            raise Reject(Reason.BAD_DATA, "data.agent_id is not the sender of the NATS subject")
        return Event.model_construct(
            source=envelope["source"],
            id=envelope["id"],
            chat_id=chat_id,
            time=time,
            traceparent=trace,
            data=fact,
            notice=leniency.listed(notices) if notices else None,
            beginnings_cut=accepted.beginnings_cut,
        )
    except Reject as no:
        return _rejected(no, kind, data)


def _parsed(data: bytes, *, forgiving: bool) -> tuple[object, Mapping[leniency.Path, str]]:
    """Parse a message; of a fact, what no store can hold is lost, and told."""
    try:
        return parse(data), {}
    except Reject:
        if not forgiving:
            raise
    body, lost = salvage(data)
    for name in _ATTRIBUTES:
        value = body.get(name) if isinstance(body, dict) else None
        if isinstance(value, str) and not storable(value):
            raise Reject(Reason.BAD_DATA, f"attribute {name!r} contains what no store can hold")
    return body, lost


def _accepted(
    model: type[Frozen],
    payload: Payload,
    lost: Mapping[leniency.Path, str],
    *,
    forgiving: bool,
) -> leniency.Accepted[Any]:
    try:
        if not forgiving:
            return leniency.Accepted(leniency.read(model, payload, "data"), [])
        return leniency.accept(model, payload, "data", lost)
    except UnreadableError as bad:
        raise Reject(Reason.BAD_DATA, str(bad)) from None


def encode(
    type_name: str,
    source: str,
    chat_id: str,
    data: Mapping[str, Any] | BaseModel,
    *,
    event_id: str,
    time: datetime,
    traceparent: str | None = None,
    pool: str | None = None,
    notice: str | None = None,
) -> bytes:
    """Write a CloudEvent in structured JSON mode, `type` `workspaced.<type_name>.v1`."""
    envelope: Payload = {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": f"workspaced.{type_name}.v1",
        "subject": chat_id,
        "time": timestamp(time),
        "datacontenttype": "application/json",
        "data": data,
    }
    if traceparent is not None:
        envelope["traceparent"] = traceparent
    if pool is not None:
        envelope["pool"] = pool
    if notice is not None:
        envelope["notice"] = notice
    return to_json(envelope, inf_nan_mode="null")


def written(event: Event) -> bytes:
    """Write an event that is known already, as `read_events` and exports show it."""
    return encode(
        event.data.name,
        event.source,
        event.chat_id,
        event.data,
        event_id=event.id,
        time=event.time,
        traceparent=event.traceparent,
        pool=event.pool,
        notice=event.notice,
    )


def envelope_of(event: Event) -> Payload:
    """Return the event as a CloudEvent object."""
    return json.loads(written(event))  # type: ignore[no-any-return]


def event_of(envelope: Mapping[str, Any]) -> Event:
    """Read an event that we logged ourselves, of any schema version. Raises ValueError."""
    match = _TYPE.fullmatch(str(envelope.get("type")))
    if match is None or match[1] not in _MODELS:
        raise ValueError(f"unknown type {envelope.get('type')!r}")
    payload = _lifted(match[1], int(match[2]), dict(envelope["data"]))
    return Event(
        source=envelope["source"],
        id=envelope["id"],
        chat_id=envelope["subject"],
        time=_TIME.validate_python(envelope["time"]),
        traceparent=envelope.get("traceparent"),
        pool=envelope.get("pool"),
        notice=envelope.get("notice"),
        data=_MODELS[match[1]].model_validate_json(json.dumps(payload)),  # type: ignore[arg-type]
    )


def timestamp(at: datetime) -> str:
    """Return RFC 3339 in UTC, with `Z`, to the microsecond."""
    if at.tzinfo is not UTC:
        at = at.astimezone(UTC)
    return at.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _envelope(body: object) -> Payload:
    if not isinstance(body, dict):
        raise Reject(Reason.NOT_CLOUDEVENTS, "not a JSON object")
    if body.get("specversion") != "1.0":
        raise Reject(
            Reason.NOT_CLOUDEVENTS,
            f"attribute 'specversion' is {body.get('specversion')!r}, expected '1.0'",
        )
    for name in _ATTRIBUTES:
        value = body.get(name)
        if not isinstance(value, str) or not value or len(value) > 1024:  # noqa: PLR2004
            raise Reject(
                Reason.NOT_CLOUDEVENTS,
                f"attribute {name!r} must be a text of 1 to 1,024 characters",
            )
    return body


def _typed(kind: str, envelope: Payload) -> tuple[type[Frozen], Payload]:
    match = _TYPE.fullmatch(envelope["type"])
    known = _KINDS[kind]
    if match is None or match[1] not in known:
        expected = ", ".join(f"workspaced.{name}.v1" for name in known)
        raise Reject(Reason.BAD_TYPE, f"type {envelope['type']!r} is none of: {expected}")
    data = envelope.get("data")
    if data is None:
        data = {}  # CloudEvents let it be absent, and a request may need nothing of it
    if not isinstance(data, dict):
        raise Reject(Reason.BAD_DATA, "attribute 'data' must be an object")
    return known[match[1]], _lifted(match[1], int(match[2]), data)


def _lifted(name: str, version: int, data: Payload) -> Payload:
    while (name, version) in UPCASTS:
        data, version = UPCASTS[name, version](data), version + 1
    if version != CURRENT.get(name, 1):
        raise Reject(
            Reason.BAD_TYPE,
            f"schema version {version} of {name} is not known here, the newest is {CURRENT.get(name, 1)}",
        )
    return data


CURRENT: Final[dict[str, int]] = {}
"""The newest schema version of each type that has left 1."""


def _source(kind: str, sender: str, source: str) -> None:
    if not _TOKEN.fullmatch(sender):
        raise Reject(
            Reason.BAD_SOURCE, f"sender {sender!r} must be 1 to 128 of A-Z, a-z, 0-9, _ and -"
        )
    start = {"tool": "/chat/", "provisioner": "/provisioner/", "agent": "/agent/"}[kind]
    if source != start + sender:
        raise Reject(
            Reason.BAD_SOURCE,
            f"source is {source!r}; on this NATS subject it must be {start + sender!r}",
        )


def _time(value: object, now: datetime, notices: list[str], *, forgiving: bool) -> datetime:
    if value is None or value == "":
        return now
    try:
        return _read_time(value)
    except (ValueError, OverflowError):  # the ends of time may lie beyond UTC's
        shown = str(value)[:64]
        if not forgiving:
            raise Reject(
                Reason.NOT_CLOUDEVENTS, f"attribute 'time' {shown!r} is not RFC 3339"
            ) from None
        notices.append(f"attribute 'time' {shown!r} is not RFC 3339: left out")
        return now


def _read_time(value: object) -> datetime:
    """Read RFC 3339; a leap second is the end of the second before it. Raises ValueError."""
    if not isinstance(value, str) or _RFC_3339.fullmatch(value) is None:
        raise ValueError
    at = _TIME.validate_python(_LEAP.sub("59.999999", value, count=1) if ":60" in value else value)
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)


def is_traceparent(text: str) -> bool:
    """Say whether it is a W3C trace context of the present version."""
    return _TRACE.fullmatch(text) is not None


def _trace(value: object, notices: list[str], *, forgiving: bool) -> str | None:
    """Read `traceparent`. One that can't be read is no reason to refuse anything: W3C has it ignored."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        if not forgiving:
            raise Reject(Reason.NOT_CLOUDEVENTS, "attribute 'traceparent' must be a text")
    elif is_traceparent(value):
        return value
    notices.append("attribute 'traceparent' is no W3C trace context: left out")
    return None


def _rejected(no: Reject, kind: str, message: bytes) -> Rejected:
    """Return why a message is a dead letter, and whom it concerns if that can be read in any way."""
    try:
        body, _ = salvage(message)
    except Reject:
        return Rejected(no.reason, no.detail)
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(data, dict):
        return Rejected(no.reason, no.detail)
    if kind in FACTS:
        build_id, match = data.get("build_id"), _TYPE.fullmatch(str(body.get("type")))
        if not isinstance(build_id, str) or not is_uuid(build_id):
            return Rejected(no.reason, no.detail)
        # Only of such as this sender may tell: no agent may end a build, not even by a dead letter.
        fact = match[1] if match is not None and match[1] in _KINDS[kind] else ""
        return Rejected(no.reason, no.detail, build_id=build_id.strip().lower(), fact=fact)
    call_id, tool = data.get("call_id"), data.get("tool")
    if not isinstance(call_id, str) or not _TOKEN.fullmatch(call_id):
        return Rejected(no.reason, no.detail)
    named = isinstance(tool, str) and _TOKEN.fullmatch(tool) is not None
    return Rejected(no.reason, no.detail, call_id, tool if named else None)
