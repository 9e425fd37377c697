"""NKeys, the Ed25519 key pairs that NATS identifies clients by: the seed signs, the public key names."""

from __future__ import annotations

import base64
import binascii
import os
from typing import Final, Literal

import nkeys
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

KeyKind = Literal["user", "account"]
"""A client, or an account, which signs permissions for clients."""

_PREFIXES: Final[dict[KeyKind, int]] = {
    "user": nkeys.PREFIX_BYTE_USER,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
}
_RAW_LENGTH: Final = 35  # prefix, 32 bytes of key, checksum


class InvalidSeed(ValueError):
    """The text is not an NKey seed."""


def new_seed(kind: KeyKind) -> str:
    """Generate a key pair and return its seed, which is secret."""
    seed: bytes = nkeys.encode_seed(os.urandom(32), _PREFIXES[kind])
    return seed.decode()


def public_key(seed: str) -> str:
    """Return the public key that belongs to a seed. Raises InvalidSeed."""
    key: bytes = _key_pair(seed).public_key
    return key.decode()


def sign(seed: str, content: bytes) -> bytes:
    """Return the signature of the content. Raises InvalidSeed."""
    signature: bytes = _key_pair(seed).sign(content)
    return signature


def verify(public: str, content: bytes, signature: bytes) -> bool:
    """Check that the content was signed with the seed that belongs to a public key."""
    try:
        raw = base64.b32decode(public)
    except (binascii.Error, ValueError):
        return False
    if len(raw) != _RAW_LENGTH or nkeys.crc16_checksum(raw[:-2]) != raw[-2:]:
        return False
    try:
        VerifyKey(raw[1:-2]).verify(content, signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True


def _key_pair(seed: str) -> nkeys.KeyPair:
    try:
        return nkeys.from_seed(bytearray(seed.encode()))
    except (nkeys.NkeysError, ValueError) as error:
        raise InvalidSeed(f"not an NKey seed: {error}") from error
