"""The reports of an agent and their times (contract §3, agent)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from bus import Bus, Refused
from handlers.agent import link
from handlers.publishing import agent_files
from handlers.publishing.agent_files import AgentCredential
from tests.agent.conftest import Living
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_server import MemoryServer
from tests.provisioner.rig import Rig


def lifecycles(rig: Rig) -> list[str]:
    """Return the reported lifecycles in order, without consecutive repeats."""
    told = [fact["data"]["lifecycle"] for fact in rig.facts(type="agent_lifecycle")]
    return [each for n, each in enumerate(told) if n == 0 or told[n - 1] != each]


def ready(rig: Rig) -> set[str]:
    return {fact["id"] for fact in rig.facts(lifecycle="ready")}


async def lifecycle(rig: Rig, reached: str) -> None:
    await rig.fact(type="agent_lifecycle", lifecycle=reached)


async def test_an_agent_connects_runs_its_script_and_becomes_ready(
    rig: Rig, living: Living
) -> None:
    async with living(startup_script="echo up; echo warm >&2") as agent:
        await lifecycle(rig, "ready")
        await rig.fact(type="agent_connected")
        await rig.until(lambda: "warm" in "".join(str(e) for e in rig.events("workspaced.log.")))
        agent.stop()
        gone = await rig.fact(type="agent_disconnected")

    assert lifecycles(rig) == ["created", "starting", "ready", "shutting_down", "off"]
    sequences = [fact["data"]["sequence"] for fact in rig.facts()]
    assert sequences == sorted(set(sequences))
    source, chat = gone["source"], rig.chat
    agent_id = gone["data"]["agent_id"]
    assert (source, gone["subject"]) == (f"/agent/{agent_id}", chat)
    logged = rig.events("workspaced.log.")[0]["data"]
    assert (logged["origin"], logged["stage"]) == ("agent", "startup")
    presence = next(e for s, e in rig.seen if s == f"workspaced.presence.{chat}.{agent_id}")
    assert set(presence) == {"chat_id", "workspace_id", "build_id", "agent_id"}


@pytest.mark.parametrize(
    ("scripts", "reached"),
    [
        ({}, ["created", "ready"]),
        ({"startup_script": "exit 3"}, ["created", "starting", "start_error"]),
        (
            {"startup_script": "read go < gate", "startup_timeout_seconds": 0.1},
            ["created", "starting", "start_timeout"],
        ),
    ],
)
async def test_each_end_of_a_startup_script_is_reported(
    rig: Rig, living: Living, tmp_path: Path, scripts: dict[str, str], reached: list[str]
) -> None:
    os.mkfifo(tmp_path / "gate")
    async with living(**scripts):
        await lifecycle(rig, reached[-1])
        assert lifecycles(rig) == reached


async def test_a_script_may_succeed_after_its_time_limit(
    rig: Rig, living: Living, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    async with living(startup_script="read go < gate", startup_timeout_seconds=0.1):
        await lifecycle(rig, "start_timeout")
        await asyncio.to_thread(gate.write_text, "go\n")
        await lifecycle(rig, "ready")


@pytest.mark.parametrize(
    ("script", "reached"),
    [("exit 4", "shutdown_error"), ("read never < gate", "shutdown_timeout"), ("true", "off")],
)
async def test_each_end_of_a_shutdown_script_is_reported(
    rig: Rig, living: Living, tmp_path: Path, script: str, reached: str
) -> None:
    os.mkfifo(tmp_path / "gate")
    async with living(shutdown_script=script, shutdown_timeout_seconds=0.3):
        await lifecycle(rig, "ready")

    assert lifecycles(rig)[-2:] == ["shutting_down", reached]


async def test_a_shutdown_ends_background_processes_of_the_scripts(
    rig: Rig, living: Living, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    script = "setsid sh -c 'exec sleep 1000 > gate' & sleep 1000 > gate & true"
    async with living(startup_script=script):
        held = await asyncio.to_thread(gate.open)
        await lifecycle(rig, "ready")
    with held:
        assert held.read() == ""


async def test_a_restarted_agent_reports_again_but_does_not_repeat_its_script(
    rig: Rig, living: Living, tmp_path: Path
) -> None:
    """This agent was killed; an agent that was shut down runs its script again."""
    script = {"startup_script": "echo x >> runs"}
    running = living(**script)
    await running.__aenter__()
    await lifecycle(rig, "ready")
    connected = await rig.fact(type="agent_connected")
    journal = next(tmp_path.glob(".workspaced/agents/*/journal.json")).read_bytes()
    await running.__aexit__(None, None, None)
    next(tmp_path.glob(".workspaced/agents/*/journal.json")).write_bytes(journal)
    rig.seen.clear()

    async with living(**script):

        def anew() -> bool:
            told = rig.facts(type="agent_connected")
            return any(f["data"]["sequence"] > connected["data"]["sequence"] for f in told)

        await rig.until(anew)
        again = rig.facts(type="agent_connected")

    assert connected in again
    assert (tmp_path / "runs").read_text() == "x\n"
    assert "starting" not in lifecycles(rig)[2:]


async def test_an_agent_that_was_shut_down_runs_its_startup_script_again(
    rig: Rig, living: Living, tmp_path: Path
) -> None:
    told = set[str]()
    for _ in range(2):
        async with living(startup_script="echo x >> runs"):
            await rig.until(lambda: bool(ready(rig) - told))  # noqa: B023 — called at once
            told |= ready(rig)
    assert (tmp_path / "runs").read_text() == "x\nx\n"


async def test_the_agent_reports_again_after_a_reconnect(
    rig: Rig, server: MemoryServer, living: Living
) -> None:
    async with living():
        first = await rig.fact(type="agent_connected")
        await lifecycle(rig, "ready")
        server.stop()
        server.start()
        await rig.until(lambda: rig.facts(type="agent_connected")[-1]["id"] != first["id"])
        await rig.until(lambda: lifecycles(rig)[-1] == "ready")
        last = rig.facts(type="agent_connected")[-1]

    assert last["id"] != first["id"]
    assert last["data"]["sequence"] > first["data"]["sequence"]


async def test_scripts_continue_while_nats_is_away(
    rig: Rig, server: MemoryServer, living: Living, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    async with living(startup_script="echo done > gate"):
        await rig.fact(type="agent_connected")
        server.stop()
        assert await asyncio.to_thread(gate.read_text) == "done\n"
        server.start()
        await lifecycle(rig, "ready")


async def test_the_presence_message_is_renewed(
    rig: Rig, living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "RENEWAL_FRACTION", 0.001)
    async with living():
        await rig.until(lambda: len(rig.events("workspaced.presence.")) >= 5)
    assert len(rig.facts(type="agent_connected")) == 1


async def test_the_agent_reports_again_after_a_pause_longer_than_its_presence_ttl(
    rig: Rig, living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "RENEWAL_FRACTION", 0.001)
    async with living():
        await rig.fact(type="agent_connected")
        monkeypatch.setattr(link, "_MARGIN", 0.9999)  # from now on each renewal counts as late
        await rig.until(lambda: len(rig.facts(type="agent_connected")) > 1)
        monkeypatch.setattr(link, "_MARGIN", 0.05)


async def test_facts_are_published_again_unchanged_on_request(
    rig: Rig, server: MemoryServer, living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SPREAD", 0.0)
    async with living(startup_script="true"), MemoryBus(server) as worker:
        await rig.until(lambda: lifecycles(rig)[-1:] == ["ready"])
        await rig.fact(type="agent_connected")
        told = {fact["id"]: fact for fact in rig.facts()}
        rig.seen.clear()
        await worker.send("workspaced.resend.agent", b"")
        await rig.until(lambda: len(rig.facts()) >= 4)

    again = [f for f in rig.facts() if f["id"] in told]
    assert {f["type"].split(".")[1] for f in again} >= {"agent_connected", "agent_lifecycle"}
    assert all(told[fact["id"]] == fact for fact in again)


async def test_an_agent_that_is_refused_for_good_exits(
    rig: Rig, living: Living, tmp_path: Path
) -> None:
    async def refuse(url: str, credential: AgentCredential) -> Bus:
        raise Refused("authorization violation")

    async with living(
        refuse, refusal_limit=0.2, startup_script="sleep 1000", shutdown_script="echo x > ran"
    ) as agent:
        home = next(agent_files.agent_homes(tmp_path).iterdir())
        async with asyncio.timeout(10):
            await agent.running
    assert agent.superseded, "so its provisioner asks whether its build is superseded"
    assert home.exists()
    assert not (tmp_path / "ran").exists()
    assert not rig.facts()
