"""`GET /healthz` (is the process alive?) and `GET /readyz` (can it do its work now?).

Nobody needs a credential for these, so requests are limited: see the constants below. The server
subclasses `aiohttp.web.Server`, because an `aiohttp.web.Application` cannot limit connections.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

from bus import Bus, Unavailable
from handlers.errors import WorkspacedError
from handlers.runtime.listeners import Certificate
from handlers.runtime.rate_limit import TOO_MANY, RateLimiter
from statemachine.store import Store, StoreUnavailableError

log = logging.getLogger(__name__)

ANSWER_WITHIN: Final = 2.0
"""Seconds that a check may take before it counts as failed: probes time out soon."""
CONNECTIONS: Final = 256
"""Open connections of all addresses together."""
CONNECTIONS_PER_ADDRESS: Final = 64
LIFE: Final = 10.0
"""Seconds after which a connection is closed, even if it sends one byte at a time."""
LINE: Final = 8190
"""Bytes of a request's first line, and of each header."""
SHUTDOWN: Final = 1.0
"""Seconds for which open requests may go on when the server ends."""
_HEALTH_PATHS: Final = ("/healthz", "/readyz")

API_CONNECTIONS: Final = 8192
"""Open connections of all addresses together at a server that also has an interface for clients."""
API_CONNECTIONS_PER_ADDRESS: Final = 4096


class Trust(Protocol):
    """Tells the server that a request is not counted."""

    def __call__(self, request: BaseRequest, *, lasting: bool = True) -> None:
        """Do not count the request; if `lasting`, because its sender identified itself, its connection may last."""
        ...


Api = Callable[[BaseRequest, Trust], Awaitable[web.StreamResponse]]
"""Answers the requests that are not about health."""

Check = Callable[[], Awaitable[str | None]]
"""Returns a description of the problem, or None if there is none."""


class HealthServerError(WorkspacedError):
    """The HTTP server cannot listen."""


@dataclass(slots=True)
class HttpServer:
    """What a process serves over HTTP: its health, and perhaps an interface for clients."""

    checks: Mapping[str, Check]
    """The checks of `/readyz`, by name. More may be added later."""
    for_clients: bool = False
    """Whether it has an interface for clients."""
    api: Api | None = None
    """The interface for clients. Until it is set, the process is starting, and requests are to be sent again."""

    async def health(self, request: BaseRequest) -> web.StreamResponse:
        """Answer a request about health."""
        if request.path not in _HEALTH_PATHS:
            return web.json_response({"status": "not found"}, status=404)
        if request.method not in ("GET", "HEAD"):
            return web.json_response({"status": "not allowed"}, status=405)
        if request.path == "/healthz":
            return web.json_response({"status": "alive"})
        return await _readiness(self.checks)


@asynccontextmanager
async def http_server(
    host: str,
    port: int | None,
    checks: Mapping[str, Check],
    certificate: Certificate | None = None,
    *,
    for_clients: bool = False,
) -> AsyncIterator[HttpServer]:
    """Serve health on `host:port`, or nothing if `port` is None.

    `/readyz` answers 200 if no check finds a problem, otherwise 503 with the problems by name. `for_clients`: an
    interface for clients is served on the same port, as soon as `api` of the yielded server is set. Raises
    HealthServerError.
    """
    server = HttpServer(checks, for_clients)
    if port is None:
        yield server
        return
    runner = web.ServerRunner(
        LimitedServer(server), handler_cancellation=True, shutdown_timeout=SHUTDOWN
    )
    await runner.setup()
    try:
        context = None if certificate is None else certificate.context()
        try:
            await web.TCPSite(runner, host, port, ssl_context=context).start()
        except OSError as error:
            raise HealthServerError(
                f"health can't be served on {host}:{port}: {error.strerror}"
            ) from error
        yield server
    finally:
        await runner.cleanup()


async def _readiness(checks: Mapping[str, Check]) -> web.StreamResponse:
    names = list(checks)
    results = await asyncio.gather(*(_run_check(checks[name]) for name in names))
    problems = {name: problem for name, problem in zip(names, results, strict=True) if problem}
    body = {"status": "not ready", "problems": problems} if problems else {"status": "ready"}
    return web.json_response(body, status=503 if problems else 200)


async def _run_check(check: Check) -> str | None:
    """Return the result of a check, or a problem if it takes too long.

    A canceled check may end late, since asyncpg then asks the database to cancel the query. The
    response does not wait for that.
    """
    running = asyncio.ensure_future(check())
    try:
        done, _ = await asyncio.wait((running,), timeout=ANSWER_WITHIN)
    finally:
        running.cancel()
    return running.result() if done else f"no answer within {ANSWER_WITHIN:g} s"


def nats_check(buses: Mapping[str, Bus]) -> Check:
    """Check that NATS answers on the connection of each role."""

    async def check() -> str | None:
        found = await asyncio.gather(*map(_answers, buses.values()))
        silent = [role for role, answered in zip(buses, found, strict=True) if not answered]
        return f"not connected: {', '.join(silent)}" if silent else None

    return check


async def _answers(bus: Bus) -> bool:
    try:
        # The client notices a server that is silent only after half a minute.
        async with asyncio.timeout(ANSWER_WITHIN / 2):
            await bus.flush()
    except (Unavailable, TimeoutError):
        return False
    return True


def database_check(store: Store) -> Check:
    """Check that the database accepts writes."""

    async def check() -> str | None:
        try:
            await store.check_writable()
        except StoreUnavailableError as error:
            return str(error)
        return None

    return check


def first_problem(check: Check, reported: Callable[[], str | None]) -> Check:
    """Run a check; if it finds no problem, return the one that a role has reported, if any."""

    async def both() -> str | None:
        return await check() or reported()

    return both


def tasks_check(tasks: Sequence[asyncio.Task[Any]]) -> Check:
    """Check that the task of each role is still running."""

    async def check() -> str | None:
        ended = sum(task.done() for task in tasks)
        return f"{ended} of {len(tasks)} roles have ended" if ended else None

    return check


def started_check(ready: asyncio.Event) -> Check:
    """Check that a role has started its work."""

    async def check() -> str | None:
        return None if ready.is_set() else "still starting"

    return check


class _Connection(RequestHandler):
    """A connection. A request that can't be read is answered with a problem, like all other errors."""

    __slots__ = ()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to a request that no handler has answered."""
        if status == HTTPStatus.BAD_REQUEST:
            log.debug("a request of %s can't be read: %s", request.remote, message)
            detail = f"the request can't be read: {' '.join((message or '').split())}"
        else:
            super().handle_error(request, status, exc, message)  # it logs the error
            detail = "an error of the server; its log has the details"
        return _closing_problem(HTTPStatus(status), detail)


class LimitedServer(web.Server):
    """Limits connections and requests of each address; answers 429 beyond the rate.

    Requests to the interface whose clients identify themselves are not counted, and their connections may last.
    """

    def __init__(self, server: HttpServer) -> None:
        super().__init__(
            self._serve,
            access_log=None,
            keepalive_timeout=LIFE,
            lingering_time=0,  # do not read what a client sends after its request
            max_line_size=LINE,
            max_field_size=LINE,
        )
        self._server = server
        self._limiter = RateLimiter(asyncio.get_running_loop().time)
        self._open: dict[RequestHandler, tuple[str, asyncio.TimerHandle]] = {}
        """Of each connection its address and the timer that closes it."""

    def __call__(self) -> RequestHandler:
        """Return the handler of a new connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Accept a connection, or close it at once if there are too many."""
        super().connection_made(handler, transport)
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if peer else ""
        counted = Counter(known for known, _ in self._open.values())
        for_clients = self._server.for_clients
        most = API_CONNECTIONS if for_clients else CONNECTIONS
        per_address = API_CONNECTIONS_PER_ADDRESS if for_clients else CONNECTIONS_PER_ADDRESS
        if len(self._open) >= most or counted[address] >= per_address:
            transport.abort()
            return
        timer = asyncio.get_running_loop().call_later(LIFE, transport.abort)
        self._open[handler] = (address, timer)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        if (known := self._open.pop(handler, None)) is not None:
            known[1].cancel()
        super().connection_lost(handler, exc)

    async def _serve(self, request: BaseRequest) -> web.StreamResponse:
        address = request.remote or ""
        if not self._server.for_clients or request.path in _HEALTH_PATHS:
            if not self._limiter.take(address):
                body = {"status": "too many requests"}
                return _closing(HTTPStatus.TOO_MANY_REQUESTS, body, "application/json")
            health = await self._server.health(request)
            health.headers["Cache-Control"] = "no-store"
            return health
        if not self._limiter.allows(address):
            return _closing_problem(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY)
        if self._server.api is None:
            return _closing_problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "the gateway is starting; try again in a second"
            )
        trusted = False

        def trust(request: BaseRequest, *, lasting: bool = True) -> None:
            nonlocal trusted
            trusted = True
            if lasting and (known := self._open.get(request.protocol)) is not None:
                known[1].cancel()

        try:
            return await self._server.api(request, trust)
        finally:
            if not trusted:
                self._limiter.take(address)


def _closing_problem(status: HTTPStatus, detail: str) -> web.Response:
    """Return a problem after which the connection closes."""
    problem = {"status": int(status), "title": status.phrase, "detail": detail}
    return _closing(status, problem, "application/problem+json")


def _closing(status: HTTPStatus, body: Mapping[str, object], content_type: str) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers["Retry-After"] = "1"
    data = json.dumps(body).encode()
    response = web.Response(body=data, status=status, headers=headers, content_type=content_type)
    response.force_close()
    return response
