"""Workers can cancel a build at any time (contract §3, build_cancel; §4)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from workspaced.provisioning import session

from bus.streams import JOB
from handlers.provisioner import archive, builder
from handlers.sandbox.policy import Confinement, Mechanism
from handlers.sandbox.processes import find_marked
from tests.doubles.memory_server import MemoryServer
from tests.provisioner.conftest import Provisioning
from tests.provisioner.rig import PATIENCE, Rig
from tests.provisioner.test_confinement import WAYS
from tests.rigs.messages import Event, cloud_event, new_id

EVERY_WAY = pytest.mark.parametrize("way", [Mechanism.RLIMITS, *WAYS])
STUBBORN = """
trap "" TERM HUP INT
mkfifo alive && exec 9<>alive
(trap "" TERM; exec setsid sleep 1001) &
(setsid sh -c 'trap "" TERM; sleep 1002 & sleep 1003 & wait' &) &
env -i PATH="$PATH" setsid sh -c 'trap "" TERM; (sleep 1004 &); sleep 1005' &
(while :; do sleep 0.1; done) &
echo running
while :; do sleep 1006; done
"""
"""A step that ignores SIGTERM, and whose processes leave its group, its session and its environment."""

FORKING = """
python3 -c '
import os, time
os.setsid()
os.mkfifo("alive")
os.set_inheritable(os.open("alive", os.O_RDWR), True)
print("running", flush=True)
end = time.time() + 60
while time.time() < end:
    if os.fork():
        os._exit(0)
'; sleep 1000
"""
"""A step with a process that forks and ends all the time, so that a search hardly ever finds it."""
RELUCTANT = """
trap 'while :; do date >> dying; done' TERM HUP INT
mkdir half && chmod 000 half
mkfifo alive && exec 9<>alive
(while :; do date >> more; echo still here; sleep 0.01; done) &
echo running
kill -STOP $$
"""
"""A step that writes files and output until its end, when it is told to end too, and is stopped."""


class Worker:
    """Cancels builds as workers do: it repeats each request when the build is reported as begun."""

    def __init__(self, rig: Rig) -> None:
        self._rig, self._canceled = rig, dict[str, Event]()

    async def cancel(self, job: Event) -> None:
        self._canceled[job["build_id"]] = job
        await self._send(job)

    async def repeat(self) -> None:
        seen = 0
        while True:
            await self._rig.until(lambda: len(self._rig.seen) > seen)  # noqa: B023 — called at once
            new, seen = self._rig.seen[seen:], len(self._rig.seen)
            for _, event in new:
                build = event.get("data", {}).get("build_id")
                if build in self._canceled and "build_started" in event["type"]:
                    await self._send(self._canceled[build])

    async def _send(self, job: Event) -> None:
        ids = {key: job[key] for key in ("chat_id", "workspace_id", "build_id")}
        event = cloud_event("build_cancel", "/workspaced", job["chat_id"], ids)
        await self._rig.bus.send("workspaced.cancel.local", json.dumps(event).encode())


@pytest.fixture
async def worker(rig: Rig) -> AsyncIterator[Worker]:
    worker = Worker(rig)
    repeating = asyncio.create_task(worker.repeat())
    yield worker
    repeating.cancel()


@pytest.fixture
def workspace(tmp_path: Path, rig: Rig) -> Path:
    return tmp_path / "root" / "workspaces" / rig.workspace


async def canceled(rig: Rig, job: Event) -> Event:
    ended = await rig.ended(job["build_id"])
    assert ended["type"] == "workspaced.build_canceled.v1"
    keys = ("workspace_id", "build_id", "build_number", "transition")
    assert ended["data"] == {key: job[key] for key in keys}
    return ended


async def cancel_while_it_runs(rig: Rig, worker: Worker, job: dict[str, Any]) -> None:
    """Request a build whose step prints `running`, cancel it then, and wait for its end."""
    build = await rig.ask(job)
    await rig.until(lambda: "running" in rig.output(build), "the step runs")
    await worker.cancel(job)
    await canceled(rig, job)


def confined(way: Mechanism) -> dict[str, Any]:
    return {"confinement": Confinement(way, bubblewrap="bwrap")}


@EVERY_WAY
@pytest.mark.parametrize(
    ("transition", "step"),
    [
        ("start", STUBBORN),
        ("stop", STUBBORN),
        ("delete", STUBBORN),
        ("start", FORKING),
        ("start", RELUCTANT),
    ],
    ids=["start", "stop", "delete", "forking", "reluctant"],
)
async def test_nothing_is_left_of_a_canceled_step(
    rig: Rig,
    provisioning: Provisioning,
    worker: Worker,
    workspace: Path,
    way: Mechanism,
    transition: str,
    step: str,
) -> None:
    version = rig.version({})
    async with provisioning(**confined(way)):
        await rig.ended(await rig.ask(rig.job(1, version=version)))
        job = rig.job(2, transition, version=version, build={transition: step})
        build = await rig.ask(job)
        await rig.until(lambda: "running" in rig.output(build), "the step runs")
        held = await asyncio.to_thread(os.open, workspace / "alive", os.O_RDONLY)
        begun = asyncio.get_running_loop().time()
        await worker.cancel(job)
        await canceled(rig, job)
        took = asyncio.get_running_loop().time() - begun
        with os.fdopen(held) as alive:
            async with asyncio.timeout(PATIENCE):
                await asyncio.to_thread(alive.read)  # returns when all of the step have ended
        assert find_marked(f"WORKSPACED_BUILD_ID={build}") == []
        again = rig.job(3, version=version, build={"start": "echo well"})
        succeeded = await rig.ended(await rig.ask(again))

    assert took < 15
    assert succeeded["type"] == "workspaced.build_succeeded.v1"
    assert "asked to cancel it" in rig.output(build)


async def test_a_canceled_first_build_leaves_no_files(
    rig: Rig, provisioning: Provisioning, worker: Worker, workspace: Path, tmp_path: Path
) -> None:
    version, delete = rig.version({"f": "x"}), f'echo "$PWD" > {tmp_path}/deleted'
    step = {"start": "mkdir half && echo running && sleep 1000", "delete": delete}
    async with provisioning():
        first = rig.job(1, version=version, build=step)
        await cancel_while_it_runs(rig, worker, first)
        assert not workspace.exists()
        assert (tmp_path / "deleted").read_text() == f"{workspace}\n"
        second = rig.job(2, version=version, build={"start": "mkdir half"})
        assert (await rig.ended(await rig.ask(second)))["type"].endswith("succeeded.v1")


async def test_files_stay_if_the_delete_step_of_a_canceled_first_build_fails(
    rig: Rig, provisioning: Provisioning, worker: Worker, workspace: Path
) -> None:
    version = rig.version({})
    step = {"start": "touch half && echo running && sleep 1000", "delete": "exit 1"}
    async with provisioning():
        first = rig.job(1, version=version, build=step)
        await cancel_while_it_runs(rig, worker, first)

    assert (workspace / "half").exists()


async def test_files_of_a_workspace_in_which_somebody_has_worked_stay(
    rig: Rig, provisioning: Provisioning, worker: Worker, workspace: Path
) -> None:
    version = rig.version({})
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(1, version=version, build={"start": "touch work"})))
        job = rig.job(2, version=version, build={"start": "echo running && sleep 1000"})
        await cancel_while_it_runs(rig, worker, job)

    assert (workspace / "work").exists()


async def test_a_cancel_that_arrives_before_its_job_is_obeyed(
    rig: Rig, provisioning: Provisioning, worker: Worker, workspace: Path
) -> None:
    version = rig.version({})
    job = rig.job(1, version=version, build={"start": "touch built"})
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(1, version=version, workspace_id=new_id())))
        await worker.cancel(job)
        await rig.ask(job)
        await canceled(rig, job)

    assert not workspace.exists()
    assert not rig.facts(type="build_started", build_id=job["build_id"])


@pytest.mark.parametrize("times", [1, 2])
async def test_a_queued_build_is_canceled_and_the_builds_beside_it_are_not(
    rig: Rig,
    provisioning: Provisioning,
    worker: Worker,
    workspace: Path,
    tmp_path: Path,
    times: int,
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    version = rig.version({})
    jobs = [
        rig.job(1, version=version, build={"start": f"read line < {gate}"}),
        rig.job(2, "stop", version=version, build={"stop": "touch stopped"}),
        rig.job(3, version=version, build={"start": "touch started"}),
    ]
    async with provisioning():
        for job in jobs:
            await rig.ask(job)
        await rig.fact(type="build_started", build_id=jobs[0]["build_id"])
        # Its build_started shows that the provisioner has taken everything before.
        beside = await rig.ask(rig.job(1, version=version, workspace_id=new_id()))
        await rig.ended(beside)
        for _ in range(times):
            await worker.cancel(jobs[1])
        await asyncio.to_thread(gate.write_text, "\n")
        await canceled(rig, jobs[1])
        ends = [await rig.ended(jobs[n]["build_id"]) for n in (0, 2)]

    assert {end["type"] for end in ends} == {"workspaced.build_succeeded.v1"}
    assert not (workspace / "stopped").exists()
    assert (workspace / "started").exists()
    assert not rig.facts(type="build_started", build_id=jobs[1]["build_id"])


async def test_a_canceled_build_that_waits_for_a_slot_is_answered_at_once(
    rig: Rig,
    provisioning: Provisioning,
    worker: Worker,
    tmp_path: Path,
) -> None:
    os.mkfifo(never := tmp_path / "never")
    version = rig.version({})
    long = rig.job(1, version=version, build={"start": f"cat {never}"}, workspace_id=new_id())
    job = rig.job(1, version=version)
    async with provisioning(builds=1):
        await rig.fact(type="build_started", build_id=await rig.ask(long))
        await rig.ask(job)
        await worker.cancel(job)
        await canceled(rig, job)
        await worker.cancel(long)
        await canceled(rig, long)


async def test_a_success_that_came_first_counts_and_is_published_again(
    rig: Rig, provisioning: Provisioning, worker: Worker
) -> None:
    job = rig.job(1, version=rig.version({}))
    async with provisioning():
        succeeded = await rig.ended(await rig.ask(job))
        rig.seen.clear()
        await worker.cancel(job)
        again = await rig.ended(job["build_id"])

    assert again == succeeded


async def test_a_cancel_of_a_build_of_another_provisioner_is_ignored(
    rig: Rig, provisioning: Provisioning, worker: Worker
) -> None:
    version = rig.version({})
    elsewhere = rig.job(1, version=version, workspace_id=new_id())
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(1, version=version)))
        await worker.cancel(elsewhere)
        for body in (b"{not json", b"[]", b'{"type": "workspaced.build_cancel.v1", "data": 7}'):
            await rig.bus.send("workspaced.cancel.local", body)
        ended = await rig.ended(await rig.ask(rig.job(2, version=version)))

    assert ended["type"] == "workspaced.build_succeeded.v1"
    assert not rig.facts(build_id=elsewhere["build_id"])


async def test_a_build_is_canceled_while_its_archive_is_fetched(
    rig: Rig, provisioning: Provisioning, worker: Worker, workspace: Path
) -> None:
    version = rig.version({"f": "x"})
    packed = rig.archives.pop(version["version_id"])  # no answer until it is there again
    job = rig.job(1, version=version)
    async with provisioning():
        await rig.fact(type="build_started", build_id=await rig.ask(job))
        await worker.cancel(job)
        await canceled(rig, job)
        rig.archives[version["version_id"]] = packed
        second = rig.job(2, version=version, build={"start": "cat f"})
        ended = await rig.ended(await rig.ask(second))

    assert ended["type"] == "workspaced.build_succeeded.v1"


async def test_a_canceled_build_ends_after_its_files_are_unpacked(
    rig: Rig,
    provisioning: Provisioning,
    worker: Worker,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A thread can't be canceled, and the next build must not find it at work."""
    os.mkfifo(gate := tmp_path / "gate")
    unpack, order = archive.unpack, list[str]()

    def slowly(*arguments: Any) -> None:
        order.append("begun")
        gate.read_text()
        unpack(*arguments)
        order.append("unpacked")

    monkeypatch.setattr(builder.archive, "unpack", slowly)
    job = rig.job(1, version=rig.version({"f": "x"}))
    async with provisioning():
        await rig.ask(job)
        writing = await asyncio.to_thread(os.open, gate, os.O_WRONLY)
        await worker.cancel(job)
        os.close(writing)
        await canceled(rig, job)

    assert order == ["begun", "unpacked"]
    assert not workspace.exists()


async def test_a_cancel_that_was_missed_is_obeyed_after_a_restart_and_a_reconnect(
    rig: Rig, server: MemoryServer, provisioning: Provisioning, worker: Worker, workspace: Path
) -> None:
    version = rig.version({})
    job = rig.job(1, version=version, build={"start": "mkdir half; echo running; sleep 1000"})
    async with provisioning():
        build = await rig.ask(job)
        await rig.until(lambda: "running" in rig.output(build), "the step runs")
    await worker.cancel(job)  # nobody hears it
    async with provisioning():
        await canceled(rig, job)
        assert not workspace.exists()


async def begin_and_lose(rig: Rig, provisioning: Provisioning, job: Event) -> None:
    """Begin a build whose step prints `running`, end the provisioner, and take the job out of the queue."""
    async with provisioning():
        build = await rig.ask(job)
        await rig.until(lambda: "running" in rig.output(build), "the step runs")
    await rig.bus.purge(JOB.name, (await rig.bus.stream_info(JOB.name)).last)


async def test_nothing_is_left_of_a_build_that_is_canceled_after_a_crash_and_whose_job_is_gone(
    rig: Rig, provisioning: Provisioning, worker: Worker, workspace: Path, tmp_path: Path
) -> None:
    version, deleted = rig.version({}), tmp_path / "deleted"
    step = {
        "start": "mkdir half; echo running; sleep 1000",
        "delete": f'echo "$WORKSPACED_TRANSITION" >> {deleted}',
    }
    job = rig.job(1, version=version, build=step)
    await begin_and_lose(rig, provisioning, job)
    # A provisioner that is killed leaves the processes of its step.
    marked = {**os.environ, "WORKSPACED_BUILD_ID": job["build_id"]}
    left = await asyncio.create_subprocess_exec("sleep", "1000", env=marked)
    await worker.cancel(job)  # nobody hears it
    try:
        assert (workspace / "half").exists()
        async with provisioning():
            await canceled(rig, job)
            assert deleted.read_text() == "delete\n"
            assert not workspace.exists()
            assert find_marked(f"WORKSPACED_BUILD_ID={job['build_id']}") == []
            ended = await rig.ended(await rig.ask(rig.job(2, version=version)))
    finally:
        with suppress(ProcessLookupError):
            left.kill()
        await left.wait()

    assert ended["type"] == "workspaced.build_succeeded.v1"


@pytest.mark.parametrize("kept", ["", "{not json"])
async def test_a_build_whose_kept_job_can_not_be_read_is_canceled_without_its_delete_step(
    rig: Rig,
    provisioning: Provisioning,
    worker: Worker,
    workspace: Path,
    tmp_path: Path,
    kept: str,
) -> None:
    version, step = rig.version({}), "mkdir half; echo running; sleep 1000"
    job = rig.job(1, version=version, build={"start": step, "delete": f"touch {tmp_path}/deleted"})
    await begin_and_lose(rig, provisioning, job)
    (path,) = (tmp_path / "root" / "jobs").iterdir()
    path.write_text(kept) if kept else path.unlink()
    await worker.cancel(job)  # nobody hears it
    async with provisioning():
        await canceled(rig, job)
        assert not workspace.exists()

    assert not (tmp_path / "deleted").exists()


async def test_jobs_are_kept_only_while_their_builds_run(
    rig: Rig, provisioning: Provisioning, worker: Worker, tmp_path: Path
) -> None:
    version, jobs = rig.version({}), tmp_path / "root" / "jobs"
    job = rig.job(1, version=version, build={"start": "echo running; sleep 1000"})
    async with provisioning():
        build = await rig.ask(job)
        await rig.until(lambda: "running" in rig.output(build), "the step runs")
        (path,) = jobs.iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        await worker.cancel(job)
        await canceled(rig, job)
        assert list(jobs.iterdir()) == []
    (jobs / f"{new_id()}.json").write_text("left by a crash")
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(2, version=version)))

    assert list(jobs.iterdir()) == []


async def test_a_build_that_was_interrupted_and_overtaken_by_a_delete_runs_its_delete_step(
    rig: Rig, provisioning: Provisioning, worker: Worker, workspace: Path, tmp_path: Path
) -> None:
    version, deleted = rig.version({}), tmp_path / "deleted"
    step = {
        "start": "mkdir half; echo running; sleep 1000",
        "delete": f"ls >> {deleted}",
    }
    first = rig.job(1, version=version, build=step)
    async with provisioning():
        build = await rig.ask(first)
        await rig.until(lambda: "running" in rig.output(build), "the step runs")
    delete = rig.job(2, "delete", version=version, build=step)
    await rig.ask(delete)
    async with provisioning():
        await canceled(rig, first)
        ended = await rig.ended(delete["build_id"])

    assert ended["type"] == "workspaced.build_succeeded.v1"
    assert deleted.read_text() == "half\n"
    assert not workspace.exists()


async def test_a_job_that_arrives_while_its_canceled_build_is_removed_is_not_run(
    rig: Rig,
    provisioning: Provisioning,
    worker: Worker,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    begun, go_on, clean_up = asyncio.Event(), asyncio.Event(), builder.Builder.clean_up

    async def slowly(*arguments: Any, **more: Any) -> None:
        begun.set()
        await go_on.wait()
        await clean_up(*arguments, **more)

    monkeypatch.setattr(builder.Builder, "clean_up", slowly)
    version = rig.version({})
    step = f"echo run >> {tmp_path}/runs; echo running; sleep 1000"
    job = rig.job(1, version=version, build={"start": step})
    await begin_and_lose(rig, provisioning, job)
    await worker.cancel(job)  # nobody hears it
    async with provisioning(), asyncio.timeout(PATIENCE):
        await begun.wait()
        await rig.ask(job)
        # Its end shows that the provisioner has taken everything before.
        await rig.ended(await rig.ask(rig.job(1, version=version, workspace_id=new_id())))
        assert not rig.facts(type="build_canceled")
        go_on.set()
        await canceled(rig, job)
        await rig.ended(await rig.ask(rig.job(2, version=version)))

    assert (tmp_path / "runs").read_text() == "run\n"
    assert len({fact["id"] for fact in rig.facts(type="build_canceled")}) == 1


async def test_the_agents_of_a_newer_build_stay_when_an_older_one_that_began_is_canceled(
    rig: Rig, provisioning: Provisioning, worker: Worker, workspace: Path
) -> None:
    version, agent = rig.version({}), ("/bin/sh", "-c", "exec sleep 1000")
    job = rig.job(1, version=version, build={"start": "echo running; sleep 1000"})
    await begin_and_lose(rig, provisioning, job)
    async with provisioning(agent_command=agent):
        newer = rig.job(2, version=version, agent=[{"name": "main"}])
        (made,) = (await rig.ended(await rig.ask(newer)))["data"]["agents"]
        await worker.cancel(job)
        await canceled(rig, job)
        supervised = find_marked(f"WORKSPACED_AGENT_ID={made['id']}")
        await rig.ended(await rig.ask(rig.job(3, "delete", version=version)))

    assert supervised
    assert not rig.facts(type="agent_exited")


async def test_facts_of_open_builds_are_published_again_after_a_reconnect(
    rig: Rig, server: MemoryServer, provisioning: Provisioning, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    version, other = rig.version({}), new_id()
    async with provisioning():
        done = await rig.ask(rig.job(1, version=version, workspace_id=other))
        await rig.ended(done)
        build = await rig.ask(rig.job(1, version=version, build={"start": f"read x < {gate}"}))
        started = await rig.fact(type="build_started", build_id=build)
        rig.seen.clear()
        server.stop()
        server.start()
        again = await rig.fact(type="build_started", build_id=build)
        assert again == started
        assert not rig.facts(build_id=done)
        await asyncio.to_thread(gate.write_text, "\n")
        await rig.ended(build)


def test_requests_to_cancel_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_CANCELS_KEPT", 2)
    known = session.Cancels()
    for build in ("a", "b", "a", "c"):
        known.add(build)

    assert [build in known for build in ("a", "b", "c")] == [False, True, True]
