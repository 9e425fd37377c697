"""Which MCP clients are admitted over HTTP: the holders of bearer tokens of role `chat`, as long as these are valid."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from workspaced import Refused, Unavailable, Workspaced, WorkspacedError
from workspaced.retrying import Backoff

from handlers.mcp.caller import Caller, caller_of_token

log = logging.getLogger(__name__)

_REMEMBERED: Final = 10_000
"""Revoked tokens that are remembered. A revocation may come before the reply that still calls the token valid."""


class Problem(Exception):
    """A request that is not handed on to the protocol: an HTTP status and a text for people."""

    def __init__(
        self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.detail, self.headers = status, detail, dict(headers or {})
        super().__init__(detail)


def unauthorized(detail: str) -> Problem:
    """Return the problem of a request without a valid token."""
    return Problem(HTTPStatus.UNAUTHORIZED, detail, {"WWW-Authenticate": "Bearer"})


class _Bearer(NamedTuple):
    token: str
    id: str


class Admission:
    """Checks tokens, and ends what they admitted when they are revoked or expire."""

    def __init__(self, ws: Workspaced) -> None:
        self._ws = ws
        self._open: dict[_Bearer, set[asyncio.Event]] = {}
        """The ends of the requests of each token."""
        self._revoked: OrderedDict[str, None] = OrderedDict()
        """The ids of the tokens that were revoked last."""

    async def follow_revocations(self) -> None:
        """End the requests of revoked tokens, until cancelled. Raises Refused."""
        backoff = Backoff()
        while True:
            try:
                async for token_id in self._ws.revoked_tokens():
                    if token_id is None:
                        await self._check_again()
                    else:
                        self._end_revoked(token_id)
            except Unavailable as error:
                log.warning("revocations of tokens can't be followed, trying again: %s", error)
            await backoff.wait()

    @asynccontextmanager
    async def admitted(self, authorization: str) -> AsyncIterator[Caller]:
        """Yield the caller of a bearer token; its `ended` is set when the token ends. Raises Problem 401, 403, 503."""
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise unauthorized("give a token in the header: Authorization: Bearer <token>")
        try:
            rights = await self._ws.rpc("check_token", token=token)
        except Refused:
            text = "the token is unknown, revoked or expired, or not of role chat"
            raise unauthorized(text) from None
        except WorkspacedError as error:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"try again: {error}") from None
        caller = caller_of_token(rights)
        if caller is None:
            raise Problem(
                HTTPStatus.FORBIDDEN,
                f"a token of role {rights['role']} names no chat and owner: use one of role chat",
            )
        bearer = _Bearer(token, rights["id"])
        ends = self._open.setdefault(bearer, set())
        ends.add(caller.ended)
        if bearer.id in self._revoked:
            caller.ended.set()
        timer = asyncio.get_running_loop().call_later(_left(rights), caller.ended.set)
        try:
            yield caller
        finally:
            timer.cancel()
            ends.discard(caller.ended)
            if not ends and self._open.get(bearer) is ends:
                del self._open[bearer]

    async def _check_again(self) -> None:
        """End the requests of tokens whose revocation was missed. Raises Unavailable."""
        for bearer in list(self._open):
            try:
                await self._ws.rpc("check_token", token=bearer.token)
            except Refused:
                self._end_revoked(bearer.id)

    def _end_revoked(self, token_id: str) -> None:
        self._revoked[token_id] = None
        if len(self._revoked) > _REMEMBERED:
            self._revoked.popitem(last=False)
        for bearer, ends in self._open.items():
            if bearer.id == token_id:
                for end in ends:
                    end.set()


def _left(rights: Mapping[str, Any]) -> float:
    """Return for how many seconds a token is valid."""
    return (datetime.fromisoformat(rights["expires_at"]) - datetime.now(UTC)).total_seconds()
