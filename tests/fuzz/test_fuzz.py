"""Hostile messages end no process and are never lost, and their headers have no effect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus import ServiceError
from handlers.embedded import Servers
from tests.agent.exec_rig import ExecRig
from tests.fuzz.fuzz_run import FuzzRun, fuzz_run_on, kept
from tests.fuzz.hostile import EXEC_TOOLS, INBOUND, RPCS, TOOLS, agent_request, message
from tests.fuzz.pure import ask_who, read_alarms
from tests.rigs.fleet import fleet_on
from tests.rigs.messages import CONTENT_TYPE, Event, new_id

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
    for target in (*INBOUND, "presence", "exec"):
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


async def test_an_agent_answers_hostile_requests_and_goes_on(
    servers: Servers, tmp_path: Path
) -> None:
    async with ExecRig.on(servers, tmp_path) as rig, rig.living():
        asked = list[bytes]()

        async def ask(tool: str, number: int) -> Event | int:
            known = tool if tool in EXEC_TOOLS else "process_list"
            body = agent_request(SEED, known, number, rig.chat, rig.agent)
            if not _names(body, rig):
                await rig.bus.send(f"workspaced.agent.{rig.chat}.{rig.agent}.{tool}", body)
                return 0
            asked.append(body)
            try:
                return dict(json.loads((await rig.request(tool, body)).data))
            except ServiceError as error:
                return error.code

        answers = await asyncio.gather(
            *(ask(tool, number) for tool in EXEC_TOOLS for number in range(MESSAGES // 6)),
            ask("nonsense", 0),
        )
        assert {answer for answer in answers if isinstance(answer, int)} <= {0, 409, 413, 429}
        assert [answer for answer in answers if "the agent failed" in str(answer)] == []
        assert len(asked) > len(answers) * 3 // 4
        assert (await rig.done("execute", command="echo on"))["output"] == "on\n"
        assert {path.name for path in tmp_path.iterdir()} <= {
            *(".workspaced", "file-0", "file-1", "file-2")
        }


def _names(body: bytes, rig: ExecRig) -> bool:
    """Return whether a request names the agent, which ignores every other one."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return False
    named = isinstance(request, dict) and (request.get("chat_id"), request.get("agent_id"))
    return named == (rig.chat, rig.agent)


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
