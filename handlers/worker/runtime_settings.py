"""The settings in the database as the rules understand them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from handlers.clock import milliseconds
from statemachine.calls import Policy

log = logging.getLogger(__name__)

TTL: Final = "chat_workspace_ttl"
ALLOWLIST: Final = "chat_template_allowlist"


def policy(settings: Mapping[str, str]) -> Policy:
    """Read the settings; one that can't be read is logged and ignored."""
    ttl_ms = None
    if (text := settings.get(TTL, "").strip()) not in ("", "0"):
        try:
            ttl_ms = milliseconds(text) or None
        except ValueError as bad:
            log.warning("setting %s is ignored: %s", TTL, bad)
    listed = (part.strip().lower() for part in settings.get(ALLOWLIST, "").split(","))
    return Policy(ttl_ms, frozenset(part for part in listed if part))
