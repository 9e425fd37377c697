"""`workspaced settings`: the settings that all workers read from the database."""

from __future__ import annotations

import json
import sys
from typing import Final

from handlers.app import locate
from handlers.cli.command_table import ChangeSetting, ListSettings
from handlers.clock import milliseconds
from handlers.settings import InvalidSettings, Settings
from handlers.worker.call_limits import ALLOWLIST, TTL
from statemachine.ids import is_uuid

KEYS: Final = (TTL, ALLOWLIST)


async def change_setting(command: ChangeSetting, settings: Settings) -> None:
    """Store a setting. Raises InvalidSettings."""
    key, value = command.key, command.value.strip()
    _check(key, value)
    async with locate(settings).store() as store:
        await store.put_setting(key, value)


async def list_settings(_: ListSettings, settings: Settings) -> None:
    """Print all settings as JSON."""
    async with locate(settings).store() as store:
        found = await store.settings()
    sys.stdout.write(json.dumps({key: found.get(key, "") for key in KEYS}, indent=2) + "\n")


def _check(key: str, value: str) -> None:
    """Raise InvalidSettings if workers could not use the value."""
    if key not in KEYS:
        raise InvalidSettings(f"there is no setting {key!r}; the settings are: {', '.join(KEYS)}")
    if key == TTL and value not in ("", "0"):
        try:
            milliseconds(value)
        except ValueError as error:
            raise InvalidSettings(f"{error}; leave it empty for no limit") from error
    if key == ALLOWLIST:
        wrong = [part for part in value.split(",") if part.strip() and not is_uuid(part)]
        if wrong:
            raise InvalidSettings(
                f"{wrong[0].strip()!r} is not a template id (a UUID); "
                "`workspaced template list` shows them"
            )
