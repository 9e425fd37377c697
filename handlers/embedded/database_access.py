"""Authentication of the embedded PostgreSQL: its roles, their password, and the URLs that contain it.

There is one generated password for all roles. It is kept in a pgpass file in the credentials directory, which the
sandbox hides from templates: their code runs as the same user and could otherwise connect to the socket.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg

from handlers.embedded.run_as import SOCKET_PREFIX, ServerUser
from handlers.errors import EmbeddedError
from handlers.publishing.atomic_files import write_atomically
from statemachine.store.migrator import roles

_FILE: Final = "database.pass"
_LINE: Final = re.compile(r"\*:5432:\*:\*:([A-Za-z0-9_-]+)\n?")
_ITERATIONS: Final = 4096
_SETTINGS: Final = (
    "&sslmode=disable&sslnegotiation=postgres&target_session_attrs=any"
    "&krbsrvname=postgres&gsslib=gssapi"
)
"""The connection settings that asyncpg would otherwise take from PG variables of the environment.

Host, port, database, user and password are in the URL anyway."""


def password_file(credentials: Path) -> Path:
    """Return the path of the password file, which libpq and asyncpg can read as PGPASSFILE."""
    return credentials / _FILE


def credentials_folder(credentials: Path) -> Path:
    """Return the credentials directory, given the directory itself or a seed file in it."""
    return credentials if credentials.is_dir() else credentials.parent


def read_password(credentials: Path) -> str | None:
    """Return the password, or None if there is no file. Raises EmbeddedError."""
    path = password_file(credentials)
    try:
        found = _LINE.fullmatch(path.read_text("ascii", "replace"))
    except FileNotFoundError:
        return None
    if found is None:
        raise EmbeddedError(
            f"{path} does not contain the line `*:5432:*:*:PASSWORD`: delete it, and the next "
            "`workspaced up` makes a new one"
        )
    return found[1]


def ensure_password(credentials: Path) -> str:
    """Return the password, and generate it if there is none. Raises EmbeddedError."""
    if (existing := read_password(credentials)) is not None:
        return existing
    credentials.mkdir(mode=0o700, exist_ok=True)
    password = secrets.token_urlsafe(32)
    write_atomically(password_file(credentials), f"*:5432:*:*:{password}\n".encode())
    return password


def with_password(url: str, password: str | None) -> str:
    """Add the password to a URL of the embedded server, and settings that override the environment's."""
    before, at, after = url.partition("@")
    secret = "" if password is None else f":{quote(password, safe='')}"
    return f"{before}{secret}{at}{after}{_SETTINGS}"


def without_password(url: str) -> str:
    """Undo `with_password`; any other URL is returned unchanged."""
    if not url.endswith(_SETTINGS):
        return url
    before, at, after = url.removesuffix(_SETTINGS).partition("@")
    scheme, slashes, user = before.partition("//")
    return f"{scheme}{slashes}{user.partition(':')[0]}{at}{after}"


def complete_url(url: str, credentials: Path) -> str:
    """Add the password of `credentials` to a URL of an embedded server; return others unchanged.

    With this, commands and roles accept the URL of the ready line of `up`, which has no password.
    """
    try:
        parts = urlsplit(url)
        host = parse_qs(parts.query).get("host", [""])[-1]
        lacks_password = parts.username is not None and parts.password is None
    except ValueError:
        return url  # the database driver reports what is wrong with it
    is_embedded = host.startswith("/") and Path(host).name.startswith(SOCKET_PREFIX)
    if not (lacks_password and is_embedded and "password=" not in parts.query):
        return url
    password = read_password(credentials)
    return url if password is None else with_password(url, password)


def verifier(password: str) -> str:
    """Return the SCRAM verifier of a password, from which the password can't be derived.

    SQL statements contain this instead of the password, because a server may log statements.
    """
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


DATABASE: Final = "workspaced"
"""The database that is created at the first start."""
ADMINISTRATOR: Final = "postgres"
"""The superuser of the embedded server."""
ROLES: Final = {name: f"workspaced_{name}" for name in ("owner", "worker", "gateway", "operator")}
"""The database roles of the services, and `owner`, which runs the migrations."""
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


def administrator_url(sockets: Path) -> str:
    """Return the URL of the database for its administrator, without a password."""
    return f"postgresql://{ADMINISTRATOR}@/{DATABASE}?host={quote(str(sockets))}&port=5432"


def role_urls(administrator_url: str) -> dict[str, str]:
    """Return the URL of each role, derived from the administrator's URL."""
    return {
        name: administrator_url.replace(f"//{ADMINISTRATOR}", f"//{role}", 1)
        for name, role in ROLES.items()
    }


def write_hba(data: Path, user: ServerUser) -> None:
    """Write pg_hba.conf atomically: each role may connect to the database by socket and password."""
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
        if user.uid != os.geteuid():
            os.fchown(file.fileno(), user.uid, user.gid)
    new.replace(data / _HBA)


async def set_up_database(sockets: Path, password: str) -> str:
    """Create the database and its roles, set their passwords, and return the administrator's URL.

    Tables that an earlier version created as administrator are given to the owner.
    Raises asyncpg.InvalidPasswordError if the administrator has another password.
    """
    url = with_password(administrator_url(sockets), password)
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
