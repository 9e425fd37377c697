"""`workspaced settings`: the settings that all workers read from the database."""

from __future__ import annotations

from bus import BusError, subjects
from handlers.app import Endpoints, locate
from handlers.cli.command_table.administration import ChangeSetting, ListSettings, UnsetSetting
from handlers.cli.output import for_people, note, write_fields, write_json
from handlers.errors import InvalidSettings
from handlers.settings import Settings
from handlers.shared_settings import DEFAULTS, KEYS, RETENTION, check, check_key


async def change_setting(command: ChangeSetting, settings: Settings) -> None:
    """Store a setting. Raises InvalidSettings."""
    key, value = command.key, command.value.strip()
    try:
        check(key, value)
    except ValueError as error:
        raise InvalidSettings(str(error)) from error
    endpoints = locate(settings)
    async with endpoints.store() as store:
        await store.put_setting(key, value)
    await _announce(endpoints, key)


async def unset_setting(command: UnsetSetting, settings: Settings) -> None:
    """Remove a setting, so that its default holds. Raises InvalidSettings."""
    try:
        check_key(command.key)
    except ValueError as error:
        raise InvalidSettings(str(error)) from error
    endpoints = locate(settings)
    async with endpoints.store() as store:
        await store.unset_setting(command.key)
    await _announce(endpoints, command.key)


async def _announce(endpoints: Endpoints, key: str) -> None:
    """Let a worker look at what follows at once from a changed setting."""
    if key != RETENTION:
        return  # workers read the others when they need them
    try:
        async with endpoints.bus("operator") as bus:
            await bus.request(subjects.WORKER_SETTINGS, b"{}", timeout=5)
    except (BusError, TimeoutError) as error:
        note(f"stored; no worker has taken note of it yet, a worker does when it starts ({error})")


async def list_settings(command: ListSettings, settings: Settings) -> None:
    """Print all settings."""
    async with locate(settings).store() as store:
        found = await store.settings()
    values = {key: found.get(key, DEFAULTS.get(key, "")) for key in KEYS}
    if for_people(as_json=command.json):
        write_fields(list(values.items()))
    else:
        write_json(values)
