"""Hostile messages end no process and are never lost, and their headers have no effect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from handlers.embedded import Servers
from tests.fuzz.fuzz_run import FuzzRun, fuzz_run_on, kept
from tests.fuzz.hostile import INBOUND, RPCS, TOOLS, message
from tests.fuzz.pure import ask_who, read_alarms
from tests.rigs.fleet import fleet_on
from tests.rigs.messages import CONTENT_TYPE, new_id

SEED = 6
MESSAGES = 300


@pytest.fixture
async def rig(own_nats: Servers, database_url: str, tmp_path: Path) -> AsyncIterator[FuzzRun]:
    async with (
        fleet_on(own_nats, database_url, tmp_path) as fleet,
        fuzz_run_on(fleet, SEED) as rig,
    ):
        yield rig


async def test_hostile_messages_are_handled_or_buried_while_a_healthy_chat_is_served(
    rig: FuzzRun,
) -> None:
    healthy = asyncio.create_task(rig.healthy())
    for target in (*INBOUND, "presence"):
        await rig.send(target, range(MESSAGES))
    for target in RPCS:
        await rig.send(target, range(MESSAGES if target in TOOLS[:1] else MESSAGES // 5))
    for one in kept():
        await rig.send_all(one.target, [one])
    await healthy
    await rig.healthy()

    await rig.check()
    assert rig.served == 2
    for kind in INBOUND:
        figures = rig.figures[kind]
        assert figures.refused
        assert figures.stored > sum(figures.reasons.values()) > MESSAGES / 4
    assert (await rig.attacker.js.stream_info("WORKSPACED_IN")).state.messages == 0


async def test_no_header_has_power_over_what_others_sent(rig: FuzzRun) -> None:
    """With roll-up, TTL, counter or schedule headers a sender could undo others' events."""
    js, chat = rig.attacker.js, new_id()
    inbound, log = f"workspaced.in.tool.{chat}.evil", f"workspaced.log.{chat}.{new_id()}"
    await rig.attacker.publish(log, b"{}")
    before = (await js.stream_info("WORKSPACED_LOG")).state
    for subject in (inbound, log):
        for headers in (
            {"Nats-Rollup": "all"},
            {"Nats-Rollup": "sub"},
            {"Nats-TTL": "1s"},
            {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": subject},
            {"Nats-Scheduler": subject, "Nats-Schedule-Next": "purge"},
            {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"},
            {"Nats-Incr": "1"},
            {"Nats-Expected-Last-Sequence": "999999"},
            {"Nats-Expected-Stream": "OTHER"},
        ):
            fields = {"Content-Type": CONTENT_TYPE, **headers}
            reply = await rig.attacker.client.request(subject, b"{}", headers=fields, timeout=10)
            stored = b'"error"' not in reply.data
            assert not stored or "Nats-Scheduler" in headers, (subject, headers, reply.data)
    after = (await js.stream_info("WORKSPACED_LOG")).state

    assert after.first_seq == before.first_seq
    await rig.drained()


async def test_who_asks_for_a_server_and_is_none_gets_no_grant() -> None:
    ends = await ask_who(SEED, 1_500)

    assert ends["refused"] > 100
    assert ends["not the server's"] > 300
    assert sum(ends.values()) - ends["looked up"] == 1_500


def test_a_message_in_the_place_of_an_alarm_is_an_alarm_or_a_dead_letter() -> None:
    ends = read_alarms(SEED, 2_000)

    assert ends["AlarmMessage"] > 50
    assert ends["Dead"] > 500


def test_a_message_can_be_made_again_by_seed_and_index() -> None:
    assert message(1, "tool", 7) == message(1, "tool", 7)
    assert message(1, "tool", 7) != message(2, "tool", 7)
