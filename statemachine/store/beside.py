"""What is kept beside chats: pushed template versions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Pushed:
    """A template version as its history tells of it."""

    version_id: str
    pushed_at: datetime
    size: int
    """Bytes of its archive."""
    active: bool
