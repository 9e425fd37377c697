"""Ids, connections and names that the benchmark's caller and sources share."""

from __future__ import annotations

import sys
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Final

from tests.rigs import client
from tests.rigs.client import Participant, role_options

POOL: Final = "bench"
SERVICE: Final = "bench"
PROVISIONER: Final = "bench"
OWNED: Final = 10
"""Chats of each owner."""
_SPACE: Final = uuid.UUID("5ca1ab1e-0000-4000-8000-000000000000")


@lru_cache(maxsize=100_000)  # two for each chat of the largest measure, and more
def fixed_id(name: str) -> str:
    """Return the id that a name has in every process of the benchmark."""
    return str(uuid.uuid5(_SPACE, name))


def chat_id(chat: str) -> str:
    """Return the id of a chat that the benchmark knows by its name."""
    return fixed_id(chat)


ORGANIZATION: Final = fixed_id("organization")


async def connect(url: str, seed: Path) -> Participant:
    """Connect with a role's seed; thousands of publications may be open at the same time."""
    party = Participant()
    options = role_options(seed.parent, seed.stem)
    await client.connect(party, url, error_cb=_print, **options)
    party.js = party.client.jetstream(timeout=60, publish_async_max_pending=4000)
    return party


async def _print(error: Exception) -> None:
    """Print an error: a denied permission or a slow consumer must not pass for a slow product."""
    sys.stderr.write(f"NATS: {error!r}\n")
