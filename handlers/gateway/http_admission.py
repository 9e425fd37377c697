"""Decides which HTTP requests are admitted: by Host, Origin and bearer token, and for how long."""

from __future__ import annotations

import asyncio
import json
import logging
from asyncio import Future
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from aiohttp.web_request import BaseRequest

from bus import Backoff, Bus, Unavailable, subjects
from handlers.gateway.tokens import digest_of
from handlers.runtime.site import ForeignSite, Site
from statemachine.store import Store, StoreUnavailableError, Token

log = logging.getLogger(__name__)

_REMEMBERED: Final = 10_000
"""Revoked tokens that are remembered, for requests that arrived just before."""

Ending = Literal["token", "leaving"]
"""Why the gateway ends a stream or a wait: its token is no longer valid, or the gateway leaves."""


class Problem(Exception):
    """A request that is not answered with its result: an HTTP status and a text for people."""

    def __init__(
        self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.detail, self.headers = status, detail, headers or {}
        super().__init__(detail)


def admitted_origin(site: Site, request: BaseRequest) -> str | None:
    """Return the origin that gets CORS answers, None without one. Raises Problem 403."""
    transport = request.transport
    address = transport.get_extra_info("sockname") if transport is not None else None
    try:
        return site.check(
            host=request.headers.get("Host", ""),
            origin=request.headers.get("Origin"),
            scheme=request.scheme,
            address=str(address[0]) if address else None,
        )
    except ForeignSite as error:
        raise Problem(HTTPStatus.FORBIDDEN, str(error)) from None


class SessionCookie(NamedTuple):
    """What the cookie of a browser that is signed in at the page says."""

    token: str
    issued_here: bool
    """Whether the token was made for the browser, and ends when it signs out."""


def cookie_name(request: BaseRequest) -> str:
    """Return the cookie's name. It names the port, because browsers send cookies to all ports of a host."""
    try:
        port = urlsplit(f"//{request.headers.get('Host', '')}").port
    except ValueError:
        port = None
    return "workspaced" if port is None else f"workspaced-{port}"


def session_cookie(request: BaseRequest) -> SessionCookie | None:
    """Return the cookie of a browser that is signed in; None without one."""
    kind, _, text = request.cookies.get(cookie_name(request), "").partition(".")
    return SessionCookie(text, kind == "session") if text else None


def is_of_own_page(request: BaseRequest) -> bool:
    """Return whether the browser says that a page of this server sent the request, or a person typed its address.

    Only then a cookie counts: `SameSite=Strict` alone admits pages of other ports of the host.
    """
    site, reads = request.headers.get("Sec-Fetch-Site"), request.method in ("GET", "HEAD")
    if site is not None:
        return site == "same-origin" or (reads and site == "none")
    origin = request.headers.get("Origin")
    if origin is None:
        return reads
    return origin.lower() == f"{request.scheme}://{request.headers.get('Host', '')}".lower()


class Bearer(NamedTuple):
    """A valid token, and the digest by which the store finds it."""

    token: Token
    digest: bytes


@dataclass(slots=True)
class Admission:
    """Checks tokens, and ends what they admitted when they are revoked or expire."""

    store: Store
    bus: Bus
    _open: dict[Bearer, set[Future[Ending]]] = field(default_factory=dict)
    """The ends of the requests of each token."""
    _revoked: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """The ids of the tokens that were revoked last."""
    _leaving: bool = False

    async def run(self) -> None:
        """End what revoked tokens admitted, until cancelled. Raises Refused."""
        backoff = Backoff()
        while True:
            try:
                await self._end_what_is_revoked()
            except (Unavailable, StoreUnavailableError) as error:
                log.warning("revocations of tokens can't be followed, trying again: %s", error)
            await backoff.wait()

    async def _end_what_is_revoked(self) -> None:
        async with self.bus.subscribe(subjects.REVOCATIONS) as revocations:
            await self._check_again()
            while True:
                message = await revocations.next_or_reconnect()
                if message is None:  # messages may have been missed
                    await self._check_again()
                    continue
                try:
                    self._end_revoked(json.loads(message.data)["id"])
                except (ValueError, KeyError, TypeError):
                    log.warning("a message on %s is not understood", message.subject)

    async def bearer_of(self, request: BaseRequest) -> Bearer:
        """Return the token of a request. Raises Problem 401; StoreUnavailableError."""
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        cookie = session_cookie(request)
        if not scheme and cookie is not None and is_of_own_page(request):
            text = cookie.token
        elif scheme.lower() != "bearer" or not text.strip():
            raise _unauthorized("give a token in the header: Authorization: Bearer <token>")
        digest = digest_of(text.strip())
        token = await self.store.tokens.find(digest)
        if token is None:
            raise _unauthorized("the token is unknown, revoked or expired")
        return Bearer(token, digest)

    @contextmanager
    def admitted(self, bearer: Bearer) -> Iterator[Future[Ending]]:
        """Yield a future that gets the reason when a stream or wait of the token has to end."""
        loop = asyncio.get_running_loop()
        end: Future[Ending] = loop.create_future()
        if self._leaving:
            end.set_result("leaving")
        elif bearer.token.id in self._revoked:  # after the store was asked for it
            end.set_result("token")
        ends = self._open.setdefault(bearer, set())
        ends.add(end)
        left = (bearer.token.expires_at - datetime.now(UTC)).total_seconds()
        timer = loop.call_later(left, self._resolve, end, "token")
        try:
            yield end
        finally:
            timer.cancel()
            ends.discard(end)
            if not ends:
                self._open.pop(bearer, None)

    def leave(self) -> None:
        """End all streams and waits, because the gateway leaves."""
        self._leaving = True
        for bearer in list(self._open):
            self._end(bearer, "leaving")

    async def _check_again(self) -> None:
        """End what tokens admitted that were revoked meanwhile. Raises StoreUnavailableError."""
        for bearer in list(self._open):
            if await self.store.tokens.find(bearer.digest) is None:
                self._end(bearer, "token")

    def _end_revoked(self, token_id: str) -> None:
        self._revoked[token_id] = None
        if len(self._revoked) > _REMEMBERED:
            self._revoked.popitem(last=False)
        for bearer in list(self._open):
            if bearer.token.id == token_id:
                self._end(bearer, "token")

    def _end(self, bearer: Bearer, why: Ending) -> None:
        for end in self._open.get(bearer, ()):
            self._resolve(end, why)

    @staticmethod
    def _resolve(ended: Future[Ending], why: Ending) -> None:
        if not ended.done():
            ended.set_result(why)


def _unauthorized(detail: str) -> Problem:
    return Problem(HTTPStatus.UNAUTHORIZED, detail, {"WWW-Authenticate": "Bearer"})


def ended(why: Ending) -> Problem:
    """Return the problem that ends a wait."""
    if why == "token":
        return _unauthorized("the token was revoked or has expired")
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "this gateway is leaving; ask again")
