"""Faults of PostgreSQL: which make an event a dead letter, and for which the worker waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from statemachine.store import StoreUnavailableError
from statemachine.store.postgres import PostgresStore, timeouts
from statemachine.store.postgres import connect as open_store
from tests.rigs.messages import new_id
from tests.unit.driver import ORG, PYTHON
from tests.worker.messages import Senders
from tests.worker.rig import Hand, Rig

WITHIN = 60
REJECT_CHAT = """
create function reject() returns trigger language plpgsql as $$
begin
    if new.chat_id = '{chat}' then raise exception 'rejected' using errcode = '{state}'; end if;
    return new;
end $$;
create trigger reject before insert on event_log for each row execute function reject();
"""
REJECT_ALARMS = """
create function reject_alarm() returns trigger language plpgsql as $$
begin
    raise exception 'rejected' using errcode = '2200H';
end $$;
create trigger reject_alarm before insert on alarm for each row execute function reject_alarm();
"""


@pytest.fixture
async def admin(migrated_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """An operator's session, which may change the schema."""
    connection = await asyncpg.connect(migrated_url)
    yield connection
    await connection.close()


@pytest.fixture
async def store(admin: asyncpg.Connection[Any], migrated_url: str) -> AsyncIterator[PostgresStore]:
    """The store of the worker."""
    async with open_store(migrated_url) as store:
        await store.templates.push(ORG, PYTHON.active, b"")
        yield store


@pytest.fixture
async def rig(store: PostgresStore) -> Rig:
    return await Rig(began=time.time()).open()


@pytest.fixture
def hand(rig: Rig, store: PostgresStore) -> Hand:
    return rig.hand(store=store)


async def until_reported(hand: Hand) -> str:
    """Return the problem with the database as soon as the worker reports it."""
    async with asyncio.timeout(WITHIN):
        while (problem := hand.worker.problems.of("database")) is None:
            await asyncio.sleep(0)
    return problem


@pytest.mark.parametrize("events", [1, 5])
@pytest.mark.parametrize(
    ("break_it", "mend_it"),
    [
        (
            "alter table event_log add constraint broken check (false) not valid",
            "alter table event_log drop constraint broken",
        ),
        (
            REJECT_ALARMS,
            "drop trigger reject_alarm on alarm",
        ),
    ],
    ids=["check violation (23514)", "sequence exhausted (2200H)"],
)
async def test_a_data_error_that_hits_every_event_makes_no_event_a_dead_letter(
    rig: Rig,
    hand: Hand,
    send: Senders,
    store: PostgresStore,
    admin: asyncpg.Connection[Any],
    events: int,
    break_it: str,
    mend_it: str,
) -> None:
    chats = [new_id() for _ in range(events)]
    for chat in chats:
        await send.create(chat)
    await admin.execute(break_it)

    working = asyncio.create_task(hand.pump())
    problem = await until_reported(hand)
    async with asyncio.timeout(WITHIN):
        while len(blocked := await store.blocked(set(chats))) < events:
            pass
    await admin.execute(mend_it)
    await asyncio.wait_for(working, WITHIN)

    assert "does not accept a valid sample event" in problem
    assert all("does not take events" in reason for reason in blocked.values())
    assert rig.dead == []
    assert {job["chat_id"] for job in rig.jobs()} == {*chats}
    assert hand.worker.problems.of("database") is None


@pytest.mark.parametrize("state", ["21000", "22023", "23514", "54000"])
async def test_an_event_that_alone_fails_by_its_data_becomes_a_dead_letter(
    rig: Rig, hand: Hand, send: Senders, admin: asyncpg.Connection[Any], state: str
) -> None:
    rejected, other = new_id(), new_id()
    await admin.execute(REJECT_CHAT.format(chat=rejected, state=state))
    await send.create(rejected)
    await send.create(other)

    await asyncio.wait_for(hand.pump(), WITHIN)

    (letter,) = rig.dead
    assert letter.headers["Workspaced-Reason"] == "internal"
    assert [job["chat_id"] for job in rig.jobs()] == [other]


async def test_a_locked_table_is_reported_and_waited_for(
    rig: Rig, send: Senders, migrated_url: str, admin: asyncpg.Connection[Any], chat: str
) -> None:
    await send.create(chat)
    async with open_store(migrated_url, limits=timeouts(1.0)) as store:
        hand = rig.hand(store=store)
        async with admin.transaction():
            await admin.execute("lock table event_log in access exclusive mode")
            with pytest.raises(StoreUnavailableError, match="locked table event_log"):
                await store.check_writable()
            working = asyncio.create_task(hand.pump())
            problem = await until_reported(hand)

        await asyncio.wait_for(working, WITHIN)

        assert "locked table event_log" in problem
        await store.check_writable()
    assert rig.dead == []
    assert [job["chat_id"] for job in rig.jobs()] == [chat]


async def test_the_probe_leaves_nothing_behind(
    store: PostgresStore, admin: asyncpg.Connection[Any]
) -> None:
    await store.probe_write()

    assert await store.chats.find() == []
    assert await admin.fetchval("select count(*) from event_log") == 0
    assert await store.recovery.alarm_times() == []
