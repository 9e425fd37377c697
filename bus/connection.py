"""One connection to a NATS server, which tells the bus more than nats-py's client does.

What differs, and why it reaches below nats-py's public surface:
* Nothing is kept for later: what could not be sent while connected fails, and is never sent.
* Whoever waits for an answer is told at once when the connection breaks or permission is denied;
  nats-py lets a request run into its timeout, and reports a denial to a callback only.
* Messages go straight from the read loop to their taker: no task and no queue for each subscription.
* Waiting for the socket ends when it is cancelled, and when the connection breaks.
* After a break nothing is sent until all of `on_back` have heard of it: nats-py is connected earlier.
"""

from __future__ import annotations

import asyncio
import logging
import re
from asyncio import Future
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import nats.errors
from nats.protocol import command

from bus import Denied, Message, Refused, Unavailable
from bus.client import MendedClient
from bus.headers import read_block, write_block
from bus.subjects import check

log = logging.getLogger(__name__)
denials = logging.getLogger(f"{__name__}.denied")

REFUSALS: Final = 8
"""So often in a row may the credentials be refused (some 4 s) until the connection is given up.

Once would be too hasty: who judges the credentials may start after the server does.
"""

NEEDED: Final = 1024 * 1024
"""Bytes that a message may need: what nats-server takes unless its configuration says less."""

Taker = Callable[[Message, str], None]
"""Gets each message of a subscription, and its status (empty for a message of a publisher)."""

_DENIED: Final = re.compile(
    r'permissions violation for (publish|subscription) (?:to|with reply of) "([^"]+)"'
)


class Connection(MendedClient):
    """One connection to a NATS server, kept up until it is closed."""

    def __init__(self, *, secret: bool = False) -> None:
        super().__init__(secret=secret)
        self.reason = ""
        """What went wrong last; empty while all is well."""
        self.on_lost: list[Callable[[], None]] = []
        self.on_back: list[Callable[[], None]] = []
        self.on_denied: list[Callable[[str, Refused], bool]] = []
        """Asked in turn whether a denied subject, in lower case, is theirs."""
        self.gone: Future[str] = asyncio.get_running_loop().create_future()
        self._takers: dict[int, Taker] = {}
        self.waiting: set[Future[Any]] = set()
        """All that wait for the server, and must hear when the connection breaks."""
        self._denied_subscriptions: set[str] = set()
        self._kept_up = False
        self._broken = False
        """From when the connection breaks until everybody has heard that it is back."""
        self._last_word = ""
        self._refusals = 0
        self._closing: asyncio.Task[None] | None = None
        self._taken = asyncio.get_running_loop().create_future()
        self._taken.set_result(None)

    @property
    def server_id(self) -> str:
        """Name of the server process at the other end; another one after it was restarted."""
        return str(self._server_info.get("server_id", ""))

    @property
    def is_usable(self) -> bool:
        """Whether there is a server, and everybody knows that it may be another one."""
        return self.is_connected and not self._broken

    def too_narrow(self) -> str | None:
        """Say what is wrong when the server takes too small messages only."""
        if self._max_payload >= NEEDED:
            return None
        return (
            f"the server takes messages of {self._max_payload} bytes at most, {NEEDED} are needed: "
            "raise max_payload in its configuration"
        )

    def keep_up(self) -> None:
        """Come back from now on whenever the connection breaks."""
        self._kept_up = True
        self.options["allow_reconnect"] = True
        self.options["max_reconnect_attempts"] = -1

    # -- out -----------------------------------------------------------------------------------

    def post(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Hand a message to the socket, now or never.

        Raises Refused when no server could take it, Unavailable when none is there.
        """
        if not self.is_usable:
            raise Unavailable(self.reason or "not connected")
        check(subject)
        if headers:
            block = write_block(headers)
            size = len(block) + len(data)
            line: bytes = command.hpub_cmd(subject, reply, block, data)
        else:
            size = len(data)
            line = command.pub_cmd(subject, reply, data)
        if size > self._max_payload:
            # The server would close the connection for good.
            raise Refused(f"{size} bytes for {subject}; the server takes {self._max_payload}")
        self._pending.append(line)
        self._pending_data_size += len(line)
        if self._flush_queue is not None and self._flush_queue.empty():
            self._flush_queue.put_nowait(self._taken)

    async def drained(self) -> None:
        """Wait until the socket has taken what was posted, when that is much. Raises Unavailable."""
        if self._pending_data_size <= self._max_payload or self._flush_queue is None:
            return
        taken: Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.add(taken)
        try:
            await self._flush_queue.put(taken)
            await taken
        finally:
            self.waiting.discard(taken)

    async def round_trip(self, within: float = 5.0) -> None:
        """Return when the server has worked all that was posted. Raises Unavailable."""
        if not self.is_connected:
            raise Unavailable(self.reason or "not connected")
        loop = asyncio.get_running_loop()
        pong: Future[Any] = loop.create_future()
        self.waiting.add(pong)
        timer = loop.call_later(within, fail, pong, Unavailable("the server does not answer"))
        try:
            await self._send_ping(pong)
            await pong
        finally:
            timer.cancel()
            self.waiting.discard(pong)

    # -- in ------------------------------------------------------------------------------------

    async def take(self, subject: str, taker: Taker, queue: str = "") -> int:
        """Subscribe; `taker` is called from the read loop, so it must not wait."""
        number = self._sid + 1  # what nats-py will call it; the first message may be here at once
        self._takers[number] = taker
        try:
            await self.subscribe(subject, queue)
        except BaseException as error:
            del self._takers[number]
            if isinstance(error, nats.errors.BadSubjectError):
                raise Refused(f"not a subject: {subject!r}") from None
            if isinstance(error, nats.errors.ConnectionClosedError):
                raise Unavailable(self.reason or "the bus is closed") from None
            raise
        return number

    async def take_for_certain(self, subject: str, taker: Taker, queue: str = "") -> int:
        """Subscribe, and return when the server has. Raises Refused, Unavailable."""
        self._denied_subscriptions.discard(subject.lower())
        number = await self.take(subject, taker, queue)
        try:
            await self.round_trip()
            self.check_subscribed(subject)
        except BaseException:
            await self.leave(number)
            raise
        return number

    def check_subscribed(self, subject: str) -> None:
        """Raise Denied when the server has denied a subscription to the subject."""
        if subject.lower() in self._denied_subscriptions:
            raise Denied(f"not allowed to subscribe to {subject}")

    async def leave(self, number: int) -> None:
        """End a subscription."""
        self._takers.pop(number, None)
        subscription = self._subs.get(number)
        if subscription is not None:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        taker = self._takers.get(sid)
        if taker is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        status, fields = read_block(headers) if headers else ("", {})
        try:
            taker(Message(subject.decode(), data, fields, reply.decode()), status)
        except Exception:
            log.exception("lost a message of %s", subject.decode())

    # -- what goes wrong -----------------------------------------------------------------------

    async def report(self, error: Exception) -> None:
        """Take what nats-py tells nobody else."""
        words = str(error).removeprefix("nats: ").strip("'") or type(error).__name__
        denied = _DENIED.search(words)
        if denied is not None:
            denials.error("NATS refused: %s", words)
            what, subject = denied.groups()
            if what == "subscription":
                self._denied_subscriptions.add(subject)
            any(is_theirs(subject, Denied(words)) for is_theirs in self.on_denied)
            return
        self.reason = words
        if self._kept_up and "authorization" in self.reason.lower():
            self._refused_again()
        else:
            log.debug("nats: %s", self.reason)

    def _refused_again(self) -> None:
        self._refusals += 1
        if self._refusals == 1:
            log.error("NATS no longer accepts the credentials: %s", self.reason)
        if self._refusals >= REFUSALS:
            self._give_up(self.reason)

    def _give_up(self, why: str) -> None:
        self._last_word = why
        self._closing = asyncio.get_running_loop().create_task(self.close())

    def _break_off(self) -> None:
        for future in self.waiting:
            fail(future, Unavailable("the connection broke; it may have arrived"))

    async def lost(self) -> None:
        """Void all that belonged to the connection as it was."""
        self._broken = True
        self._pending.clear()
        self._pending_data_size = 0
        self._break_off()
        for callback in self.on_lost:
            callback()

    async def back(self) -> None:
        """Tell everybody that there is a server again."""
        log.info("connected to NATS again, server %s", self.server_id)
        self.reason = self._last_word = ""
        self._refusals = 0
        self._broken = False
        for callback in self.on_back:
            callback()
        if (why := self.too_narrow()) is not None:
            log.error("%s", why)
            self._give_up(why)

    async def ended(self) -> None:
        """Tell whoever waits for it that the connection is closed for good."""
        if not self.gone.done():
            self.gone.set_result(self._last_word)

    async def _process_err(self, err_msg: str) -> None:
        if not _DENIED.search(err_msg):
            self.reason = self._last_word = err_msg.strip("'")
        await super()._process_err(err_msg)

    async def _process_op_err(self, e: Exception) -> None:
        if self.is_connected:
            log.warning("lost the connection to NATS: %s", e)
            self.reason = str(e)
            self._broken = True
            # Now, while nobody can post: nats-py tells only once the old socket has closed.
            await super()._process_op_err(e)
            self._break_off()
        else:
            await super()._process_op_err(e)


def fail(future: Future[Any], error: Exception) -> None:
    """Let whoever awaits it hear of the error, unless it is over."""
    if not future.done():
        future.set_exception(error)
