"""The rpcs by which bearer tokens are issued, listed, checked and revoked.

A token is a random text. The database has only its digest, so a copy of the database admits nobody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2s, sha256
from pathlib import Path
from typing import Final, cast
from uuid import uuid4

from bus import Backoff, Bus, Message, ServiceError, subjects
from handlers.access.issued_keys import caller_credential, is_of_other_account
from handlers.gateway import replies
from handlers.gateway.requests import (
    CheckTokenBody,
    IssuePageCodeBody,
    IssueTokenBody,
    RevokeTokenBody,
    TokenRole,
    TokensBody,
)
from handlers.publishing.atomic_files import write_atomically
from statemachine.codec import timestamp
from statemachine.store import Store, StoreUnavailableError, Token

log = logging.getLogger(__name__)

PAGE: Final = 100
ALL_ROLES: Final[tuple[TokenRole, ...]] = ("operator", "chat-service", "chat", "frontend")
OPERATOR_FILE: Final = "operator.token"
"""The file in the credentials directory of `up` that holds a token of an operator."""
_OF_CHAT_SERVICES: Final[tuple[TokenRole, ...]] = ("chat", "frontend")
"""The roles of the tokens that a chat service may issue, list, check and revoke."""
_DAY: Final = 24 * 3600.0
_MAX_LIFETIMES: Final = {"operator": 7 * _DAY}


CODE_LIFETIME: Final = 300.0
"""Seconds within which the code of a link to the page can be used."""
SESSION_LIFETIME: Final = 12 * 3600.0
"""Seconds for which a browser is signed in."""


def digest_of(token: str) -> bytes:
    """Return the digest by which the store knows a token."""
    return sha256(token.encode()).digest()


def code_digest(code: str) -> bytes:
    """Return the digest by which the store knows a code until it is used. No token has the same one."""
    return blake2s(code.encode(), person=b"pagecode").digest()


@dataclass(frozen=True, slots=True)
class TokenRpcs:
    """Answers the rpcs about tokens.

    Chat services that may run commands are in the gateway's account; operators, and chat services that may not, are in
    others, whose requests come with a reply subject that nats-server makes up. A chat service that uses such a
    subject as its own would be taken for an operator, but could not read the answer: no client may subscribe there.
    """

    store: Store
    bus: Bus
    page: str | None = None
    """The URL of this gateway's page; None if it serves none."""

    async def issue_token(self, body: IssueTokenBody, message: Message) -> replies.IssuedToken:
        """Issue a token. Raises ServiceError 400 and 403."""
        roles, may_exec = await _rights_of(self.store, message)
        if body.role not in roles:
            raise ServiceError(403, f"a chat service may not issue tokens of role {body.role}")
        if not may_exec and _allows_exec(body):
            raise ServiceError(
                403,
                "a key without the right to run commands issues no token with it: set exec to false",
            )
        if (fault := _fault(body)) is not None:
            raise ServiceError(400, f"body.{fault}")
        text, token = await issue(self.store, body)
        return {
            "token": text,
            "id": token.id,
            "role": body.role,
            "expires_at": timestamp(token.expires_at),
        }

    async def issue_page_code(self, body: IssuePageCodeBody, message: Message) -> replies.PageCode:
        """Issue a code that signs a browser in once. Raises ServiceError 403."""
        role: TokenRole = "frontend" if body.chat_ids else "operator"
        roles, _ = await _rights_of(self.store, message)
        if role not in roles:
            raise ServiceError(403, "a chat service may not issue codes of operators: name chats")
        code, token = await issue_code(self.store, body.chat_ids)
        issued: replies.PageCode = {
            "code": code,
            "id": token.id,
            "role": role,
            "expires_at": timestamp(token.expires_at),
        }
        if self.page is not None:
            issued["page"] = page_link(self.page, code)
        return issued

    async def list_tokens(self, body: TokensBody, message: Message) -> replies.TokensPage:
        """Return a page of the valid tokens."""
        roles, _ = await _rights_of(self.store, message)
        found = await self.store.tokens.page(roles, after=body.cursor, limit=PAGE + 1)
        page: replies.TokensPage = {"tokens": [shown(token) for token in found[:PAGE]]}
        if len(found) > PAGE:
            page["next"] = found[PAGE - 1].id
        return page

    async def revoke_token(self, body: RevokeTokenBody, message: Message) -> replies.RevokedToken:
        """Revoke a token, and tell all gateways, which end its streams and waits."""
        roles, _ = await _rights_of(self.store, message)
        revoked = await self.store.tokens.revoke(body.id, roles)
        if revoked:
            await self.bus.send(subjects.REVOCATIONS, json.dumps({"id": body.id}).encode())
        return {"revoked": revoked}

    async def check_token(self, body: CheckTokenBody, message: Message) -> replies.ShownToken:
        """Return the rights of a token. Raises ServiceError 403 if it is not valid."""
        found = await self.store.tokens.find(digest_of(body.token))
        roles, _ = await _rights_of(self.store, message)
        if found is None or found.role not in roles:
            raise ServiceError(403, "the token is unknown, revoked or expired")
        return shown(found)


def page_link(url: str, code: str) -> str:
    """Return the link that signs a browser in at the page of a gateway."""
    return f"{url}/?code={code}"


async def issue_code(store: Store, chat_ids: tuple[str, ...] = ()) -> tuple[str, Token]:
    """Make a code that signs a browser in once, and return it with its rights.

    It is a token until it is used: of a frontend that follows these chats; without chats, of an operator.
    """
    body = IssueTokenBody(
        role="frontend" if chat_ids else "operator", chat_ids=chat_ids, ttl_seconds=CODE_LIFETIME
    )
    return await issue(store, body, code_digest)


async def exchange_code(store: Store, code: str) -> tuple[str, Token] | None:
    """Return the token of a session for a code, and its rights; None if the code is not valid any more."""
    text = secrets.token_urlsafe(32)
    end = datetime.now(UTC) + timedelta(seconds=SESSION_LIFETIME)
    token = await store.tokens.exchange(code_digest(code), digest_of(text), end)
    return None if token is None else (text, token)


async def issue(
    store: Store, body: IssueTokenBody, digest: Callable[[str], bytes] = digest_of
) -> tuple[str, Token]:
    """Make a token, store its digest and its rights, and return both."""
    now = datetime.now(UTC)
    token = Token(
        id=str(uuid4()),
        role=body.role,
        exec=_allows_exec(body),
        created_at=now,
        expires_at=now + timedelta(seconds=body.ttl_seconds),
        chat_ids=body.chat_ids,
        organization_id=body.organization_id,
        owner_id=body.owner_id,
        owner_name=body.owner_name,
    )
    text = secrets.token_urlsafe(32)
    await store.tokens.issue(digest(text), token)
    return text, token


def _allows_exec(body: IssueTokenBody) -> bool:
    """Return whether the holder of the token may run commands, or see them."""
    allowed = body.role != "frontend" if body.exec is None else body.exec
    return allowed or body.role == "operator"


async def renew_operator_token(store: Store, file: Path) -> float:
    """Write a token of an operator to `file`, which only its owner may read, if half of its time is over.

    The old token stays valid until its own end. Return after how many seconds to call this again. Raises
    StoreUnavailableError, OSError.
    """
    lifetime = max_lifetime("operator")
    left = await _left(store, file)
    if left < lifetime / 2:
        text, _ = await issue(store, IssueTokenBody(role="operator", ttl_seconds=lifetime))
        write_atomically(file, text.encode())
        left = lifetime
    return left - lifetime / 2 + 1


async def keep_operator_token(store: Store, file: Path) -> None:
    """Keep a valid token of an operator in `file` until cancelled."""
    backoff = Backoff(limit=60.0)
    while True:
        try:
            left = await renew_operator_token(store, file)
        except (StoreUnavailableError, OSError) as error:
            log.warning("the operator's token can't be renewed, trying again: %s", error)
            await backoff.wait()
            continue
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                await asyncio.get_running_loop().create_future()


async def _left(store: Store, file: Path) -> float:
    """Return for how many seconds the token in a file is valid."""
    try:
        text = file.read_text().strip()  # noqa: ASYNC240 — a small local file
    except (FileNotFoundError, UnicodeDecodeError):
        return 0.0
    token = await store.tokens.find(digest_of(text))
    if token is None or token.role != "operator":
        return 0.0
    return (token.expires_at - datetime.now(UTC)).total_seconds()


def shown(token: Token) -> replies.ShownToken:
    """Return a token's rights as rpcs show them."""
    return {
        "id": token.id,
        "role": cast(TokenRole, token.role),
        "chat_ids": list(token.chat_ids),
        "organization_id": token.organization_id,
        "owner_id": token.owner_id,
        "owner_name": token.owner_name,
        "exec": token.exec,
        "created_at": timestamp(token.created_at),
        "expires_at": timestamp(token.expires_at),
    }


def max_lifetime(role: str) -> float:
    """Return the longest lifetime of a role's token, in seconds."""
    return _MAX_LIFETIMES.get(role, 30 * _DAY)


async def _rights_of(store: Store, message: Message) -> tuple[Sequence[TokenRole], bool]:
    """Return the roles of the tokens that the caller may manage, and whether they may run commands.

    Operators are in another account than the gateway, and so are chat services that may run no commands.
    """
    if not is_of_other_account(message.reply):
        return _OF_CHAT_SERVICES, True
    credential = await caller_credential(store, message.reply, message.headers)
    if credential is not None and credential.kind == "chat-service":
        return _OF_CHAT_SERVICES, credential.exec
    return ALL_ROLES, True


def _fault(body: IssueTokenBody) -> str | None:
    """Return what is wrong with the combination of fields, beginning with the field's name."""
    owner = {
        "organization_id": body.organization_id,
        "owner_id": body.owner_id,
        "owner_name": body.owner_name,
    }
    match body.role:
        case "chat":
            if len(body.chat_ids) != 1:
                return "chat_ids: a token of role chat is for exactly one chat"
            if missing := [name for name, value in owner.items() if value is None]:
                return f"{missing[0]}: required for role chat"
        case "frontend":
            if not body.chat_ids:
                return "chat_ids: required for role frontend"
        case _:
            if body.chat_ids:
                return f"chat_ids: only for roles chat and frontend, not {body.role}"
    if body.role != "chat" and (given := [name for name, value in owner.items() if value]):
        return f"{given[0]}: only for role chat, not {body.role}"
    if body.ttl_seconds > max_lifetime(body.role):
        days = max_lifetime(body.role) / _DAY
        return f"ttl_seconds: a token of role {body.role} is valid for at most {days:g} days"
    return None
