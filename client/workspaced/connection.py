"""The client's connection to NATS.

It differs from nats-py in three ways. A request fails at once when NATS denies it, when nobody serves it and when
the connection breaks; nats-py lets it run into its time-out. Nothing is buffered while disconnected. Where `tls://`
is asked for, a server without TLS is rejected.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import nkeys

from workspaced import subjects
from workspaced.errors import Invalid, Refused, Unavailable, of_service
from workspaced.events import CONTENT_TYPE, encode, identity
from workspaced.nats_py import Client, Msg, errors, prepare_websockets
from workspaced.retrying import Backoff

_log: Final = logging.getLogger(__name__)
_DENIED: Final = re.compile(
    r'permissions violation for (publish|subscription) (?:to|with reply of) "([^"]+)"',
    re.IGNORECASE,
)
_URL: Final = re.compile(r"(?:(?:nats|tls|ws|wss)://|(?!\w+://))[^\s/,]+(?:/|$)")
WITHIN: Final = 10.0
"""Seconds in which NATS and the gateway answer short requests."""
_REJECTIONS: Final = 8
"""Rejections of the key in a row, while reconnecting, after which the connection is given up."""
_STORING: Final = 5
"""Attempts to store an event before it is given up."""
_LATER: Final = (408, 425, 429)
"""Client errors that a later attempt may not get."""
_FROM_SERVER: Final = 500
"""Errors from here on are the server's; those below, the request's."""


class Interrupted(Unavailable):
    """The connection broke while a reply was awaited; the request may have arrived."""


class Rejected(Refused):
    """NATS does not accept the key. A gateway that checks keys may not run yet."""


class _Client(Client):
    """nats-py's client: it accepts no server without TLS where that is required, and closes its sockets."""

    tls_required = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if self.tls_required and initial_connection and not info.get("tls_required"):
            raise errors.Error("the server offers no TLS")
        await super()._process_info(info, initial_connection)

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except BaseException:
            if self._transport is not None:  # nats-py leaves this socket open and opens another one
                self._transport.close()  # type: ignore[no-untyped-call]
                if self._current_server and self._current_server.uri.scheme in ("nats", "tls"):
                    # After a failed TLS handshake, waiting for the end of the stream may not end.
                    self._transport = None
            raise


class Subscription:
    """Messages of one or more subjects in the order of arrival; None stands for a reconnect."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Msg | Exception | None] = asyncio.Queue()
        self.numbers: list[Any] = []

    async def next(self) -> Msg | None:
        """Wait for a message; None: the connection was lost and is back. Raises WorkspacedError."""
        item = await self.queue.get()
        if isinstance(item, Exception):
            self.queue.put_nowait(item)  # every later call fails too
            raise item
        return item


class Connection:
    """One connection to NATS, reconnected until it is closed."""

    def __init__(self, client: _Client, url: str) -> None:
        self._client, self._url = client, url
        self._inbox = ""
        self._numbers = itertools.count(1)
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg]]] = {}
        """The subject and the future of each request, by the last token of its reply subject."""
        self._subscriptions: set[Subscription] = set()
        self._denied: set[str] = set()
        self._answering: dict[str, Subscription] = {}
        """Subscriptions to what a subject answers, by that subject: a denial of it goes to them."""
        self._flushing: set[asyncio.Future[None]] = set()
        self._up = asyncio.Event()
        self._ended: Exception | None = None
        self._error, self._rejections = "", 0

    @property
    def connected(self) -> bool:
        """Whether a server is connected now."""
        return self._ended is None and self._up.is_set()

    @property
    def server_id(self) -> str:
        """The id of the connected server process; a restarted server has another one."""
        return str(self._client._server_info.get("server_id", ""))  # noqa: SLF001

    # -- requests ------------------------------------------------------------------------------

    async def send(
        self,
        subject: str,
        body: bytes,
        *,
        reply: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Publish without an acknowledgement; without a connection nothing is sent."""
        if self.connected:
            with suppress(errors.Error, OSError):
                await self._client.publish(
                    subject, body, reply=reply, headers=dict(headers or {}) or None
                )

    async def request(
        self,
        subject: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        within: float = WITHIN,
    ) -> Msg:
        """Send a request and return its reply. Raises Refused, Invalid, NotFound, Unavailable."""
        await self._wait_connected(within)
        number = str(next(self._numbers))
        reply: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (subject.lower(), reply)
        try:
            async with asyncio.timeout(within):
                await self._client.publish(
                    subject,
                    body,
                    reply=f"{self._inbox}.{number}",
                    headers=dict(headers or {}) or None,
                )
                message = await reply
        except TimeoutError:
            raise Unavailable(f"no answer on {subject} within {within:g} s") from None
        except errors.MaxPayloadError:
            raise Invalid(f"{len(body)} bytes for {subject} are more than NATS accepts") from None
        except errors.BadSubjectError:
            raise Invalid(f"{subject!r} is no subject") from None
        except errors.Error as error:
            raise Interrupted(f"not sent: {error or type(error).__name__}") from None
        finally:
            del self._waiting[number]
        status = (message.headers or {}).get("Status")
        if status == "503":
            raise Unavailable(
                f"nobody serves {subject}: start `workspaced gateway` on this NATS, or `workspaced up`; or the name "
                "is wrong"
            )
        return message

    async def rpc(self, name: str, body: Mapping[str, Any], within: float = WITHIN) -> Any:
        """Call an rpc of the gateway and return its reply. Raises WorkspacedError."""
        given = {key: value for key, value in body.items() if value is not None}
        reply = await self.request(subjects.rpc(name), json.dumps(given).encode(), within=within)
        headers = reply.headers or {}
        if (code := headers.get("Nats-Service-Error-Code")) is not None:
            raise of_service(code, name, headers.get("Nats-Service-Error", ""))
        return json.loads(reply.data)

    async def put(self, subject: str, body: bytes, message_id: str | None) -> bool:
        """Publish an event once, and return whether its stream says that it has seen `message_id` before.

        Raises Refused, Invalid, Unavailable.
        """
        headers = {"Content-Type": CONTENT_TYPE}
        if message_id is not None:
            headers["Nats-Msg-Id"] = message_id
        ack = json.loads((await self.request(subject, body, headers)).data)
        if (error := ack.get("error")) is not None:
            text = f"NATS does not store the event: {error.get('description')}"
            code = error.get("code", _FROM_SERVER)
            raise (Unavailable if code >= _FROM_SERVER or code in _LATER else Invalid)(text)
        return bool(ack.get("duplicate")) and message_id is not None

    async def store(self, subject: str, event: Mapping[str, Any]) -> None:
        """Publish an event until its stream has stored it. Raises Refused, Invalid, Unavailable."""
        body, message_id = encode(event).encode(), identity(event)
        backoff, attempt = Backoff(first=0.2), 0
        while True:
            try:
                await self.put(subject, body, message_id)
            except Interrupted:  # a repeat has no further effect
                continue
            except Unavailable:
                attempt += 1
                if attempt >= _STORING:
                    raise
            else:
                return
            await backoff.wait()

    async def last(self, subject: str, among: str | None = None) -> Any:
        """Return the event that a direct get finds, or None. Raises Refused, Unavailable.

        `among`: the subjects of which the newest event is wanted, if `subject` does not say it.
        """
        body = b"" if among is None else json.dumps({"last_by_subj": among}).encode()
        while True:
            with suppress(Interrupted):
                message = await self.request(subject, body)
                return None if (message.headers or {}).get("Status") else json.loads(message.data)

    # -- subscriptions -------------------------------------------------------------------------

    def new_inbox(self) -> str:
        """Return a subject for the answers to this connection."""
        return f"{self._inbox}.{next(self._numbers)}.answers"

    async def subscribe(self, *names: str, answers_to: str = "") -> Subscription:
        """Subscribe, and wait until the server has confirmed it. Raises Refused, Unavailable.

        `answers_to` is the subject of the requests that are answered there; if the key may not publish on it,
        the subscription ends with Refused.
        """
        subscription = Subscription()

        async def take(message: Msg) -> None:
            subscription.queue.put_nowait(message)

        self._subscriptions.add(subscription)
        if answers_to:
            self._answering[answers_to.lower()] = subscription
        try:
            await self._wait_connected(WITHIN)
            for name in names:
                subscription.numbers.append(await self._client.subscribe(name, cb=take))
            await self._confirm()
            if denied := [name for name in names if name.lower() in self._denied]:
                raise Refused(
                    f"the key may not subscribe to {', '.join(denied)}: use one of another role"
                )
        except (errors.Error, TimeoutError) as error:
            await self.unsubscribe(subscription)
            raise Unavailable(f"can't subscribe: {error or 'no NATS'}") from None
        except BaseException:
            await self.unsubscribe(subscription)
            raise
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription."""
        self._subscriptions.discard(subscription)
        self._answering = {
            subject: one for subject, one in self._answering.items() if one is not subscription
        }
        for number in subscription.numbers:
            with suppress(errors.Error):
                await number.unsubscribe()

    async def _confirm(self) -> None:
        """Wait until the server knows all subscriptions, also over a reconnect. Raises Unavailable."""
        async with asyncio.timeout(WITHIN):
            while True:
                await self._up.wait()
                if self._ended is not None:
                    raise self._ended
                # nats-py's PING overtakes what waits to be written, so that one flush is not enough.
                flushing = asyncio.ensure_future(self._flush_twice())
                self._flushing.add(flushing)
                await asyncio.wait({flushing})
                self._flushing.discard(flushing)
                if not flushing.cancelled() and flushing.exception() is None:
                    return
                if self._up.is_set() and not flushing.cancelled():
                    flushing.result()

    async def _flush_twice(self) -> None:
        await self._client.flush()
        await self._client.flush()

    async def _wait_connected(self, within: float) -> None:
        try:
            async with asyncio.timeout(within):
                await self._up.wait()
        except TimeoutError:
            raise Unavailable(f"no NATS at {self._url}: {self._error or 'not connected'}") from None
        if self._ended is not None:
            raise self._ended

    # -- opening and closing -------------------------------------------------------------------

    async def open_inbox(self, prefixes: list[str]) -> None:
        """Use the first inbox prefix that the key permits. Raises Refused."""
        for prefix in prefixes:
            inbox = f"{prefix}.{uuid4().hex}"
            subscription = await self._client.subscribe(f"{inbox}.*", cb=self._take_reply)
            await self._confirm()
            if f"{inbox}.*".lower() not in self._denied:
                self._inbox = inbox
                return
            await subscription.unsubscribe()
        raise Refused(
            "the key is none of a chat service, a provisioner or an operator: it permits none of the inboxes "
            f"{', '.join(prefixes)}"
        )

    async def close(self) -> None:
        """Close the connection; everything that waits fails."""
        self._end(Unavailable("the connection is closed"))
        await self._client.close()

    def _end(self, error: Exception) -> None:
        if self._ended is None:
            self._ended = error
            self._up.set()
            self._fail_requests(error)
            for subscription in self._subscriptions:
                subscription.queue.put_nowait(error)

    def _fail_requests(self, error: Exception) -> None:
        for _, reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(error)

    async def _take_reply(self, message: Msg) -> None:
        _, reply = self._waiting.get(message.subject.rpartition(".")[2], ("", None))
        if reply is not None and not reply.done():
            reply.set_result(message)

    # -- callbacks of nats-py ------------------------------------------------------------------

    async def report_error(self, error: Exception) -> None:
        """Hand a denial to the request that it is about."""
        text = str(error).removeprefix("nats: ").strip("'") or type(error).__name__
        if (found := _DENIED.search(text)) is not None:
            action, subject = found[1].lower(), found[2].lower()
            if action == "subscription":
                self._denied.add(subject)
                return
            for wanted, reply in self._waiting.values():
                if wanted == subject and not reply.done():
                    reply.set_exception(_refused(found[2]))
                    return
            if (answering := self._answering.get(subject)) is not None:
                answering.queue.put_nowait(_refused(found[2]))
            return
        self._error = text
        if "authorization" in text.lower():
            self._rejections += 1
            if self._rejections >= _REJECTIONS and self._up.is_set() is False:
                self._end(Refused(f"NATS no longer accepts the key: {text}"))

    async def report_disconnect(self) -> None:
        """Fail what waits for a reply."""
        if self._ended is None:
            self._up.clear()
        for flushing in self._flushing:
            flushing.cancel()  # nats-py subscribes again after a reconnect
        self._fail_requests(Interrupted("the connection broke; the request may have arrived"))

    async def report_connected(self) -> None:
        """Tell all subscriptions that messages may have been missed."""
        self._rejections = 0
        self._up.set()
        for subscription in self._subscriptions:
            subscription.queue.put_nowait(None)

    async def report_closed(self) -> None:
        """Fail everything: NATS closes a connection for good when its key expired or was revoked."""
        self._end(Refused(f"NATS closed the connection: {self._client.last_error or self._error}"))


def _refused(subject: str) -> Refused:
    return Refused(
        f"the key may not use {subject}: use one of another role, or correct the name (docs/reference says which key "
        "is permitted what)"
    )


def read_key(key: str | Path | Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the seed of a key and the inbox prefixes that it may have.

    `key` is a file with a seed, a seed, or the JSON object that issued the key. Raises Invalid, Refused.
    """
    if isinstance(key, Mapping):
        if not key.keys() >= {"seed", "inbox_prefix"}:
            raise Invalid(
                "a key that is an object has `seed` and `inbox_prefix`, as the rpc that issued it said"
            )
        return str(key["seed"]), [str(key["inbox_prefix"])]
    if not isinstance(key, str | Path):
        raise Invalid(
            "key must be the path of a file with an NKey seed, the seed itself, or the object that issued the key, and "
            f"is a {type(key).__name__}"
        )
    text, name = str(key).strip(), ""
    if not re.fullmatch(r"SU[A-Z2-7]{56}", text):
        name = Path(key).stem
        try:
            content = Path(key).read_text()
        except OSError as error:
            raise Refused(
                f"the key file {key} can't be read: {error.strerror} (a key that is no file is an NKey seed: SU and 56 "
                "capital letters or digits)"
            ) from None
        if content.lstrip().startswith("{"):
            return read_key(json.loads(content))
        found = re.search(r"^\s*(SU[A-Z2-7]{56})\s*$", content, re.MULTILINE)
        if found is None:
            raise Refused(f"the file {key} contains no NKey seed (a line that begins with SU)")
        text = found[1]
    try:
        public = bytes(nkeys.from_seed(text.encode()).public_key).decode()
    except Exception as error:  # noqa: BLE001  # nkeys raises errors of several libraries
        raise Refused(f"the key is no NKey seed: {error or type(error).__name__}") from None
    of_roles = {
        "chat-service": "_INBOX_chat-service",
        "provisioner": "_INBOX_provisioner",
        "operator": "_INBOX",
    }
    prefixes = [f"_INBOX_{public}", *of_roles.values()]
    # The key files of `workspaced up` are named for their roles.
    return text, sorted(prefixes, key=lambda prefix: prefix != of_roles.get(name))


async def open_connection(
    url: str,
    *,
    key: str | Path | Mapping[str, Any],
    name: str,
    tls: ssl.SSLContext | None,
) -> Connection:
    """Connect to NATS. Raises Refused for a wrong key, Unavailable if there is no server, Invalid."""
    if not isinstance(url, str) or not all(_URL.match(one.strip()) for one in url.split(",")):
        shown = re.sub(r"//[^@/]*@", "//", str(url))
        raise Invalid(
            f"url must be like nats://127.0.0.1:4222 (or tls://, ws://, wss://; several separated by commas), and is {shown!r}"
        )
    seed, prefixes = read_key(key)
    prepare_websockets(url)
    client = _Client()
    client.tls_required = tls is not None or url.startswith("tls:")
    connection = Connection(client, re.sub(r"//[^@/]*@", "//", url))
    options: dict[str, Any] = {} if tls is None else {"tls": tls}
    try:
        await client.connect(
            url.split(","),
            name=name,
            nkeys_seed_str=seed,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=1,
            connect_timeout=5,
            ping_interval=3,
            max_outstanding_pings=2,
            pending_size=0,
            error_cb=connection.report_error,
            disconnected_cb=connection.report_disconnect,
            reconnected_cb=connection.report_connected,
            closed_cb=connection.report_closed,
            **options,
        )
        if not client.is_connected:
            raise errors.UnexpectedEOF
        client.options["allow_reconnect"] = True
        client.options["max_reconnect_attempts"] = -1
        await connection.report_connected()
        await connection.open_inbox(prefixes)
    except (errors.Error, OSError, TimeoutError) as error:
        reason = connection._error or str(error) or type(error).__name__  # noqa: SLF001
        with suppress(Exception):
            await client.close()
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            raise Unavailable(
                f"the certificate of {connection._url} can't be verified ({reason}): trust the CA that signed it, with "  # noqa: SLF001
                "`tls=ssl.create_default_context(cafile=…)`; commands have WORKSPACED_NATS_CA and --nats-ca for that"
            ) from None
        if "authorization" in reason.lower():
            raise Rejected(
                f"NATS at {connection._url} does not accept the key ({reason}): it has expired, was revoked or belongs to "  # noqa: SLF001
                "another workspaced; an issued key also needs a gateway that runs"
            ) from None
        raise Unavailable(f"no NATS at {connection._url}: {reason}") from None  # noqa: SLF001
    except BaseException:
        await client.close()
        raise
    return connection
