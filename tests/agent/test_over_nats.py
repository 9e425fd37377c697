"""Provisioner and agents as processes over a real nats-server, with the templates that we ship."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from workspaced.provisioning.journal import Journal

from bus.streams import PRESENCE
from handlers.provisioner.journal import LocalWorkspace
from handlers.publishing import agent_files
from handlers.sandbox.processes import find_marked, hold_process, wait_for_exit
from tests.agent.world import World, started
from tests.rigs.messages import new_id


async def test_the_python_template_from_start_to_deletion(world: World) -> None:
    rig, template = world.rig, world.template("python", project="tidy", tests="12")
    async with world.provisioner():
        first = await started(world, template)
        (listed,) = first["data"]["agents"]
        ready = await rig.fact(type="agent_lifecycle", lifecycle="ready")
        connected = await rig.fact(type="agent_connected")
        assert ready["data"]["agent_id"] == connected["data"]["agent_id"] == listed["id"]
        await rig.until(lambda: "Ran 12 tests" in rig.output(first["data"]["build_id"], "agent"))
        pid = world.agent()

        with hold_process(pid) as descriptor:
            stop = await rig.ask(rig.job(2, "stop", **template))
            stopped = await rig.ended(stop)
            await wait_for_exit(descriptor)
        assert stopped["data"]["agents"] == []
        await rig.fact(type="agent_lifecycle", lifecycle="off", agent_id=listed["id"])

        again = await started(world, template, number=3)
        assert again["data"]["agents"][0]["id"] != listed["id"]
        await rig.fact(
            type="agent_lifecycle", lifecycle="ready", agent_id=again["data"]["agents"][0]["id"]
        )
        await rig.ended(await rig.ask(rig.job(4, "delete", **template)))
    assert not (world.root / "workspaces" / rig.workspace).exists()
    assert find_marked(f"WORKSPACED_WORKSPACE_ID={rig.workspace}") == []


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("build", ("build_failed", None)),
        ("quota", ("build_failed", None)),
        ("none", ("build_succeeded", "ready")),
        ("startup", ("build_succeeded", "start_error")),
        ("timeout", ("build_succeeded", "start_timeout")),
    ],
)
async def test_the_failing_template_fails_in_the_chosen_phase(
    world: World, phase: str, expected: tuple[str, str | None]
) -> None:
    rig, (ends, lifecycle) = world.rig, expected
    async with world.provisioner():
        ended = await started(world, world.template("fails", phase=phase))
        if lifecycle is not None:
            await rig.fact(type="agent_lifecycle", lifecycle=lifecycle)
    assert ended["type"] == f"workspaced.{ends}.v1"
    assert ended["data"].get("error_code") == ("INSUFFICIENT_QUOTA" if phase == "quota" else None)


async def test_an_agent_that_cannot_start_never_connects(world: World) -> None:
    async with world.provisioner():
        await started(world, world.template("fails", phase="agent"))
        exited = await world.rig.fact(type="agent_exited")
    assert "out of reach" in exited["data"]["output"]
    assert not world.rig.facts(type="agent_connected")


async def test_an_agent_survives_the_provisioner_and_nats_and_reports_again(world: World) -> None:
    rig, template = world.rig, world.template("fails", phase="none")
    async with world.provisioner():
        await started(world, template)
        await rig.fact(type="agent_lifecycle", lifecycle="ready")
        before = await rig.fact(type="agent_connected")
        pid = world.agent()
    assert world.agent() == pid

    await world.stop_nats()
    await world.start_nats()
    await rig.until(lambda: rig.facts(type="agent_connected")[-1] != before)
    connected = rig.facts(type="agent_connected")[-1]

    def later() -> bool:
        numbers = [f["data"]["sequence"] for f in rig.facts(lifecycle="ready")]
        return max(numbers, default=0) > connected["data"]["sequence"]

    await rig.until(later)
    assert world.agent() == pid

    await rig.bus.ensure_stream(PRESENCE)  # workers create this memory stream again
    async with world.provisioner():
        await rig.ended(await rig.ask(rig.job(2, "stop", **template)))
    assert not [home for home in world.homes() if agent_files.running_agent(home)]
    assert "saved" in rig.output(connected["data"]["build_id"], "agent")


async def test_a_killed_agent_is_restarted(world: World) -> None:
    rig = world.rig
    async with world.provisioner():
        await started(world, world.template("fails", phase="none"))
        await rig.fact(type="agent_lifecycle", lifecycle="ready")
        first = await rig.fact(type="agent_connected")
        os.kill(world.agent(), signal.SIGKILL)
        await rig.until(lambda: rig.facts(type="agent_connected")[-1]["id"] != first["id"])
    ready = min(fact["data"]["sequence"] for fact in rig.facts(lifecycle="ready"))
    begun = [fact["data"]["sequence"] for fact in rig.facts(lifecycle="starting")]
    assert max(begun, default=0) < ready, "its script is not run again"


async def test_a_provisioner_killed_during_a_build_repeats_it(world: World, tmp_path: Path) -> None:
    rig = world.rig
    os.mkfifo(gate := tmp_path / "gate")
    script = f'if [ ! -e begun ]; then touch begun; (sleep 1000 & wait) > "{gate}"; fi'
    job = rig.job(version=rig.version({}), build={"start": script})
    program = f"""
import asyncio, os
from pathlib import Path
from bus.jetstream import connect
from handlers.provisioner import Provisioner
async def run():
    bus = await connect({world.servers.nats_url!r}, seed={world.seed("provisioner")!r},
                        inbox_prefix="_INBOX_provisioner")
    await Provisioner(bus, name="here", pool="local", root=Path({str(world.root)!r}),
                      nats_url="", environ=os.environ).run()
asyncio.run(run())
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        build = await rig.ask(job)
        begun = await rig.fact(type="build_started", build_id=build)
        with await asyncio.to_thread(gate.open) as held:
            process.kill()
            process.wait()
            assert await asyncio.to_thread(held.read) == ""
    finally:
        process.kill()
        process.wait()
    (record,) = Journal(world.root / "journal", LocalWorkspace).workspaces()
    assert record.newest is not None
    assert not record.newest.finished
    async with world.provisioner():
        await rig.ask(job)  # otherwise the job is redelivered only after 30 s
        succeeded = await rig.ended(build)

    assert succeeded["type"] == "workspaced.build_succeeded.v1"
    assert {fact["id"] for fact in rig.facts(type="build_started")} == {begun["id"]}


async def test_an_agent_of_a_superseded_build_is_not_started(world: World) -> None:
    rig, template = world.rig, world.template("fails", phase="none")
    job = rig.job(**template)
    rig.superseded.add(job["build_id"])
    async with world.provisioner():
        await rig.ended(await rig.ask(job))
        other = rig.job(1, **template, workspace_id=new_id())
        await rig.ended(await rig.ask(other))
        await rig.fact(type="agent_connected", build_id=other["build_id"])
    assert not rig.facts(type="agent_connected", build_id=job["build_id"])


async def test_secrets_are_only_in_files_that_their_owner_may_read(world: World) -> None:
    async with world.provisioner():
        await started(world, world.template("fails", phase="none"))
        await world.rig.fact(type="agent_connected")
        (home,) = world.homes()
        command = Path(f"/proc/{world.agent()}/cmdline").read_bytes()
    assert {p.stat().st_mode & 0o777 for p in home.rglob("*") if not p.is_dir()} == {0o600}
    assert {p.stat().st_mode & 0o777 for p in home.rglob("*") if p.is_dir()} == {0o700}
    assert world.seed("operator").encode() not in command
    assert json.loads((home / "credential.json").read_text())["seed"] == world.seed("operator")


async def test_a_resend_request_renews_the_credentials_of_agents(
    world: World,
) -> None:
    """A restored database lacks the agents' credentials, and knows their builds only later."""
    rig = world.rig
    async with world.provisioner():
        ended = await started(world, world.template("fails", phase="none"))
        connected = await rig.fact(type="agent_connected")
        (home,) = world.homes()
        pid = world.agent()
        build = ended["data"]["build_id"]
        rig.superseded.add(build)
        rig.credential["inbox_prefix"] = "_INBOX_another"

        await rig.bus.send("workspaced.resend.provisioner", b"{}")
        await rig.until(lambda: rig.refusals > 0, "a credential asked for in vain")
        kept = agent_files.read_credential(home)
        rig.superseded.clear()
        while (new := agent_files.read_credential(home)) == kept:
            await rig.bus.get_last("WORKSPACED_PRESENCE", "none")  # waits for a round trip

        assert kept.inbox_prefix == "_INBOX"
        assert new.inbox_prefix == "_INBOX_another"
        assert world.agent() == pid, "it goes on meanwhile"
        assert rig.facts(type="agent_connected") == [connected]
