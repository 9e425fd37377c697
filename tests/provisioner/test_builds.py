"""A provisioner turns jobs into facts (contract §2, §3)."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bus.streams import JOB
from handlers.provisioner import builder
from statemachine import codec
from statemachine.mask import Mask
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_server import MemoryServer
from tests.provisioner.conftest import Provisioning
from tests.provisioner.rig import Rig
from tests.rigs.messages import new_id


@pytest.fixture
def workspace(tmp_path: Path, rig: Rig) -> Path:
    return tmp_path / "root" / "workspaces" / rig.workspace


async def acked(rig: Rig, server: MemoryServer) -> None:
    """Wait until earlier jobs are acked: a later build has ended, and at most its job is left."""
    after = await rig.ask(rig.job(1, workspace_id=new_id(), version=rig.version({})))
    await rig.ended(after)
    for _ in range(3):
        await server.turn()
    assert len(server.streams[JOB.name].messages) <= 1


async def test_a_job_is_built_and_its_facts_are_published(
    rig: Rig, server: MemoryServer, provisioning: Provisioning, workspace: Path
) -> None:
    version = rig.version({"build.sh": '#!/bin/sh\nenv | sort\npwd\nprintf %s "$0" > made\n'})
    job = rig.job(
        3,
        version=version,
        build={"start": "./build.sh"},
        parameters={"git-branch": "$(touch /tmp/pwned); 'x\"", "n": "1"},
    )
    async with provisioning():
        build = await rig.ask(job)
        succeeded = await rig.ended(build)
        started = await rig.fact(type="build_started", build_id=build)
        await acked(rig, server)

    of_build = {
        "workspace_id": rig.workspace,
        "build_id": build,
        "build_number": 3,
        "transition": "start",
    }
    assert started["data"] == {
        **of_build,
        "workspace_name": "tidy-owl",
        "owner_name": "ann",
        "template_id": rig.template,
        "template_version_id": version["version_id"],
    }
    assert succeeded["type"] == "workspaced.build_succeeded.v1"
    assert succeeded["data"] == {
        **of_build,
        "template_version_id": version["version_id"],
        "agents": [],
    }
    assert (succeeded["source"], succeeded["subject"]) == ("/provisioner/here", rig.chat)
    assert succeeded["traceparent"].split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
    subjects = {subject for subject, event in rig.seen if event["data"]["build_id"] == build}
    assert subjects == {
        f"workspaced.in.provisioner.{rig.chat}.here",
        f"workspaced.log.{rig.chat}.{build}",
    }
    assert (workspace / "made").read_text() == "./build.sh"
    lines = rig.output(build).splitlines()
    assert str(workspace) in lines
    seen = dict(line.split("=", 1) for line in lines if line.startswith("WORKSPACED_"))
    assert seen["WORKSPACED_PARAM_GIT_BRANCH"] == "$(touch /tmp/pwned); 'x\""
    assert seen["WORKSPACED_CHAT_ID"] == rig.chat
    assert seen["WORKSPACED_OWNER_NAME"] == "ann"
    logged = [e["data"] for e in rig.events(f"workspaced.log.{rig.chat}.{build}")]
    assert [line["sequence"] for line in logged] == list(range(1, len(logged) + 1))
    assert set(logged[0]) == {"build_id", "origin", "stage", "level", "output", "sequence"}


async def test_a_failed_step_reports_its_status_and_last_lines(
    rig: Rig, provisioning: Provisioning
) -> None:
    job = rig.job(version=rig.version({}), build={"start": "echo one; echo no image >&2; exit 7"})
    async with provisioning():
        failed = await rig.ended(await rig.ask(job))

    assert failed["type"] == "workspaced.build_failed.v1"
    error = failed["data"]["error"]
    assert "start step" in error
    assert "status 7" in error
    assert error.endswith("one\nno image")
    assert "error_code" not in failed["data"]


async def test_a_step_may_report_a_typed_error(rig: Rig, provisioning: Provisioning) -> None:
    said = {
        "error": "no credits left",
        "error_code": "INSUFFICIENT_QUOTA",
        "quota": {"credits_consumed": 50, "budget": 50},
    }
    script = f"printf %s '{json.dumps(said)}' > \"$WORKSPACED_ERROR_FILE\"; exit 1"
    async with provisioning():
        job = rig.job(version=rig.version({}), build={"start": script})
        failed = await rig.ended(await rig.ask(job))

    assert {key: failed["data"][key] for key in said} == said


async def test_masks_are_built_outside_the_event_loop(
    rig: Rig, provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building the mask of a 100 KiB value takes seconds; heartbeats must continue meanwhile."""
    threads: list[threading.Thread] = []

    def build_mask(values: list[str]) -> Mask:
        threads.append(threading.current_thread())
        return Mask(values)

    monkeypatch.setattr(builder, "Mask", build_mask)
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(1, version=rig.version({}))))

    assert threads
    assert threading.main_thread() not in threads


async def test_sensitive_values_appear_in_no_log_and_no_fact(
    rig: Rig, provisioning: Provisioning
) -> None:
    manifest = '[[parameter]]\nname = "token"\nsensitive = true\n[[parameter]]\nname = "open"\n'
    job = rig.job(
        version=rig.version({"template.toml": manifest}),
        build={"start": 'echo "$WORKSPACED_PARAM_TOKEN $WORKSPACED_PARAM_OPEN"; exit 1'},
        parameters={"token": "s3cr3t", "open": "door"},
    )
    async with provisioning():
        build = await rig.ask(job)
        failed = await rig.ended(build)

    assert "*** door" in rig.output(build)
    assert failed["data"]["error"].endswith("*** door")
    assert not any("s3cr3t" in json.dumps(event) for _, event in rig.seen)


async def test_a_redelivered_job_is_answered_from_the_journal(
    rig: Rig, provisioning: Provisioning, workspace: Path
) -> None:
    job = rig.job(version=rig.version({}), build={"start": "echo run >> runs"})
    async with provisioning():
        first = await rig.ended(await rig.ask(job))
    rig.seen.clear()
    async with provisioning():
        again = await rig.ended(await rig.ask(job))

    assert again == first
    assert (workspace / "runs").read_text() == "run\n"


async def test_a_job_that_arrives_after_not_after_is_not_built(
    rig: Rig, provisioning: Provisioning, workspace: Path
) -> None:
    late = codec.timestamp(datetime.now(UTC) - timedelta(seconds=1))
    job = rig.job(version=rig.version({}), build={"start": "touch built"}, not_after=late)
    async with provisioning():
        canceled = await rig.ended(await rig.ask(job))

    assert canceled["type"] == "workspaced.build_canceled.v1"
    assert not workspace.exists()


async def test_a_superseded_job_is_not_built(
    rig: Rig, provisioning: Provisioning, workspace: Path
) -> None:
    version = rig.version({})
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(5, version=version)))
        old = await rig.ask(rig.job(4, version=version, build={"start": "touch built"}))
        canceled = await rig.ended(old)

    assert canceled["type"] == "workspaced.build_canceled.v1"
    assert not (workspace / "built").exists()
    assert not rig.facts(type="build_started", build_id=old)


async def test_jobs_of_one_workspace_run_in_order_and_those_of_others_in_parallel(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    version, other = rig.version({}), new_id()
    first = rig.job(1, version=version, build={"start": f"read line < {gate}"})
    second = rig.job(2, "stop", version=version, build={"stop": "echo stopping"})
    beside = rig.job(1, version=version, workspace_id=other, build={"start": f"echo > {gate}"})
    async with provisioning():
        builds = [await rig.ask(job) for job in (first, second, beside)]
        for build in builds:
            await rig.ended(build)

    told = [
        (fact["data"]["build_number"], fact["type"].split(".")[1])
        for fact in rig.facts(workspace_id=rig.workspace)
    ]
    order = list(dict.fromkeys(told))  # a provisioner that starts repeats its newest facts
    assert order == [
        (1, "build_started"),
        (1, "build_succeeded"),
        (2, "build_started"),
        (2, "build_succeeded"),
    ]


async def test_a_delete_job_cancels_a_running_build_and_removes_the_directory(
    rig: Rig, provisioning: Provisioning, workspace: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "never")
    version = rig.version({"a/b": "x"})
    start = rig.job(1, version=version, build={"start": f"cat {tmp_path / 'never'}"})
    async with provisioning():
        build = await rig.ask(start)
        await rig.fact(type="build_started", build_id=build)
        delete = await rig.ask(rig.job(2, "delete", version=version, build={"delete": "true"}))
        canceled, deleted = await rig.ended(build), await rig.ended(delete)

    assert canceled["type"] == "workspaced.build_canceled.v1"
    assert deleted["type"] == "workspaced.build_succeeded.v1"
    assert deleted["data"]["agents"] == []
    assert not workspace.exists()


async def test_unreadable_jobs_do_not_block_the_pool(
    rig: Rig, server: MemoryServer, provisioning: Provisioning
) -> None:
    readable = rig.job(1, version=rig.version({}))
    del readable["workspace_name"]
    async with provisioning():
        await rig.ask_raw(b"{not json")
        await rig.ask_raw(b'{"specversion": "1.0", "data": []}')
        failed = await rig.ended(await rig.ask(readable))
        await acked(rig, server)

    assert failed["type"] == "workspaced.build_failed.v1"
    assert "workspace_name" in failed["data"]["error"]


async def test_an_archive_that_differs_from_the_jobs_checksum_fails_the_build(
    rig: Rig, provisioning: Provisioning
) -> None:
    version = rig.version({"build.sh": "true"})
    version["archive"]["sha256"] = "0" * 64
    async with provisioning():
        failed = await rig.ended(await rig.ask(rig.job(version=version)))

    assert failed["type"] == "workspaced.build_failed.v1"


async def test_the_newest_facts_are_published_again_unchanged_on_request(
    rig: Rig, server: MemoryServer, provisioning: Provisioning
) -> None:
    version = rig.version({})
    async with provisioning():
        old = await rig.ask(rig.job(1, version=version))
        await rig.ended(old)
        build = await rig.ask(rig.job(2, version=version))
        await rig.ended(build)
        facts = {fact["id"]: fact for fact in rig.facts(build_id=build)}
        rig.seen.clear()
        async with MemoryBus(server) as worker:
            await worker.send("workspaced.resend.provisioner", b"")
        await rig.ended(build)

    assert {fact["id"]: fact for fact in rig.facts()} == facts


async def test_facts_of_a_build_during_an_outage_are_published_afterwards(
    rig: Rig, server: MemoryServer, provisioning: Provisioning, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job = rig.job(version=rig.version({}), build={"start": f"echo begun; echo ready > {gate}"})
    async with provisioning():
        build = await rig.ask(job)
        await rig.fact(type="build_started", build_id=build)
        await rig.until(lambda: "begun" in rig.output(build))
        server.stop()
        await asyncio.to_thread(gate.read_text)
        server.start()
        succeeded = await rig.ended(build)

    assert succeeded["type"] == "workspaced.build_succeeded.v1"


async def test_a_stopped_provisioner_ends_its_steps_and_repeats_the_build_later(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    # The first run blocks for ever. Its process holds the pipe that the test reads to its end.
    script = f'if [ ! -e begun ]; then touch begun; (sleep 1000 & echo $$; wait) > "{gate}"; fi'
    job = rig.job(version=rig.version({}), build={"start": script})
    async with provisioning():
        build = await rig.ask(job)
        started = await rig.fact(type="build_started", build_id=build)
        held = await asyncio.to_thread(os.open, gate, os.O_RDONLY)
    with os.fdopen(held) as running:
        await asyncio.to_thread(running.read)  # returns when all processes of the step have ended
    rig.seen.clear()
    async with provisioning():
        await rig.ask(job)
        await rig.ended(build)

    assert rig.facts(type="build_started") == [started] * len(rig.facts(type="build_started"))
    assert rig.facts(type="build_succeeded")
