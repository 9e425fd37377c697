"""A role a service in the embedded PostgreSQL: who may come in, as whom, and what it finds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

import asyncpg

from handlers.embedded.database_password import verifier, with_password
from handlers.embedded.run_as import Identity
from statemachine.store.migrator import roles

DATABASE: Final = "workspaced"
"""The database that is made at the first start."""
ADMINISTRATOR: Final = "postgres"
"""The superuser of the embedded server."""
ROLES: Final = {name: f"workspaced_{name}" for name in ("owner", "worker", "gateway", "operator")}
"""What each service, and who migrates, is called in the database."""
_HBA: Final = "pg_hba.conf"
_METHOD: Final = "scram-sha-256"
_GIVE_VERIFIER: Final = "select set_config('workspaced.verifier', $1, false)"
_SET_PASSWORDS: Final = """do $$
declare
    role text;
begin
    foreach role in array array['workspaced_owner', 'workspaced_worker', 'workspaced_gateway', 'workspaced_operator']
    loop
        execute format('alter role %I password %L', role, current_setting('workspaced.verifier'));
    end loop;
end $$"""


def url_at(sockets: Path, role: str = ADMINISTRATOR) -> str:
    """Return the URL of the database for a role."""
    return f"postgresql://{role}@/{DATABASE}?host={quote(str(sockets))}&port=5432"


def urls_of(administrators: str) -> dict[str, str]:
    """Return each role's URL, from that of the administrator."""
    return {
        name: administrators.replace(f"//{ADMINISTRATOR}", f"//{role}", 1)
        for name, role in ROLES.items()
    }


def write_admission(data: Path, identity: Identity) -> None:
    """Write who may come in and as whom: whole or not at all, as the server's own file."""
    services = "\n".join(
        f"local   {DATABASE}  {role:<20}          {_METHOD}" for role in sorted(ROLES.values())
    )
    text = f"""\
# Written at each start. The password is in the data directory: credentials/database.pass
# TYPE  DATABASE    USER                 ADDRESS  METHOD
local   all         {ADMINISTRATOR:<20}          {_METHOD}
local   replication {ADMINISTRATOR:<20}          {_METHOD}
{services}
local   all         all                           reject
host    all         all                  all      reject
"""
    new = data / f"{_HBA}.new"
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        if identity.uid != os.geteuid():
            os.fchown(file.fileno(), identity.uid, identity.gid)
    new.replace(data / _HBA)


async def prepare(sockets: Path, password: str) -> str:
    """Make the database, its roles and their passwords; return the administrator's URL.

    What an earlier version made as administrator becomes the owner's.
    Raises asyncpg.InvalidPasswordError when the administrator has another password.
    """
    url = with_password(url_at(sockets), password)
    try:
        connection = await asyncpg.connect(url)
    except asyncpg.InvalidCatalogNameError:
        connection = await asyncpg.connect(url, database="postgres")
        await connection.execute(f"create database {DATABASE}")
        await connection.close()
        connection = await asyncpg.connect(url)
    try:
        await connection.execute(roles()["roles"])
        await connection.execute(roles()["database"])
        await connection.execute(_GIVE_VERIFIER, verifier(password))
        await connection.execute(_SET_PASSWORDS)
    finally:
        await connection.close()
    return url
