"""Names of workspaces (contract §6)."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from hashlib import sha256
from typing import Final

LONGEST: Final = 32
"""Bytes of a name."""
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
    """The owner has a workspace of that name, and of the one tried instead."""


def valid(name: str) -> bool:
    """Say whether `name` may be used as it is."""
    return (
        len(name.encode()) <= LONGEST
        and _VALID.fullmatch(name) is not None
        and name not in _RESERVED
    )


def workspace_name(asked: str | None, template: str, taken: AbstractSet[str], seed: bytes) -> str:
    """Return the name of a new workspace.

    `taken`: lower-case names that the owner uses already; `seed`: random bytes, the only chance in it.
    Raises NameTakenError.
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
    """Make a valid name out of any text."""
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
