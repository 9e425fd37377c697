"""Streams and durable consumers brought to what is declared, and how JetStream is asked at all."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from bus import Message, Refused, StreamInfo, Unavailable, jsapi, subjects
from bus.jsapi import ApiError
from bus.request_reply import Requests
from bus.streams import Consumer, Stream

ANSWER_WITHIN: Final = 5.0
"""How long JetStream may take to answer; it stores a message in well under a millisecond."""

NO_RESPONDERS: Final = "503"
"""The server's status for a request that nobody listens to."""


async def ask(
    requests: Requests, subject: str, data: bytes, headers: Mapping[str, str] | None = None
) -> Message:
    """Send a request that JetStream answers. Raises Refused, Unavailable."""
    try:
        answer, status = await requests.ask(subject, data, headers, ANSWER_WITHIN)
    except TimeoutError as error:
        raise Unavailable(str(error)) from None
    if status == NO_RESPONDERS:
        raise Unavailable(f"no stream answers on {subject}")
    return answer


async def ensure_stream(requests: Requests, stream: Stream) -> StreamInfo:
    """Make the stream, or bring it up to its declaration; one question when it is as declared."""
    declared = jsapi.stream_config(stream)
    try:
        try:
            there = await _api(requests, f"STREAM.INFO.{stream.name}")
        except ApiError as error:
            if error.code != jsapi.STREAM_NOT_FOUND:
                raise
            there = await _create(requests, stream.name, declared)
        wanted = jsapi.update(there["config"], declared)
        if jsapi.differs(there["config"], wanted):
            there = await _update(requests, stream.name, there["config"], wanted)
    except ApiError as error:
        if error.code in jsapi.NO_STORAGE and stream.max_bytes > 0:
            raise _no_room(stream, error) from None
        raise error.as_bus_error(stream.name) from None
    return jsapi.stream_info(there)


def _no_room(stream: Stream, error: ApiError) -> Refused:
    store = "max_memory_store" if stream.in_memory else "max_file_store"
    return Refused(
        f"{stream.name}: {error}: the stream reserves {stream.max_bytes >> 20} MiB; give NATS a larger "
        f"{store}, or a disk with more room"
    )


async def _update(
    requests: Requests, name: str, there: jsapi.Json, wanted: jsapi.Json
) -> jsapi.Json:
    try:
        return await _api(requests, f"STREAM.UPDATE.{name}", wanted)
    except ApiError as error:
        if error.code not in jsapi.NO_STORAGE or wanted["max_bytes"] == there["max_bytes"]:
            raise
    # There is no room to make it larger, which is no reason to do without it.
    wanted = wanted | {"max_bytes": there["max_bytes"]}
    if not jsapi.differs(there, wanted):
        return await _api(requests, f"STREAM.INFO.{name}")
    return await _api(requests, f"STREAM.UPDATE.{name}", wanted)


async def _create(requests: Requests, name: str, declared: jsapi.Json) -> jsapi.Json:
    try:
        return await _api(requests, f"STREAM.CREATE.{name}", declared)
    except ApiError as error:
        if error.code != jsapi.STREAM_NAME_IN_USE:
            raise
        return await _api(requests, f"STREAM.INFO.{name}")  # somebody else was faster


async def ensure_consumer(requests: Requests, consumer: Consumer) -> None:
    """Make the durable consumer, or bring it up to its declaration."""
    subject = f"CONSUMER.CREATE.{consumer.stream}.{consumer.name}"
    if consumer.filter:
        subject += f".{consumer.filter}"
    config = jsapi.consumer_config(consumer)
    try:
        await _api(requests, subject, {"stream_name": consumer.stream, "config": config})
    except ApiError as error:
        raise error.as_bus_error(f"{consumer.name} of {consumer.stream}") from None


async def delete_consumer(requests: Requests, consumer: Consumer) -> None:
    """Forget the durable consumer and its place in the stream, if it is there."""
    try:
        await _api(requests, f"CONSUMER.DELETE.{consumer.stream}.{consumer.name}")
    except ApiError as error:
        if error.code not in (jsapi.CONSUMER_NOT_FOUND, jsapi.STREAM_NOT_FOUND):
            raise error.as_bus_error(f"{consumer.name} of {consumer.stream}") from None


async def num_pending(requests: Requests, consumer: Consumer) -> int:
    """Return how many messages of the durable consumer nobody has taken yet."""
    try:
        there = await _api(requests, f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
    except ApiError as error:
        raise error.as_bus_error(f"{consumer.name} of {consumer.stream}") from None
    return int(there["num_pending"])


async def server_time(requests: Requests, stream: str) -> datetime:
    """Return what the clock of the stream's server (in a cluster its leader) shows."""
    try:
        there = await _api(requests, f"STREAM.INFO.{stream}")
    except ApiError as error:
        raise error.as_bus_error(stream) from None
    return datetime.fromisoformat(there["ts"])


async def _api(
    requests: Requests, subject: str, request: Mapping[str, Any] | None = None
) -> jsapi.Json:
    body = b"" if request is None else jsapi.write(request)
    answer = await ask(requests, f"{subjects.JETSTREAM}.{subject}", body)
    return jsapi.read(answer.data)
