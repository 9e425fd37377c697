"""A NATS cluster loses its leader, and a node, under load: accepted work must not be lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack

import asyncpg
import pytest

from statemachine.replay import replay
from statemachine.store.postgres import connect as open_store
from tests.cluster.load import Load, in_step, leader
from tests.cluster.nodes import ClusterNodes
from tests.rigs.fleet import RECONNECTED, Fleet, logs_once_more

KILLS = int(os.environ.get("CLUSTER_KILLS", "1"))
PAUSES = int(os.environ.get("CLUSTER_PAUSES", "0"))
CHATS = int(os.environ.get("CLUSTER_CHATS", "6"))
CALM = int(os.environ.get("CLUSTER_CALM", "20"))
"""Number of answers to wait for between two outages."""
BUILDS_OF_A_CHAT = 4
TIMEOUT = 90.0
"""Seconds after which a wait fails the test."""


# When nats-py can't connect, it leaves its socket open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_cluster_that_loses_its_leader_or_a_node_loses_no_call(
    fleet: tuple[ClusterNodes, Fleet], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, roles = fleet
    begun = time.monotonic()
    await asyncio.gather(*map(roles.start, ("worker", "worker", "gateway")))
    deployment = await roles.deployment()
    figures = [f"cluster and roles ready after {time.monotonic() - begun:.1f} s"]
    async with AsyncExitStack() as stack:
        load = Load(deployment, stack)
        await load.open()
        running = asyncio.create_task(load.run(CHATS))
        try:
            for number in range(KILLS):
                await _calm(load, running, figures if number == 0 else None)
                victim = cluster.node(await leader(load.operator, "WORKSPACED_IN"))
                load.begin()
                victim.kill()
                await _first(running, load.answers.more(CALM))
                figures.append(_told(f"leader {victim.name} killed", load))
                victim.start()
                await _first(running, in_step(load.operator, "WORKSPACED_IN"))
            if PAUSES:
                await _partitioned(cluster, roles, load, running, figures)
            await _calm(load, running)
            load.stop()
            async with asyncio.timeout(120):
                await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        reconnects = load.service.epoch - 1
        missed, stale = await _check(load, roles.database_url)
        for process in roles.running:
            assert process.process.poll() is None, process.output()
            lost = [line for line in process.output().splitlines() if "NATS lost streams" in line]
            assert not lost
    figures.append(
        f"{len(load.chats)} chats, {load.answers.count} calls, each answered once; "
        f"{len(load.jobs)} builds, each asked for once; of {load.states.count + missed} states "
        f"a frontend that read no snapshot, and was reconnected {reconnects} times, missed {missed}, "
        f"of {stale} chats the last"
    )
    with capsys.disabled():
        print("\n" + "\n".join(figures))  # noqa: T201 — `make cluster` prints its results


async def _partitioned(
    cluster: ClusterNodes, roles: Fleet, load: Load, running: asyncio.Task[None], figures: list[str]
) -> None:
    """Pause the server that a worker is connected to, until the worker has found another one."""
    paused = cluster.nodes[2]
    worker = await roles.start("worker", env={"WORKSPACED_NATS_URL": paused.url})
    await _calm(load, running)
    load.begin()
    async with logs_once_more(RECONNECTED, [worker], timeout=TIMEOUT):
        paused.send(signal.SIGSTOP)
    await _first(running, load.answers.more(CALM))
    figures.append(_told(f"{paused.name} paused, with a worker at it", load))
    paused.send(signal.SIGCONT)


def _told(what: str, load: Load) -> str:
    return (
        f"{what}: {load.answers.longest:.1f} s without an answered call, "
        f"{load.states.longest:.1f} s without a published state, slowest call {load.slowest:.1f} s"
    )


async def _calm(load: Load, running: asyncio.Task[None], figures: list[str] | None = None) -> None:
    """Let the load run undisturbed for a while."""
    load.begin()
    await _first(running, load.answers.more(CALM))
    if figures is not None:
        figures.append(_told("undisturbed", load))


async def _first(running: asyncio.Task[None], waiting) -> None:
    """Wait for `waiting`; raise the load's error if the load fails first."""
    wanted = asyncio.ensure_future(waiting)
    async with asyncio.timeout(TIMEOUT):
        await asyncio.wait((running, wanted), return_when=asyncio.FIRST_COMPLETED)
    if not wanted.done():
        wanted.cancel()
        await running
    await wanted


async def _check(load: Load, database_url: str) -> tuple[int, int]:
    """Check that nothing is lost or doubled, on the bus where possible, else in the database.

    Returns how many states the frontend missed, which reads no snapshots, and for how many chats it
    missed the last one.
    """
    for results in load.results.values():
        assert all(one == results[0] for one in results), results
    for chat in load.chats:
        assert load.requested[chat] == len(load.built[chat]) == BUILDS_OF_A_CHAT
    missed = stale = 0
    async with open_store(database_url) as store:
        for chat_id in load.chats:
            chat = await store.chats.get(chat_id)
            assert chat is not None
            assert chat.open_calls == 0
            log = await store.chats.log(chat_id, limit=10_000)
            replayed = replay(log)[chat_id]
            assert replayed.differences == ()
            assert replayed.chat.version == chat.version
            seen = load.versions[chat_id]
            assert seen == sorted(set(seen))
            missed += chat.version - len(seen)
            stale += chat.version != seen[-1]
            found = await load.service.last("WORKSPACED_STATE", f"workspaced.state.{chat_id}")
            assert found is not None
            assert found[0]["data"]["version"] == chat.version
    database = await asyncpg.connect(database_url)
    try:
        assert (
            await database.fetchval("select count(*) from alarm where handled_at is not null") == 0
        )
        assert await database.fetchval("select count(*) from call where resolved_at is null") == 0
    finally:
        await database.close()
    letters = await load.operator.js.stream_info("WORKSPACED_DEAD")
    assert letters.state.messages == 0
    return missed, stale
