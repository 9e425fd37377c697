"""Who an unlisted client is: the server asks, and this answers with what it may say and hear.

The server does not check the signature of a key that it doesn't know; it passes on the client's
claim and its signature over the nonce. So the proof is checked here, before anything is granted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import AliasPath, BaseModel, Field, ValidationError

from bus import subjects
from handlers import nkey

SUBJECT: Final = "$SYS.REQ.USER.AUTH"
"""Where the server asks."""

QUEUE: Final = "callout"
"""One of all gateways answers."""

_ACCOUNT: Final = "APP"
_DIRECT_GET_STATE: Final = "$JS.API.DIRECT.GET.WORKSPACED_STATE."


@dataclass(frozen=True, slots=True)
class Grant:
    """What one client may publish and subscribe, until when; what is not named is refused."""

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    expires_at: datetime


GrantFor = Callable[[str], Awaitable[Grant | None]]
"""Looks up what was granted to a public key; None: nothing, or no longer."""


class NotFromServer(ValueError):
    """The request is not one that a server made: there is nobody to answer."""


def inbox_prefix(name: str) -> str:
    """Return where answers to the holder of a grant come."""
    return f"_INBOX_{name}"


def agent_grant(*, chat_id: str, build_id: str, agent_id: str, expires_at: datetime) -> Grant:
    """Let an agent report about itself, and nothing else."""
    return Grant(
        name=agent_id,
        publish=(
            subjects.inbound("agent", chat_id, agent_id),
            subjects.log(chat_id, build_id),
            subjects.presence(chat_id, agent_id),
        ),
        subscribe=(subjects.RESEND_AGENT, f"{inbox_prefix(agent_id)}.>"),
        expires_at=expires_at,
    )


def frontend_grant(*, name: str, chat_ids: Sequence[str], expires_at: datetime) -> Grant:
    """Let a frontend see its chats: the last state of each, and what happens from then on."""
    return Grant(
        name=name,
        publish=tuple(_DIRECT_GET_STATE + subjects.state(chat) for chat in chat_ids),
        subscribe=(*map(subjects.ui, chat_ids), f"{inbox_prefix(name)}.>"),
        expires_at=expires_at,
    )


async def answer(request: bytes, issuer_seed: str, grant_for: GrantFor, now: datetime) -> bytes:
    """Return the signed answer to a server's question about one client.

    What `grant_for` raises goes through: without an answer the server refuses, and the client tries
    again. Raises NotFromServer.
    """
    asked = _read(request)
    if (fault := _fault(asked)) is not None:
        return _signed_answer(issuer_seed, asked, now, {"error": fault})
    grant = await grant_for(asked.nkey)
    if grant is None or grant.expires_at <= now:
        return _signed_answer(issuer_seed, asked, now, {"error": "this key is granted nothing"})
    return _signed_answer(issuer_seed, asked, now, {"jwt": _user(issuer_seed, asked, grant, now)})


class _Asked(BaseModel):
    """The part of the server's question that matters here."""

    server: Annotated[str, Field(validation_alias=AliasPath("nats", "server_id", "id"))]
    issuer: Annotated[str, Field(validation_alias="iss")]
    kind: Annotated[str, Field(validation_alias=AliasPath("nats", "type"))]
    user: Annotated[str, Field(validation_alias=AliasPath("nats", "user_nkey"))]
    """A key that the server made for this one connection; the answer is about it."""
    nonce: Annotated[str, Field(validation_alias=AliasPath("nats", "client_info", "nonce"))] = ""
    nkey: Annotated[str, Field(validation_alias=AliasPath("nats", "connect_opts", "nkey"))] = ""
    """What the client claims to be."""
    signature: Annotated[str, Field(validation_alias=AliasPath("nats", "connect_opts", "sig"))] = ""


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


def _fault(asked: _Asked) -> str | None:
    if not asked.nkey:
        return "connect with an NKey"
    if not asked.nonce:
        return "the server gave no nonce to sign"
    try:
        signature = _decoded(asked.signature.encode())
    except ValueError:
        return "the signature is not base64"
    if not nkey.verify(asked.nkey, asked.nonce.encode(), signature):
        return "the signature is not that of the key"
    return None


def _user(issuer_seed: str, asked: _Asked, grant: Grant, now: datetime) -> str:
    claims = {
        "sub": asked.user,
        "aud": _ACCOUNT,
        "name": grant.name,
        "exp": int(grant.expires_at.timestamp()),
        "nats": {
            "type": "user",
            "version": 2,
            "pub": {"allow": grant.publish},
            "sub": {"allow": grant.subscribe},
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
