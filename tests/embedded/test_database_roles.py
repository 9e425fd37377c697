"""Each service has its own role in PostgreSQL, with only the rights that the service needs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from handlers.embedded import Servers
from handlers.embedded.database_access import ROLES, role_urls
from handlers.embedded.postgresql import _binaries, postgresql
from statemachine.store import StoreUnavailableError, migrator
from statemachine.store.database import queries
from statemachine.store.migrator import Migration, migrate, migrations, roles
from statemachine.store.postgres import connect as open_store
from tests.migration import recording
from tests.rigs.processes import run

LEDGER = "select number from schema_migration"
USES = {
    "worker": {
        *("look", "look_facts", "look_up", "settings", "write", "write_facts"),
        *("forget_cancellations", "due_alarms"),
        *(
            "delete_alarms",
            "ripen",
            "first_rest",
            "settings",
            "now",
            "lock",
            "chat",
            "chats_by_id",
            "count_open_calls",
        ),
        *(
            "pools",
            "origin",
            "record_origin",
            "stream_positions",
            "advance_positions",
            "nats_server",
            "record_server",
            "reset_positions",
            "mark_lost",
        ),
        *("published_chats", "jobs", "unpublished_jobs", "answered_calls", "chats_with_agents"),
        *("changed_chats", "answers_of", "alarm_times", "mark_published"),
        *("database_server", "waiting_calls", "active_pools"),
        *("invalid_connections", "forget_connections", "writable", "note_blocked"),
    },
    "gateway": {
        *(
            "chat",
            "chats",
            "chats_by_id",
            "open_calls",
            "is_answered",
            "known_call",
            "known_call",
            "log",
            "chats_with_previous",
            "read_archive",
            "settings",
        ),
        *("issue_credential", "credential", "current_workspaces", "now"),
        *("credentials", "revoke_credential", "bind_provisioner", "look_up"),
        *("issue_token", "token", "tokens", "exchange_token", "revoke_token"),
        *("database_server", "waiting_calls", "open_calls_of_all", "active_pools", "build_times"),
        *(
            "record_connection",
            "forget_earlier_server",
            "invalid_connections",
            "forget_connections",
            "writable",
            "blocked",
        ),
    },
    "operator": {
        *(
            "settings",
            "put_setting",
            "unset_setting",
            "push_version",
            "activate",
            "template_versions",
        ),
        *("look_up", "log_of_many", "chat_rows", "rebuild_chats"),
    },
}
"""The statements of each service; `now` and `lock` use no table."""
SERVICES = sorted(USES)
RIGHTS = ("select", "insert", "update", "delete")


class Decision(NamedTuple):
    relation: str
    rights: dict[str, str]


def decisions() -> Iterator[Decision]:
    """Yield the rows of the table of rights in roles.sql."""
    cell = r"\s*'([^']*)'"
    for name, *cells in re.findall(rf"\('(\w+)',{cell},{cell},{cell}\)", roles()["grants"]):
        if not name.startswith("workspaced_"):
            yield Decision(name, dict(zip(("worker", "gateway", "operator"), cells, strict=True)))


def statements_of(number: int) -> dict[str, str]:
    """Return the statements, by name, that a worker of an earlier schema used."""
    head = (recording.DATA / f"{number:04d}.jsonl").read_text().splitlines()[0]
    found: dict[str, str] = json.loads(head)
    return found


@pytest.fixture
async def admin(servers: Servers) -> AsyncIterator[asyncpg.Connection[Any]]:
    """An administrator's connection to the database of the test run, as `up` prepares it."""
    await migrate(servers.databases["owner"], granting=True)
    connection = await asyncpg.connect(servers.database_url)
    yield connection
    await connection.close()


@asynccontextmanager
async def acting_as(
    admin: asyncpg.Connection[Any], role: str
) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Take on a role's rights in a transaction, and roll it back afterwards."""
    undone = admin.transaction()
    await undone.start()
    try:
        await admin.execute(f"set local role {ROLES[role]}")
        yield admin
    finally:
        await undone.rollback()


async def may(admin: asyncpg.Connection[Any], statement: str) -> bool:
    """Return whether the present role may run a statement, without running it."""
    try:
        async with admin.transaction():
            await admin.execute(f"explain (generic_plan) {statement}")
    except asyncpg.InsufficientPrivilegeError:
        return False
    return True


async def test_the_rights_to_every_relation_are_defined(admin: asyncpg.Connection[Any]) -> None:
    """A migration that adds a table must also add it to the table in roles.sql."""
    found = await admin.fetch(
        "select relname::text from pg_class where relnamespace = 'public'::regnamespace "
        "and relkind in ('r', 'p', 'v', 'm', 'S', 'f')"
    )

    assert {row["relname"] for row in found} == {decided.relation for decided in decisions()}


@pytest.mark.parametrize("role", SERVICES)
async def test_a_role_has_exactly_the_defined_rights(
    admin: asyncpg.Connection[Any], role: str
) -> None:
    asked = "select has_table_privilege($1, $2::text, $3)"
    for decided in decisions():
        wanted = set(re.findall(r"\w+(?=,|$)", re.sub(r"\w+ \(.*?\)", "", decided.rights[role])))
        found = {
            right
            for right in (*RIGHTS, "truncate", "references", "trigger", "maintain")
            if await admin.fetchval(asked, ROLES[role], decided.relation, right)
        }
        assert found == wanted, decided.relation


@pytest.mark.parametrize("role", SERVICES)
async def test_a_role_may_run_the_statements_of_its_service(
    admin: asyncpg.Connection[Any], role: str
) -> None:
    async with acting_as(admin, role):
        refused = [name for name in sorted(USES[role]) if not await may(admin, queries()[name])]
        assert await may(admin, LEDGER)

    assert refused == []


async def test_a_gateway_may_read_chats_and_logs_but_not_run_statements_of_workers_that_write(
    admin: asyncpg.Connection[Any],
) -> None:
    of_no_table = {"lock", *USES["gateway"]}
    others = {name: text for name, text in queries().items() if name not in of_no_table}
    async with acting_as(admin, "gateway"):
        allowed = {name for name, text in others.items() if await may(admin, text)}

    reading = {
        "published_chats",
        "changed_chats",
        "chats_with_agents",
        "log_of_many",
        "count_open_calls",
        "chat_rows",
        "first_rest",
        "pools",
        "template_versions",
    }
    assert allowed == reading


@pytest.mark.parametrize("role", ["worker", "gateway"])
async def test_every_right_of_a_service_is_needed_by_one_of_its_statements(
    admin: asyncpg.Connection[Any], role: str
) -> None:
    """Or by one of the workers of earlier schemas, which run during an upgrade."""
    statements = [LEDGER, *(queries()[name] for name in sorted(USES[role]))]
    if role == "worker":
        for number in recording.recorded():
            statements += statements_of(number).values()
    for decided in decisions():
        rights = re.findall(r"\w+(?: \([^)]*\))?", decided.rights[role])
        touching = [text for text in statements if re.search(rf"\b{decided.relation}\b", text)]
        for right in rights:
            taken = admin.transaction()
            await taken.start()
            await admin.execute(f"revoke {right} on {decided.relation} from {ROLES[role]}")
            await admin.execute(f"set local role {ROLES[role]}")
            needed = [text for text in touching if not await may(admin, text)]
            await taken.rollback()
            assert needed, f"{role} may {right} on {decided.relation}, and needs it for nothing"


@pytest.mark.parametrize("number", recording.recorded())
async def test_workers_of_an_earlier_schema_keep_their_rights_during_an_upgrade(
    admin: asyncpg.Connection[Any], number: int
) -> None:
    """So a right is revoked one version after the last statement that needs it."""
    written = statements_of(number)
    pushed = {"push_version", "activate"}  # in the recording the worker runs them
    refused = set()
    for name, text in written.items():
        async with acting_as(admin, "operator" if name in pushed else "worker"):
            if not await may(admin, text):
                refused.add(name)

    assert len(written) > 5
    assert refused == set()


FORBIDDEN = [
    *("drop table chat", "truncate chat", "alter table chat add column own text"),
    *("create table own ()", "create temp table own ()", "create schema own", "create role own"),
    *(
        "create function own() returns int language sql as 'select 1'",
        "create view own as select 1",
    ),
    *("create index own on chat (state)", "comment on table chat is 'own'", "drop schema public"),
    "create trigger own before update on chat execute function suppress_redundant_updates_trigger()",
    "alter table chat owner to current_user",
    "alter default privileges for role workspaced_owner grant all on tables to public",
    *("alter role postgres login", "alter role workspaced_owner password 'own'"),
    *("set role workspaced_owner", "set role postgres", "set session authorization postgres"),
    *("set session_replication_role = replica", "alter system set fsync = off"),
    *(
        "select pg_read_file('PG_VERSION')",
        "select pg_ls_dir('.')",
        "select lo_import('/etc/passwd')",
    ),
    *(
        "copy (select 1) to program 'true'",
        "copy chat from program 'true'",
        "copy (select 1) to '/own'",
    ),
    *("select rolpassword from pg_authid", "select pg_reload_conf()", "select pg_switch_wal()"),
    *(
        "create database own",
        "alter database workspaced set work_mem = '1GB'",
        "drop database postgres",
    ),
]
OF_THE_OWNER = [
    statement
    for statement in FORBIDDEN
    if re.search(
        r"pg_|lo_import|program|'/own'|postgres\b|replica|system|role own|database own", statement
    )
]


@pytest.mark.parametrize("role", sorted(ROLES))
async def test_services_may_only_read_and_write_rows(
    servers: Servers, admin: Any, role: str
) -> None:
    ended = f"select pg_terminate_backend({admin.get_server_pid()})"
    connection = await asyncpg.connect(servers.databases[role])
    done = []
    try:
        for statement in (*(OF_THE_OWNER if role == "owner" else FORBIDDEN), ended):
            with suppress(asyncpg.InsufficientPrivilegeError):
                done.append((statement, await connection.execute(statement)))
    finally:
        await connection.close()

    assert done == []
    assert len(OF_THE_OWNER) > 10
    assert await admin.fetchval("select 1") == 1


async def test_a_service_has_a_fixed_search_path_and_statement_timeout(
    servers: Servers, admin: Any
) -> None:
    """No other schema precedes it, and statements are limited even if a client sets no limit."""
    del admin
    for role, limit in {"worker": "15s", "gateway": "15s", "operator": "0", "owner": "0"}.items():
        connection = await asyncpg.connect(servers.databases[role])
        try:
            assert await connection.fetchval("show search_path") == "public, pg_temp"
            assert await connection.fetchval("show statement_timeout") == limit
        finally:
            await connection.close()


@pytest.mark.parametrize(
    ("user", "database"),
    [
        *((role, "postgres") for role in ROLES.values()),
        *((role, "template1") for role in ROLES.values()),
        ("somebody", "workspaced"),
    ],
)
async def test_other_users_and_other_databases_are_rejected(
    servers: Servers, user: str, database: str
) -> None:
    url = servers.database_url.replace("//postgres:", f"//{user}:")

    with pytest.raises(
        asyncpg.InvalidAuthorizationSpecificationError, match=r"pg_hba\.conf rejects"
    ):
        await asyncpg.connect(url, database=database)


async def test_only_the_administrator_may_take_a_base_backup(
    servers: Servers, tmp_path: Path
) -> None:
    def copied(url: str) -> subprocess.CompletedProcess[str]:
        words = ("pg_basebackup", "--checkpoint=fast", "-D", str(tmp_path / "copy"), "-d", url)
        return subprocess.run(
            [_binaries() / words[0], *words[1:]], capture_output=True, text=True, check=False
        )

    refused = copied(servers.databases["operator"])
    done = copied(servers.database_url)

    assert "no pg_hba.conf entry for replication" in refused.stderr
    assert done.returncode == 0, done.stderr


async def test_tables_from_before_the_roles_are_given_to_the_owner(tmp_path: Path) -> None:
    async with postgresql(tmp_path) as (url, _):
        before = await asyncpg.connect(url)
        await before.execute("alter database workspaced owner to postgres")
        for role in ROLES.values():
            await before.execute(f"drop owned by {role}; drop role {role}")
        await migrate(url)
        owned = "select relowner::regrole::text from pg_class where relname in ('chat', 'outbox_id_seq')"
        assert {row[0] for row in await before.fetch(owned)} == {"postgres"}
        await before.execute("create table somebodys (); insert into setting values ('k', 'v')")
        await before.close()
    (tmp_path / "postgres" / "pg_hba.conf").write_text("local all all trust\n")

    async with postgresql(tmp_path) as (url, _):
        of = role_urls(url)
        assert await migrate(of["owner"], granting=True) == []
        async with open_store(of["worker"]) as worker, open_store(of["operator"]) as operator:
            assert await worker.settings() == {"k": "v"}
            await operator.put_setting("k", "w")
            assert await worker.settings() == {"k": "w"}
        after = await asyncpg.connect(url)
        assert {row[0] for row in await after.fetch(owned)} == {"workspaced_owner"}
        await after.close()
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await asyncpg.connect(of["worker"], database="postgres")


async def test_a_role_without_migration_rights_fails_only_if_migrations_are_due(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = f"{database_url}&role={ROLES['worker']}"
    words = ("worker", "--nats-url", "nats://127.0.0.1:1", "--data-dir", tmp_path)
    with pytest.raises(StoreUnavailableError, match="run `workspaced migrate`"):
        await migrate(worker)
    refused = run(*words, "--database-url", worker)
    assert refused.returncode == 1
    assert "run `workspaced migrate` with its owner's URL" in refused.stderr
    assert "Traceback" not in refused.stderr

    migrated = run("migrate", "--database-url", database_url)

    assert migrated.returncode == 0, migrated.stderr
    assert "0001_initial" in migrated.stdout
    assert await migrate(worker) == []
    async with open_store(worker) as store:
        assert await store.templates.pools() == set()
    later = Migration(9999, "later", "create table later ()")
    monkeypatch.setattr(migrator, "migrations", lambda: [*migrations(), later])
    with pytest.raises(StoreUnavailableError, match="may not bring it to schema 9999"):
        await migrate(worker)


async def test_a_service_without_its_rights_waits_for_them(database_url: str) -> None:
    """A restored dump may lack the rights, but no event becomes a dead letter because of that."""
    await migrate(database_url)
    admin = await asyncpg.connect(database_url)
    async with open_store(f"{database_url}&role={ROLES['worker']}") as store:
        await admin.execute(f"revoke all on setting from {ROLES['worker']}")
        with pytest.raises(StoreUnavailableError, match="permission denied for table setting"):
            await store.settings()

        await migrate(database_url, granting=True)

        assert await store.settings() == {}
    await admin.close()
