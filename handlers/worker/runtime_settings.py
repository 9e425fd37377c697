"""The settings in the database as the rules understand them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final

from statemachine.calls import Policy

log = logging.getLogger(__name__)

TTL: Final = "chat_workspace_ttl"
ALLOWLIST: Final = "chat_template_allowlist"
_UNITS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
LONGEST: Final = 100 * 365 * 24 * _UNITS["h"]
"""Milliseconds that the calendar has room for."""
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+")


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


def milliseconds(text: str) -> int:
    """Read a duration like `2h` or `1h30m`. Raises ValueError."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration: write it like 2h, 1h30m or 45s")
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if total > LONGEST:
        raise ValueError(
            f"{text!r} is longer than {LONGEST // _UNITS['h']}h; leave it empty for ever"
        )
    return int(total)
