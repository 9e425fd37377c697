"""What caller and sources say on the bus: CloudEvents of the contract, by nats-py alone."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from nats.aio.client import Client
from nats.js import JetStreamContext

POOL: Final = "bench"
SERVICE: Final = "bench"
PROVISIONER: Final = "bench"
OWNED: Final = 10
"""Chats of each owner."""
_SPACE: Final = uuid.UUID("5ca1ab1e-0000-4000-8000-000000000000")
CONTENT_TYPE: Final = "application/cloudevents+json"


def fixed_id(name: str) -> str:
    """Return the id that a name has in every process of the benchmark."""
    return str(uuid.uuid5(_SPACE, name))


def chat_id(chat: str) -> str:
    """Return the id of a chat that the benchmark knows by its name."""
    return fixed_id(chat)


ORGANIZATION: Final = fixed_id("organization")


def envelope(
    type_name: str, source: str, chat: str, kind: str, data: Mapping[str, Any]
) -> dict[str, Any]:
    """Return an event; what comes twice for a chat and kind is the same event."""
    return {
        "specversion": "1.0",
        "id": fixed_id(f"{chat}/{kind}"),
        "source": source,
        "type": f"workspaced.{type_name}.v1",
        "subject": chat_id(chat),
        "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "data": data,
    }


async def publish(js: JetStreamContext, kind: str, event: Mapping[str, Any]) -> None:
    """Publish it where its kind belongs; return when the stream has it."""
    sender = event["source"].rpartition("/")[2]
    await js.publish(
        f"workspaced.in.{kind}.{event['subject']}.{sender}",
        json.dumps(event).encode(),
        headers={"Content-Type": CONTENT_TYPE, "Nats-Msg-Id": f"{event['source']}:{event['id']}"},
    )


async def connect(url: str, seed: Path) -> Client:
    """Connect with a role's seed."""
    role = seed.stem
    client = Client()
    await client.connect(
        url,
        nkeys_seed=str(seed),
        inbox_prefix="_INBOX" if role == "operator" else f"_INBOX_{role}",
        allow_reconnect=False,
        error_cb=_loud,
    )
    return client


async def _loud(error: Exception) -> None:
    """Let no denied permission or slow consumer pass for a slow product."""
    sys.stderr.write(f"NATS: {error!r}\n")
