"""Databases compared with their event logs, and snapshots rebuilt from the logs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handlers.cli.commands.audit import Audit, audits, rebuild
from statemachine.chat import Limits
from tests.replay.conftest import TOKEN, Place

SNAPSHOTS = "select chat_id::text, snapshot, version, state, organization_id, owner_id, workspace_id, wakes from chat order by 1"


async def audited(place: Place) -> dict[str, Audit]:
    pages = [page async for page in audits(place.store, Limits())]
    return {audit.kept.chat_id: audit for page in pages for audit in page}


async def wrong(place: Place) -> dict[str, list[str]]:
    """Return the differences of each chat whose log and snapshot do not agree."""
    return {
        chat: [str(difference) for difference in (*audit.of_log, *audit.of_snapshot)]
        for chat, audit in (await audited(place)).items()
        if audit.of_log or audit.of_snapshot
    }


async def rebuilt(place: Place) -> dict[str, list[str]]:
    found = [a for a in (await audited(place)).values() if a.of_snapshot and not a.of_log]
    return await rebuild(place.store, found)


async def test_whatever_a_worker_wrote_folds_to_what_is_kept(place: Place) -> None:
    chats = await place.every_kind()

    assert (await audited(place)).keys() == set(chats)
    assert await wrong(place) == {}


async def test_a_log_tells_what_its_own_events_followed_from_and_the_limits_it_set(
    place: Place,
) -> None:
    chat = await place.create()

    asked, requested = await place.store.chats.log(chat)

    assert "cause" not in asked
    assert requested["cause"] == {
        "source": asked["event"]["source"],
        "id": asked["event"]["id"],
        "type": "workspaced.tool_requested.v1",
    }
    kept = await place.store.chats.get(chat)
    assert kept is not None
    assert kept.deadline is not None
    assert "deadline" not in asked
    assert requested["deadline"] == kept.deadline.isoformat().replace("+00:00", "Z")


DAMAGE: dict[str, str] = {
    "column version": "update chat set version = 77 where chat_id = $1",
    "column wakes": "update chat set wakes = not wakes where chat_id = $1",
    "column workspace_id": "update chat set workspace_id = null where chat_id = $1",
    "current.build.number": "update chat set snapshot = jsonb_set(snapshot, '{current,build,number}', '9') where chat_id = $1",
    "cause.id": "update chat set snapshot = jsonb_set(snapshot, '{cause,id}', '\"x\"') where chat_id = $1",
    "state": "update chat set snapshot = jsonb_set(snapshot, '{state}', '\"ready\"') where chat_id = $1",
    "deadline": "update chat set snapshot = jsonb_set(snapshot, '{deadline}', '\"2031-01-01T00:00:00Z\"') where chat_id = $1",
    "open_calls": "update chat set snapshot = snapshot - 'open_calls' where chat_id = $1",
    "seq": "update chat set snapshot = jsonb_set(snapshot, '{seq}', '1') where chat_id = $1",
    "snapshot": "update chat set snapshot = '{\"chat_id\": 7}' where chat_id = $1",
    "owner_id": "update chat set snapshot = jsonb_build_object('chat_id', chat_id) where chat_id = $1",
}


@pytest.mark.parametrize("key", DAMAGE)
async def test_damage_is_named_and_mended(place: Place, key: str) -> None:
    chat, other = await place.create(), await place.ready()
    before = await place.rows(SNAPSHOTS)
    await place.execute(DAMAGE[key], chat)

    told = await wrong(place)
    lost = await rebuilt(place)

    assert told.keys() == {chat}
    assert any(words.startswith(f"snapshot: {key} ") for words in told[chat]), told
    assert lost == {chat: []}
    assert await place.rows(SNAPSHOTS) == before
    assert await wrong(place) == {}
    assert other


async def test_a_chat_whose_snapshot_was_rebuilt_goes_on(place: Place) -> None:
    chat = await place.create()
    await place.execute(DAMAGE["owner_id"], chat)

    await rebuilt(place)
    await place.built()

    assert place.rig.answer(chat)["result"]["created"] is True
    assert place.rig.state(chat)["state"] == "ready"
    assert await wrong(place) == {}


async def test_every_snapshot_can_be_made_from_the_logs_alone(place: Place) -> None:
    chats = await place.every_kind()
    before = await place.rows(SNAPSHOTS)
    await place.execute("update chat set snapshot = jsonb_build_object('chat_id', chat_id)")

    lost = await rebuilt(place)

    assert await wrong(place) == {}
    hidden = {chat: parameters for chat, parameters in lost.items() if parameters}
    assert hidden.keys() == {chats[2]}
    assert [words.split(" of ")[0] for words in hidden[chats[2]]] == ["parameter 'token'"]
    after = await place.rows(SNAPSHOTS)
    assert [row[2:] for row in after] == [row[2:] for row in before]
    for row, old in zip(after, before, strict=True):
        if row[0] != chats[2]:
            assert json.loads(str(row[1])) == json.loads(str(old[1]))


async def test_what_a_log_hides_is_taken_from_the_old_snapshot(place: Place) -> None:
    chat = await place.secretive()
    await place.execute("update chat set snapshot = snapshot - 'cause' where chat_id = $1", chat)

    lost = await rebuilt(place)

    assert lost == {chat: []}
    kept = await place.store.chats.get(chat)
    assert kept is not None
    assert kept.build is not None
    assert kept.build.parameters == {"branch": "next", "token": TOKEN}


async def test_no_value_of_a_parameter_is_told(place: Place) -> None:
    chat = await place.secretive()
    await place.execute(
        "update chat set snapshot = jsonb_set(snapshot, '{current,build,parameters}', $2) where chat_id = $1",
        chat,
        json.dumps({"branch": TOKEN, "token": TOKEN}),
    )

    told = await wrong(place)

    assert "build.parameters.branch" in told[chat][0]
    assert TOKEN not in str(told)


TAMPERED: dict[str, str] = {
    "outcome": "update event_log set outcome = 'stale' where chat_id = $1 and seq = 2",
    "version": "update event_log set version = 5 where chat_id = $1 and seq = 2",
    "state_after": "update event_log set state_after = 'ready' where chat_id = $1 and seq = 2",
    "seq": "delete from event_log where chat_id = $1 and seq = 2",
    "event.subject": "update event_log set event = jsonb_set(event, '{subject}', '\"7a508221-d691-5c11-a7b3-96993e0613b0\"') where chat_id = $1 and seq = 2",
    "entry 2": "update event_log set event = jsonb_set(event, '{type}', '\"workspaced.nothing.v1\"') where chat_id = $1 and seq = 2",
}


@pytest.mark.parametrize("key", TAMPERED)
async def test_a_log_that_does_not_fold_is_named_and_rebuilds_nothing(
    place: Place, key: str
) -> None:
    chat = await place.ready()
    await place.execute(TAMPERED[key], chat)
    await place.execute(DAMAGE["column version"], chat)
    before = await place.rows(SNAPSHOTS)

    told = await wrong(place)
    lost = await rebuilt(place)

    assert any(f": {key} was recorded as" in words for words in told[chat]), told
    assert lost == {}
    assert await place.rows(SNAPSHOTS) == before


async def test_a_log_from_before_causes_and_limits_were_kept_is_rebuilt_alike(
    place: Place,
) -> None:
    """Rules act on an event at once, so the cause is the last event that has no cause itself."""
    await place.every_kind()
    before = await place.rows(SNAPSHOTS)
    await place.execute("update event_log set cause = null, deadline = null")

    assert await wrong(place) == {}
    await place.execute("update chat set snapshot = snapshot - 'cause'")
    await rebuilt(place)

    assert await place.rows(SNAPSHOTS) == before


async def test_a_limit_that_nobody_wrote_down_counts_by_the_limits_in_force(place: Place) -> None:
    chat = await place.create()
    await place.execute("update event_log set cause = null, deadline = null")
    await place.execute("update chat set snapshot = snapshot - 'deadline' - 'generation'")

    (page,) = [page async for page in audits(place.store, place.rig.limits)]
    await rebuild(place.store, page)

    kept = await place.store.chats.get(chat)
    assert kept is not None
    assert kept.changed_at is not None
    assert kept.deadline == kept.changed_at + place.rig.limits.build


async def test_what_comes_between_the_look_and_the_lock_is_folded_too(place: Place) -> None:
    chat = await place.create()
    await place.execute(DAMAGE["cause.id"], chat)
    look = await audited(place)
    await place.rig.senders.built(place.rig.job, "started")
    await place.hand.pump()

    lost = await rebuild(place.store, [look[chat]])

    assert lost == {chat: []}
    kept = await place.store.chats.get(chat)
    assert kept is not None
    assert (kept.seq, kept.build is not None and kept.build.begun_at is not None) == (3, True)


async def test_a_look_beside_working_workers_sees_each_chat_at_one_moment(place: Place) -> None:
    chat = await place.create()
    seen: list[Any] = []

    async for page in audits(place.store, Limits()):
        seen += page
        await place.built()

    (audit,) = seen
    assert (audit.of_log, audit.of_snapshot) == ([], [])
    assert audit.kept.last == 2
    assert (await wrong(place)) == {}
    assert place.rig.state(chat)["state"] == "ready"
