"""The settings that all workers read from the database: `workspaced settings set` writes them.

A new one is a key here, and a line in `check` and in `policy` (`handlers.worker.call_limits`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from statemachine.naming import is_uuid

TTL: Final = "chat_workspace_ttl"
"""The lifetime of a workspace, as a duration."""
BUMP: Final = "chat_workspace_activity_bump"
"""How far activity puts the end of a lifetime off, as a duration."""
RETENTION: Final = "stopped_workspace_retention"
"""How long a workspace may rest before workers delete it, as a duration."""
ALLOWLIST: Final = "chat_template_allowlist"
"""The ids of the templates that chats may use, separated by commas."""
KEYS: Final = (TTL, ALLOWLIST, BUMP, RETENTION)
DURATIONS: Final = {
    TTL: "leave it empty for no limit",
    BUMP: "set it to 0 if activity puts nothing off",
    RETENTION: "leave it empty to keep stopped workspaces for ever",
}
"""Settings that are durations -> the hint for a value that can't be read."""
DEFAULTS: Final = {BUMP: "1h"}
"""The values of settings that are not set; others are empty."""
_UNITS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PARTS: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
MAX_DURATION: Final = 100 * 365 * 24 * _UNITS["h"]
"""Milliseconds; times that lie further ahead may be beyond the calendar of Python and PostgreSQL."""


def check(key: str, value: str) -> None:
    """Raise ValueError if workers could not use the value."""
    check_key(key)
    if key in DURATIONS and value not in ("", "0"):
        try:
            milliseconds(value)
        except ValueError as error:
            raise ValueError(f"{error}; {DURATIONS[key]}") from error
    if key == ALLOWLIST:
        wrong = [part for part in value.split(",") if part.strip() and not is_uuid(part)]
        if wrong:
            raise ValueError(
                f"{wrong[0].strip()!r} is not a template id (a UUID); "
                "`workspaced template list` shows them"
            )


def check_key(key: str) -> None:
    """Raise ValueError if there is no such setting."""
    if key not in KEYS:
        raise ValueError(f"there is no setting {key!r}; the settings are: {', '.join(KEYS)}")


def duration(settings: Mapping[str, str], key: str) -> int | None:
    """Return a setting in milliseconds; None if it is empty or 0. Raises ValueError if it can't be read."""
    text = settings.get(key, DEFAULTS.get(key, "")).strip()
    return None if text in ("", "0") else milliseconds(text) or None


def allowlist(settings: Mapping[str, str]) -> frozenset[str]:
    """Return the ids of the allowed templates; if there are none, all templates are allowed."""
    names = (part.strip().lower() for part in settings.get(ALLOWLIST, "").split(","))
    return frozenset(name for name in names if name)


def milliseconds(text: str) -> int:
    """Read a duration like `45s`, `2h` or `1h30m`. Raises ValueError."""
    if not text or _PARTS.sub("", text):
        raise ValueError(f"{text!r} is not a duration: write it like 45s, 2h, 1h30m or 30d")
    total = sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(text))
    if total > MAX_DURATION:
        raise ValueError(f"{text!r} is longer than {MAX_DURATION // _UNITS['h']}h")
    return int(total)
