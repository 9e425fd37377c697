"""The auth callout's protocol: nats-server's question about a client, and the signed answer.

nats-server asks about every client whose key is not in its configuration. For such a key it does not
check the client's signature: it forwards the claimed key and the signature of the connection's nonce. `answer` therefore verifies that signature before it looks up any permissions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import AliasPath, BaseModel, Field, ValidationError

from handlers.access import nats_jwt, nkey
from handlers.access.permissions import Permissions

QUEUE: Final = "callout"
"""The queue group of all gateways: one of them answers each request."""

_MAX_TEXT: Final = 128
"""Characters of a client's own texts that are kept; they end up in logs."""
_ONE_RESPONSE: Final = {"max": 1, "ttl": 30 * 60 * 10**9}
"""A client may answer each request once, within 30 minutes (in nanoseconds)."""


class DenialReason(StrEnum):
    """The reason for refusing a client."""

    NO_KEY = "no_key"
    BAD_SIGNATURE = "bad_signature"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"


DENIAL_MESSAGES: Final = {
    DenialReason.NO_KEY: "the client presented no NKey",
    DenialReason.BAD_SIGNATURE: "the signature does not match the key",
    DenialReason.UNKNOWN: "workspaced did not issue this key",
    DenialReason.REVOKED: "this key was revoked",
    DenialReason.EXPIRED: "this key has expired",
    DenialReason.SUPERSEDED: "a newer build superseded this agent's build",
}
"""For the logs of nats-server and the gateway. The client always gets `Authorization Violation`."""


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """A request to connect: the client's own statements, and the facts that the server adds."""

    public_key: str
    """When permissions are looked up, the client has proved that it holds this key."""
    client_name: str
    """Chosen by the client, so it can be anything."""
    client_type: str
    address: str
    server_id: str
    """The running nats-server process: each start makes a new id."""
    server_name: str
    client_id: int
    """The server's number of the connection."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The permissions of a client, with its account and an expiry; nothing else is allowed."""

    name: str
    account: str
    permissions: Permissions
    expires_at: datetime


GrantLookup = Callable[[ConnectRequest], Awaitable[Grant | DenialReason]]


@dataclass(frozen=True, slots=True)
class AuthResponse:
    """The answer to nats-server, and what it was about."""

    token: bytes
    """The signed answer."""
    request: ConnectRequest
    denial: DenialReason | None = None


class InvalidAuthRequest(ValueError):
    """No nats-server made this request, so it gets no answer."""


async def answer(
    message: bytes, issuer_seed: str, look_up: GrantLookup, now: datetime
) -> AuthResponse:
    """Answer nats-server's question whether a client may connect.

    Raises InvalidAuthRequest, and any error of `look_up`. Without an answer the server refuses the
    client, which then tries again.
    """
    asked = _parse(message)
    request = asked.connect_request()
    found = _check_signature(asked) or await look_up(request)
    if isinstance(found, Grant):
        if _end(found) > now.timestamp():
            content = {"jwt": _user_jwt(issuer_seed, asked, found, now)}
            return AuthResponse(_response_jwt(issuer_seed, asked, now, content), request)
        found = DenialReason.EXPIRED
    content = {"error": DENIAL_MESSAGES[found]}
    return AuthResponse(_response_jwt(issuer_seed, asked, now, content), request, found)


class _AuthRequest(BaseModel):
    """The claims of the server's question that are used here."""

    server_id: Annotated[str, Field(validation_alias=AliasPath("nats", "server_id", "id"))]
    server_name: Annotated[str, Field(validation_alias=AliasPath("nats", "server_id", "name"))] = ""
    issuer: Annotated[str, Field(validation_alias="iss")]
    kind: Annotated[str, Field(validation_alias=AliasPath("nats", "type"))]
    user: Annotated[str, Field(validation_alias=AliasPath("nats", "user_nkey"))]
    """A key that the server made up for this connection; the answer has to name it."""
    nonce: Annotated[str, Field(validation_alias=AliasPath("nats", "client_info", "nonce"))] = ""
    nkey: Annotated[str, Field(validation_alias=AliasPath("nats", "connect_opts", "nkey"))] = ""
    """The key that the client claims to hold."""
    signature: Annotated[str, Field(validation_alias=AliasPath("nats", "connect_opts", "sig"))] = ""
    name: Annotated[str, Field(validation_alias=AliasPath("nats", "connect_opts", "name"))] = ""
    type: Annotated[str, Field(validation_alias=AliasPath("nats", "client_info", "type"))] = ""
    address: Annotated[str, Field(validation_alias=AliasPath("nats", "client_info", "host"))] = ""
    client_id: Annotated[int, Field(validation_alias=AliasPath("nats", "client_info", "id"))] = 0

    def connect_request(self) -> ConnectRequest:
        return ConnectRequest(
            public_key=self.nkey[:_MAX_TEXT],
            client_name=self.name[:_MAX_TEXT],
            client_type=self.type or "client",
            address=self.address,
            server_id=self.server_id,
            server_name=self.server_name,
            client_id=self.client_id,
        )


def _parse(message: bytes) -> _AuthRequest:
    try:
        token = nats_jwt.decode(message)
        asked = _AuthRequest.model_validate_json(token.claims)
        signed = token.is_signed_by(asked.issuer)
    except (ValueError, ValidationError) as error:
        raise InvalidAuthRequest(f"not an auth callout request: {error}") from error
    if not signed or asked.issuer != asked.server_id or asked.kind != "authorization_request":
        raise InvalidAuthRequest("not an auth callout request signed by the server that it names")
    return asked


def _check_signature(asked: _AuthRequest) -> DenialReason | None:
    if not (asked.nkey and asked.nonce):
        return DenialReason.NO_KEY
    try:
        signature = nats_jwt.decode_base64(asked.signature.encode())
    except ValueError:
        return DenialReason.BAD_SIGNATURE
    valid = nkey.verify(asked.nkey, asked.nonce.encode(), signature)
    return None if valid else DenialReason.BAD_SIGNATURE


def _end(grant: Grant) -> int:
    """Return the second at whose beginning the server ends the client's connection; claims have no fractions."""
    return int(grant.expires_at.timestamp())


def _user_jwt(issuer_seed: str, asked: _AuthRequest, grant: Grant, now: datetime) -> str:
    permissions = grant.permissions
    claims = {
        "sub": asked.user,
        "aud": grant.account,
        "name": grant.name,
        "exp": _end(grant),
        "nats": {
            "type": "user",
            "version": 2,
            "pub": {"allow": permissions.publish, "deny": permissions.deny_publish},
            "sub": {"allow": permissions.subscribe, "deny": permissions.deny_subscribe},
            **({"resp": _ONE_RESPONSE} if permissions.allow_responses else {}),
            "subs": -1,
            "data": -1,
            "payload": -1,
        },
    }
    return nats_jwt.encode(issuer_seed, claims, now).decode()


def _response_jwt(
    issuer_seed: str, asked: _AuthRequest, now: datetime, content: Mapping[str, str]
) -> bytes:
    claims = {
        "sub": asked.user,
        "aud": asked.server_id,
        "nats": {"type": "authorization_response", "version": 2, **content},
    }
    return nats_jwt.encode(issuer_seed, claims, now)
