"""A provisioner that starts reports workspaces that have stopped or vanished meanwhile (contract §3)."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import pytest

from handlers.errors import CannotServe
from handlers.provisioner import provisioner
from handlers.provisioner.workspaces_folder import MARKER
from handlers.sandbox.processes import find_marked
from tests.provisioner.conftest import Provisioning
from tests.provisioner.rig import Rig
from tests.rigs.messages import new_id


@pytest.fixture
def workspaces(tmp_path: Path) -> Path:
    return tmp_path / "root" / "workspaces"


async def test_a_workspace_that_stopped_with_its_machine_is_a_stop_made_elsewhere(
    rig: Rig, provisioning: Provisioning, workspaces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, stopped = rig.version({}), new_id()
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(4, version=version)))
        await rig.ended(await rig.ask(rig.job(1, version=version, workspace_id=stopped)))
        await rig.ended(await rig.ask(rig.job(2, "stop", version=version, workspace_id=stopped)))
    monkeypatch.setattr(provisioner, "machine_identity", lambda: "restarted")
    build = str(uuid5(NAMESPACE_URL, f"workspaced:{rig.workspace}:5"))
    ends = []
    for _ in range(2):
        rig.seen.clear()
        async with provisioning():
            ends.append(await rig.ended(build))
            started = await rig.fact(type="build_started", build_id=build)

    of_build = {
        "workspace_id": rig.workspace,
        "build_id": build,
        "build_number": 5,
        "transition": "stop",
    }
    assert started["data"] == {**of_build, "workspace_name": "tidy-owl"}
    assert ends[0]["data"] == {**of_build, "agents": []}
    assert ends[0] == ends[1], "it is reported once, and then published again"
    assert not [f for f in rig.facts(workspace_id=stopped) if f["data"]["build_number"] > 2]
    assert (workspaces / rig.workspace).is_dir()
    async with provisioning():
        succeeded = await rig.ended(await rig.ask(rig.job(6, version=version)))
    assert succeeded["type"] == "workspaced.build_succeeded.v1"


async def test_a_workspace_whose_directory_vanished_is_deleted(
    rig: Rig, provisioning: Provisioning, workspaces: Path
) -> None:
    version, failed = rig.version({}), new_id()
    async with provisioning():
        build = await rig.ask(rig.job(3, version=version))
        await rig.ended(build)
        job = rig.job(1, version=version, build={"start": "exit 1"}, workspace_id=failed)
        await rig.ended(await rig.ask(job))
    for workspace in workspaces.glob("[!.]*"):
        shutil.rmtree(workspace)
    told = []
    for _ in range(2):
        rig.seen.clear()
        async with provisioning():
            told.append(await rig.fact(type="workspace_deleted"))

    assert told[0]["data"] == {
        "workspace_id": rig.workspace,
        "build_id": build,
        "build_number": 3,
    }
    assert told[0] == told[1]
    deleted = {fact["data"]["workspace_id"] for fact in rig.facts(type="workspace_deleted")}
    assert deleted == {rig.workspace}, "a build that failed has no data to lose"


async def test_no_process_of_a_workspace_whose_directory_vanished_goes_on(
    rig: Rig, provisioning: Provisioning, workspaces: Path
) -> None:
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(3, version=rig.version({}))))
    shutil.rmtree(workspaces / rig.workspace)
    mark = f"WORKSPACED_WORKSPACE_ID={rig.workspace}"
    left = subprocess.Popen(["/bin/sleep", "1000"], env={mark.partition("=")[0]: rig.workspace})
    try:
        async with provisioning():
            await rig.fact(type="workspace_deleted")
            assert await asyncio.to_thread(left.wait) == -signal.SIGTERM
    finally:
        left.kill()
        left.wait()

    assert find_marked(mark) == []


async def test_a_start_does_not_replace_files_that_are_gone_by_an_empty_directory(
    rig: Rig, provisioning: Provisioning, workspaces: Path
) -> None:
    version = rig.version({})
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(1, version=version)))
        await rig.ended(await rig.ask(rig.job(2, "stop", version=version)))
        shutil.rmtree(workspaces / rig.workspace)
        build = await rig.ask(rig.job(3, version=version))
        failed = await rig.ended(build)
        deleted = await rig.fact(type="workspace_deleted")

    assert failed["type"] == "workspaced.build_failed.v1"
    assert "with all files in it" in failed["data"]["error"]
    assert (deleted["data"]["build_id"], deleted["data"]["build_number"]) == (build, 3)
    assert not (workspaces / rig.workspace).exists()


async def test_a_stop_of_a_workspace_whose_directory_vanished_reports_that_it_is_gone(
    rig: Rig, provisioning: Provisioning, workspaces: Path
) -> None:
    version = rig.version({})
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(1, version=version)))
        shutil.rmtree(workspaces / rig.workspace)
        build = await rig.ask(rig.job(2, "stop", version=version))
        stopped = await rig.ended(build)
        deleted = await rig.fact(type="workspace_deleted")

    assert stopped["type"] == "workspaced.build_succeeded.v1"
    assert deleted["data"]["build_id"] == build


async def test_directories_of_no_workspace_are_logged(
    rig: Rig, provisioning: Provisioning, workspaces: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (workspaces / (unknown := new_id())).mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        async with provisioning():
            await rig.ended(await rig.ask(rig.job(1, version=rig.version({}))))

    assert any(unknown in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
async def test_no_workspace_is_deleted_because_the_disk_is_not_mounted(
    rig: Rig, provisioning: Provisioning, workspaces: Path, left: str
) -> None:
    version = rig.version({})
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(1, version=version)))
    workspaces.rename(disk := workspaces.with_name("unmounted"))
    if left == "an empty folder":
        workspaces.mkdir()
    with pytest.raises(CannotServe, match=r"Mount it.*\.workspaces"):
        async with provisioning():
            pass
    assert not rig.facts(type="workspace_deleted")

    shutil.rmtree(workspaces, ignore_errors=True)
    disk.rename(workspaces)
    async with provisioning():
        stopped = await rig.ended(await rig.ask(rig.job(2, "stop", version=version)))
    assert stopped["type"] == "workspaced.build_succeeded.v1"
    assert not rig.facts(type="workspace_deleted")


async def test_workspaces_that_are_gone_for_good_are_deleted_once_somebody_says_so(
    rig: Rig, provisioning: Provisioning, workspaces: Path
) -> None:
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(1, version=rig.version({}))))
    shutil.rmtree(workspaces)
    workspaces.mkdir()
    (workspaces / MARKER).touch()
    async with provisioning():
        deleted = await rig.fact(type="workspace_deleted")

    assert deleted["data"]["workspace_id"] == rig.workspace


async def test_a_folder_of_an_earlier_version_has_no_marker_and_gets_one(
    rig: Rig, provisioning: Provisioning, workspaces: Path
) -> None:
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(1, version=rig.version({}))))
    (workspaces / MARKER).unlink()
    async with provisioning() as running:
        await asyncio.wait_for(running.ready.wait(), 30)

    assert (workspaces / MARKER).is_file()
    assert not rig.facts(type="workspace_deleted")


@pytest.mark.parametrize("transition", ["start", "stop", "delete"])
async def test_nothing_is_built_or_reported_as_deleted_while_the_disk_is_not_mounted(
    rig: Rig, provisioning: Provisioning, workspaces: Path, transition: str
) -> None:
    version, made = rig.version({}), {"start": "touch made"}
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(1, version=version, build=made)))
        if transition == "start":
            await rig.ended(await rig.ask(rig.job(2, "stop", version=version)))
        workspaces.rename(disk := workspaces.with_name("unmounted"))
        workspaces.mkdir()
        failed = await rig.ended(await rig.ask(rig.job(3, transition, version=version)))
        assert list(workspaces.iterdir()) == []
        workspaces.rmdir()
        disk.rename(workspaces)
        started = await rig.ended(await rig.ask(rig.job(4, version=version)))

    assert failed["type"] == "workspaced.build_failed.v1"
    assert "not mounted" in failed["data"]["error"]
    assert started["type"] == "workspaced.build_succeeded.v1"
    assert (workspaces / rig.workspace / "made").exists()
    assert not rig.facts(type="workspace_deleted")


async def test_agents_go_on_if_a_stop_fails_because_the_disk_is_not_mounted(
    rig: Rig, provisioning: Provisioning, workspaces: Path, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    version, agent = rig.version({}), {"agent": [{"name": "main"}]}
    mark = f"WORKSPACED_WORKSPACE_ID={rig.workspace}"
    command = ("/bin/sh", "-c", f"echo runs > {gate}; exec sleep 1000")
    async with provisioning(agent_command=command):
        await rig.ended(await rig.ask(rig.job(1, version=version, **agent)))
        assert await asyncio.to_thread(gate.read_text) == "runs\n"
        running = find_marked(mark)
        workspaces.rename(disk := workspaces.with_name("unmounted"))
        workspaces.mkdir()
        failed = await rig.ended(await rig.ask(rig.job(2, "stop", version=version, **agent)))
        left = find_marked(mark)
        workspaces.rmdir()
        disk.rename(workspaces)
        stopped = await rig.ended(await rig.ask(rig.job(3, "stop", version=version, **agent)))

    assert failed["type"] == "workspaced.build_failed.v1"
    assert left == running != []
    assert stopped["type"] == "workspaced.build_succeeded.v1"
    assert find_marked(mark) == []
