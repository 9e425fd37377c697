"""The limit of disk space per owner on a provisioner's machine."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from handlers.provisioner import QuotaLimits
from handlers.provisioner.quota import measure_disk_usage
from tests.provisioner.conftest import Provisioning
from tests.provisioner.rig import Rig
from tests.provisioner.test_quota import built, refused, start, succeeded
from tests.rigs.messages import new_id

MIB = 1024 * 1024
FOUR = QuotaLimits(disk_mib=4)


def write(mib: int, name: str = "big") -> str:
    return f"head -c {mib * MIB} /dev/urandom > {name}"


@pytest.fixture
def places(tmp_path: Path) -> Path:
    return tmp_path / "root" / "workspaces"


async def test_a_new_workspace_above_the_disk_quota_fails_and_is_removed(
    rig: Rig, provisioning: Provisioning, places: Path, tmp_path: Path
) -> None:
    delete = f'echo "$WORKSPACED_TRANSITION" > {tmp_path / "deleted"}'
    greedy = start(rig, build={"start": write(5), "delete": delete})
    async with provisioning(quota_limits=FOUR):
        failed = await built(rig, greedy)
        left = (places / greedy["workspace_id"]).exists()
        assert succeeded(await built(rig, start(rig, build={"start": write(3)})))

    assert failed["type"] == "workspaced.build_failed.v1"
    assert failed["data"]["error_code"] == "INSUFFICIENT_QUOTA"
    quota = failed["data"]["quota"]
    assert 5 < quota["credits_consumed"] < 6
    assert quota["budget"] == 4
    for words in (f"use {quota['credits_consumed']} MiB", "may use 4 MiB", "tidy-owl", "Delete"):
        assert words in failed["data"]["error"]
    assert not left
    assert (tmp_path / "deleted").read_text() == "delete\n"


async def test_an_existing_workspace_above_the_disk_quota_keeps_its_files_but_does_not_start(
    rig: Rig, provisioning: Provisioning, places: Path
) -> None:
    first = start(rig, build={"start": write(1)})
    workspace, same = places / first["workspace_id"], {"workspace_id": first["workspace_id"]}
    async with provisioning(quota_limits=FOUR):
        await built(rig, first)
        assert refused(await built(rig, start(rig, 2, **same, build={"start": write(4, "more")})))
    async with provisioning(quota_limits=FOUR):
        third = start(rig, 3, **same, build={"start": "touch begun"})
        assert refused(await built(rig, third))
        kept = {path.name for path in workspace.iterdir()}
        (workspace / "more").unlink()
        assert succeeded(await built(rig, start(rig, 4, **same)))

    assert kept == {".workspaced", "big", "more"}


async def test_the_disk_quota_sums_all_existing_workspaces_of_the_owner(
    rig: Rig, provisioning: Provisioning
) -> None:
    first = start(rig, build={"start": write(3)})
    async with provisioning(quota_limits=FOUR):
        assert succeeded(await built(rig, first))
        assert succeeded(await built(rig, start(rig, build={"start": write(3)}, owner_id=new_id())))
        assert refused(await built(rig, start(rig, build={"start": write(2)})))
        await built(rig, start(rig, 2, "delete", workspace_id=first["workspace_id"]))
        assert succeeded(await built(rig, start(rig, build={"start": write(2)})))


async def test_stop_and_delete_builds_ignore_the_disk_quota(
    rig: Rig, provisioning: Provisioning
) -> None:
    first = start(rig, build={"start": write(3)})
    same = {"workspace_id": first["workspace_id"]}
    async with provisioning():
        await built(rig, first)
    async with provisioning(quota_limits=QuotaLimits(workspaces=1, disk_mib=1)):
        assert succeeded(await built(rig, start(rig, 2, "stop", **same)))
        assert succeeded(await built(rig, start(rig, 3, "delete", **same)))


async def test_of_two_builds_that_exceed_the_quota_together_one_is_kept(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    jobs = [
        start(rig, build={"start": f"{write(3)}; read line < {gate}"}),
        start(rig, build={"start": f"{write(3)}; echo > {gate}"}),
    ]
    async with provisioning(quota_limits=FOUR):
        builds = [await rig.ask(job) for job in jobs]
        ends = [await rig.ended(build) for build in builds]

    assert sorted(map(succeeded, ends)) == [False, True]
    assert sorted(map(refused, ends)) == [False, True]


async def test_a_failed_step_is_reported_as_such_and_its_files_above_the_limit_are_removed(
    rig: Rig, provisioning: Provisioning, places: Path
) -> None:
    greedy = start(rig, build={"start": f"{write(5)}; exit 7"})
    async with provisioning(quota_limits=FOUR):
        failed = await built(rig, greedy)

    assert "status 7" in failed["data"]["error"]
    assert not (places / greedy["workspace_id"]).exists()


async def test_files_of_an_interrupted_build_do_not_fail_the_next_one(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    cut_off = tmp_path / "cut-off"
    script = f"if [ ! -e {cut_off} ]; then {write(5)}; (sleep 1000 & echo; wait) > {gate}; fi"
    job = start(rig, build={"start": script})
    async with provisioning(quota_limits=FOUR):
        await rig.ask(job)
        held = await asyncio.to_thread(os.open, gate, os.O_RDONLY)
    with os.fdopen(held) as running:
        await asyncio.to_thread(running.read)  # returns when all processes of the step have ended
    cut_off.touch()
    async with provisioning(quota_limits=FOUR):
        assert succeeded(await built(rig, job))


async def test_disk_is_measured_without_following_links(tmp_path: Path) -> None:
    outside, one, two = tmp_path / "outside", tmp_path / "one", tmp_path / "two"
    for directory in (outside, one / "deep" / "deeper", two):
        directory.mkdir(parents=True)
    (outside / "large").write_bytes(os.urandom(8 * MIB))
    (one / "deep" / "deeper" / "file").write_bytes(os.urandom(MIB))
    (one / "deep" / "again").hardlink_to(one / "deep" / "deeper" / "file")
    (one / "out").symlink_to(outside)
    (one / "round").symlink_to(one)
    (one / "large").symlink_to(outside / "large")
    (tmp_path / "linked").symlink_to(outside)
    os.mkfifo(two / "pipe")

    sizes = await measure_disk_usage([one, two, tmp_path / "linked", tmp_path / "gone"])

    assert MIB <= sizes[0] < 2 * MIB
    assert sizes[1] < MIB
    assert sizes[2:] == [0, 0]


async def test_an_unreadable_directory_does_not_stop_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("closed", "open"):
        (tmp_path / "it" / name).mkdir(parents=True)
        (tmp_path / "it" / name / "file").write_bytes(os.urandom(MIB))
    scandir = os.scandir

    def closed(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)

    (size,) = await measure_disk_usage([tmp_path / "it"])

    assert MIB <= size < 2 * MIB
