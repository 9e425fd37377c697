"""Data and workers of every earlier schema continue to work, and the logs stay consistent."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import asyncpg
import pytest

from handlers.cli.commands.audit import audits
from statemachine.chat import Chat, Limits
from statemachine.store import migrator
from statemachine.store.migrator import migrate, migrations
from statemachine.store.postgres import PostgresStore
from statemachine.store.postgres import connect as open_store
from tests.migration import recording
from tests.rigs.messages import new_id
from tests.unit.facts import uid
from tests.worker.messages import TEMPLATE_ID
from tests.worker.rig import Hand, Rig

RELEASED = {
    "0001_initial": "5903438eebebbf1d3168a1e18c7c0547d2d6e0b3d58133bd23e8c918d55b6912",
    "0002_recovery": "edb4a76192d5a23afbf47da3a45a752d7ff7338b576d3b623b71488fc94fb6ea",
    "0003_rebuilding": "aab961e86643d7fefff8d39de2e2f390c1e075e8aa6fbadccd210e7ca02593a9",
    "0004_credentials": "56f88f3056796b577c116159d854ac7137a924d37934a83a0b4b1837cb543e79",
    "0005_held_up": "08ff767f18b6b8aa90719e12462ad239e40264163ab74829edef45985d311551",
    "0006_credential_denial": "6dff650544c0eeae5d2d26b445844bd3ac77d74926845cd09de699c215765d70",
    "0007_no_foreign_keys": "bf7bdfcc96353b3914d870eb90505f2193302ae08b0c62f4fe102b55cafddb83",
    "0008_requested_names": "93d7a4687a4af5f83fcddbe0a43d65bb9490af8ab5b6c6682e533e14c17de6f6",
    "0009_nats_server": "b99198c24954a40b3b9f5e6c122d0b43616dad165f73ef35bb01917e68fe024d",
    "0010_alarms": "dad16f3a9b9e1b9b62efe54a350993506f61ad1b962920c14285569be95e16ba",
    "0011_call_key": "4a153c6afcca97a41b5356788ae50c5bd17cde347a5c90dba9e5f0020fe3db6e",
    "0012_rests": "f4a4e223d01fec71c28061f828dbadd0c9fc63f64ea1b2417a5ec7884bdf0489",
    "0013_canceled_jobs": "93acb1b2c2e736eca0f33aa4b71009eac5c6ed12b3d55c7cc003c589987f3868",
    "0014_tokens": "420191ac573f38d172eb58392150c32c25ccca61ed003fa4ab53799ab96da2f4",
    "0015_build_ends": "182bee7173f2f3de84b7ba734909b4d009ca081f6cc7827c2a3da5cf27df640a",
}
"""Digests of released migrations. They never change; corrections need a new migration."""
EARLIER = recording.recorded()
RECORDED_TEMPLATE = uid("template python")
NEW_TEMPLATE_IDS = 11
"""From this schema on, the recorded template has another id."""


def test_a_released_migration_is_never_changed() -> None:
    found = {
        f"{step.number:04d}_{step.name}": sha256(step.text.encode()).hexdigest()
        for step in migrations()
    }

    assert found == RELEASED


def test_every_earlier_schema_has_its_recording() -> None:
    assert {step.number for step in migrations()[:-1]} <= set(EARLIER)


async def brought_to(url: str, number: int, patch: pytest.MonkeyPatch) -> None:
    with patch.context() as only:
        only.setattr(
            migrator, "migrations", lambda: [s for s in migrations() if s.number <= number]
        )
        await migrate(url)


async def lived(url: str, steps: list[recording.Step]) -> None:
    db = await asyncpg.connect(url)
    try:
        await recording.run(db, steps)
    finally:
        await db.close()


async def wrong(store: PostgresStore) -> list[str]:
    """Return the differences between logs and snapshots of all chats."""
    return [
        f"{audit.kept.chat_id} {difference}"
        async for page in audits(store, Limits())
        for audit in page
        for difference in (*audit.of_log, *audit.of_snapshot)
    ]


def job_of(chat: Chat) -> dict[str, Any]:
    """Return the job for which the chat waits, with the keys that a provisioner reports."""
    assert chat.build is not None
    assert chat.current is not None
    return {
        "chat_id": chat.chat_id,
        "workspace_id": chat.current.id,
        "build_id": chat.build.id,
        "build_number": chat.build.number,
        "transition": str(chat.build.transition),
        "template": {"version_id": chat.build.template_version_id},
    }


async def gone_on(rig: Rig, hand: Hand, chat: Chat) -> str:
    """End the build that the chat waits for, and stop the workspace; return the last state."""
    answered = len(rig.results)
    if chat.state in ("building", "stopping"):
        await rig.senders.built(job_of(chat), agents=())
        await hand.pump()
    await rig.senders.ask(chat.chat_id, "stop_workspace", "last")
    await hand.pump()
    for job in rig.jobs():
        if job["chat_id"] == chat.chat_id:
            await rig.senders.built(job)
            await hand.pump()
    assert len(rig.results) > answered
    kept = await hand.worker.store.chats.get(chat.chat_id)
    assert kept is not None
    assert kept.open_calls == 0
    return str(kept.state)


@pytest.mark.parametrize("number", EARLIER)
async def test_data_of_an_earlier_schema_goes_on(
    database_url: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await brought_to(database_url, number, monkeypatch)
    await lived(database_url, recording.read(number))

    await migrate(database_url)

    rig = await Rig(began=time.time()).open()
    async with open_store(database_url) as store:
        assert await wrong(store) == []
        hand, chats = rig.hand(store=store), await store.chats.find()
        went = {chat.state: await gone_on(rig, hand, chat) for chat in chats}
        new = new_id()
        recorded = RECORDED_TEMPLATE if number < NEW_TEMPLATE_IDS else TEMPLATE_ID
        await rig.senders.create(new, template_id=recorded)
        await hand.pump()
        assert rig.state(new)["state"] == "building"
        assert await wrong(store) == []
    assert went == {
        "building": "stopped",
        "ready": "stopped",
        "stopped": "stopped",
        "build_failed": "stopped",
        "none": "none",
    }


@pytest.mark.parametrize("number", EARLIER)
@pytest.mark.parametrize("share", [0.0, 0.5])
async def test_workers_of_an_earlier_schema_work_on_while_and_after_it_is_migrated(
    database_url: str, number: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = recording.read(number)
    until = int(len(steps) * share)
    await brought_to(database_url, number, monkeypatch)
    await lived(database_url, steps[:until])

    await migrate(database_url)
    await lived(database_url, steps[until:])

    async with open_store(database_url) as store:
        assert await wrong(store) == []
        assert len(await store.chats.find()) == 6


@asynccontextmanager
async def upgraded_from_timers(
    url: str, patch: pytest.MonkeyPatch, *, published: bool
) -> AsyncIterator[tuple[Rig, PostgresStore, dict[str, Chat]]]:
    """Migrate data of schema 0009, and let a worker begin; yield the chats as they were before it began.

    NATS has no timers, but counts as intact: only what the migration stores makes the worker look at chats.
    Without `published`, the workers of schema 0009 ended before they had published anything.
    """
    await brought_to(url, 9, patch)
    steps = recording.read(9)
    left = [step for step in steps if not step[0].startswith("delete from outbox")]
    assert len(left) < len(steps)
    await lived(url, steps if published else left)
    await migrate(url)
    rig = await Rig(began=time.time()).open()
    async with open_store(url) as store:
        hand = rig.hand(store=store)
        await store.recovery.record_origin((await store.recovery.origin()).current)
        await hand.watch.find_losses()
        await hand.watch.accept()
        await hand.watch.record_server()
        before = {chat.chat_id: chat for chat in await store.chats.find() if chat.version}
        assert await hand.prepare() == frozenset()
        await hand.let_time_pass(1)
        yield rig, store, before
        assert await wrong(store) == []
        assert (await store.due_alarms(100)).alarms == {}


async def test_timers_of_an_earlier_schema_take_effect_after_the_upgrade(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with upgraded_from_timers(database_url, monkeypatch, published=True) as (
        rig,
        store,
        before,
    ):
        late = [chat_id for chat_id, chat in before.items() if chat.state == "building"]
        assert late
        assert {chat.state for chat in await store.chats.get_many(late)} == {"build_timed_out"}
        assert {rig.state(chat_id)["state"] for chat_id in late} == {"failed"}


async def test_what_an_earlier_schema_left_in_the_outbox_is_published_after_the_upgrade(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with upgraded_from_timers(database_url, monkeypatch, published=False) as (rig, store, _):
        chats = [chat for chat in await store.chats.find() if chat.version]
        answered = {
            (stored.call.chat_id, stored.call.call_id)
            for stored in await store.recovery.answered_calls()
        }
        assert {chat.chat_id: rig.state(chat.chat_id)["version"] for chat in chats} == {
            chat.chat_id: chat.version for chat in chats
        }
        assert len(answered) > len(chats)
        assert rig.results.keys() == answered


async def test_no_foreign_key_makes_each_written_row_look_up_its_chat(database_url: str) -> None:
    await migrate(database_url)

    db = await asyncpg.connect(database_url)
    try:
        keys = await db.fetch("select conname from pg_constraint where contype = 'f'")
    finally:
        await db.close()
    assert [key["conname"] for key in keys] == []
