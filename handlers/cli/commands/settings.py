"""`workspaced settings`: the settings that all workers read from the database."""

from __future__ import annotations

from handlers.app import locate
from handlers.cli.command_table import ChangeSetting, ListSettings
from handlers.cli.output import for_people, write_fields, write_json
from handlers.errors import InvalidSettings
from handlers.settings import Settings
from handlers.shared_settings import KEYS, check


async def change_setting(command: ChangeSetting, settings: Settings) -> None:
    """Store a setting. Raises InvalidSettings."""
    key, value = command.key, command.value.strip()
    try:
        check(key, value)
    except ValueError as error:
        raise InvalidSettings(str(error)) from error
    async with locate(settings).store() as store:
        await store.put_setting(key, value)


async def list_settings(command: ListSettings, settings: Settings) -> None:
    """Print all settings."""
    async with locate(settings).store() as store:
        found = await store.settings()
    values = {key: found.get(key, "") for key in KEYS}
    if for_people(as_json=command.json):
        write_fields(list(values.items()))
    else:
        write_json(values)
