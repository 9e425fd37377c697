"""`workspaced migrate`: the database brought to this version by its owner, and the roles' rights given."""

from __future__ import annotations

from handlers.app import database_url, errors_name_database
from handlers.cli.output import write_json
from handlers.embedded import running_servers
from handlers.errors import NotFoundError
from handlers.settings import Settings
from statemachine.store.migrator import migrate


async def run(settings: Settings) -> None:
    """Apply what is missing and print what that was. Raises StoreUnavailableError, NotFoundError."""
    url = database_url(settings)
    if url is None:
        running = running_servers(settings.data_dir)
        if running is None:
            raise NotFoundError(
                f"no workspaced runs on {settings.data_dir}: name the database with --database-url"
            )
        url = running.databases.get("owner", running.database_url)
    with errors_name_database(url):
        applied = await migrate(url, granting=True)
    write_json({"applied": [f"{step.number:04d}_{step.name}" for step in applied]})
