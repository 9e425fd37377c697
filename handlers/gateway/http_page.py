"""The web page that the gateway serves, and how a browser signs in.

The page is files of its own (`page/`) that use the routes of the HTTP interface. A link with a code that counts once
signs a browser in: the code becomes a token in a cookie that scripts cannot read. A token may be given instead. The
cookie has the rights of that token, but only for requests that the server's own pages send.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from http import HTTPStatus
from importlib.metadata import version
from importlib.resources import files
from typing import Final

from aiohttp import web
from aiohttp.web_request import BaseRequest

from bus import Bus, subjects
from handlers.gateway.http_admission import (
    Admission,
    Problem,
    cookie_name,
    is_of_own_page,
    session_cookie,
)
from handlers.gateway.tokens import ALL_ROLES, digest_of, exchange_code, shown
from handlers.runtime.health import Trust
from handlers.runtime.rate_limit import RateLimiter
from handlers.setting_flags import DEFAULT_ORGANIZATION, DEFAULT_OWNER, DEFAULT_OWNER_NAME
from statemachine.store import Store, Token

_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_TERMINAL: Final = "/page/terminal.html"
_TERMINAL_POLICY: Final = (
    _POLICY.replace("form-action 'self'", "form-action 'none'")
    + "; sandbox allow-scripts allow-same-origin"
)
"""The policy of the terminal's page. What people type there goes to a shell, and what it shows comes from any program,
so it is stricter than that of the other views, which need forms to sign in and windows of their own: the page can
send no form, open no window or dialog, and download nothing. `allow-same-origin` lets it use the session's cookie."""
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "clipboard-read=(), clipboard-write=(), camera=(), microphone=(), geolocation=()",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_WRONG_CODES_RATE: Final = 0.2
"""Wrong codes and tokens per second that one address may try for long."""
_WRONG_CODES: Final = 10
"""Wrong codes and tokens that one address may try at once."""
_MAX_BODY: Final = 4096
_PREFIX: Final = "/page/"


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    content_type: str
    etag: str


def _read_files() -> dict[str, _File]:
    """Return the files of the page by their paths."""
    found: dict[str, _File] = {}
    for file in files("handlers.gateway").joinpath("page").iterdir():
        kind = _TYPES.get(file.name[file.name.rfind(".") :])
        if kind is not None:
            content = file.read_bytes()
            etag = f'"{sha256(content).hexdigest()[:32]}"'
            found[_PREFIX + file.name] = _File(content, kind, etag)
    return found


@dataclass(slots=True)
class Page:
    """Serves the page, and signs browsers in and out."""

    store: Store
    bus: Bus
    admission: Admission
    _files: dict[str, _File] = field(default_factory=_read_files)
    _wrong: RateLimiter = field(init=False)

    def __post_init__(self) -> None:
        self._wrong = RateLimiter(asyncio.get_running_loop().time, _WRONG_CODES_RATE, _WRONG_CODES)

    @staticmethod
    def answers(path: str) -> bool:
        """Return whether a path belongs to the page."""
        return path == "/" or path.startswith(_PREFIX)

    async def answer(self, request: BaseRequest, trust: Trust) -> web.StreamResponse:
        """Answer a request. Raises Problem; StoreUnavailableError."""
        match (request.method, request.path):
            case ("GET", "/") if "code" in request.query:
                return await self._open_link(request)
            case ("GET" | "HEAD", "/page/session"):
                bearer = await self.admission.bearer_of(request)
                trust(request)
                return _session(bearer.token)
            case ("POST", "/page/login"):
                return await self._sign_in(request)
            case ("POST", "/page/logout"):
                return await self._sign_out(request)
            case ("GET" | "HEAD", path):
                answer = self._file(request, f"{_PREFIX}index.html" if path == "/" else path)
                trust(request, lasting=False)  # a page consists of many files
                return answer
            case (_, path):
                allow = "POST" if path in ("/page/login", "/page/logout") else "GET, HEAD"
                text = f"{path} takes {allow}"
                raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, text, {"Allow": allow})

    def _file(
        self, request: BaseRequest, path: str, status: HTTPStatus = HTTPStatus.OK
    ) -> web.Response:
        if (file := self._files.get(path)) is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"the page has no file {path}")
        headers = {**_HEADERS, "Cache-Control": "no-cache", "ETag": file.etag}
        if path == _TERMINAL:
            headers["Content-Security-Policy"] = _TERMINAL_POLICY
        if status is HTTPStatus.OK and file.etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
        return web.Response(
            body=file.content,
            status=status,
            headers=headers,
            content_type=file.content_type,
            charset="utf-8",
        )

    async def _open_link(self, request: BaseRequest) -> web.Response:
        """Sign the browser in with the code of a link, and go on to the page without the code."""
        found = await self._exchange(request, request.query["code"])
        if found is None:
            # The page says what to do. A browser that is signed in already is shown its chats.
            return self._file(request, f"{_PREFIX}index.html", HTTPStatus.FORBIDDEN)
        headers = {**_HEADERS, "Cache-Control": "no-store", "Location": "/"}
        response = web.Response(status=HTTPStatus.SEE_OTHER, headers=headers)
        _set_cookie(request, response, *found, issued_here=True)
        return response

    async def _sign_in(self, request: BaseRequest) -> web.Response:
        """Sign the browser in with a code or a token that a person typed."""
        if not is_of_own_page(request):
            raise Problem(HTTPStatus.FORBIDDEN, "only this server's own page signs browsers in")
        body = await _small_body(request)
        text = str(body.get("code") or "").strip()
        if (found := await self._exchange(request, text)) is not None:
            response = _session(found[1])
            _set_cookie(request, response, *found, issued_here=True)
            return response
        token = await self.store.tokens.find(digest_of(text))
        if token is None:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "this is neither a code that can still be used nor a valid token",
            )
        if token.role == "chat-service":
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "a token of a chat service sees no page: use one of role operator, chat or frontend",
            )
        response = _session(token)
        _set_cookie(request, response, text, token, issued_here=False)
        return response

    async def _exchange(self, request: BaseRequest, code: str) -> tuple[str, Token] | None:
        """Return the token of a session for a code. Raises Problem 429 after many wrong codes."""
        found = await exchange_code(self.store, code)
        if found is None and not self._wrong.take(request.remote or ""):
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too many wrong codes came from this address; try again in a few seconds",
                {"Retry-After": "5"},
            )
        return found

    async def _sign_out(self, request: BaseRequest) -> web.Response:
        """Delete the cookie, and revoke its token if it was made for this browser only."""
        bearer = await self.admission.bearer_of(request)
        cookie = session_cookie(request)
        if cookie is not None and cookie.issued_here:
            await self.store.tokens.revoke(bearer.token.id, ALL_ROLES)
            data = json.dumps({"id": bearer.token.id}).encode()
            await self.bus.send(subjects.REVOCATIONS, data)
        response = web.Response(status=HTTPStatus.NO_CONTENT, headers={"Cache-Control": "no-store"})
        response.del_cookie(cookie_name(request), path="/", httponly=True, samesite="Strict")
        return response


def _session(token: Token) -> web.Response:
    body = {
        **shown(token),
        "version": version("workspaced"),
        "defaults": {  # those of the commands
            "organization_id": DEFAULT_ORGANIZATION,
            "owner_id": DEFAULT_OWNER,
            "owner_name": DEFAULT_OWNER_NAME,
        },
    }
    data = json.dumps(body, ensure_ascii=False).encode()
    headers = {"Cache-Control": "no-store"}
    return web.Response(body=data, content_type="application/json", headers=headers)


def _set_cookie(
    request: BaseRequest, response: web.Response, text: str, token: Token, *, issued_here: bool
) -> None:
    left = (token.expires_at - datetime.now(UTC)).total_seconds()
    response.set_cookie(
        cookie_name(request),
        f"{'session' if issued_here else 'token'}.{text}",
        max_age=int(left),
        path="/",
        secure=request.scheme == "https",
        httponly=True,
        samesite="Strict",
    )


async def _small_body(request: BaseRequest) -> Mapping[str, object]:
    data = bytearray()
    async for chunk in request.content.iter_any():
        data += chunk
        if len(data) > _MAX_BODY:
            raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large")
    try:
        body = json.loads(bytes(data) or b"{}")
    except (ValueError, RecursionError):
        raise Problem(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise Problem(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    return body
