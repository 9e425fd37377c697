"""Decodes CloudEvents JSON into `Event`, and encodes it. No other module decodes inbound events.

Three modules decide what a sender may write: `strict_json` (the JSON), this module (the CloudEvents
attributes) and `leniency` (the data). A request with any fault is rejected. A provisioner's or
agent's fact is accepted without its faulty parts if what remains still has a meaning;
`Event.notice` lists the parts that were changed or discarded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, get_args

import msgspec
from pydantic import BaseModel, TypeAdapter

from statemachine import events, leniency
from statemachine.events import Event, Frozen
from statemachine.leniency import UnreadableError
from statemachine.naming import is_canonical, is_uuid
from statemachine.strict_json import Reject, RejectReason, parse, salvage, storable

MAX_SIZE: Final = 256 * 1024
"""Maximum size of an inbound event, in bytes."""
CONTENT_TYPE: Final = "application/cloudevents+json"

Payload = dict[str, Any]
Upcast = Callable[[Payload], Payload]

UPCASTS: Final[dict[tuple[str, int], Upcast]] = {}
"""(type name, schema version) -> the function that converts data of this version to the next
version.

Stored events are never rewritten; they are converted when they are read. For each entry the tests
contain a stored event of the old version.
"""

FACTS: Final = ("provisioner", "agent")
"""The kinds of senders that send facts. All other senders send requests."""
_ATTRIBUTES: Final = ("id", "source", "type", "subject")
_TYPE: Final = re.compile(r"workspaced\.([a-z_]+)\.v([1-9][0-9]{0,3})")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_RFC_3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]([01]\d|2[0-3]):\d\d:\d\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)?",
    re.ASCII,
)
"""A time without an offset is in UTC."""
_LEAP: Final = re.compile(r"(?<=\d\d:\d\d:)60(\.\d+)?")
_TIME: Final = TypeAdapter(datetime)
_ENCODER: Final = msgspec.json.Encoder()
_TRACE: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_SOURCES: Final = {"tool": "/chat/", "provisioner": "/provisioner/", "agent": "/agent/"}
"""The beginning of `source` by kind of sender; the sender's name follows."""
_KINDS: Final[dict[str, dict[str, type[Frozen]]]] = {
    kind: {model.name: model for model in models}  # type: ignore[attr-defined]
    for kind, models in events.BY_KIND.items()
}
_MODELS: Final[dict[str, type[Frozen]]] = {
    model.name: model
    for models in (*events.BY_KIND.values(), get_args(events.OwnEvent))
    for model in models
}


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a message cannot be accepted, and the call or build that it names."""

    reason: RejectReason
    detail: str
    call_id: str | None = None
    """The call to which workers may send the rejection as its answer."""
    tool: str | None = None
    build_id: str | None = None
    """The build that the rejected fact names."""
    fact: str = ""
    """The type name of the fact, e.g. `build_failed`; empty if it is unreadable or unknown."""


def decode(
    kind: str, chat_id: str, sender: str, data: bytes, *, content_type: str | None, now: datetime
) -> Event | Rejected:
    """Decode a message that arrived on `workspaced.in.<kind>.<chat_id>.<sender>`.

    `now` is the event's time if the message has none. An unacceptable message does not raise an
    error; `decode` returns a `Rejected`.
    """
    forgiving = kind in FACTS
    try:
        if len(data) > MAX_SIZE:
            raise Reject(
                RejectReason.TOO_LARGE, f"{len(data)} bytes; at most {MAX_SIZE} are accepted"
            )
        if content_type and content_type.partition(";")[0].strip().lower() != CONTENT_TYPE:
            raise Reject(
                RejectReason.NOT_CLOUDEVENTS,
                f"Content-Type is {content_type!r}, expected {CONTENT_TYPE!r}",
            )
        body, lost = _parsed(data, forgiving=forgiving)
        envelope = _envelope(body)
        model, payload = _typed(kind, envelope)
        _source(kind, sender, envelope["source"])
        if envelope["subject"] != chat_id:
            raise Reject(
                RejectReason.CHAT_MISMATCH,
                f"attribute 'subject' is {envelope['subject']!r}, the NATS subject says {chat_id!r}",
            )
        if not is_canonical(chat_id):
            raise Reject(
                RejectReason.BAD_DATA, f"chat id {chat_id!r} is not a lower-case canonical UUID"
            )
        notices: list[str] = []
        time = _time(envelope.get("time"), now, notices, forgiving=forgiving)
        trace = _trace(envelope.get("traceparent"), notices, forgiving=forgiving)
        accepted = _accepted(model, payload, lost, forgiving=forgiving)
        fact, notices = accepted.value, [*notices, *accepted.changed]
        if isinstance(fact, events.AgentDisconnected) and fact.sequence is None:
            raise Reject(RejectReason.BAD_DATA, "data.sequence is required of an agent")
        if kind == "agent" and fact.agent_id != sender:
            raise Reject(
                RejectReason.BAD_DATA, "data.agent_id is not the sender of the NATS subject"
            )
        return Event.trusted(
            source=envelope["source"],
            id=envelope["id"],
            chat_id=chat_id,
            time=time,
            traceparent=trace,
            data=fact,
            notice=leniency.listed(notices) if notices else None,
            beginnings_cut=accepted.beginnings_cut,
        )
    except Reject as error:
        return _rejected(error, kind, data)


def _parsed(data: bytes, *, forgiving: bool) -> tuple[object, Mapping[leniency.JsonPath, str]]:
    """Parse a message.

    Parts of a fact that cannot be stored are replaced; the second value describes them by path.
    Raises Reject.
    """
    try:
        return parse(data), {}
    except Reject:
        if not forgiving:
            raise
    body, lost = salvage(data)
    for name in _ATTRIBUTES:
        value = body.get(name) if isinstance(body, dict) else None
        if isinstance(value, str) and not storable(value):
            raise Reject(
                RejectReason.BAD_DATA, f"attribute {name!r} contains what no store can hold"
            )
    return body, lost


def _accepted(
    model: type[Frozen],
    payload: Payload,
    lost: Mapping[leniency.JsonPath, str],
    *,
    forgiving: bool,
) -> leniency.Accepted[Any]:
    try:
        if not forgiving:
            return leniency.Accepted(leniency.read(model, payload, "data"), [])
        return leniency.accept(model, payload, "data", lost)
    except UnreadableError as error:
        raise Reject(RejectReason.BAD_DATA, str(error)) from None


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
    """Return a CloudEvent in structured JSON mode, whose type is `workspaced.<type_name>.v1`.

    `data`: an event, or JSON values, enums and times, in which no other model occurs.
    """
    if isinstance(data, BaseModel):
        body: Any = msgspec.Raw(data.__pydantic_serializer__.to_json(data))
    else:
        body = data
    envelope: Payload = {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": f"workspaced.{type_name}.v1",
        "subject": chat_id,
        "time": timestamp(time),
        "datacontenttype": "application/json",
        "data": body,
    }
    if traceparent is not None:
        envelope["traceparent"] = traceparent
    if pool is not None:
        envelope["pool"] = pool
    if notice is not None:
        envelope["notice"] = notice
    return _ENCODER.encode(envelope)


def written(event: Event) -> bytes:
    """Return an accepted event as CloudEvents JSON, as `read_events` and exports show it."""
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


def event_of(envelope: Mapping[str, Any]) -> Event:
    """Return the event of a CloudEvents object that `written` encoded, of any schema version.

    Raises ValueError.
    """
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


@lru_cache(maxsize=256)  # the messages of a batch have the same times
def timestamp(at: datetime) -> str:
    """Return a time as RFC 3339 in UTC, with `Z` and microseconds."""
    if at.tzinfo is not UTC:
        at = at.astimezone(UTC)
    return at.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _envelope(body: object) -> Payload:
    if not isinstance(body, dict):
        raise Reject(RejectReason.NOT_CLOUDEVENTS, "not a JSON object")
    if body.get("specversion") != "1.0":
        raise Reject(
            RejectReason.NOT_CLOUDEVENTS,
            f"attribute 'specversion' is {body.get('specversion')!r}, expected '1.0'",
        )
    for name in _ATTRIBUTES:
        value = body.get(name)
        if not isinstance(value, str) or not value or len(value) > 1024:  # noqa: PLR2004
            raise Reject(
                RejectReason.NOT_CLOUDEVENTS,
                f"attribute {name!r} must be a text of 1 to 1,024 characters",
            )
    return body


def _typed(kind: str, envelope: Payload) -> tuple[type[Frozen], Payload]:
    match = _TYPE.fullmatch(envelope["type"])
    known = _KINDS[kind]
    if match is None or match[1] not in known:
        expected = ", ".join(f"workspaced.{name}.v1" for name in known)
        raise Reject(RejectReason.BAD_TYPE, f"type {envelope['type']!r} is none of: {expected}")
    data = envelope.get("data")
    if data is None:
        data = {}  # `data` is optional in CloudEvents, and some requests need none
    if not isinstance(data, dict):
        raise Reject(RejectReason.BAD_DATA, "attribute 'data' must be an object")
    return known[match[1]], _lifted(match[1], int(match[2]), data)


def _lifted(name: str, version: int, data: Payload) -> Payload:
    while (name, version) in UPCASTS:
        data, version = UPCASTS[name, version](data), version + 1
    if version != CURRENT.get(name, 1):
        raise Reject(
            RejectReason.BAD_TYPE,
            f"schema version {version} of {name} is not known here, the newest is {CURRENT.get(name, 1)}",
        )
    return data


CURRENT: Final[dict[str, int]] = {}
"""The newest schema version of each type for which it is above 1."""


def _source(kind: str, sender: str, source: str) -> None:
    if not _TOKEN.fullmatch(sender):
        raise Reject(
            RejectReason.BAD_SOURCE, f"sender {sender!r} must be 1 to 128 of A-Z, a-z, 0-9, _ and -"
        )
    expected = _SOURCES[kind] + sender
    if source != expected:
        raise Reject(
            RejectReason.BAD_SOURCE,
            f"source is {source!r}; on this NATS subject it must be {expected!r}",
        )


def _time(value: object, now: datetime, notices: list[str], *, forgiving: bool) -> datetime:
    if value is None or value == "":
        return now
    try:
        return _read_time(value)
    except (ValueError, OverflowError):  # years 1 and 9999 may overflow when converted to UTC
        shown = str(value)[:64]
        if not forgiving:
            raise Reject(
                RejectReason.NOT_CLOUDEVENTS, f"attribute 'time' {shown!r} is not RFC 3339"
            ) from None
        notices.append(f"attribute 'time' {shown!r} is not RFC 3339: left out")
        return now


def _read_time(value: object) -> datetime:
    """Parse an RFC 3339 time. A leap second becomes the end of the second before it.

    Raises ValueError.
    """
    if not isinstance(value, str) or _RFC_3339.fullmatch(value) is None:
        raise ValueError
    text = _LEAP.sub("59.999999", value, count=1) if ":60" in value else value
    at = datetime.fromisoformat(text.replace("z", "Z"))
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)


def is_traceparent(text: str) -> bool:
    """Return whether `text` is a `traceparent` in the format of W3C trace context version 00."""
    return _TRACE.fullmatch(text) is not None


def _trace(value: object, notices: list[str], *, forgiving: bool) -> str | None:
    """Return a valid `traceparent`, or None.

    An invalid text does not make a message unacceptable, because W3C requires it to be ignored. But
    a request whose `traceparent` is not a text is rejected.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        if not forgiving:
            raise Reject(RejectReason.NOT_CLOUDEVENTS, "attribute 'traceparent' must be a text")
    elif is_traceparent(value):
        return value
    notices.append("attribute 'traceparent' is no W3C trace context: left out")
    return None


def _rejected(error: Reject, kind: str, message: bytes) -> Rejected:
    """Return why a message is a dead letter, and the call or build that it names, if readable."""
    try:
        body, _ = salvage(message)
    except Reject:
        return Rejected(error.reason, error.detail)
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(data, dict):
        return Rejected(error.reason, error.detail)
    if kind in FACTS:
        build_id, match = data.get("build_id"), _TYPE.fullmatch(str(body.get("type")))
        if not isinstance(build_id, str) or not is_uuid(build_id):
            return Rejected(error.reason, error.detail)
        # Name only facts that this kind of sender may send: an agent must not end a build, not even
        # with a dead letter.
        fact = match[1] if match is not None and match[1] in _KINDS[kind] else ""
        return Rejected(error.reason, error.detail, build_id=build_id.strip().lower(), fact=fact)
    call_id, tool = data.get("call_id"), data.get("tool")
    if not isinstance(call_id, str) or not _TOKEN.fullmatch(call_id):
        return Rejected(error.reason, error.detail)
    named = isinstance(tool, str) and _TOKEN.fullmatch(tool) is not None
    return Rejected(error.reason, error.detail, call_id, tool if named else None)
