"""A whole machine: agents pause, the provisioner dies during a build, the power goes off."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio

from tests.rigs.processes import (
    TIMEOUT,
    Process,
    Up,
    kill_processes,
    processes_using,
    start_up,
    wait_until_gone,
)
from tests.rigs.world import (
    ORGANIZATION,
    Deployment,
    connected_world,
    deployment_of,
    template_folder,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRESENCE, SCRIPTS_WITHIN = 1.0, 2.0
HOUSE = """
name = "house"
pool = "{pool}"

[build]
start = "echo run >> runs; if [ ! -e begun ]; then touch begun; echo > {gate}; sleep 1000; fi"
"""
QUICK = """
name = "quick"
pool = "local"

[build]
start = "true"

[[agent]]
name = "main"
startup_script = "echo run >> started"
"""


@dataclass
class Gate:
    """A pipe in which the first run of each build announces its start; that run never ends."""

    path: Path

    async def passed(self) -> None:
        async with asyncio.timeout(TIMEOUT):
            await asyncio.to_thread(self.path.read_text)


def gate_in(home: Path) -> Gate:
    gate = Gate(home / "gate")
    os.mkfifo(gate.path)
    return gate


@dataclass
class Machine:
    """A machine that can be switched off, and the templates pushed to it."""

    up: Up
    env: dict[str, str]
    gate: Gate
    place: Deployment
    quick: str
    house: str

    def workspace(self, workspace_id: str) -> Path:
        return self.up.directory / "provisioner" / "local" / "workspaces" / workspace_id

    def agents(self, workspace_id: str) -> list[int]:
        return processes_using(self.workspace(workspace_id), "handlers.agent")

    def switched_off(self) -> None:
        """Kill all its processes at the same instant, including builds and agents."""
        everything = of(self.up.directory)
        for pid in everything:
            os.kill(pid, signal.SIGSTOP)  # stopped first, so that no process sees another one end
        for pid in everything:
            os.kill(pid, signal.SIGKILL)
        assert wait_until_gone(everything, TIMEOUT)
        self.up.process.ended()

    def switched_on(self) -> None:
        self.up = start_up(self.up.directory, env=self.env)


def of(directory: Path) -> list[int]:
    """Return processes that have the directory on their command line or in their environment."""
    found = set(processes_using(directory))
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if os.fsencode(directory) in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
    return sorted(found)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Machine]:
    home = tmp_path_factory.mktemp("machine")
    gate = gate_in(home)
    env = {
        "WORKSPACED_PRESENCE_TTL": str(PRESENCE),
        "WORKSPACED_STARTUP_SCRIPTS_TIMEOUT": str(SCRIPTS_WITHIN),
    }
    running = start_up(home / "data", env=env)
    try:
        house = HOUSE.format(pool="local", gate=gate.path)
        texts = {"house": house, "quick": QUICK}
        pushed = {
            name: running.data(
                *("template", "push", template_folder(home, name, text)),
                *("--organization", ORGANIZATION),
            )["template_id"]
            for name, text in texts.items()
        }
        made = Machine(running, env, gate, deployment_of(running, home), **pushed)
        yield made
        made.up.process.stop()
    finally:
        kill_processes(of(home / "data"))


async def test_a_paused_agent_counts_as_lost_until_it_resumes(machine: Machine) -> None:
    async with connected_world(machine.place) as world:
        chat = await world.chat()
        await chat.call("create_workspace", {"template_id": machine.quick})
        (agent,) = machine.agents(chat.now["workspace"]["id"])
        version = chat.now["version"]

        os.kill(agent, signal.SIGSTOP)
        missed = await chat.state("ready", above=version)
        os.kill(agent, signal.SIGCONT)
        back = await chat.state("ready", above=missed["version"])

        assert (missed["agent"]["status"], missed["cause"]["source"]) == (
            "disconnected",
            "/workspaced",
        )
        assert back["agent"]["status"] == "connected"
        assert machine.agents(chat.now["workspace"]["id"]) == [agent]


async def test_work_continues_after_everything_was_killed_at_once(machine: Machine) -> None:
    async with connected_world(machine.place) as world:
        living, late, half = [await world.chat() for _ in range(3)]
        await living.call("create_workspace", {"template_id": machine.quick})
        half_call = await half.ask("create_workspace", {"template_id": machine.house})
        await machine.gate.passed()
        late_call, _, agent = await world.connecting(late)
        await agent.report_connected()
        deadline = datetime.fromisoformat((await late.state("scripts_running"))["deadline"])
        room = machine.workspace(living.now["workspace"]["id"])
        build = half.now["build"]["id"]
        agents = machine.agents(room.name)

    machine.switched_off()
    left = deadline.timestamp() - time.time()
    time.sleep(max(0.0, left))  # this waits for a time, not for an event: nothing is running
    machine.switched_on()

    async with connected_world(machine.place) as world:
        chats = [await world.service.chat(chat.id) for chat in (living, late, half)]
        for chat, before in zip(chats, (living, late, half), strict=True):
            chat.organization_id, chat.owner_id = before.organization_id, before.owner_id
        living, late, half = chats
        await late.ask("create_workspace", {"template_id": world.plain}, call_id=late_call)
        await half.ask("create_workspace", {"template_id": machine.house}, call_id=half_call)
        # `answer` waits for 15 s; a job that is only redelivered would take 30 s.
        late_answer, half_answer = await asyncio.gather(
            late.answer(late_call), half.answer(half_call)
        )
        known = await world.service.rpc("get_chat", chat_id=living.id)
        while known["agent"]["status"] != "connected":
            known = await living.state("ready", above=known["version"])

        assert late_answer["result"]["startup_scripts"] == "startup_scripts_timeout"
        assert half_answer["result"]["created"] is True
        assert half_answer["result"]["build_id"] == build
        house = machine.workspace((await world.service.last_state(half.id))["workspace"]["id"])
        assert (house / "runs").read_text() == "run\nrun\n"
        assert (room / "started").read_text() == "run\n"  # the script did not run again
        assert machine.agents(room.name) != agents
        assert len(machine.agents(room.name)) == 1


async def test_a_restarted_provisioner_repeats_its_build_at_once(
    machine: Machine, tmp_path: Path
) -> None:
    gate = gate_in(tmp_path)
    text = HOUSE.format(pool="yard", gate=gate.path).replace("house", "hut")
    hut = machine.up.data(
        *("template", "push", template_folder(tmp_path, "hut", text)),
        *("--organization", ORGANIZATION),
    )["template_id"]

    def provisioner() -> Process:
        return Process(
            *("provisioner", "--name", "yard", "--pool", "yard"),
            *("--data-dir", tmp_path / "yard", "--nats-url", machine.up.nats),
            *("--credentials", machine.up.seed_file("provisioner")),
        )

    one = provisioner()
    two: Process | None = None
    try:
        async with connected_world(machine.place) as world:
            chat = await world.chat()
            call = await chat.ask("create_workspace", {"template_id": hut})
            await gate.passed()
            one.kill()
            two = provisioner()
            answer = await chat.answer(call)

            assert (answer["result"]["created"], chat.path) == (True, ["building", "ready"])
            assert answer["result"]["build_id"] == chat.now["build"]["id"]
            (runs,) = (tmp_path / "yard").rglob("runs")
            assert runs.read_text() == "run\nrun\n"
    finally:
        one.kill()
        if two is not None:
            two.kill()
        kill_processes(of(tmp_path))


async def test_up_ends_with_a_message_when_its_database_is_gone(tmp_path: Path) -> None:
    """`up` ends with an error; when it is started again, it continues."""
    running = start_up(tmp_path / "data")
    try:
        pid = processes_using(tmp_path / "data", "bin/postgres")[0]

        os.kill(pid, signal.SIGKILL)

        assert running.process.ended(10.0) == 1
        assert "PostgreSQL ended with status" in running.process.output()
        assert "Traceback" not in running.process.output()
        assert processes_using(tmp_path / "data") == []
        again = start_up(tmp_path / "data")
        assert again.addresses == running.addresses
        assert again.process.stop() == 0
    finally:
        running.process.kill()
        kill_processes(of(tmp_path / "data"))
