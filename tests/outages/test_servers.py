"""NATS or PostgreSQL is away for a while: work resumes, and callers and operators are informed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import nats.errors
import pytest
import pytest_asyncio

from tests.rigs.client import Chat, ServiceError
from tests.rigs.fleet import PATIENT, Fleet, Proxies, fleet_on, logs_once_more, proxies_to
from tests.rigs.http import http_client
from tests.rigs.processes import get_json
from tests.rigs.servers import Nats, Postgres, free_port, restartable_servers, servers_of
from tests.rigs.world import Deployment, World, connected_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

RECOVERED = 20.0
"""Seconds within which everything works again once the servers are back."""
CONNECT_WITHIN = 5.0
"""Seconds that an agent may take to connect."""


@dataclass
class Stage:
    """A worker and a gateway, each with its own proxies to the servers and a health endpoint."""

    nats: Nats
    postgres: Postgres
    fleet: Fleet
    place: Deployment
    ways: dict[str, Proxies]
    ports: dict[str, int]

    async def health(self, role: str, what: str = "readyz") -> tuple[int, Any]:
        return await asyncio.to_thread(get_json, f"http://127.0.0.1:{self.ports[role]}/{what}")

    async def lacks(self, server: str, *roles: str) -> None:
        """Check that the roles are alive, but not ready because of this server."""
        for role in roles:
            status, body = await self.health(role)
            assert (status, set(body["problems"])) == (503, {server})
            assert await self.health(role, "healthz") == (200, {"status": "alive"})

    async def are_ready(self, *roles: str) -> None:
        for role in roles:
            assert await self.health(role) == (200, {"status": "ready"})

    async def told(self, statement: str, *args: object) -> None:
        """Execute a statement as administrator of the database server."""
        admin = await asyncpg.connect(self.postgres.url, database="postgres")
        await admin.execute(statement, *args)
        await admin.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    home = tmp_path_factory.mktemp("servers")
    async with AsyncExitStack() as stack:
        nats_server, postgres = await stack.enter_async_context(restartable_servers(home))
        servers = servers_of(nats_server, postgres)
        env = PATIENT | {"WORKSPACED_AGENT_CONNECT_TIMEOUT": str(CONNECT_WITHIN)}
        fleet = await stack.enter_async_context(fleet_on(servers, postgres.url, home, env))
        ways, ports = {}, {}
        for role in ("worker", "gateway"):
            ways[role] = await stack.enter_async_context(proxies_to(servers, postgres.url))
            ports[role] = free_port()
        await asyncio.gather(
            *(fleet.start(r, "--http-port", str(ports[r]), proxies=way) for r, way in ways.items())
        )
        place = await fleet.deployment("plain")
        yield Stage(nats_server, postgres, fleet, place, ways, ports)


async def known(world: World, chat: Chat) -> dict[str, Any]:
    """Return the chat as `get_chat` reads it from the database."""
    found = await world.service.rpc("get_chat", chat_id=chat.id)
    return {key: found[key] for key in found.keys() - {"open_calls", "notice"}}


async def test_each_role_reports_its_health(stage: Stage) -> None:
    await stage.are_ready("worker", "gateway")


async def test_while_the_database_is_closed_callers_get_an_error_and_facts_wait(
    stage: Stage,
) -> None:
    name = urlsplit(stage.fleet.database_url).path[1:]
    async with connected_world(stage.place) as world:
        chat = await world.chat()
        call, job = await world.building(chat)
        await stage.told(f'alter database "{name}" with allow_connections false')
        await stage.told(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name
        )

        held = asyncio.create_task(ask_by_rpc(world, await world.chat()))
        await world.provisioner.succeed(job)
        with pytest.raises(ServiceError) as refused:
            await world.service.rpc("get_chat", chat_id=chat.id)
        await stage.lacks("database", "worker", "gateway")
        assert (refused.value.code, not held.done()) == (503, True)
        assert "database" in refused.value.text

        await stage.told(f'alter database "{name}" with allow_connections true')
        async with asyncio.timeout(RECOVERED):
            assert (await held)["result"]["count"] == 1
            assert (await chat.answer(call))["result"]["created"] is True
        assert await world.service.last_state(chat.id) == await known(world, chat)
        await stage.are_ready("worker", "gateway")


async def ask_by_rpc(world: World, chat: Chat) -> dict[str, Any]:
    body = {"chat_id": chat.id, **chat.identity, "args": {}}
    return dict(await world.service.rpc("list_templates", **body))


async def test_a_database_without_free_connections_counts_as_away(stage: Stage) -> None:
    async with connected_world(stage.place) as world:
        chat = await world.chat()
        call, job = await world.building(chat)
        for way in stage.ways.values():
            way.database.cut()
        taken: list[asyncpg.Connection[Any]] = []
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await asyncpg.connect(stage.postgres.url))
        for way in stage.ways.values():
            way.database.mend()

        await world.provisioner.succeed(job)
        with pytest.raises(ServiceError) as refused:
            await world.service.rpc("get_chat", chat_id=chat.id)
        await stage.lacks("database", "worker", "gateway")
        assert (refused.value.code, "too many clients" in refused.value.text) == (503, True)

        await asyncio.gather(*(connection.close() for connection in taken))
        assert (await chat.answer(call, RECOVERED))["result"]["created"] is True
        await stage.are_ready("worker", "gateway")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
async def test_work_continues_after_a_database_restart(stage: Stage, how: signal.Signals) -> None:
    async with connected_world(stage.place) as world:
        chat = await world.chat()
        call, job = await world.building(chat)

        await stage.postgres.stop(how)
        await world.provisioner.succeed(job)
        with pytest.raises(ServiceError) as refused:
            await world.service.rpc("get_chat", chat_id=chat.id)
        await stage.lacks("database", "worker", "gateway")
        await stage.postgres.start()

        assert refused.value.code == 503
        assert (await chat.answer(call, RECOVERED))["result"]["created"] is True
        assert await world.service.last_state(chat.id) == await known(world, chat)
        await stage.are_ready("worker", "gateway")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_work_continues_after_a_nats_restart(stage: Stage, how: signal.Signals) -> None:
    async with connected_world(stage.place) as world:
        chat = await world.chat()
        call, job = await world.building(chat)
    async with stage.fleet.reconnected():
        await stage.nats.stop(how)
        await stage.lacks("nats", "worker", "gateway")
        await stage.nats.start()

    async with connected_world(stage.place) as world:
        again = await world.service.chat(chat.id)
        again.organization_id, again.owner_id = chat.organization_id, chat.owner_id
        await again.ask("create_workspace", {"template_id": world.plain}, call_id=call)
        await world.provisioner.publish_event(
            "build_succeeded", job, template_version_id=job.template["version_id"], agents=[]
        )
        answer = await again.answer(call, RECOVERED)

        assert answer["result"]["build_id"] == job.build_id
        assert await world.service.last_state(chat.id) == await known(world, again)
        await stage.are_ready("worker", "gateway")


async def test_a_worker_that_is_cut_off_blocks_no_chat(stage: Stage) -> None:
    async with connected_world(stage.place) as world:
        other = await stage.fleet.start("worker")
        chat = await world.chat()
        call, job = await world.building(chat)

        stage.ways["worker"].nats.freeze()  # no connection is reset: either side sees only silence
        await world.provisioner.succeed(job)
        answer = await chat.answer(call, RECOVERED)
        await stage.lacks("nats", "worker")
        stage.ways["worker"].nats.release()
        await stage.fleet.end(other, signal.SIGTERM)
        await chat.call("list_templates")

        assert answer["result"]["created"] is True
        await chat.entered("building", "ready")
        assert await world.service.last_state(chat.id) == await known(world, chat)
        await stage.are_ready("worker", "gateway")


async def test_an_rpc_is_answered_after_its_gateway_reconnected(stage: Stage) -> None:
    async with connected_world(stage.place) as world:
        chat = await world.chat()
        body = {"chat_id": chat.id, **chat.identity, "args": {"template_id": world.plain}}
        held = asyncio.create_task(world.service.rpc("create_workspace", **body))
        job = await world.provisioner.job(chat)

        stage.ways["gateway"].nats.cut()
        await stage.lacks("nats", "gateway")
        with pytest.raises(nats.errors.NoRespondersError):
            await world.service.rpc("get_chat", chat_id=chat.id)
        await world.provisioner.succeed(job)
        await chat.state("ready")
        stage.ways["gateway"].nats.mend()

        assert (await held)["result"]["build_id"] == job.build_id
        await stage.are_ready("gateway")


async def test_a_stream_over_http_goes_on_after_a_nats_restart_and_resumes_at_another_gateway(
    stage: Stage,
) -> None:
    ports = [free_port(), free_port()]
    first = await stage.fleet.start("gateway", "--http-port", str(ports[0]))
    async with connected_world(stage.place) as world:
        chat = await world.chat()
        _, job = await world.building(chat)
        issued = await world.operator.rpc("issue_token", role="frontend", chat_ids=[chat.id])
        everything = await world.operator.rpc("issue_token", role="operator")
    async with AsyncExitStack() as clients:
        here, there = [
            await clients.enter_async_context(
                http_client(f"http://127.0.0.1:{port}", issued["token"])
            )
            for port in ports
        ]
        all_chats = replace(here, token=everything["token"])
        async with here.stream("/v1/stream") as stream, all_chats.stream("/v1/stream") as board:
            await stream.state("building")
            async with stage.fleet.reconnected():
                await stage.nats.stop(signal.SIGKILL)
                await stage.nats.start()
            async with connected_world(stage.place) as world:
                await world.provisioner.log(job.data, 1, "after the restart")
                line = await stream.next()
            assert (line.kind, line.data["data"]["output"]) == ("log", "after the restart")
            # States may have been missed, and a stream of all chats does not send them again.
            assert (await board.next("end")).data == {"reason": "leaving"}
            await stage.fleet.end(first)

        await stage.fleet.start("gateway", "--http-port", str(ports[1]))
        async with connected_world(stage.place) as world:
            await world.provisioner.log(job.data, 2, "between the gateways")
            await world.provisioner.publish_event(
                "build_succeeded", job, template_version_id=job.template["version_id"], agents=[]
            )
            async with there.stream("/v1/stream", line.id) as resumed:
                lines: list[str] = []
                state = ""
                while not (
                    lines and state == "ready"
                ):  # the log and the state may come in either order
                    event = (await resumed.next()).data["data"]
                    lines += [event["output"]] if "output" in event else []
                    state = event.get("state", state)
                assert lines == ["between the gateways"]
    await stage.fleet.end(stage.fleet.running[-1], signal.SIGTERM)


# -- a database that is there and refuses ------------------------------------------------------


async def dead_letters(world: World) -> int:
    found = await world.operator.js.stream_info("WORKSPACED_DEAD")
    return int(found.state.messages)


ENDED = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1"
_RAISES = """create function no() returns trigger language plpgsql as
    $$begin raise exception 'the trigger says no' using errcode = '{}'; end$$;
    create trigger no before insert on event_log for each row execute function no()"""
REFUSALS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "table renamed": (
        ("alter table event_log rename to gone",),
        ("alter table gone rename to event_log",),
    ),
    "column renamed": (
        ("alter table event_log rename outcome to gone",),
        ("alter table event_log rename gone to outcome",),
    ),
    "schema away": (
        ('alter database "{name}" set search_path = nosuch',),
        ('alter database "{name}" reset search_path',),
    ),
    "P0001": ((_RAISES.format("P0001"),), ("drop function no cascade",)),
    "XX000": ((_RAISES.format("XX000"),), ("drop function no cascade",)),
    "read-only": (
        ("alter system set default_transaction_read_only = on", "select pg_reload_conf()"),
        ("alter system reset default_transaction_read_only", "select pg_reload_conf()"),
    ),
}
"""Statements that make the database refuse events, and those that end it."""


@asynccontextmanager
async def refusing(stage: Stage, what: str) -> AsyncIterator[None]:
    name = urlsplit(stage.fleet.database_url).path[1:]
    admin = await asyncpg.connect(stage.postgres.url.replace("/workspaced?", f"/{name}?"))
    breaks, mends = REFUSALS[what]
    try:
        for statement in breaks:
            await admin.execute(statement.replace("{name}", name))
        if what == "schema away":  # only new sessions use the changed search path
            await stage.told(f"{ENDED} and pid <> $2", name, admin.get_server_pid())
        yield
    finally:
        await admin.execute("set default_transaction_read_only = off")
        for statement in mends:
            await admin.execute(statement.replace("{name}", name))
        await admin.close()


@pytest.mark.parametrize("what", REFUSALS)
async def test_events_that_the_database_rejects_wait_and_do_not_become_dead_letters(
    stage: Stage, what: str
) -> None:
    worker = stage.fleet.running[0]
    words = (
        "are redelivered later" if what in ("column renamed", "P0001", "XX000") else "trying again"
    )
    async with connected_world(stage.place) as world:
        chats = [await world.chat() for _ in range(8)]
        building = await asyncio.gather(*(world.building(chat) for chat in chats))
        buried = await dead_letters(world)
        async with refusing(stage, what):
            async with logs_once_more(words, [worker]):
                for _, job in building:
                    await world.provisioner.succeed(job)
            status, body = await stage.health("worker")
            assert (status, set(body["problems"])) == (503, {"database"})
            assert (await stage.health("worker", "healthz"))[0] == 200
            if what != "schema away":  # in that case reads fail as well, and report it
                async with asyncio.timeout(RECOVERED):
                    await noticed(world, chats[-1])
        async with asyncio.timeout(RECOVERED):
            for chat, (call, _) in zip(chats, building, strict=True):
                assert (await chat.answer(call))["result"]["created"] is True
        assert await dead_letters(world) == buried
        await stage.are_ready("worker", "gateway")
        assert "notice" not in await world.service.rpc("get_chat", chat_id=chats[-1].id)
        assert worker.process.poll() is None


async def noticed(world: World, chat: Chat) -> dict[str, Any]:
    """Return the reply of get_chat once its notice names the database, which may take a moment."""
    found: dict[str, Any] = {}
    while "database" not in found.get("notice", ""):  # this polls, one round trip each
        found = await world.service.rpc("get_chat", chat_id=chat.id)
    return found


async def test_a_chat_that_the_database_rejects_does_not_block_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected_world(stage.place) as world:
        refused, other = await world.chat(), await world.chat()
        (call, job), (others, its) = await world.building(refused), await world.building(other)
        buried = await dead_letters(world)
        only = _RAISES.format("P0001").replace(
            "begin", f"begin if new.chat_id = '{refused.id}' then"
        )
        only = only.replace("; end$$", "; end if; return new; end$$")
        monkeypatch.setitem(REFUSALS, "one chat", ((only,), ("drop function no cascade",)))
        async with refusing(stage, "one chat"):
            await world.provisioner.succeed(job)
            await world.provisioner.succeed(its)
            assert (await other.answer(others, RECOVERED))["result"]["created"] is True
            async with asyncio.timeout(RECOVERED):
                assert "trigger says no" in (await noticed(world, refused))["notice"]
            status, body = await stage.health("worker")
            assert (status, "trigger says no" in body["problems"]["database"]) == (503, True)
            assert "notice" not in await world.service.rpc("get_chat", chat_id=other.id)

        assert (await refused.answer(call, RECOVERED))["result"]["created"] is True
        assert await dead_letters(world) == buried
        await stage.are_ready("worker", "gateway")
