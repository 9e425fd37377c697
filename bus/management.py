"""Create and update streams and durable consumers, with nats-py's JetStreamManager."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Final

from nats.js.api import DiscardPolicy, PersistMode, RetentionPolicy, StreamConfig
from nats.js.api import StreamInfo as NatsStreamInfo
from nats.js.errors import APIError, NotFoundError
from nats.js.manager import JetStreamManager

from bus import subjects
from bus.errors import BusError, Conflict, Refused, Unavailable
from bus.messages import ConsumerState, StreamInfo
from bus.nats_client import NatsClient
from bus.streams import EXEC, LOG, MANAGED, Consumer, Stream

API_TIMEOUT: Final = 5.0
"""Seconds that JetStream may take to reply; it stores a message in well under a millisecond."""

_STREAM_NOT_FOUND: Final = 10059
_STREAM_NAME_IN_USE: Final = 10058
_CONSUMER_NOT_FOUND: Final = 10014
_NO_STORAGE: Final = frozenset({10023, 10028, 10047})
"""The server or the account has no room for a stream of that size."""
_NO_MESSAGE: Final = frozenset({10037, 10043, 10057})
"""The stream has no message with that sequence."""
_CLOSED: Final = 1
"""`max_bytes` of a stream that takes no messages, with DiscardPolicy.NEW: the server refuses even an empty one."""
_WRONG_LAST: Final = frozenset({10071, 10164})
_UNAVAILABLE: Final = 503
_TRANSIENT: Final = frozenset(
    {10005, 10007, 10009, 10041, 10118, 10119, 10158, 10167, 10194, 10195, 10202}
)
"""Errors of a cluster that elects a leader, lacks a server or is busy: no peers, no leader, offline, too
many requests, or (10158) a message with the same id is being stored at this moment."""


def bus_error(error: APIError, about: str) -> BusError:
    """Translate JetStream's error into one of the bus; `about` names the stream or subject."""
    message = f"{about}: {error.description or 'no reason given'}"
    if error.err_code in _WRONG_LAST:
        found = re.search(r"\d+$", message)
        return Conflict(message, int(found[0]) if found else None)
    if (
        error.code == _UNAVAILABLE
        or error.err_code in _TRANSIENT
        or error.err_code in (_STREAM_NOT_FOUND, _CONSUMER_NOT_FOUND)
    ):
        return Unavailable(message)
    return Refused(message)


@contextmanager
def translated_errors(about: str) -> Iterator[None]:
    """Raise errors of JetStream as errors of the bus."""
    try:
        yield
    except APIError as error:
        raise bus_error(error, about) from None


class Management:
    """Administers the streams and consumers of one account."""

    def __init__(self, client: NatsClient) -> None:
        self.manager = JetStreamManager(client, timeout=API_TIMEOUT)
        self._client = client

    async def ensure_stream(self, stream: Stream) -> StreamInfo:
        """Create or update the stream; takes one request if it is as declared."""
        with translated_errors(stream.name):
            try:
                info = await self._create_or_update(stream)
            except APIError as error:
                if error.err_code in _NO_STORAGE and stream.max_bytes > 0:
                    raise _no_room(stream, error) from None
                raise
        return _stream_info(info)

    async def stream_info(self, name: str) -> StreamInfo:
        """Return what a stream holds."""
        with translated_errors(name):
            return _stream_info(await self.manager.stream_info(name))

    async def _create_or_update(self, stream: Stream) -> NatsStreamInfo:
        try:
            info = await self.manager.stream_info(stream.name)
        except NotFoundError:
            info = await self._create(stream)
        wanted = _updated(info.config, stream)
        if not _differs(info.config, wanted):
            return info
        try:
            return await self.manager.update_stream(wanted)
        except APIError as error:
            if error.err_code not in _NO_STORAGE or wanted.max_bytes == info.config.max_bytes:
                raise
        # There is no room for a larger stream. Keep its size, and update the rest.
        wanted = wanted.evolve(max_bytes=info.config.max_bytes)
        if _differs(info.config, wanted):
            return await self.manager.update_stream(wanted)
        return info

    async def _create(self, stream: Stream) -> NatsStreamInfo:
        config = stream if stream.num_replicas == 1 else stream.evolve(persist_mode=None)
        try:
            return await self.manager.add_stream(config)
        except APIError as error:
            if error.err_code != _STREAM_NAME_IN_USE:
                raise
            return await self.manager.stream_info(stream.name)  # another process created it

    async def ensure_consumer(self, consumer: Consumer) -> None:
        """Create or update the durable consumer."""
        with translated_errors(f"{consumer.name} of {consumer.stream}"):
            await self.manager.add_consumer(consumer.stream, consumer.config())

    async def delete_consumer(self, consumer: Consumer) -> None:
        """Delete the durable consumer, if it exists."""
        with translated_errors(f"{consumer.name} of {consumer.stream}"), suppress(NotFoundError):
            await self.manager.delete_consumer(consumer.stream, consumer.name)

    async def consumer_state(self, consumer: Consumer) -> ConsumerState:
        """Return how far a durable consumer is."""
        with translated_errors(f"{consumer.name} of {consumer.stream}"):
            info = await self.manager.consumer_info(consumer.stream, consumer.name)
        floor = info.ack_floor.stream_seq if info.ack_floor is not None else 0
        delivered = info.delivered.stream_seq if info.delivered is not None else 0
        return ConsumerState(
            info.num_pending or 0,
            info.num_ack_pending or 0,
            floor,
            info.num_waiting or 0,
            delivered,
        )

    async def purge(self, stream: str, last: int) -> None:
        """Delete the messages of a stream up to and including the sequence `last`."""
        with translated_errors(stream):
            await self.manager.purge_stream(stream, seq=last + 1)

    async def delete_message(self, stream: str, sequence: int) -> None:
        """Delete one message of a stream, if it exists."""
        with translated_errors(stream):
            try:
                await self.manager.delete_msg(stream, sequence)
            except APIError as error:
                if error.err_code not in _NO_MESSAGE:
                    raise

    async def replace_stream(self, stream: Stream, *, until: float) -> bool:
        """Recreate a stream that has an outdated configuration, if it is empty."""
        with translated_errors(stream.name):
            old = await self.manager.stream_info(stream.name)
            if old.config.retention == stream.retention:
                return True  # another process was faster
            if old.state.messages:
                return False
            if asyncio.get_running_loop().time() > until:
                raise Unavailable(f"{stream.name} could not be replaced in time")
            await self.manager.delete_stream(stream.name)
            await self._create(stream.evolve(first_seq=old.state.last_seq + 1))
        return True

    async def server_time(self, stream: str) -> datetime:
        """Return the current time of the stream's server (in a cluster, of the stream's leader)."""
        # Not with the manager, whose StreamInfo has no field for this time.
        reply = await self._client.request(subjects.stream_info(stream), timeout=API_TIMEOUT)
        info = json.loads(reply.data)
        with translated_errors(stream):
            if "error" in info:
                APIError.from_error(info["error"])
        return datetime.fromisoformat(info["ts"])


def _stream_info(info: NatsStreamInfo) -> StreamInfo:
    config, state = info.config, info.state
    assert info.created is not None  # noqa: S101  # the server always tells
    return StreamInfo(
        info.created.isoformat(),
        state.first_seq,
        state.last_seq,
        messages=state.messages,
        size=state.bytes,
        max_size=config.max_bytes or -1,
        retention=RetentionPolicy(config.retention),
    )


def _updated(existing: StreamConfig, stream: Stream) -> StreamConfig:
    """Return the existing configuration with the declared values, but never a smaller size.

    Raises Refused if the stream was created for one server and is to be replicated.
    """
    if existing.persist_mode == PersistMode.ASYNC and stream.num_replicas > 1:
        after = (
            "what it holds is lost"
            if stream.name in {LOG.name, EXEC.name}
            else "workers publish again from the database what it held"
        )
        raise Refused(
            f"{stream.name} was made for one server, and NATS can't change that: stop workspaced, delete "
            f"the stream and start again ({after}), or keep 1 replica"
        )
    declared = {name: getattr(stream, name) for name in MANAGED}
    declared["persist_mode"] = existing.persist_mode  # the server does not change it
    if existing.retention != stream.retention:
        declared |= {
            "retention": existing.retention,
            "discard": DiscardPolicy.NEW,
            "max_bytes": _CLOSED,
        }
    elif existing.max_bytes is not None and existing.max_bytes > stream.max_bytes > 0:
        declared["max_bytes"] = existing.max_bytes  # a smaller stream would drop or refuse messages
    return existing.evolve(**declared)


def _differs(existing: StreamConfig, wanted: StreamConfig) -> bool:
    """Compare the managed fields; the server omits fields that are zero or false."""
    return any((getattr(existing, n) or None) != (getattr(wanted, n) or None) for n in MANAGED)


def _no_room(stream: Stream, error: APIError) -> Refused:
    store = "max_memory_store" if stream.in_memory else "max_file_store"
    return Refused(
        f"{stream.name}: {error.description}: the stream reserves {stream.max_bytes >> 20} MiB; give NATS "
        f"a larger {store}, or a disk with more room"
    )
