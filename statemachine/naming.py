"""Ids and names: recognizes UUIDs; checks and generates names of workspaces (docs/contract.md, section 6).

Messages must use the canonical form of a UUID; tool arguments may also use capitals and surrounding blanks.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from hashlib import sha256
from typing import Final

_CANONICAL_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LONGEST: Final = 32
"""Maximum length of a name in bytes."""
_VALID: Final = re.compile(r"[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*")
_RESERVED: Final = frozenset(("new", "create"))
_BASE: Final = 27
_ADJECTIVES: Final = (
    "amber", "brisk", "calm", "clever", "eager", "fair", "gentle", "keen",
    "lively", "mellow", "nimble", "proud", "quiet", "rapid", "sunny", "wise",
)  # fmt: skip
_NOUNS: Final = (
    "badger", "cedar", "comet", "falcon", "fjord", "harbor", "heron", "lagoon",
    "maple", "meadow", "otter", "pebble", "raven", "summit", "willow", "zephyr",
)  # fmt: skip


class NameTakenError(Exception):
    """The owner already uses the name and also the one that was tried instead of it."""


def is_canonical(text: str) -> bool:
    """Return whether `text` is a UUID in lower-case canonical form, with nothing around it."""
    return _CANONICAL_UUID.fullmatch(text) is not None


def is_uuid(text: str) -> bool:
    """Return whether `text` is a UUID; capitals and surrounding blanks are allowed."""
    return is_canonical(text.strip().lower())


def derived_id(source: bytes) -> str:
    """Return a UUID derived from `source`: the same bytes give the same UUID."""
    digits = sha256(
        source
    ).hexdigest()  # version 4, as of random bytes; `uuid.UUID` is four times slower
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-8{digits[15:18]}-{digits[18:30]}"


def valid(name: str) -> bool:
    """Return whether `name` is a valid name of a workspace."""
    return (
        len(name.encode()) <= LONGEST
        and _VALID.fullmatch(name) is not None
        and name not in _RESERVED
    )


def workspace_name(asked: str | None, template: str, taken: AbstractSet[str], seed: bytes) -> str:
    """Return the name of a new workspace: `asked` if it is valid and free, else a similar name.

    `template` is the template's name, from which the name is generated if `asked` is absent.
    `taken` are the names that the owner already uses, in lower case. `seed` are random bytes; the
    same seed gives the same name. Raises NameTakenError.
    """
    wanted = (asked or "").strip()
    name = wanted if valid(wanted) else generated(wanted or template, seed)
    if name.lower() not in taken:
        return name
    suffix = _hex(seed, "again")
    other = f"{name[: LONGEST - 5].rstrip('-')}-{suffix}"
    if other.lower() in taken:
        raise NameTakenError(name)
    return other


def generated(base: str, seed: bytes) -> str:
    """Return a valid name that is similar to `base`, with a suffix from `seed`."""
    name = base.strip().lower()
    if not valid(name):
        name = name.rsplit("@", 1)[0] if "@" in name else name
        name = re.sub(r"[^a-z0-9-]", "", name)
    if not valid(name):
        digest = sha256(b"name" + seed).digest()
        name = f"{_ADJECTIVES[digest[0] % 16]}-{_NOUNS[digest[1] % 16]}"
    return f"{name[:_BASE].strip('-')}-{_hex(seed, 'suffix')}"


def _hex(seed: bytes, label: str) -> str:
    return sha256(label.encode() + seed).hexdigest()[:4]
