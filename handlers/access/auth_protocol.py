"""Who an unlisted client is: the server asks, and this answers with what it may say and hear.

The server does not check the signature of a key that it doesn't know; it passes on the client's
claim and its signature over the nonce. So the proof is checked here, before anything is granted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import AliasPath, BaseModel, Field, ValidationError

from bus import subjects
from handlers.access import nkey
from handlers.access.grants import Grant

SUBJECT: Final = subjects.AUTH_CALLOUT
"""Where the server asks."""

QUEUE: Final = "callout"
"""One of all gateways answers."""

_LONGEST: Final = 128
_ONE_ANSWER: Final = {"max": 1, "ttl": 30 * 60 * 10**9}
"""As `allow_responses` of the static roles: within 30 minutes, in nanoseconds."""


class Why(StrEnum):
    """Why somebody is not let in."""

    NO_KEY = "no_key"
    BAD_SIGNATURE = "bad_signature"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"


WORDS: Final = {
    Why.NO_KEY: "connect with an NKey",
    Why.BAD_SIGNATURE: "the signature is not that of the key",
    Why.UNKNOWN: "this key was issued by nobody here",
    Why.REVOKED: "this key was revoked",
    Why.EXPIRED: "this key has expired",
    Why.SUPERSEDED: "the build of this key was superseded",
}
"""What the server is told, and logs. The client hears `Authorization Violation`, whatever it is."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who wants to come in, by what it says of itself and what the server sees of it."""

    key: str
    """What it proves to hold, once that was checked."""
    name: str
    kind: str
    address: str
    server: str
    server_name: str
    client: int


GrantFor = Callable[[Visitor], Awaitable[Grant | Why]]
"""Looks up what the holder of a key is granted, or why nothing."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What the server is told of a visitor."""

    token: bytes
    visitor: Visitor
    refused: Why | None = None


class NotFromServer(ValueError):
    """The request is not one that a server made: there is nobody to answer."""


async def answer(request: bytes, issuer_seed: str, grant_for: GrantFor, now: datetime) -> Answered:
    """Return the signed answer to a server's question about one client.

    What `grant_for` raises goes through: without an answer the server refuses, and the client tries
    again. Raises NotFromServer.
    """
    asked = _read(request)
    visitor = asked.visitor()
    found = _fault(asked) or await grant_for(visitor)
    if isinstance(found, Grant):
        if found.expires_at > now:
            content = {"jwt": _user(issuer_seed, asked, found, now)}
            return Answered(_signed_answer(issuer_seed, asked, now, content), visitor)
        found = Why.EXPIRED
    content = {"error": WORDS[found]}
    return Answered(_signed_answer(issuer_seed, asked, now, content), visitor, found)


class _Asked(BaseModel):
    """The part of the server's question that matters here."""

    server: Annotated[str, Field(validation_alias=AliasPath("nats", "server_id", "id"))]
    server_name: Annotated[str, Field(validation_alias=AliasPath("nats", "server_id", "name"))] = ""
    issuer: Annotated[str, Field(validation_alias="iss")]
    kind: Annotated[str, Field(validation_alias=AliasPath("nats", "type"))]
    user: Annotated[str, Field(validation_alias=AliasPath("nats", "user_nkey"))]
    """A key that the server made for this one connection; the answer is about it."""
    nonce: Annotated[str, Field(validation_alias=AliasPath("nats", "client_info", "nonce"))] = ""
    nkey: Annotated[str, Field(validation_alias=AliasPath("nats", "connect_opts", "nkey"))] = ""
    """What the client claims to be."""
    signature: Annotated[str, Field(validation_alias=AliasPath("nats", "connect_opts", "sig"))] = ""
    name: Annotated[str, Field(validation_alias=AliasPath("nats", "connect_opts", "name"))] = ""
    """What it calls itself: anything."""
    type: Annotated[str, Field(validation_alias=AliasPath("nats", "client_info", "type"))] = ""
    address: Annotated[str, Field(validation_alias=AliasPath("nats", "client_info", "host"))] = ""
    client: Annotated[int, Field(validation_alias=AliasPath("nats", "client_info", "id"))] = 0
    """What the server calls the connection."""

    def visitor(self) -> Visitor:
        """Return who that is, what it says of itself shortened: it ends in logs."""
        return Visitor(
            key=self.nkey[:_LONGEST],
            name=self.name[:_LONGEST],
            kind=self.type or "client",
            address=self.address,
            server=self.server,
            server_name=self.server_name,
            client=self.client,
        )


def _read(request: bytes) -> _Asked:
    try:
        head, body, signature = request.split(b".")
        asked = _Asked.model_validate_json(_decoded(body))
        signed = nkey.verify(asked.issuer, head + b"." + body, _decoded(signature))
    except (ValueError, ValidationError) as error:
        raise NotFromServer(f"not a callout request: {error}") from error
    if not signed or asked.issuer != asked.server or asked.kind != "authorization_request":
        raise NotFromServer("not a callout request that the server it names has signed")
    return asked


def _fault(asked: _Asked) -> Why | None:
    if not (asked.nkey and asked.nonce):
        return Why.NO_KEY
    try:
        signature = _decoded(asked.signature.encode())
    except ValueError:
        return Why.BAD_SIGNATURE
    signed = nkey.verify(asked.nkey, asked.nonce.encode(), signature)
    return None if signed else Why.BAD_SIGNATURE


def _user(issuer_seed: str, asked: _Asked, grant: Grant, now: datetime) -> str:
    claims = {
        "sub": asked.user,
        "aud": grant.account,
        "name": grant.name,
        "exp": int(grant.expires_at.timestamp()),
        "nats": {
            "type": "user",
            "version": 2,
            "pub": {"allow": grant.publish, "deny": grant.refused},
            "sub": {"allow": grant.subscribe},
            **({"resp": _ONE_ANSWER} if grant.answers else {}),
            "subs": -1,
            "data": -1,
            "payload": -1,
        },
    }
    return _jwt(issuer_seed, claims, now).decode()


def _signed_answer(
    issuer_seed: str, asked: _Asked, now: datetime, content: Mapping[str, str]
) -> bytes:
    claims = {
        "sub": asked.user,
        "aud": asked.server,
        "nats": {"type": "authorization_response", "version": 2, **content},
    }
    return _jwt(issuer_seed, claims, now)


def _jwt(issuer_seed: str, claims: Mapping[str, Any], now: datetime) -> bytes:
    claims = {**claims, "iss": nkey.public_key(issuer_seed), "iat": int(now.timestamp())}
    claims["jti"] = hashlib.sha256(_json(claims)).hexdigest()
    content = (
        _encoded(_json({"typ": "JWT", "alg": "ed25519-nkey"})) + b"." + _encoded(_json(claims))
    )
    return content + b"." + _encoded(nkey.sign(issuer_seed, content))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _encoded(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _decoded(text: bytes) -> bytes:
    """Read base64 in the standard alphabet or that of URLs, padded or not: clients differ."""
    plain = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
