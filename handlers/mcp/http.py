"""MCP over HTTP: admission by Host, Origin and bearer token, and the listener."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, Final

import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.transport_security import TransportSecuritySettings
from workspaced import WorkspacedError

from handlers.errors import CannotServe
from handlers.mcp.admission import Admission, Problem, unauthorized
from handlers.mcp.caller import Caller
from handlers.mcp.calls import ToolCalls
from handlers.mcp.server import McpServer
from handlers.mcp.tasks import Tasks
from handlers.runtime.listeners import Certificate, address_family
from handlers.runtime.rate_limit import TOO_MANY, RateLimiter
from handlers.runtime.site import ForeignSite, Site
from handlers.runtime.supervise import running

PATH: Final = "/mcp"
_NOBODY: Final = "00000000-0000-0000-0000-000000000000"
"""A chat that does not exist, asked for to see whether a gateway answers."""
_MAX_BODY: Final = 512 * 1024
_CALLER: Final = "workspaced.caller"
"""The key of the scope of a request that holds its caller."""
_MAX_REQUESTS: Final = 10_000
"""Connections and requests at the same time; further ones get 503."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _Server(uvicorn.Server):
    """uvicorn's server: it leaves signals to this process, and says when it listens."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: the command ends on signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._listening()


class McpHttp:
    """Serves MCP for the holders of tokens of role `chat`."""

    def __init__(self, calls: ToolCalls, tasks: Tasks, site: Site) -> None:
        self._calls, self._site, self._admission = calls, site, Admission(calls.ws)
        self._limiter = RateLimiter(time.monotonic)
        server = McpServer(calls, tasks, _caller_of, honors_cancelled=False).protocol()
        self._app = server.streamable_http_app(
            streamable_http_path=PATH,
            stateless_http=True,  # any replica answers any request
            max_request_body_size=_MAX_BODY,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )

    async def serve(
        self,
        address: str,
        port: int,
        certificate: Certificate | None,
        ready: Callable[[str], None],
    ) -> None:
        """Serve until cancelled; call `ready` with the URL as soon as requests are accepted."""
        with socket.socket(address_family(address)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address, port))
            except OSError as error:
                raise CannotServe(
                    f"MCP can't be served on {address}:{port}: {error.strerror}"
                ) from error
            scheme = "http" if certificate is None else "https"
            host = f"[{address}]" if ":" in address else address
            url = f"{scheme}://{host}:{listener.getsockname()[1]}{PATH}"
            config = uvicorn.Config(
                self,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_MAX_REQUESTS,
                timeout_graceful_shutdown=1,
                ssl_certfile=None if certificate is None else str(certificate.file),
                ssl_keyfile=None if certificate is None else str(certificate.key),
            )
            server = _Server(config, lambda: ready(url))
            serving = asyncio.create_task(server.serve([listener]))
            async with running(self._admission.follow_revocations()):
                try:
                    await asyncio.shield(serving)
                except asyncio.CancelledError:
                    self._calls.leave()
                    server.should_exit = True
                    await serving
                    raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on to the protocol."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        cors: dict[str, str] = {}
        address = scope["client"][0] if scope.get("client") else ""
        try:
            if not self._limiter.allows(address):
                raise Problem(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY, {"Retry-After": "1"})
            if scope["path"] in ("/healthz", "/readyz"):
                self._limiter.take(address)
                await self._answer_health(scope["path"], send)
                return
            cors = _cors(self._origin(scope, headers))
            if scope["method"] == "OPTIONS":
                await _respond(
                    send, HTTPStatus.NO_CONTENT, b"", cors | (_PREFLIGHT if cors else {})
                )
                return
            if scope["path"] != PATH:
                raise Problem(HTTPStatus.NOT_FOUND, f"MCP is served at {PATH}")
            if scope["method"] != "POST":
                raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, "use POST", {"Allow": "POST, OPTIONS"})
            async with self._admission.admitted(headers.get("authorization", "")) as caller:
                scope[_CALLER] = caller
                await self._app(scope, receive, _sender(send, cors, caller))
        except Problem as problem:
            self._limiter.take(address)
            await _respond_problem(send, problem, cors)

    async def _answer_health(self, path: str, send: Send) -> None:
        status, body = HTTPStatus.OK, {"status": "alive"}
        if path == "/readyz":
            body = {"status": "ready"}
            try:
                await self._calls.ws.rpc("get_chat", chat_id=_NOBODY)
            except WorkspacedError as error:
                status = HTTPStatus.SERVICE_UNAVAILABLE
                body = {"status": "not ready", "problem": str(error)}
        content = {"content-type": "application/json"}
        await _respond(send, status, json.dumps(body).encode(), content)

    def _origin(self, scope: Scope, headers: Mapping[str, str]) -> str | None:
        server = scope.get("server")
        try:
            return self._site.check(
                host=headers.get("host", ""),
                origin=headers.get("origin"),
                scheme=scope["scheme"],
                address=server[0] if server else None,
            )
        except ForeignSite as error:
            raise Problem(HTTPStatus.FORBIDDEN, str(error)) from None


def _caller_of(context: ServerRequestContext[Any, Any]) -> Caller:
    assert context.request is not None  # noqa: S101 — for mypy
    caller = context.request.scope[_CALLER]
    assert isinstance(caller, Caller)  # noqa: S101 — for mypy
    return caller


_PREFLIGHT: Final = {
    "access-control-allow-methods": "POST",
    "access-control-allow-headers": "Authorization, Content-Type, Accept, Mcp-Protocol-Version, Mcp-Method, "
    "Mcp-Name, Mcp-Session-Id, Last-Event-ID, traceparent",
    "access-control-max-age": "600",
}


def _cors(origin: str | None) -> dict[str, str]:
    if origin is None:
        return {}
    return {"access-control-allow-origin": origin, "vary": "Origin"}


async def _respond_problem(send: Send, problem: Problem, headers: Mapping[str, str]) -> None:
    body = {
        "status": problem.status.value,
        "title": problem.status.phrase,
        "detail": problem.detail,
    }
    more = {"content-type": "application/problem+json", **problem.headers, **headers}
    await _respond(send, problem.status, json.dumps(body).encode(), more)


async def _respond(send: Send, status: HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
    every = {"cache-control": "no-store", "content-length": str(len(body)), **headers}
    await send(
        {
            "type": "http.response.start",
            "status": status.value,
            "headers": [(name.lower().encode(), value.encode()) for name, value in every.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


def _sender(send: Send, headers: Mapping[str, str], caller: Caller) -> Send:
    """Return a `send` that adds headers to the response, or makes it 401 if the caller's token has ended before it."""
    refused = False

    async def sending(message: Message) -> None:
        nonlocal refused
        if message["type"] == "http.response.start":
            if caller.ended.is_set():
                refused = True
                problem = unauthorized("the token was revoked or has expired")
                await _respond_problem(send, problem, headers)
            kept = [(name, value) for name, value in message["headers"] if name != b"cache-control"]
            more = {"cache-control": "no-store", **headers}
            message["headers"] = [
                *kept,
                *((name.encode(), value.encode()) for name, value in more.items()),
            ]
        if not refused:
            await send(message)

    return sending
