"""Subclass of nats-py's client with the behaviour that the bus needs. All patches to nats-py are in this module.

Differences from nats-py:

* Nothing is buffered while disconnected: a publish fails, and is not sent later.
* Each pending operation fails immediately when the connection breaks, or when the server denies permission. nats-py lets a request run into its timeout and reports a denial to a callback only.
* The read loop calls the handler of a message directly, without a task and a queue per subscription.
* Waiting for the socket ends when it is cancelled, and when the connection breaks.
* After a reconnect nothing is sent until all callbacks of `on_reconnect` have run. nats-py reports that
  it is connected earlier.
* A server without TLS is rejected where TLS is required. nats-py would continue in plain text.
* A socket on which the handshake failed is closed.
* A flush follows what was sent before it (nats-py's PING overtakes its own queue), and a cancelled flush
  does not stop the read loop when its PONG arrives.

tests/contract/test_nats_py.py has a test for each private name of nats-py that is used here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import Request
from nats.protocol import command

from bus.errors import Denied, Refused, Unavailable
from bus.exchange import Exchange, Reply
from bus.messages import STATUS, Message, read_headers, write_headers
from bus.subjects import check

log = logging.getLogger(__name__)
denials = logging.getLogger(f"{__name__}.denied")

NO_TLS: Final = "the server offers no TLS"
"""The error when TLS is required and the server does not offer it."""
NO_RESPONDERS: Final = "503"
"""The server's status for a request to a subject without subscribers."""
MAX_REJECTIONS: Final = 8
"""After so many rejections of the credentials in a row (about 4 s) the connection is closed for good.

One would be too few: the auth callout that judges the credentials may start after the server does.
"""
NEEDED_PAYLOAD: Final = 1024 * 1024
"""Bytes that the server has to accept in one message: nats-server's default."""

MessageHandler = Callable[[Message, str], None]
"""Called with each message of a subscription and its status (empty for a publisher's message)."""
MOST_IN_FLIGHT: Final = 1000
"""Requests sent side by side. nats-server buffers 10,000 messages of all clients for a stream, and refuses others."""
MOST_BYTES_IN_FLIGHT: Final = 8 * 1024 * 1024

_DENIED: Final = re.compile(
    r'permissions violation for (publish|subscription) (?:to|with reply of) "([^"]+)"'
)


class NatsClient(Client):
    """One connection to a NATS server, reconnected until it is closed."""

    def __init__(self, *, tls_required: bool = False) -> None:
        super().__init__()
        self.error_text = ""
        """The latest error of the connection; empty while it works."""
        self.on_disconnect: list[Callable[[], None]] = []
        self.on_reconnect: list[Callable[[], None]] = []
        self.on_denied: list[Callable[[str, Refused], bool]] = []
        """Called in turn with a denied subject, in lower case, until one returns True."""
        self.closed_for_good: Future[str] = asyncio.get_running_loop().create_future()
        """Done when the connection is closed for good, with the reason; empty: `close` was called."""
        self.waiting: set[Future[Any]] = set()
        """Futures that fail when the connection breaks."""
        self._tls_required = tls_required
        self._handlers: dict[int, MessageHandler] = {}
        self._denied_subscriptions: set[str] = set()
        self._reconnecting_enabled = False
        self._broken = False
        """True from a break until all callbacks of `on_reconnect` have run."""
        self._close_reason = ""
        self._rejections = 0
        self._closing: asyncio.Task[None] | None = None
        self._written = asyncio.get_running_loop().create_future()
        self._written.set_result(None)
        self._reply_prefix = ""
        self._reply_subscription = 0
        self._exchanges: dict[str, Exchange] = {}
        self._exchange_numbers = itertools.count(1)

    @property
    def server_id(self) -> str:
        """The id of the connected server process; a restarted server has another one."""
        return str(self._server_info.get("server_id", ""))

    @property
    def is_usable(self) -> bool:
        """Whether a server is connected, and all callbacks of `on_reconnect` have run."""
        return self.is_connected and not self._broken

    def payload_problem(self) -> str | None:
        """Return what is wrong if the server accepts only messages that are too small."""
        if self._max_payload >= NEEDED_PAYLOAD:
            return None
        return (
            f"the server takes messages of {self._max_payload} bytes at most, {NEEDED_PAYLOAD} are "
            "needed: raise max_payload in its configuration"
        )

    def enable_reconnect(self) -> None:
        """Reconnect from now on, without a limit of attempts."""
        self._reconnecting_enabled = True
        self.options["allow_reconnect"] = True
        self.options["max_reconnect_attempts"] = -1

    # -- sending -------------------------------------------------------------------------------

    def publish_nowait(
        self, subject: str, data: bytes, header_block: bytes = b"", reply: str = ""
    ) -> None:
        """Hand a message to the socket's writer.

        Raises Refused when no server would accept it, Unavailable when not connected.
        """
        if not self.is_usable:
            raise Unavailable(self.error_text or "not connected")
        check(subject)
        line: bytes
        if header_block:
            line = command.hpub_cmd(subject, reply, header_block, data)
        else:
            line = command.pub_cmd(subject, reply, data)
        if (size := len(header_block) + len(data)) > self._max_payload:
            # The server would close the connection for good.
            raise Refused(f"{size} bytes for {subject}; the server takes {self._max_payload}")
        self._pending.append(line)
        self._pending_data_size += len(line)
        if self._flush_queue is not None and self._flush_queue.empty():
            self._flush_queue.put_nowait(self._written)

    async def wait_if_behind(self) -> None:
        """Wait for the socket if much is unsent. Raises Unavailable when the connection breaks."""
        if self._pending_data_size <= self._max_payload or self._flush_queue is None:
            return
        written: Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.add(written)
        try:
            await self._flush_queue.put(written)
            await written
        finally:
            self.waiting.discard(written)

    async def round_trip(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109  # of one PING
        """Return when the server has processed everything sent so far. Raises Unavailable."""
        if not self.is_connected:
            raise Unavailable(self.error_text or "not connected")
        loop = asyncio.get_running_loop()
        pong: Future[Any] = loop.create_future()
        self.waiting.add(pong)
        timer = loop.call_later(timeout, fail, pong, Unavailable("the server does not answer"))
        try:
            await self._send_ping(pong)
            await pong
        finally:
            timer.cancel()
            self.waiting.discard(pong)

    # -- requests ------------------------------------------------------------------------------

    async def start_requests(self) -> None:
        """Subscribe to the inbox of all replies. Call it once, after `connect`."""
        self._reply_prefix = f"{self.new_inbox()}."
        self._reply_subscription = self._sid + 1
        await self.subscribe(f"{self._reply_prefix}*")
        self.on_denied.append(self._request_denied)

    async def ask(
        self,
        subject: str,
        data: bytes,
        header_block: bytes,
        timeout: float,  # noqa: ASYNC109  # of one request
    ) -> Reply:
        """Send a request and return its reply. Raises Refused, TimeoutError, Unavailable."""
        (reply,) = await self.ask_many([(subject, data, header_block)], timeout)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def ask_many(
        self,
        requests: Sequence[tuple[str, bytes, bytes]],
        timeout: float,  # noqa: ASYNC109  # of one reply
    ) -> Sequence[Reply | Exception]:
        """Send requests side by side, each a subject, data and headers; wait for all replies.

        Return for each request its reply or its error: Refused, Unavailable, or TimeoutError if no reply to any of
        them came for `timeout` seconds. If the connection breaks, no request is sent after that.
        """
        name = str(next(self._exchange_numbers))
        exchange = self._exchanges[name] = Exchange([subject for subject, _, _ in requests])
        exchange.watch(timeout)
        count = size = 0
        try:
            for number, (subject, data, block) in enumerate(requests):
                if count >= MOST_IN_FLIGHT or size >= MOST_BYTES_IN_FLIGHT:
                    await exchange.wait(len(requests) - number)
                    count = size = 0
                if self._pending_data_size > self._max_payload:
                    with suppress(Unavailable):  # the exchange has failed too
                        await self.wait_if_behind()
                if exchange.results[number] is not None:
                    break  # the connection broke, or no reply came
                try:
                    self.publish_nowait(
                        subject, data, block, f"{self._reply_prefix}{name}-{number}"
                    )
                except (Refused, Unavailable) as error:
                    exchange.put(number, error)
                count, size = count + 1, size + len(data)
            await exchange.wait(0)
        finally:
            exchange.timer.cancel()
            del self._exchanges[name]
        return exchange.results  # type: ignore[return-value]  # none is missing any more

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109  # nats-py's
        old_style: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Msg:
        """Send a request for nats-py's JetStreamManager. Raises Refused, Unavailable."""
        del old_style
        block = write_headers(headers)
        try:
            data, reply_block = await self.ask(subject, payload, block, timeout)
        except TimeoutError as error:
            raise Unavailable(str(error)) from None
        status, fields = read_headers(reply_block)
        if status == NO_RESPONDERS:
            raise Unavailable(f"no stream answers on {subject}")
        if status:
            fields[STATUS] = status
        return Msg(self, "", "", data, fields)

    def _take_reply(self, subject: bytes, reply: Reply) -> None:
        name, _, number = subject[len(self._reply_prefix) :].decode().partition("-")
        exchange = self._exchanges.get(name)
        if exchange is not None:
            exchange.put(int(number), reply)

    def _request_denied(self, denied: str, error: Refused) -> bool:
        prefix = self._reply_prefix.lower()
        if denied == f"{prefix}*":
            for exchange in self._exchanges.values():
                exchange.fail(error)
            return True
        for name, exchange in self._exchanges.items():
            # One denial belongs to one request: the oldest.
            for number, subject in enumerate(exchange.subjects):
                own = (subject.lower(), f"{prefix}{name}-{number}")
                if denied in own and exchange.results[number] is None:
                    exchange.put(number, error)
                    return True
        return False

    # -- receiving -----------------------------------------------------------------------------

    async def listen(self, subject: str, handler: MessageHandler, queue: str = "") -> int:
        """Subscribe and return the subscription's number. `handler` runs in the read loop."""
        number = self._sid + 1  # the number that nats-py assigns next: a message may arrive at once
        self._handlers[number] = handler
        try:
            await self.subscribe(subject, queue)
        except BaseException as error:
            del self._handlers[number]
            if isinstance(error, nats.errors.BadSubjectError):
                raise Refused(f"not a subject: {subject!r}") from None
            if isinstance(error, nats.errors.ConnectionClosedError):
                raise Unavailable(self.error_text or "the bus is closed") from None
            raise
        return number

    async def listen_confirmed(self, subject: str, handler: MessageHandler, queue: str = "") -> int:
        """Subscribe and wait until the server has confirmed it. Raises Refused, Unavailable."""
        self._denied_subscriptions.discard(subject.lower())
        number = await self.listen(subject, handler, queue)
        try:
            await self.round_trip()
            self.check_subscribed(subject)
        except BaseException:
            await self.unlisten(number)
            raise
        return number

    def check_subscribed(self, subject: str) -> None:
        """Raise Denied when the server has denied a subscription to the subject."""
        if subject.lower() in self._denied_subscriptions:
            raise Denied(f"not allowed to subscribe to {subject}")

    async def unlisten(self, number: int) -> None:
        """End a subscription. Its handler is not called again."""
        self._handlers.pop(number, None)
        await self._unsubscribe(number)

    async def unlisten_drained(self, number: int) -> None:
        """End a subscription, after its handler has got all that the server sent before the end."""
        try:
            await self._unsubscribe(number)
            with suppress(Unavailable, nats.errors.Error):
                await self.round_trip(timeout=1.0)
        finally:
            self._handlers.pop(number, None)

    async def _unsubscribe(self, number: int) -> None:
        subscription = self._subs.get(number)
        if subscription is not None:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        handler = self._handlers.get(sid)
        if handler is None and sid != self._reply_subscription:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            if handler is None:
                self._take_reply(subject, (data, headers or b""))
                return
            status, fields = read_headers(headers) if headers else ("", {})
            handler(Message(subject.decode(), data, fields, reply.decode()), status)
        except Exception:
            log.exception("lost a message on %s", subject.decode())

    # -- callbacks of nats-py ------------------------------------------------------------------

    async def report_error(self, error: Exception) -> None:
        """Handle an error that nats-py reports to its `error_cb` only."""
        message = str(error).removeprefix("nats: ").strip("'") or type(error).__name__
        denied = _DENIED.search(message)
        if denied is not None:
            denials.error("NATS refused: %s", message)
            action, subject = denied.groups()
            if action == "subscription":
                self._denied_subscriptions.add(subject)
            any(is_theirs(subject, Denied(message)) for is_theirs in self.on_denied)
            return
        self.error_text = message
        if self._reconnecting_enabled and "authorization" in self.error_text.lower():
            self._count_rejection()
        else:
            log.debug("nats: %s", self.error_text)

    async def report_disconnect(self) -> None:
        """Discard everything that belonged to the lost connection."""
        self._broken = True
        self._pending.clear()
        self._pending_data_size = 0
        self._fail_waiting()
        for callback in self.on_disconnect:
            callback()

    async def report_reconnect(self) -> None:
        """Call all callbacks of `on_reconnect`, and permit to send again."""
        log.info("connected to NATS again, server %s", self.server_id)
        self.error_text = self._close_reason = ""
        self._rejections = 0
        self._broken = False
        for callback in self.on_reconnect:
            callback()
        if (problem := self.payload_problem()) is not None:
            log.error("%s", problem)
            self._close_for_good(problem)

    async def report_closed(self) -> None:
        """Resolve `closed_for_good`."""
        if not self.closed_for_good.done():
            self.closed_for_good.set_result(self._close_reason)

    def _count_rejection(self) -> None:
        self._rejections += 1
        if self._rejections == 1:
            log.error("NATS no longer accepts the credentials: %s", self.error_text)
        if self._rejections >= MAX_REJECTIONS:
            self._close_for_good(self.error_text)

    def _close_for_good(self, reason: str) -> None:
        self._close_reason = reason
        self._closing = asyncio.get_running_loop().create_task(self.close())

    def _fail_waiting(self) -> None:
        error = Unavailable("the connection broke; it may have arrived")
        for exchange in self._exchanges.values():
            exchange.fail(error)
        for future in self.waiting:
            fail(future, error)

    # -- overridden methods of nats-py ---------------------------------------------------------

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        plain = self._current_server is not None and self._current_server.uri.scheme != "wss"
        if self._tls_required and plain and initial_connection and not info.get("tls_required"):
            # nats-py would continue in plain text: an attacker on the path could cause that.
            raise nats.errors.Error(NO_TLS)
        await super()._process_info(info, initial_connection)

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except BaseException:
            if self._transport is not None:
                # nats-py leaves this socket open and opens another one.
                self._transport.close()  # type: ignore[no-untyped-call]
                if self._current_server and self._current_server.uri.scheme in ("nats", "tls"):
                    # After a failed TLS handshake, waiting for the end of the stream may not end.
                    self._transport = None
            raise

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pings_outstanding = 0
        else:
            await super()._process_pong()

    async def _send_ping(self, future: Future[Any] | None = None) -> None:
        if self._transport is not None and self._pending:
            self._transport.writelines(self._pending)
            self._pending = []
            self._pending_data_size = 0
        await super()._send_ping(future)

    async def _process_err(self, err_msg: str) -> None:
        if not _DENIED.search(err_msg):
            self.error_text = self._close_reason = err_msg.strip("'")
        await super()._process_err(err_msg)

    async def _process_op_err(self, e: Exception) -> None:
        if self.is_connected:
            log.warning("lost the connection to NATS: %s", e)
            self.error_text = str(e)
            self._broken = True
            # Fail the waiting futures now: nats-py reports a disconnect after the old socket closed.
            await super()._process_op_err(e)
            self._fail_waiting()
        else:
            await super()._process_op_err(e)


def service_message(request: Request) -> Message:
    """Return a micro service's request as a Message; nats-py hides the reply subject."""
    reply = request._msg.reply  # noqa: SLF001  # see the module's docstring
    return Message(request.subject, request.data, request.headers or {}, reply)


def fail(future: Future[Any], error: Exception) -> None:
    """Set an exception on the future, unless it is done."""
    if not future.done():
        future.set_exception(error)
