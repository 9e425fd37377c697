"""Events as a sender publishes them: made once, and the same bytes every time they are sent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from workspaced import subjects

CONTENT_TYPE: Final = "application/cloudevents+json"


@dataclass(frozen=True, slots=True)
class Fact:
    """An event with its subject; `identity` is `<source>:<id>`, and the message id for NATS."""

    subject: str
    identity: str
    body: str

    @property
    def type_name(self) -> str:
        """The middle part of the event's type, for example `build_started`."""
        return str(json.loads(self.body)["type"]).split(".")[1]


def cloud_event(
    type_name: str,
    source: str,
    chat_id: str,
    data: Mapping[str, Any],
    traceparent: str | None = None,
) -> dict[str, Any]:
    """Return a CloudEvent of the contract with a new id."""
    event = {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": source,
        "type": f"workspaced.{type_name}.v1",
        "subject": chat_id,
        "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": dict(data),
    }
    return event if traceparent is None else {**event, "traceparent": traceparent}


def identity(event: Mapping[str, Any]) -> str:
    """Return `<source>:<id>` of an event, which is also its message id."""
    return f"{event['source']}:{event['id']}"


def new_fact(
    type_name: str,
    name: str,
    chat_id: str,
    data: Mapping[str, Any],
    traceparent: str | None = None,
) -> Fact:
    """Return a fact that the provisioner `name` has not published before."""
    event = cloud_event(type_name, f"/provisioner/{name}", chat_id, data, traceparent)
    return Fact(subjects.fact(chat_id, name), identity(event), encode(event))


def encode(event: Mapping[str, Any]) -> str:
    """Return an event as JSON that every store can hold: without NUL and lone surrogates."""
    text = json.dumps(_clean(event), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace").decode()


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    return value
