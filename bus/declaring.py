"""Streams and durable consumers brought to what is declared, and how JetStream is asked at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bus import Message, StreamInfo, Unavailable, jsapi
from bus.connection import Connection
from bus.jsapi import ApiError
from bus.streams import Consumer, Stream

ANSWER_WITHIN: Final = 5.0
"""How long JetStream may take to answer; it stores a message in well under a millisecond."""

NO_RESPONDERS: Final = "503"
"""The server's status for a request that nobody listens to."""


async def ask(
    connection: Connection, subject: str, data: bytes, headers: Mapping[str, str] | None = None
) -> Message:
    """Send a request that JetStream answers. Raises Refused, Unavailable."""
    try:
        answer, status = await connection.ask(subject, data, headers, ANSWER_WITHIN)
    except TimeoutError as error:
        raise Unavailable(str(error)) from None
    if status == NO_RESPONDERS:
        raise Unavailable(f"no stream answers on {subject}")
    return answer


async def ensure_stream(connection: Connection, stream: Stream) -> StreamInfo:
    """Make the stream, or bring it up to its declaration; one question when it is as declared."""
    declared = jsapi.stream_config(stream)
    try:
        try:
            there = await _api(connection, f"STREAM.INFO.{stream.name}")
        except ApiError as error:
            if error.code != jsapi.STREAM_NOT_FOUND:
                raise
            there = await _create(connection, stream.name, declared)
        if jsapi.differs(there["config"], declared):
            wanted = there["config"] | declared
            there = await _api(connection, f"STREAM.UPDATE.{stream.name}", wanted)
    except ApiError as error:
        raise error.as_bus_error(stream.name) from None
    return jsapi.stream_info(there)


async def _create(connection: Connection, name: str, declared: jsapi.Json) -> jsapi.Json:
    try:
        return await _api(connection, f"STREAM.CREATE.{name}", declared)
    except ApiError as error:
        if error.code != jsapi.STREAM_NAME_IN_USE:
            raise
        return await _api(connection, f"STREAM.INFO.{name}")  # somebody else was faster


async def ensure_consumer(connection: Connection, consumer: Consumer) -> None:
    """Make the durable consumer, or bring it up to its declaration."""
    subject = f"CONSUMER.CREATE.{consumer.stream}.{consumer.name}"
    if consumer.filter:
        subject += f".{consumer.filter}"
    config = jsapi.consumer_config(consumer)
    try:
        await _api(connection, subject, {"stream_name": consumer.stream, "config": config})
    except ApiError as error:
        raise error.as_bus_error(f"{consumer.name} of {consumer.stream}") from None


async def delete_consumer(connection: Connection, consumer: Consumer) -> None:
    """Forget the durable consumer and its place in the stream, if it is there."""
    try:
        await _api(connection, f"CONSUMER.DELETE.{consumer.stream}.{consumer.name}")
    except ApiError as error:
        if error.code not in (jsapi.CONSUMER_NOT_FOUND, jsapi.STREAM_NOT_FOUND):
            raise error.as_bus_error(f"{consumer.name} of {consumer.stream}") from None


async def _api(
    connection: Connection, subject: str, request: Mapping[str, Any] | None = None
) -> jsapi.Json:
    body = b"" if request is None else jsapi.write(request)
    answer = await ask(connection, f"$JS.API.{subject}", body)
    return jsapi.read(answer.data)
