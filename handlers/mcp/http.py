"""MCP over HTTP: admission by Host, Origin and bearer token, and the listener."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_REQUEST
from workspaced import Refused, WorkspacedError

from handlers.errors import CannotServe
from handlers.mcp.caller import Caller, caller_of_token
from handlers.mcp.calls import ToolCalls
from handlers.mcp.server import McpServer
from handlers.mcp.tasks import Tasks
from handlers.runtime import clock
from handlers.runtime.listeners import Certificate, address_family
from handlers.runtime.site import ForeignSite, Site

PATH: Final = "/mcp"
_NOBODY: Final = "00000000-0000-0000-0000-000000000000"
"""A chat that does not exist, asked for to see whether a gateway answers."""
_MAX_BODY: Final = 512 * 1024
_CALLER: Final = "workspaced.caller"
"""The key of the scope of a request that holds its caller."""
_MAX_REQUESTS: Final = 10_000
"""Connections and requests at the same time; further ones get 503."""
_CHECKED_FOR: Final = 1.0
"""Seconds after which a token is checked again before anything more is sent to its holder."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _Problem(Exception):
    def __init__(
        self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.detail, self.headers = status, detail, dict(headers or {})
        super().__init__(detail)


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
        self._calls, self._site = calls, site
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
        if scope["path"] in ("/healthz", "/readyz"):
            await self._answer_health(scope["path"], send)
            return
        cors: dict[str, str] = {}
        try:
            cors = _cors(self._origin(scope, headers))
            if scope["method"] == "OPTIONS":
                await _respond(
                    send, HTTPStatus.NO_CONTENT, b"", cors | (_PREFLIGHT if cors else {})
                )
                return
            if scope["path"] != PATH:
                raise _Problem(HTTPStatus.NOT_FOUND, f"MCP is served at {PATH}")
            if scope["method"] != "POST":
                raise _Problem(
                    HTTPStatus.METHOD_NOT_ALLOWED, "use POST", {"Allow": "POST, OPTIONS"}
                )
            scope[_CALLER] = await self._admit(headers.get("authorization", ""))
        except _Problem as problem:
            await _respond_problem(send, problem, cors)
            return
        await self._app(scope, receive, _with_headers(send, cors))

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
            raise _Problem(HTTPStatus.FORBIDDEN, str(error)) from None

    async def _admit(self, authorization: str) -> Caller:
        """Return the caller of a bearer token. Raises _Problem 401, 403, 503."""
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise _unauthorized("give a token in the header: Authorization: Bearer <token>")
        rights = await self._rights_of(token)
        caller = caller_of_token(rights, self._checker(token, rights["expires_at"]))
        if caller is None:
            raise _Problem(
                HTTPStatus.FORBIDDEN,
                f"a token of role {rights['role']} names no chat and owner: use one of role chat",
            )
        return caller

    async def _rights_of(self, token: str) -> Mapping[str, Any]:
        try:
            return dict(await self._calls.ws.rpc("check_token", token=token))
        except Refused:
            raise _unauthorized(
                "the token is unknown, revoked or expired, or not of role chat"
            ) from None
        except WorkspacedError as error:
            raise _Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"try again: {error}") from None

    def _checker(self, token: str, expires_at: str) -> Callable[[], Awaitable[None]]:
        """Return a function that raises MCPError if the token is no longer valid.

        A chat service gets no word of revocations, so it asks again before it sends something to the holder.
        """
        checked, end = clock(), datetime.fromisoformat(expires_at)

        async def check() -> None:
            nonlocal checked
            try:
                if datetime.now(UTC) >= end:
                    raise _unauthorized("the token has expired")
                if clock() - checked >= _CHECKED_FOR:
                    await self._rights_of(token)
                    checked = clock()
            except _Problem as problem:
                raise MCPError(code=INVALID_REQUEST, message=problem.detail) from None

        return check


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


def _unauthorized(detail: str) -> _Problem:
    return _Problem(HTTPStatus.UNAUTHORIZED, detail, {"WWW-Authenticate": "Bearer"})


async def _respond_problem(send: Send, problem: _Problem, headers: Mapping[str, str]) -> None:
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


def _with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """Return a `send` that adds headers to the response."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message["headers"] if name != b"cache-control"]
            more = {"cache-control": "no-store", **headers}
            message["headers"] = [
                *kept,
                *((name.encode(), value.encode()) for name, value in more.items()),
            ]
        await send(message)

    return sending
