"""An agent that is gone before it spoke is reported at once (contract §3, agent_exited)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from workspaced.provisioning.session import Session

from handlers.provisioner.agent_exits import OUTPUT_SIZE, AgentExit, last_lines
from handlers.publishing import agent_files
from handlers.publishing.build_log import BuildLog
from handlers.sandbox.policy import Confinement, Mechanism
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_server import MemoryServer
from tests.provisioner.conftest import Provisioning
from tests.provisioner.rig import Rig
from tests.provisioner.test_confinement import WAYS
from tests.rigs.messages import Event

EVERY_WAY = pytest.mark.parametrize("way", [Mechanism.RLIMITS, *WAYS])


async def started(rig: Rig, **more: Any) -> Event:
    """Build a workspace with one agent; return the data of its build_succeeded."""
    job = rig.job(version=rig.version({}), agent=[{"name": "main"}], **more)
    return (await rig.ended(await rig.ask(job)))["data"]  # type: ignore[no-any-return]


def script(text: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", text)


@EVERY_WAY
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo one; echo no module >&2; exit 7", {"exit_code": 7, "output": "one\nno module"}),
        ("echo one; kill -KILL $$", {"signal": "KILL", "output": "one"}),
        ("exit 0", {"exit_code": 0}),
        ("exit 3", {"exit_code": 3}),
    ],
)
async def test_an_agent_that_ends_before_it_connects_is_reported_and_not_started_again(
    rig: Rig,
    server: MemoryServer,
    provisioning: Provisioning,
    way: Mechanism,
    text: str,
    said: Event,
) -> None:
    confinement = Confinement(way, bubblewrap="bwrap")
    async with provisioning(
        agent_command=script(f"echo x >> starts; {text}"), confinement=confinement
    ):
        build = await started(rig)
        exited = await rig.fact(type="agent_exited")
        rig.seen.clear()
        async with MemoryBus(server) as worker:
            await worker.send("workspaced.resend.provisioner", b"")
        again = await rig.fact(type="agent_exited")
    rig.seen.clear()
    async with provisioning(agent_command=script("echo x >> starts"), confinement=confinement):
        once_more = await rig.fact(type="agent_exited")

    keys = ("workspace_id", "build_id", "build_number")
    assert exited["data"] == {
        **{key: build[key] for key in keys},
        "agent_id": build["agents"][0]["id"],
        **said,
    }
    assert exited["source"] == "/provisioner/here"
    assert exited["traceparent"].split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
    assert again == once_more == exited


async def test_the_end_of_an_agent_that_ends_before_the_success_is_stored_follows_it(
    rig: Rig, provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported, report = asyncio.Event(), Session.report_exit

    async def report_exit(*arguments: Any) -> None:
        await report(*arguments)
        reported.set()

    async def drained(*_: object) -> None:
        await reported.wait()

    monkeypatch.setattr(Session, "report_exit", report_exit)
    monkeypatch.setattr(BuildLog, "drained", drained)
    async with provisioning(agent_command=script("exit 7")):
        await started(rig)
        await rig.fact(type="agent_exited")

    # A fact may be published again, with the same id.
    names = {fact["id"]: fact["type"].split(".")[1] for fact in rig.facts()}
    assert list(names.values()) == ["build_started", "build_succeeded", "agent_exited"]


async def test_the_launcher_of_a_template_may_be_what_fails(
    rig: Rig, provisioning: Provisioning
) -> None:
    launcher = "#!/bin/sh\necho no container >&2\nexit 125\n"
    step = f"printf '{launcher}' > $WORKSPACED_AGENT_LAUNCHER; chmod +x $WORKSPACED_AGENT_LAUNCHER"
    async with provisioning():
        await started(rig, build={"start": step.replace("\n", "\\n")})
        exited = await rig.fact(type="agent_exited")

    assert exited["data"]["exit_code"] == 125
    assert exited["data"]["output"] == "no container"


async def test_an_agent_that_cannot_be_started_is_reported(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    async with provisioning(agent_command=script("sleep 1000")):
        await started(rig)
    (config,) = (tmp_path / "root" / "workspaces").glob("*/.workspaced/agents/*/config.json")
    config.unlink()
    async with provisioning():
        exited = await rig.fact(type="agent_exited")

    assert "configuration" in exited["data"]["output"]
    assert not {"exit_code", "signal"} & exited["data"].keys()


async def test_an_agent_that_has_connected_is_restarted_and_not_reported(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    journal = json.dumps({"facts": {agent_files.CONNECTION: {}}})
    text = (
        f"echo '{journal}' > $(echo .workspaced/agents/*)/journal.json; echo run > {gate}; exit 1"
    )
    async with provisioning(agent_command=script(text)):
        await started(rig)
        for _ in range(2):
            assert await asyncio.to_thread(gate.read_text) == "run\n"

    assert not rig.facts(type="agent_exited")


async def test_an_agent_that_a_stop_ends_is_not_reported(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    async with provisioning(agent_command=script(f"echo run > {gate}; sleep 1000")):
        await started(rig)
        await asyncio.to_thread(gate.read_text)
        await rig.ended(await rig.ask(rig.job(2, "stop", version=rig.version({}))))

    assert not rig.facts(type="agent_exited")


async def test_the_last_lines_are_masked_and_cut(tmp_path: Path) -> None:
    log, secret = tmp_path / "agent.log", "tops3cret"
    log.write_text(f"{'x' * 50}\n" * 3000 + f"password {secret}\nlast")
    lines = await last_lines(log, (secret,))

    assert len(lines.encode()) <= OUTPUT_SIZE
    assert lines.splitlines()[0] == "x" * 50
    assert lines.splitlines()[-2:] == ["password ***", "last"]
    log.write_text("y" * 100_000)
    assert await last_lines(log, ()) == "y" * OUTPUT_SIZE
    assert await last_lines(tmp_path / "missing", ()) == ""


def test_signals_are_named_without_sig() -> None:
    assert AgentExit(-signal.SIGSEGV).data() == {"signal": "SEGV"}
    assert AgentExit(-40).data() == {"signal": "40"}
    assert AgentExit(None, "gone").data() == {"output": "gone"}
