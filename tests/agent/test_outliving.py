"""Processes of a startup script survive the agent's; if they ended too, the script runs again."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from handlers.sandbox.policy import Confinement, Mechanism
from handlers.sandbox.processes import find_marked
from tests.agent.world import World, started
from tests.provisioner.rig import Rig
from tests.provisioner.test_confinement import WAYS

EVERY_WAY = pytest.mark.parametrize("way", [Mechanism.RLIMITS, *WAYS])

SERVICE = """
echo run >> runs
mkfifo asked answered 2>/dev/null
serve() {
    trap "" TERM
    while read -r words; do echo "served $words"; echo "$words" > answered; done <> asked
}
serve &
"""
"""Leaves a service running that ignores SIGTERM and writes to the script's output."""


def agent(script: str, **more: Any) -> dict[str, Any]:
    return {"agent": [{"name": "main", "startup_script": script, **more}]}


def confined(way: Mechanism) -> Confinement:
    return Confinement(way, bubblewrap="bwrap")


def served(workspace: Path, words: str) -> str:
    """Send a request to the service, which must be running; return its reply."""
    asked = os.open(workspace / "asked", os.O_RDWR)
    try:
        os.write(asked, f"{words}\n".encode())
        return (workspace / "answered").read_text().strip()
    finally:
        os.close(asked)


async def killed(world: World) -> None:
    """Kill the agent's process, and wait until another one has connected."""
    rig = world.rig
    await rig.fact(type="agent_connected")
    before = {fact["id"] for fact in rig.facts(type="agent_connected")}
    os.kill(world.agent(), signal.SIGKILL)
    await rig.until(
        lambda: bool({fact["id"] for fact in rig.facts(type="agent_connected")} - before),
        "the agent once more",
    )


def newest(rig: Rig) -> int:
    """Return the highest sequence that the agent has reported so far."""
    return max(fact["data"].get("sequence", 0) for fact in rig.facts())


async def again(rig: Rig, before: int, lifecycle: str) -> None:
    """Wait for a report of this lifecycle with a sequence above `before`."""
    await rig.until(
        lambda: any(fact["data"]["sequence"] > before for fact in rig.facts(lifecycle=lifecycle)),
        f"{lifecycle} once more",
    )


@EVERY_WAY
async def test_b22_a_background_service_survives_the_agent_and_is_ended_by_a_stop(
    world: World, way: Mechanism
) -> None:
    rig = world.rig
    async with world.provisioner(confinement=confined(way)):
        ended = await started(world, {"version": rig.version({}), **agent(SERVICE)})
        await rig.fact(type="agent_lifecycle", lifecycle="ready")
        workspace = world.root / "workspaces" / rig.workspace
        assert await asyncio.to_thread(served, workspace, "one") == "one"
        await killed(world)
        assert await asyncio.to_thread(served, workspace, "two") == "two"
        build = ended["data"]["build_id"]
        await rig.until(lambda: "served two" in rig.output(build, "agent"), "what it wrote since")
        begun = asyncio.get_running_loop().time()
        await rig.ended(await rig.ask(rig.job(2, "stop", version=rig.version({}))))
        took = asyncio.get_running_loop().time() - begun

    assert (workspace / "runs").read_text() == "run\n"
    assert find_marked(f"WORKSPACED_WORKSPACE_ID={rig.workspace}") == []
    assert took < 15


async def test_a_script_without_its_keeper_is_ended_before_it_runs_again(
    world: World,
) -> None:
    rig = world.rig
    async with world.provisioner(confinement=confined(Mechanism.RLIMITS)):
        await started(world, {"version": rig.version({}), **agent(SERVICE)})
        await rig.fact(type="agent_lifecycle", lifecycle="ready")
        connected = await rig.fact(type="agent_connected")
    mark = f"WORKSPACED_AGENT_ID={connected['data']['agent_id']}"

    def running(words: bytes) -> list[int]:
        lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in find_marked(mark)}
        return [pid for pid, line in lines.items() if line.exists() and words in line.read_bytes()]

    for pid in (*running(b"keeper.py"), world.agent()):
        os.kill(pid, signal.SIGKILL)
    before = newest(rig)
    async with world.provisioner(confinement=confined(Mechanism.RLIMITS)):
        await again(rig, before, "ready")
        services = [pid for pid in running(b"serve()") if pid not in running(b"keeper.py")]

    assert len(services) == 1


@EVERY_WAY
@pytest.mark.parametrize("spared", ["nobody", "keepers"])
async def test_the_script_runs_again_if_its_background_processes_were_killed_too(
    world: World, way: Mechanism, spared: str
) -> None:
    rig = world.rig
    async with world.provisioner(confinement=confined(way)):
        await started(world, {"version": rig.version({}), **agent(SERVICE)})
        await rig.fact(type="agent_lifecycle", lifecycle="ready")
        connected = await rig.fact(type="agent_connected")
        workspace = world.root / "workspaces" / rig.workspace
        assert await asyncio.to_thread(served, workspace, "one") == "one"
    for pid in find_marked(f"WORKSPACED_AGENT_ID={connected['data']['agent_id']}"):
        with suppress(FileNotFoundError, ProcessLookupError):  # bubblewrap's init ends the rest
            if spared == "nobody" or b"keeper.py" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
    before = newest(rig)
    async with world.provisioner(confinement=confined(way)):
        await again(rig, before, "starting")
        await again(rig, before, "ready")
        assert await asyncio.to_thread(served, workspace, "two") == "two"

    assert (workspace / "runs").read_text() == "run\nrun\n"


@EVERY_WAY
async def test_a_restarted_agent_reports_the_end_of_a_script_that_went_on_without_it(
    world: World, way: Mechanism
) -> None:
    rig = world.rig
    os.mkfifo(gate := world.directory / "gate")
    script = f"echo run >> runs; read go < {gate}; echo last words; exit 7"
    async with world.provisioner(confinement=confined(way)):
        ended = await started(world, {"version": rig.version({}), **agent(script)})
        await rig.fact(type="agent_lifecycle", lifecycle="starting")
        writer = await asyncio.to_thread(os.open, gate, os.O_WRONLY)
        await killed(world)
        os.write(writer, b"go\n")
        os.close(writer)
        await rig.fact(type="agent_lifecycle", lifecycle="start_error")
        build = ended["data"]["build_id"]
        await rig.until(lambda: "exited with status 7" in rig.output(build, "agent"))

    assert "last words" in rig.output(build, "agent")
    assert (world.root / "workspaces" / rig.workspace / "runs").read_text() == "run\n"


async def test_a_script_runs_again_after_a_restart_of_the_machine_or_container(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = world.rig
    async with world.provisioner():
        await started(world, {"version": rig.version({}), **agent("echo run >> runs")})
        await rig.fact(type="agent_lifecycle", lifecycle="ready")
        await rig.fact(type="agent_connected")
        pid = world.agent()
    os.kill(pid, signal.SIGKILL)
    before = newest(rig)
    monkeypatch.setattr("handlers.provisioner.agent_supervisor.machine_identity", lambda: "another")
    async with world.provisioner():
        await again(rig, before, "starting")
        await again(rig, before, "ready")

    assert (world.root / "workspaces" / rig.workspace / "runs").read_text() == "run\nrun\n"
