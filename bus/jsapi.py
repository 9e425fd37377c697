"""The JSON that JetStream speaks: declarations, acknowledgements and errors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from bus import BusError, Conflict, PubAck, Refused, StreamInfo, Unavailable
from bus.streams import Consumer, Stream

Json = dict[str, Any]

STREAM_NOT_FOUND: Final = 10059
STREAM_NAME_IN_USE: Final = 10058
CONSUMER_NOT_FOUND: Final = 10014
NO_STORAGE: Final = frozenset({10023, 10028, 10047})
"""What the server says that has no room for a stream of that size, or no more for its account."""

_WRONG_LAST: Final = frozenset({10071, 10164})
_NOT_NOW: Final = 503
_NOT_NOW_EITHER: Final = frozenset(
    {10005, 10007, 10009, 10041, 10118, 10119, 10158, 10167, 10194, 10195, 10202}
)
"""What a cluster says that is electing, short of a server or busy: no peers, no leader, offline, too
many requests, or (10158) that a message of the same id is just being stored."""
_NANOSECONDS: Final = 1_000_000_000


class ApiError(Exception):
    """JetStream's answer was an error; `code` is its own number for it."""

    def __init__(self, error: Json) -> None:
        super().__init__(str(error.get("description", "no reason given")))
        self.status = int(error.get("code", 500))
        self.code = int(error.get("err_code", 0))

    def as_bus_error(self, about: str) -> BusError:
        """Translate it for whoever asked the bus."""
        if self.code in _WRONG_LAST:
            found = re.search(r"\d+$", str(self))
            return Conflict(f"{about}: {self}", int(found[0]) if found else None)
        passing = self.status == _NOT_NOW or self.code in _NOT_NOW_EITHER
        if passing or self.code in (STREAM_NOT_FOUND, CONSUMER_NOT_FOUND):
            return Unavailable(f"{about}: {self}")
        return Refused(f"{about}: {self}")


def read(data: bytes) -> Json:
    """Read an answer. Raises ApiError when it tells of an error."""
    answer: Json = json.loads(data)
    if "error" in answer:
        raise ApiError(answer["error"])
    return answer


def write(request: Mapping[str, Any]) -> bytes:
    """Write a request."""
    return json.dumps(request).encode()


def ack(data: bytes) -> PubAck:
    """Read a publish acknowledgement. Raises ApiError."""
    answer = read(data)
    return PubAck(answer["stream"], answer["seq"], answer.get("duplicate", False))


def stream_info(answer: Json) -> StreamInfo:
    """Read which stream it is from an answer about it."""
    return StreamInfo(answer["created"], answer["state"]["first_seq"], answer["state"]["last_seq"])


def stream_config(stream: Stream) -> Json:
    """Write a declaration the way the server tells it back."""
    republish = stream.republish
    config: Json = {
        "name": stream.name,
        "subjects": list(stream.subjects),
        "retention": "workqueue" if stream.work_queue else "limits",
        "storage": "memory" if stream.in_memory else "file",
        "max_age": _nanoseconds(stream.max_age),
        "max_bytes": stream.max_bytes,
        "max_msg_size": stream.max_msg_size,
        "max_msgs_per_subject": stream.max_per_subject,
        "discard": "new" if stream.discard_new else "old",
        "duplicate_window": _nanoseconds(stream.duplicate_window),
        "allow_direct": stream.direct_get,
        "allow_atomic": stream.atomic_batches,
        "allow_msg_schedules": stream.schedules,
        "allow_msg_ttl": stream.message_ttl,
        "subject_delete_marker_ttl": _nanoseconds(stream.marker_ttl),
        "republish": republish and {"src": republish.source, "dest": republish.destination},
        "num_replicas": stream.replicas,
    }
    if stream.persist_async and stream.replicas == 1:
        config["persist_mode"] = "async"
    return config


def update(existing: Json, declared: Json) -> Json:
    """Write what an existing stream is to become; how it keeps its messages never changes, and it never gets smaller.

    Raises Refused when that is of no use to a cluster.
    """
    mode = existing.get("persist_mode")
    if mode == "async" and declared["num_replicas"] > 1:
        raise Refused(
            f"{declared['name']} was made for one server, and the server can't change that: delete "
            "the stream (what it holds is lost) and start again, or keep 1 replica"
        )
    kept = {key: value for key, value in declared.items() if key != "persist_mode"}
    if existing.get("max_bytes", -1) > kept["max_bytes"] > 0:
        kept["max_bytes"] = existing["max_bytes"]  # a smaller one would drop or refuse messages
    return existing | kept


def differs(existing: Json, declared: Json) -> bool:
    """Tell whether a stream is not as declared; what the server leaves out is nothing."""
    return any((existing.get(key) or None) != (value or None) for key, value in declared.items())


def consumer_config(consumer: Consumer) -> Json:
    """Write a declaration of a durable consumer."""
    config: Json = {
        "durable_name": consumer.name,
        "ack_policy": "explicit",
        "ack_wait": _nanoseconds(consumer.ack_wait),
        "deliver_policy": "all",
        "max_deliver": -1,
        "max_ack_pending": consumer.max_ack_pending,
        "headers_only": consumer.headers_only,
    }
    if consumer.filter:
        config["filter_subject"] = consumer.filter
    return config


def pull_request(batch: int, expires: float, heartbeat: float) -> bytes:
    """Write what asks a consumer for up to `batch` messages."""
    return write(
        {
            "batch": batch,
            "expires": _nanoseconds(expires),
            "idle_heartbeat": _nanoseconds(heartbeat),
        }
    )


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _NANOSECONDS)
