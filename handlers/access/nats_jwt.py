"""JWTs as NATS writes them: JSON claims that an NKey signed (algorithm `ed25519-nkey`).

JWT libraries do not know this algorithm.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from handlers.access import nkey

_HEADER: Final = {"typ": "JWT", "alg": "ed25519-nkey"}


def encode(issuer_seed: str, claims: Mapping[str, Any], now: datetime) -> bytes:
    """Sign claims with the issuer's seed; `iss`, `iat` and `jti` are added."""
    claims = {**claims, "iss": nkey.public_key(issuer_seed), "iat": int(now.timestamp())}
    claims["jti"] = hashlib.sha256(_json(claims)).hexdigest()
    content = _base64url(_json(_HEADER)) + b"." + _base64url(_json(claims))
    return content + b"." + _base64url(nkey.sign(issuer_seed, content))


@dataclass(frozen=True, slots=True)
class SignedToken:
    """A token whose signature is not verified yet."""

    claims: bytes
    """JSON text."""
    content: bytes
    """The part of the token that is signed."""
    signature: bytes

    def is_signed_by(self, public_key: str) -> bool:
        """Check the signature against a public key."""
        return nkey.verify(public_key, self.content, self.signature)


def decode(token: bytes) -> SignedToken:
    """Take a token apart. Raises ValueError if it is malformed."""
    header, claims, signature = token.split(b".")
    return SignedToken(decode_base64(claims), header + b"." + claims, decode_base64(signature))


def decode_base64(text: bytes) -> bytes:
    """Decode base64 in the standard or the URL-safe alphabet, with or without padding.

    Clients differ in what they send. Raises ValueError.
    """
    plain = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _base64url(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")
