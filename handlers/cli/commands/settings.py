"""`workspaced settings`: what all workers go by."""

from __future__ import annotations

import json
import sys
from typing import Final

from handlers.app import locate
from handlers.cli.output import tell
from handlers.settings import Settings
from handlers.worker.runtime_settings import ALLOWLIST, TTL, milliseconds
from statemachine.ids import is_uuid

KEYS: Final = (TTL, ALLOWLIST)


async def change(key: str, value: str, settings: Settings) -> int:
    """Store a setting, if it can be understood."""
    if (problem := _problem(key, value.strip())) is not None:
        tell(f"workspaced: {problem}")
        return 2
    async with locate(settings).store() as store:
        await store.put_setting(key, value.strip())
    return 0


async def show(settings: Settings) -> None:
    """Print all settings."""
    async with locate(settings).store() as store:
        found = await store.settings()
    sys.stdout.write(json.dumps({key: found.get(key, "") for key in KEYS}, indent=2) + "\n")


def _problem(key: str, value: str) -> str | None:
    if key not in KEYS:
        return f"there is no setting {key!r}; the settings are: {', '.join(KEYS)}"
    if key == TTL and value not in ("", "0"):
        try:
            milliseconds(value)
        except ValueError as bad:
            return str(bad)
    if key == ALLOWLIST:
        wrong = [p for p in value.split(",") if p.strip() and not is_uuid(p)]
        if wrong:
            return f"{wrong[0].strip()!r} is not a template id (a UUID); `workspaced template list` shows them"
    return None
