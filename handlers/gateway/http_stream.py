"""Chats as Server-Sent Events: their present states, then everything that NATS republishes about them.

An event's id says how far the client has seen the stored states, log lines and commands of each of its chats. A client
that comes back with it gets what it missed, each log line and each piece of output once.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import struct
from asyncio import Future, Queue
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, Literal
from uuid import uuid4

from aiohttp import web
from aiohttp.web_request import BaseRequest

from bus import Backoff, Bus, Denied, Message, StoredMessage, Subscription, Unavailable, subjects
from bus.messages import SEQUENCE
from bus.streams import EXEC, LOG, STATE
from handlers.gateway.http_admission import Ending
from statemachine.chat import Chat
from statemachine.codec import encode
from statemachine.events import OURS
from statemachine.views import state_changed

log = logging.getLogger(__name__)

COMMENT_EVERY: Final = 15.0
"""Seconds without an event after which a comment is sent, so that both ends notice a broken connection."""
BACKLOG: Final = 2_000
"""Messages that may wait for a slow client."""
_LAST_WRITE: Final = 1.0
"""Seconds in which the client has to read why its stream ends."""
_COMMENT: Final = b":\n\n"
_PRESENCE: Final = "presence"
"""Stands in the queue where the chat of a message stands otherwise."""
Kind = Literal["state", "log", "exec"]
Reason = Ending | Literal["slow"]
"""Why a stream ends: its token is no longer valid, the gateway cannot go on with it, or the client is too slow."""
_STREAMS: Final[dict[Kind, str]] = {
    "state": STATE.name,
    "log": LOG.name,
    "exec": EXEC.name,
}
"""Kind of event -> the stream that stores it."""
_STORED: Final[dict[Kind, Callable[[str], str]]] = {
    "state": subjects.state,
    "log": lambda chat: subjects.log(chat, "*"),
    "exec": lambda chat: subjects.exec_output(chat, "*", "*"),
}
"""Kind of event -> the subjects of a chat's stored messages."""
_HASH_SIZE: Final = 6
_SEEN: Final = struct.Struct(f">{_HASH_SIZE}sIII")
"""A chat's hash, and the sequences up to which its states, log lines and commands were seen."""


@dataclass(slots=True)
class _Followed:
    """How far the client has seen a chat."""

    chat: str
    hash: bytes
    seen: dict[Kind, int]
    """Kind -> the sequence of the last stored message that was sent, or that is older than the stream."""
    version: int = -1
    """The version of the last state that was sent."""
    back: bool = False
    """Whether the client has followed the chat before, and says how far."""

    def packed(self) -> bytes:
        """Return the chat's part of an event's id."""
        seen = (self.seen[kind] & 0xFFFFFFFF for kind in _STREAMS)
        return _SEEN.pack(self.hash, *seen)


def _unpack(identifier: str) -> dict[bytes, dict[Kind, int]]:
    """Return what an event's id says: a chat's hash -> how far it was seen. Empty for any other text."""
    try:
        raw = base64.b64decode(identifier, altchars=b"-_", validate=True)
        return {
            chat: {"state": state, "log": line, "exec": piece}
            for chat, state, line, piece in _SEEN.iter_unpack(raw)
        }
    except (ValueError, struct.error):
        return {}


@dataclass(slots=True)
class EventStream:
    """One response that follows chats."""

    bus: Bus
    chats: Sequence[str]
    """Empty: the states of all chats, without the present ones."""
    exec_events: bool
    """Whether the client sees the commands that run."""
    last_id: str = ""
    """The id of the last event that the client has seen; empty: none."""
    presence: bool = False
    """Whether the client is told that a worker, gateway, provisioner or command has connected to NATS or is gone."""
    _followed: dict[str, _Followed] = field(default_factory=dict)
    _told: bool = True
    """Whether no event `presence` waits to be sent; one stands for all until then."""
    _writing: bool = False
    """Whether the stream waits for the client, and not for NATS."""

    async def serve(
        self, request: BaseRequest, response: web.StreamResponse, end: Future[Ending]
    ) -> None:
        """Send events until `end` is set or too many wait to be sent; then say why it ends.

        Raises BusError, before anything is sent; ConnectionError if the client has gone.
        """
        queue: Queue[tuple[str, Message | None]] = Queue(BACKLOG)
        full: Future[Reason] = asyncio.get_running_loop().create_future()
        async with AsyncExitStack() as stack:
            for chat in self.chats or ("*",):
                subject = subjects.ui(chat) if self.chats else subjects.ui_state(chat)
                subscription = await stack.enter_async_context(self.bus.subscribe(subject))
                reader = asyncio.ensure_future(self._read(chat, subscription, queue, full))
                stack.callback(reader.cancel)
            if self.presence:
                await self._watch(stack, queue)
            before = _unpack(self.last_id)
            for chat in self.chats:
                self._followed[chat] = await self._begin(chat, before)
            await response.prepare(request)
            await response.write(_COMMENT)  # the client sees at once that the stream has begun
            sending = asyncio.ensure_future(self._send(response, queue))
            try:
                await asyncio.wait((sending, end, full), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not sending.done():
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
            await _close(request, response, _reason(sending, end, full))

    @property
    def _kinds(self) -> tuple[Kind, ...]:
        return ("log", "exec") if self.exec_events else ("log",)

    async def _begin(self, chat: str, known: Mapping[bytes, dict[Kind, int]]) -> _Followed:
        """Return where a chat begins: where the client was, or with what is stored from now on."""
        hashed = sha256(chat.encode()).digest()[:_HASH_SIZE]
        before = known.get(hashed)
        now: dict[Kind, int] = {"state": 0, "log": 0, "exec": 0}
        for kind in self._kinds:
            now[kind] = await self._end_of(kind, chat)
        if before is None or any(before[kind] > now[kind] for kind in self._kinds):
            return _Followed(
                chat, hashed, now
            )  # an id of streams that were made anew means nothing
        return _Followed(chat, hashed, before, back=True)

    async def _end_of(self, kind: Kind, chat: str) -> int:
        """Return the sequence of the last stored message of that kind about the chat; 0 if there is none."""
        last = await self.bus.get_last(_STREAMS[kind], _STORED[kind](chat))
        return 0 if last is None else last.sequence

    async def _send(
        self, response: web.StreamResponse, queue: Queue[tuple[str, Message | None]]
    ) -> None:
        for followed in self._followed.values():
            await self._catch_up(response, followed, first=True)
        while True:
            try:
                async with asyncio.timeout(COMMENT_EVERY):
                    chat, message = await queue.get()
            except TimeoutError:
                await self._put(response, _COMMENT)
                continue
            if chat == _PRESENCE:
                self._told = True
                await self._put(response, _text("presence", b"{}", ""))
                continue
            followed_or_none = self._followed.get(chat)
            if followed_or_none is None:
                if message is None:
                    return  # states of any chats may have been missed: the client reads them again
                await self._put(response, _text("state", message.data, ""))
            elif message is None:  # the connection to NATS was lost: messages may have been missed
                await self._catch_up(response, followed_or_none)
            else:
                await self._send_live(response, followed_or_none, message)

    async def _catch_up(
        self, response: web.StreamResponse, followed: _Followed, *, first: bool = False
    ) -> None:
        """Send what is stored about the chat and the client has not seen, however long NATS is away."""
        backoff = Backoff()
        while True:
            try:
                await self._send_state(response, followed, first=first)
                if followed.back or not first:
                    await self._send_missed(response, followed)
            except Unavailable as error:
                log.warning("a stream of chat %s waits for NATS: %s", followed.chat, error)
                await self._put(response, _COMMENT)
                await backoff.wait()
            else:
                return

    async def _send_live(
        self, response: web.StreamResponse, followed: _Followed, message: Message
    ) -> None:
        kind, sequence = subjects.ui_kind(message.subject), int(message.headers.get(SEQUENCE, 0))
        if kind == "state":
            await self._send_newer(response, followed, message.data, sequence)
        elif kind in self._kinds and sequence > followed.seen[kind]:
            followed.seen[kind] = sequence
            await self._write(response, kind, message.data)

    async def _send_state(
        self, response: web.StreamResponse, followed: _Followed, *, first: bool = False
    ) -> None:
        """Send the chat's present state, unless the client has seen it."""
        last = await self.bus.get_last(STATE.name, subjects.state(followed.chat))
        if last is None:
            if first and not followed.back:
                await self._send_newer(response, followed, _unknown(followed.chat), 0)
        elif followed.back and last.sequence == followed.seen["state"]:
            followed.version = _version(last.data)
        else:
            await self._send_newer(response, followed, last.data, last.sequence)

    async def _send_newer(
        self, response: web.StreamResponse, followed: _Followed, data: bytes, sequence: int
    ) -> None:
        if (version := _version(data)) > followed.version:
            followed.version, followed.seen["state"] = version, sequence
            await self._write(response, "state", data)

    async def _send_missed(self, response: web.StreamResponse, followed: _Followed) -> None:
        """Send what is stored and was not sent. What comes meanwhile is in the queue, too."""
        for kind in self._kinds:
            last = await self._end_of(kind, followed.chat)
            while followed.seen[kind] < last:
                found = await self._next(kind, followed)
                if found is None:
                    break
                followed.seen[kind] = found.sequence
                await self._write(response, kind, found.data)

    async def _next(self, kind: Kind, followed: _Followed) -> StoredMessage | None:
        subject = _STORED[kind](followed.chat)
        return await self.bus.get_next(_STREAMS[kind], subject, followed.seen[kind])

    async def _write(self, response: web.StreamResponse, kind: Kind, data: bytes) -> None:
        packed = b"".join(followed.packed() for followed in self._followed.values())
        identifier = base64.urlsafe_b64encode(packed).decode()
        await self._put(response, _text(kind, data, identifier))

    async def _put(self, response: web.StreamResponse, text: bytes) -> None:
        self._writing = True
        try:
            await response.write(text)
        finally:
            self._writing = False

    async def _watch(self, stack: AsyncExitStack, queue: Queue[tuple[str, Message | None]]) -> None:
        """From now on, queue an event when clients connect to NATS or are gone. Raises Unavailable."""
        try:
            connections = await stack.enter_async_context(self.bus.subscribe(subjects.CONNECTIONS))
        except Denied as error:
            log.warning(
                "nobody is told who connects to NATS: %s; renew its authorization block "
                "(`workspaced nats-auth`)",
                error,
            )
            return

        async def read() -> None:
            while True:
                await connections.next_or_reconnect()
                if self._told and not queue.full():
                    self._told = False
                    queue.put_nowait((_PRESENCE, None))

        reader = asyncio.ensure_future(read())
        stack.callback(reader.cancel)

    async def _read(
        self,
        chat: str,
        subscription: Subscription,
        queue: Queue[tuple[str, Message | None]],
        full: Future[Reason],
    ) -> None:
        while True:
            message = await subscription.next_or_reconnect()
            try:
                queue.put_nowait((chat, message))
            except asyncio.QueueFull:
                if not full.done():
                    full.set_result("slow" if self._writing else "leaving")
                return


def _reason(sending: Future[None], end: Future[Ending], full: Future[Reason]) -> Reason:
    """Return why a stream ends. Raises ConnectionError if the client has gone."""
    if end.done():
        return end.result()
    if full.done():
        return full.result()
    error = sending.exception()
    if isinstance(error, ConnectionError):
        raise error
    if error is not None:
        log.error("a stream ends because of an error", exc_info=error)
    return "leaving"


async def _close(request: BaseRequest, response: web.StreamResponse, reason: Reason) -> None:
    """Say why the stream ends; break the connection to a client that does not read it."""
    try:
        async with asyncio.timeout(_LAST_WRITE):
            await response.write(_text("end", json.dumps({"reason": reason}).encode(), ""))
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    except ConnectionError:
        pass


def _version(data: bytes) -> int:
    return int(json.loads(data)["data"]["version"])


def _unknown(chat_id: str) -> bytes:
    """Return the state of a chat that workspaced does not know, as an event."""
    data = state_changed(Chat(chat_id=chat_id))
    return encode(
        "state_changed", OURS, chat_id, data, event_id=str(uuid4()), time=datetime.now(UTC)
    )


def _text(kind: str, data: bytes, identifier: str) -> bytes:
    """Return an event as Server-Sent Events write it."""
    lines = b"".join(b"data: " + line + b"\n" for line in data.splitlines() or [b""])
    id_line = f"id: {identifier}\n" if identifier else ""
    return f"event: {kind}\n{id_line}".encode() + lines + b"\n"
