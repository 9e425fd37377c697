"""A provisioner's connection to NATS: connects, publishes until stored, asks rpcs, and pulls jobs.

nats-py reports a denied publish only to a callback, and lets the request run into its time-out. A
`Link` fails such a request at once, and it tells a transient error (`LinkError`) from one that stays
(`LinkRefused`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import nats.errors
import nkeys
from nats.aio.client import Client
from nats.aio.msg import Msg

from workspaced import subjects

CONTENT_TYPE: Final = "application/cloudevents+json"
_WITHIN: Final = 5.0
"""Seconds that one request waits for its reply."""
_SLOWEST: Final = 2.0
_REJECTIONS: Final = 8
"""Refusals of the key in a row before connecting is given up: a gateway that checks keys may start late."""
_PULL_EXPIRES: Final = 60.0
_HEARTBEAT: Final = 5.0
_DENIED: Final = re.compile(
    r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE
)
_FINAL_CODES: Final = ("400", "403", "404", "413")
"""Codes of rpcs that the same request would get again."""

_log = logging.getLogger(__name__)


class LinkError(Exception):
    """NATS, a stream or a gateway does not answer now; the same request may succeed later."""


class LinkRefused(Exception):
    """NATS or a gateway refuses the request, and would refuse it again."""


def seed_of(key: str | Path) -> str:
    """Return an NKey seed, given as itself or as the file that contains it. Raises LinkRefused."""
    text = str(key)
    if not text.startswith("SU"):
        try:
            text = Path(key).read_text().strip()
        except OSError as error:
            raise LinkRefused(f"the key can't be read: {error}") from None
    for line in text.splitlines():
        if line.strip().startswith("SU"):
            return line.strip()
    raise LinkRefused(f"{key} contains no NKey seed of a user (a line that begins with SU)")


def public_key(seed: str) -> str:
    """Return the public key of a seed. Raises LinkRefused."""
    try:
        return bytes(nkeys.from_seed(seed.encode()).public_key).decode()
    except Exception as error:  # noqa: BLE001 — nkeys raises errors of several libraries
        raise LinkRefused(f"the key is no NKey seed: {error or type(error).__name__}") from None


async def back_off(attempt: int) -> None:
    """Wait before a request is repeated, longer with each attempt."""
    await asyncio.sleep(min(_SLOWEST, 0.1 * 2**attempt) * random.uniform(0.5, 1))  # noqa: S311  # back-off


class _Client(Client):
    """nats-py's client, but it accepts no server without TLS where the URL asks for it.

    nats-py would continue in plain text, and anybody on the way could cause that.
    """

    tls_required = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if self.tls_required and initial_connection and not info.get("tls_required"):
            raise nats.errors.Error("the server offers no TLS")
        await super()._process_info(info, initial_connection)


class Link:
    """One connection to NATS, reconnected until it is closed."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.on_reconnect: list[Callable[[], None]] = []
        """Called after each reconnect."""
        self._denied: dict[str, set[asyncio.Future[Any]]] = {}
        self._requests: set[asyncio.Future[Any]] = set()

    @property
    def connected(self) -> bool:
        """Whether a server is connected now."""
        return bool(self.client.is_connected)

    async def request(self, subject: str, body: bytes, headers: Mapping[str, str] | None) -> Msg:
        """Send a request and return its reply. Raises LinkError, LinkRefused."""
        denied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._denied.setdefault(subject.lower(), set()).add(denied)
        self._requests.add(denied)
        asked = asyncio.ensure_future(self._ask(subject, body, headers))
        try:
            await asyncio.wait((asked, denied), return_when=asyncio.FIRST_COMPLETED)
            if denied.done():
                denied.result()
            return await asked
        finally:
            asked.cancel()
            denied.cancel()
            self._requests.discard(denied)
            self._denied[subject.lower()].discard(denied)

    async def _ask(self, subject: str, body: bytes, headers: Mapping[str, str] | None) -> Msg:
        try:
            return await self.client.request(
                subject, body, timeout=_WITHIN, headers=dict(headers) if headers else None
            )
        except nats.errors.MaxPayloadError:
            raise LinkRefused(f"{len(body)} bytes for {subject} are more than NATS takes") from None
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise LinkError(f"no answer on {subject}: {error or type(error).__name__}") from None

    async def store(
        self, subject: str, body: bytes, message_id: str, *, believe_duplicate: bool = False
    ) -> None:
        """Publish a message, with retries, until its stream has stored it. Raises LinkRefused.

        NATS drops a message whose id it has seen, also if another sender used that id before. So what
        it takes for a duplicate is published again without an id: workers know an event by its
        identity. `believe_duplicate`: not so for a message whose readers would see it twice.
        """
        headers = {"Content-Type": CONTENT_TYPE, "Nats-Msg-Id": message_id}
        attempt = 0
        while True:
            try:
                answer = json.loads((await self.request(subject, body, headers)).data)
                if "error" not in answer:
                    repeated = answer.get("duplicate") and "Nats-Msg-Id" in headers
                    if believe_duplicate or not repeated:
                        return
                    del headers["Nats-Msg-Id"]
                    continue
                _log.warning("%s is not stored yet: %s", subject, answer["error"])
            except LinkError as error:
                _log.info("%s waits for NATS: %s", message_id, error)
            except ValueError:
                _log.warning("the answer to a message on %s can't be read", subject)
            await back_off(attempt)
            attempt += 1

    async def rpc(self, name: str, body: Mapping[str, Any]) -> bytes:
        """Call an rpc of the gateway once. Raises LinkError, LinkRefused."""
        answer = await self.request(subjects.rpc(name), json.dumps(body).encode(), None)
        code = (answer.headers or {}).get("Nats-Service-Error-Code")
        if code is None:
            return bytes(answer.data)
        text = f"{name}: {code} {(answer.headers or {}).get('Nats-Service-Error', '')}"
        raise LinkRefused(text) if code in _FINAL_CODES else LinkError(text)

    async def rpc_until_answered(self, name: str, body: Mapping[str, Any]) -> bytes:
        """Call an rpc until it is answered. Raises LinkRefused."""
        attempt = 0
        while True:
            try:
                return await self.rpc(name, body)
            except LinkError as error:
                _log.info("%s, trying again", error)
            await back_off(attempt)
            attempt += 1

    async def subscribe(self, subject: str, handle: Callable[[Msg], None]) -> None:
        """Call `handle` with each message of a subject. Raises LinkRefused if NATS denies it."""

        async def take(message: Msg) -> None:
            handle(message)

        denied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._denied.setdefault(subject.lower(), set())
        waiting.add(denied)
        try:
            await self.client.subscribe(subject, cb=take)
            await self.client.flush()
            # nats-py may send the PING of a flush before the SUB that waits to be written.
            await self.client.flush()
            if denied.done():
                denied.result()
        except (nats.errors.Error, TimeoutError) as error:
            raise LinkError(f"can't subscribe to {subject}: {error}") from None
        finally:
            denied.cancel()
            waiting.discard(denied)

    async def pull(  # noqa: C901 — the protocol of pulls, as one loop
        self, subject: str, batch: int
    ) -> AsyncGenerator[Msg, None]:
        """Yield the messages of the consumer that `subject` names, which may not exist yet. Raises LinkRefused."""
        inbox = self.client.new_inbox()
        arrived: asyncio.Queue[Msg | None] = asyncio.Queue()

        async def take(message: Msg) -> None:
            await arrived.put(message)

        def wake() -> None:
            arrived.put_nowait(None)

        self.on_reconnect.append(wake)
        subscription = await self.client.subscribe(inbox, cb=take)
        denied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        denied.add_done_callback(lambda _: wake())
        self._denied.setdefault(subject.lower(), set()).add(denied)
        attempt = 0
        try:
            while True:
                requested = await self._pull_once(subject, inbox, batch)
                missing = False
                while requested > 0:
                    try:
                        async with asyncio.timeout(2.5 * _HEARTBEAT):
                            message = await arrived.get()
                    except TimeoutError:  # no heartbeat: the request is lost
                        break
                    if denied.done():
                        denied.result()
                    if message is None:
                        break
                    status = (message.headers or {}).get("Status")
                    if not status:
                        requested, attempt = requested - 1, 0
                        yield message
                    elif status != "100":
                        missing = status != "408"
                        break
                if missing:
                    await back_off(attempt)
                    attempt += 1
        finally:
            self.on_reconnect.remove(wake)
            denied.cancel()
            self._denied[subject.lower()].discard(denied)
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()
            while not arrived.empty():
                left = arrived.get_nowait()
                if left is not None and left.reply:
                    await self.reply(left.reply, b"-NAK")

    async def _pull_once(self, subject: str, inbox: str, batch: int) -> int:
        request = {
            "batch": batch,
            "expires": round(_PULL_EXPIRES * 1e9),
            "idle_heartbeat": round(_HEARTBEAT * 1e9),
        }
        with suppress(nats.errors.Error):
            await self.client.publish(subject, json.dumps(request).encode(), reply=inbox)
        return batch

    async def reply(self, subject: str, word: bytes) -> None:
        """Send a word of the ack protocol; without a connection nothing is sent."""
        with suppress(nats.errors.Error, OSError):
            await self.client.publish(subject, word)

    async def report_error(self, error: Exception) -> None:
        """Hand a denial that nats-py reports to whoever waits for it."""
        found = _DENIED.search(str(error))
        if found is None:
            _log.debug("nats: %s", error)
            return
        text = f"the key may not use {found[2]}: {str(error).removeprefix('nats: ')}"
        waiting = [one for one in self._denied.get(found[2].lower(), ()) if not one.done()]
        for one in waiting:
            one.set_exception(LinkRefused(text))
        if not waiting:
            _log.error("%s", text)

    async def report_disconnect(self) -> None:
        """Let the requests that wait for a reply fail: nats-py would let them run into their time-out."""
        for one in self._requests:
            if not one.done():
                one.set_exception(LinkError("the connection broke"))

    async def report_reconnect(self) -> None:
        """Call everything in `on_reconnect`."""
        _log.info("connected to NATS again")
        for callback in list(self.on_reconnect):
            callback()


@asynccontextmanager
async def connected(
    url: str, key: str | Path, *, role: str, name: str, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Link]:
    """Connect with a key, waiting until there is a server; close the connection at the end.

    Raises LinkRefused if NATS does not accept the key.
    """
    seed = seed_of(key)
    prefixes = [f"_INBOX_{public_key(seed)}", f"_INBOX_{role}"]
    if Path(str(key)).name == f"{role}.nk":
        prefixes.reverse()
    link = None
    for prefix in prefixes:
        link = await _connect(url, seed, prefix, name, tls)
        if await _has_inbox(link):
            break
        await link.client.close()
        link = None
    if link is None:
        raise LinkRefused(
            f"the key has none of the inboxes {', '.join(prefixes)}: is it a {role}'s?"
        )
    try:
        yield link
    finally:
        await link.client.close()


async def _has_inbox(link: Link) -> bool:
    try:
        await link.subscribe(link.client.new_inbox(), lambda _: None)
    except LinkRefused:
        return False
    return True


async def _connect(url: str, seed: str, prefix: str, name: str, tls: ssl.SSLContext | None) -> Link:
    attempt = rejections = 0
    while True:
        client = _Client()
        client.tls_required = url.startswith("tls://") or tls is not None
        link = Link(client)
        options: dict[str, Any] = {} if tls is None else {"tls": tls}
        try:
            # One attempt: left to itself, nats-py tries a first connection for two minutes, and is silent.
            await client.connect(
                url,
                name=name,
                nkeys_seed_str=seed,
                inbox_prefix=prefix,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0.25,  # type: ignore[arg-type]  # any number
                connect_timeout=5,
                ping_interval=3,
                max_outstanding_pings=2,
                pending_size=0,
                error_cb=link.report_error,
                disconnected_cb=link.report_disconnect,
                reconnected_cb=link.report_reconnect,
                **options,
            )
            if not client.is_connected:
                raise nats.errors.UnexpectedEOF
        except (nats.errors.Error, OSError, TimeoutError) as error:
            with suppress(Exception):
                await client.close()
            if "authorization" in str(error).lower():
                rejections += 1
                if rejections >= _REJECTIONS:
                    raise LinkRefused(f"NATS does not accept the key: {error}") from None
            if attempt == 0:
                _log.warning("no NATS yet: %s; trying again", error or type(error).__name__)
        else:
            client.options["allow_reconnect"] = True
            client.options["max_reconnect_attempts"] = -1
            return link
        await back_off(attempt)
        attempt += 1


async def together(*works: Awaitable[Any]) -> None:
    """Run until the first ends, then cancel the others; raise its error."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(*tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended; their errors stay theirs."""
    for task in tasks:
        task.cancel()
    pending = [task for task in tasks if not task.done()]
    if pending:
        await asyncio.wait(pending)
