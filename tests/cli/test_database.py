"""Each service has its own database role, under `up` and on another PostgreSQL server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import asyncpg
import pytest

from handlers.embedded.database_access import ROLES
from handlers.embedded.postgresql import _binaries
from statemachine.store import StoreUnavailableError
from statemachine.store.migrator import migrate
from statemachine.store.postgres import connect as open_store
from tests.cli.template_folders import folder
from tests.rigs.processes import ROOT, Up, run
from tests.rigs.servers import free_port, listening_postgres

DEPLOY = ROOT / "deploy/postgres"


async def test_under_up_each_service_connects_with_its_own_database_role(running: Up) -> None:
    admin = await asyncpg.connect(running.database)
    found = await admin.fetch(
        "select distinct usename::text from pg_stat_activity "
        "where datname = 'workspaced' and pid <> pg_backend_pid()"
    )
    owners = await admin.fetch(
        "select distinct tableowner::text from pg_tables where schemaname = 'public'"
    )
    await admin.close()

    assert {row[0] for row in found} == {"workspaced_worker", "workspaced_gateway"}
    assert [row[0] for row in owners] == ["workspaced_owner"]


def test_under_up_commands_connect_as_operator_and_the_owner_migrates(
    running: Up, tmp_path: Path
) -> None:
    """A backup needs only the URL of the ready line and the password file."""
    words = ("-Fc", "-f", tmp_path / "dump", running.ready["database"])
    command = [_binaries() / "pg_dump", "--no-password", *words]

    def dump(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | more
        )

    refused = dump()
    dumped = dump(PGPASSFILE=str(running.directory / "credentials" / "database.pass"))

    assert "no password supplied" in refused.stderr
    assert dumped.returncode == 0, dumped.stderr
    assert running.data("migrate") == {"applied": []}
    assert running.data("template", "push", folder(tmp_path))
    assert (running.directory / "servers.json").stat().st_mode & 0o077 == 0


def made_by(url: str) -> None:
    """Run the example twice; the second run changes nothing."""
    for _ in range(2):
        done = subprocess.run(
            [_binaries() / "psql", "-X", "-v", "ON_ERROR_STOP=1", "-f", DEPLOY / "roles.sql", url],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


async def test_with_the_example_configuration_each_role_works_with_its_password_only(
    tmp_path: Path,
) -> None:
    port = free_port()
    of = {
        name: f"postgresql://{role}:right@127.0.0.1:{port}/workspaced?sslmode=disable"
        for name, role in ROLES.items()
    }
    async with listening_postgres(tmp_path, port) as url:
        made_by(url)
        admin = await asyncpg.connect(url)
        for role in ROLES.values():
            await admin.execute(f"alter role {role} password 'right'")
        hba = tmp_path / "postgres" / "pg_hba.conf"
        hba.write_text((DEPLOY / "pg_hba.conf").read_text())
        wrong = await admin.fetch(
            "select error from pg_hba_file_rules where error not like '%not supported by this build'"
        )  # the embedded server is built without TLS
        await admin.close()
    async with listening_postgres(tmp_path, port):
        refused = await asyncio.gather(
            *(asyncpg.connect(url.replace(":right@", ":wrong@")) for url in of.values()),
            asyncpg.connect(url),
            asyncpg.connect(url, database="workspaced"),
            asyncpg.connect(of["worker"], database="postgres"),
            return_exceptions=True,
        )
        with pytest.raises(StoreUnavailableError, match="run `workspaced migrate`"):
            await migrate(of["worker"])
        migrated = await asyncio.to_thread(run, "migrate", "--database-url", of["owner"])
        for name in ("worker", "gateway", "operator"):
            assert await migrate(of[name]) == []
            async with open_store(of[name]) as store:
                assert await store.settings() == {}

    assert wrong == []
    assert {type(found) for found in refused} == {
        asyncpg.InvalidPasswordError,
        asyncpg.InvalidAuthorizationSpecificationError,
    }
    assert migrated.returncode == 0, migrated.stderr
    assert json.loads(migrated.stdout)["applied"][0] == "0001_initial"
    assert "right" not in migrated.stdout + migrated.stderr
