"""The embedded database requires a password, which template code can't read."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import pytest

from handlers.cli.commands.run_provisioner import secret_paths
from handlers.embedded import EmbeddedError, Servers, running_servers
from handlers.embedded.database_access import (
    ADMINISTRATOR,
    DATABASE,
    ROLES,
    complete_url,
    ensure_password,
    read_password,
    role_urls,
)
from handlers.embedded.postgresql import postgresql
from handlers.sandbox import confined_exec
from handlers.sandbox.policy import Confinement, Mechanism
from tests.rigs.processes import run, up

USERS = (ADMINISTRATOR, *ROLES.values())
REFUSED = (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)
WAYS = [
    pytest.param(
        Mechanism.LANDLOCK,
        marks=pytest.mark.skipif(
            not confined_exec.is_landlock_usable(), reason="this kernel has no Landlock"
        ),
    ),
    pytest.param(
        Mechanism.BUBBLEWRAP,
        marks=pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bubblewrap here"),
    ),
]
THIEF = r"""
import asyncio, os, sys
from pathlib import Path
import asyncpg

sockets, data, *users = sys.argv[1:]
# In two halves, so that this program does not contain it itself.
secret = (os.environ.pop("HALF").encode(), sys.stdin.readline().strip().encode())

def holds(content):
    at = content.find(secret[0])
    return at >= 0 and content[at + len(secret[0]):].startswith(secret[1])

def started(process):
    return " " + (process / "stat").read_text().rpartition(")")[2].split()[19]

async def main():
    for user in users:
        for database in ("workspaced", "postgres", "template1"):
            for password in (None, "", user, "postgres"):
                try:
                    await asyncpg.connect(
                        host=sockets, port=5432, user=user, database=database, password=password
                    )
                    print("CONNECTED", user, database)
                except asyncpg.PostgresError:
                    pass
                except OSError as no:
                    print("NO SERVER", no)
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or process.name == str(os.getpid()):
            continue
        try:
            holder = process.name + started(process) == os.environ["HOLDER"]
        except OSError:
            continue
        names = ("environ", "cmdline", f"root{data}/credentials/database.pass")
        for name in (*names, *["mem"] * holder):
            try:
                with open(process / name, "rb", buffering=0) as file:
                    if name == "mem" or holds(file.read(1 << 20)):
                        print("READ", process / name)
            except OSError:
                pass
    for found in (Path(data), Path(data + "/credentials"), Path(data + "/postgres")):
        try:
            for path in found.rglob("*"):
                try:
                    if path.is_file() and holds(path.read_bytes()):
                        print("READ", path)
                except OSError:
                    pass
        except OSError:
            pass
    print("LOOKED")

asyncio.run(main())
"""


def sockets_of(servers: Servers) -> str:
    return servers.database_url.partition("host=")[2].partition("&")[0].replace("%2F", "/")


def stolen(servers: Servers, cwd: Path, prefix: Sequence[str] = ()) -> str:
    """Run a program that tries to connect to the database; return what it found."""
    password = read_password(servers.credentials)
    assert password
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    words = ["-c", THIEF, sockets_of(servers), str(servers.directory), *USERS]
    done = subprocess.run(
        [*prefix, sys.executable, *words],
        cwd=cwd,
        env={
            "PATH": os.environ["PATH"],
            "HALF": password[:20],
            "HOLDER": f"{os.getpid()} {started}",
        },
        input=password[20:] + "\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.endswith("LOOKED\n"), done.stderr
    return done.stdout.removesuffix("LOOKED\n")


@pytest.mark.parametrize("way", WAYS)
def test_a_build_step_cannot_connect_to_the_database(servers: Servers, way: Mechanism) -> None:
    workspace = servers.directory / "provisioner" / "local" / "workspaces" / way
    workspace.mkdir(parents=True)
    confinement = Confinement(way, private=(servers.directory, servers.credentials))

    assert stolen(servers, workspace, confinement.prefix(workspace, step=True)) == ""


def test_an_unconfined_program_can_read_the_password(servers: Servers, tmp_path: Path) -> None:
    """The password is in its file and in memory, but in no command line, environment or other."""
    found = stolen(servers, tmp_path).splitlines()

    file = servers.credentials / "database.pass"
    allowed = {f"READ {file}", f"READ /proc/{os.getpid()}/mem"}
    assert set(found) >= allowed
    assert [line for line in found if line not in allowed and "/root/" not in line] == []


async def test_every_role_needs_the_password(servers: Servers) -> None:
    for user in USERS:
        for password in (None, "wrong"):
            with pytest.raises(REFUSED):
                await asyncpg.connect(
                    host=sockets_of(servers),
                    port=5432,
                    user=user,
                    database=DATABASE,
                    password=password,
                )
        there = await asyncpg.connect(
            host=sockets_of(servers),
            port=5432,
            user=user,
            database=DATABASE,
            passfile=servers.credentials / "database.pass",
        )
        assert await there.fetchval("select current_user::text") == user
        await there.close()


def test_only_the_private_password_file_contains_the_password(
    servers: Servers,
) -> None:
    file = servers.credentials / "database.pass"
    password = read_password(servers.credentials)
    assert password
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    holding = [
        path
        for path in servers.directory.rglob("*")
        if path.is_file() and password.encode() in path.read_bytes()
    ]
    noted = running_servers(servers.directory)

    assert holding == [file]
    assert password not in servers.public_database_url
    assert noted is not None
    assert noted.database_url == servers.database_url
    assert noted.databases == dict(servers.databases)


async def test_an_old_data_directory_gets_a_password_before_it_accepts_connections(
    tmp_path: Path,
) -> None:
    """The directory was created by an earlier version, or its password file was lost."""
    async with postgresql(tmp_path) as (url, _):
        before = await asyncpg.connect(url)
        await before.execute("create table kept (word text); insert into kept values ('yes')")
        for role in ROLES.values():
            await before.execute(f"alter role {role} password null")
        await before.execute("alter role postgres password null")
        await before.close()
    (tmp_path / "postgres" / "pg_hba.conf").write_text("local all all trust\n")

    for file_is_lost in (False, True):
        if file_is_lost:
            (tmp_path / "credentials" / "database.pass").unlink()
        async with postgresql(tmp_path) as (url, _):
            after = await asyncpg.connect(url)
            assert await after.fetchval("select word from kept") == "yes"
            await after.close()
            for role in role_urls(url).values():
                await (await asyncpg.connect(role)).close()
            bare = url.partition("//")[2]
            with pytest.raises(REFUSED):
                await asyncpg.connect(f"postgresql://postgres@{bare.partition('@')[2]}")


def test_a_malformed_password_file_is_named(tmp_path: Path) -> None:
    ensure_password(tmp_path)
    for wrong in ("", "nonsense", "*:5432:*:*:", "a:b:c:d:e:f\n", "\udcff"):
        (tmp_path / "database.pass").write_text(wrong, "utf-8", "surrogateescape")
        with pytest.raises(EmbeddedError, match=r"database\.pass"):
            read_password(tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@elsewhere/workspaced",
        "postgresql://me@/workspaced?host=/var/run/postgresql",
        "postgresql://me:own@/workspaced?host=/tmp/workspaced-0-abc&port=5432",
        "postgresql://me@/workspaced?host=/tmp/workspaced-0-abc&password=own",
        "postgresql:///workspaced?host=/tmp/workspaced-0-abc",
        "postgresql://[",
        "nonsense",
        "",
    ],
)
def test_only_an_embedded_server_gets_the_password(url: str, tmp_path: Path) -> None:
    password = ensure_password(tmp_path)
    ours = "postgresql://postgres@/workspaced?host=/tmp/workspaced-0-abc&port=5432"

    assert complete_url(url, tmp_path) == url
    assert f"postgres:{password}@" in complete_url(ours, tmp_path)
    assert complete_url(ours, tmp_path / "elsewhere") == ours


def test_the_password_next_to_a_given_seed_file_is_hidden(tmp_path: Path) -> None:
    seed = tmp_path / "provisioner.nk"
    seed.touch()
    assert secret_paths(seed) == [seed]
    ensure_password(tmp_path)

    assert secret_paths(seed) == [tmp_path]
    assert secret_paths(tmp_path) == [tmp_path]


HOSTILE = {
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "/nowhere/root.crt",
    "PGSSLCERT": "/nowhere/client.crt",
    "PGSSLKEY": "/nowhere/client.key",
    "PGSSLCRL": "/nowhere/crl",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLMINPROTOCOLVERSION": "TLSv9",
    "PGTARGETSESSIONATTRS": "read-only",
    "PGHOST": "nowhere.invalid",
    "PGHOSTADDR": "203.0.113.1",
    "PGPORT": "x",
    "PGUSER": "nobody",
    "PGPASSWORD": "wrong",
    "PGDATABASE": "nothing",
    "PGSERVICE": "missing",
    "PGSERVICEFILE": "/nowhere/pg_service.conf",
    "PGPASSFILE": "/nowhere/pgpass",
    "PGOPTIONS": "-c nonsense=1",
    "PGTZ": "Nowhere/Nowhere",
    "PGDATA": "/nowhere/data",
    "PGDATESTYLE": "nonsense",
    "PGCLIENTENCODING": "nonsense",
    "PGKRBSRVNAME": "nonsense",
    "PGGSSLIB": "nonsense",
    "PGGSSENCMODE": "require",
    "PGCHANNELBINDING": "require",
    "PGREQUIREAUTH": "none",
    "PGAPPNAME": "x" * 200,
    "PGCONNECT_TIMEOUT": "x",
    "NATS_URL": "nats://nowhere.invalid:1",
    "NATS_USER": "somebody",
    "NATS_CREDS": "/nowhere/creds",
    "NKEYS_PATH": "/nowhere",
    "http_proxy": "http://nowhere.invalid:1",
    "https_proxy": "nonsense",
    "all_proxy": "socks5://nowhere.invalid:1",
    "GOMEMLIMIT": "nonsense",
    "GODEBUG": "nonsense=1",
    "OPENSSL_CONF": "/nowhere/openssl.cnf",
    "SSL_CERT_FILE": "/nowhere/certificates.pem",
    "TZ": "Nowhere/Nowhere",
    "LC_ALL": "xx_XX.nothing",
    "LANG": "xx_XX.nothing",
}
"""Variables that a shell may export, each of which could break `up`, its servers, or commands."""


def test_exported_variables_do_not_redirect_up_and_its_commands(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    (home / ".postgresql").mkdir(parents=True)
    (home / ".postgresql" / "root.crt").write_text("nonsense")
    (home / ".pgpass").write_text("x\n")
    (home / ".pgpass").chmod(0o600)
    env = HOSTILE | {"HOME": str(home)}
    data = tmp_path / "data"
    with up(data, env=env):
        for words in (["chat", "list"], ["settings", "list"], ["events", "--all"], ["migrate"]):
            done = run(*words, "--data-dir", data, env=env)
            assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr


async def test_no_single_variable_changes_the_connection(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
        database = await asyncpg.connect(servers.databases["worker"])
        assert await database.fetchval("select current_user::text") == ROLES["worker"]
        await database.close()
        monkeypatch.delenv(name)
