"""Commands that need no running workspaced: `agent`, `migrate`, `nats-auth` and `completion`.

Each imports only what it needs: an agent must start fast, and stay small.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from handlers.cli.command_table import command_parser
from handlers.cli.command_table.administration import (
    Migrate,
    PrintCompletion,
    PrintNatsAuthorization,
)
from handlers.cli.command_table.servers import RunAgent

if TYPE_CHECKING:
    from handlers.settings import Settings


def run_agent(command: RunAgent) -> int:
    """Run an agent; return its exit status."""
    from handlers.agent.__main__ import run_agent

    return run_agent(command.config)


def print_completion(command: PrintCompletion) -> None:
    """Print a completion script for a shell."""
    import shtab

    sys.stdout.write(shtab.complete(command_parser(), command.shell) + "\n")


async def migrate_database(_: Migrate, settings: Settings) -> None:
    """Apply the missing migrations and print their names.

    Raises StoreUnavailableError, NotFoundError.
    """
    from handlers.app import database_url, errors_name_database
    from handlers.cli.output import write_json
    from handlers.embedded import running_servers
    from handlers.errors import NotFoundError
    from statemachine.store.migrator import migrate

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


def print_nats_authorization(_: PrintNatsAuthorization, settings: Settings) -> None:
    """Create missing seeds, and print the configuration with which nats-server accepts their keys.

    Raises EmbeddedError if a file contains no seed.
    """
    from handlers.access.identities import load_identities
    from handlers.access.server_config import authorization

    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = load_identities(settings.data_dir)
    sys.stdout.write(authorization(found))
    sys.stderr.write(f"The seeds are in {found.directory}. The printed block contains no secret.\n")
