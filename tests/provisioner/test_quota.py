"""The limit of workspaces per owner on a provisioner's machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from handlers.app import Endpoints
from handlers.cli.commands.run_provisioner import local_provisioner
from handlers.errors import InvalidSettings
from handlers.provisioner import QuotaLimits
from handlers.settings import read_settings
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_server import MemoryServer
from tests.provisioner.conftest import Provisioning
from tests.provisioner.rig import Rig
from tests.rigs.messages import Event, new_id

ONE = QuotaLimits(workspaces=1)
ANN = new_id()


@pytest.fixture
def places(tmp_path: Path) -> Path:
    return tmp_path / "root" / "workspaces"


def start(rig: Rig, number: int = 1, transition: str = "start", **more: Any) -> Event:
    more = {"workspace_id": new_id(), "owner_id": ANN, "version": rig.version({}), **more}
    return rig.job(number, transition, **more)


async def built(rig: Rig, job: Event) -> Event:
    return await rig.ended(await rig.ask(job))


def succeeded(fact: Event) -> bool:
    return bool(fact["type"] == "workspaced.build_succeeded.v1")


def refused(fact: Event) -> bool:
    return fact["data"].get("error_code") == "INSUFFICIENT_QUOTA"


async def test_a_build_above_the_workspace_quota_fails_and_names_the_workspaces(
    rig: Rig, provisioning: Provisioning, places: Path
) -> None:
    more = start(rig, build={"start": "touch built"})
    async with provisioning(quota_limits=QuotaLimits(workspaces=2)):
        for name in ("tidy-owl", "calm-elk"):
            assert succeeded(await built(rig, start(rig, workspace_name=name)))
        failed = await built(rig, more)

    assert failed["type"] == "workspaced.build_failed.v1"
    assert failed["data"]["error_code"] == "INSUFFICIENT_QUOTA"
    assert failed["data"]["quota"] == {"credits_consumed": 2, "budget": 2}
    for words in ("ann has 2 workspaces", "may have 2", "tidy-owl, calm-elk", "Delete one"):
        assert words in failed["data"]["error"]
    assert failed["data"]["error"] in rig.output(more["build_id"])
    assert not (places / more["workspace_id"]).exists()


async def test_the_quota_does_not_affect_other_owners_and_existing_workspaces(
    rig: Rig, provisioning: Provisioning
) -> None:
    first = start(rig)
    async with provisioning(quota_limits=ONE):
        assert succeeded(await built(rig, first))
        again = start(rig, 2, workspace_id=first["workspace_id"])
        assert succeeded(await built(rig, again))
        assert succeeded(await built(rig, start(rig, owner_id=new_id())))


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, QuotaLimits(1000, 0)), ({"WORKSPACES": "3", "DISK": "512"}, QuotaLimits(3, 512))],
)
def test_the_quota_limits_are_settings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    expected: QuotaLimits,
) -> None:
    for name, variable in (
        ("WORKSPACES", "WORKSPACED_WORKSPACES_PER_OWNER"),
        ("DISK", "WORKSPACED_DISK_PER_OWNER_MIB"),
    ):
        monkeypatch.setenv(variable, given.get(name, ""))
    endpoints = Endpoints("nats://127.0.0.1:1", None, tmp_path)

    local = local_provisioner(endpoints, None, tmp_path, read_settings())

    assert local._limits == expected


@pytest.mark.parametrize("value", ["-1", "many", "1.5"])
def test_a_quota_limit_that_is_not_a_count_is_rejected(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("WORKSPACED_DISK_PER_OWNER_MIB", value)

    with pytest.raises(InvalidSettings, match="WORKSPACED_DISK_PER_OWNER_MIB"):
        read_settings()


async def test_a_limit_of_zero_means_no_limit(rig: Rig, provisioning: Provisioning) -> None:
    async with provisioning(quota_limits=QuotaLimits(workspaces=0, disk_mib=0)):
        assert [succeeded(await built(rig, start(rig))) for _ in range(3)] == [True] * 3


async def test_a_workspaces_owner_is_known_after_a_restart(
    rig: Rig, provisioning: Provisioning
) -> None:
    async with provisioning(quota_limits=ONE):
        await built(rig, start(rig))
    async with provisioning(quota_limits=ONE):
        assert refused(await built(rig, start(rig)))


async def test_stopped_workspaces_count_and_deleted_ones_do_not(
    rig: Rig, server: MemoryServer, provisioning: Provisioning, places: Path
) -> None:
    first = start(rig)
    deletion = start(rig, 3, "delete", workspace_id=first["workspace_id"])
    async with provisioning(quota_limits=ONE):
        await built(rig, first)
        await built(rig, start(rig, 2, "stop", workspace_id=first["workspace_id"]))
        assert refused(await built(rig, start(rig)))
        deleted = await built(rig, deletion)
        assert not (places / first["workspace_id"]).exists()
        assert succeeded(await built(rig, start(rig)))
    rig.seen.clear()
    async with provisioning(quota_limits=ONE):  # publishes the deletion's terminal fact again
        again = await rig.ended(deletion["build_id"])
        async with MemoryBus(server) as worker:
            await worker.send("workspaced.resend.provisioner", b"")
        assert refused(await built(rig, start(rig)))

    assert again == deleted


async def test_a_workspace_whose_directory_was_removed_by_hand_does_not_count(
    rig: Rig, provisioning: Provisioning, places: Path
) -> None:
    first = start(rig)
    async with provisioning(quota_limits=ONE):
        await built(rig, first)
        (places / first["workspace_id"]).rename(places.parent / "elsewhere")
        assert succeeded(await built(rig, start(rig)))
        # It is not built again, which would make one workspace too many.
        assert not succeeded(await built(rig, start(rig, 2, workspace_id=first["workspace_id"])))


async def test_a_workspace_whose_first_start_failed_does_not_count(
    rig: Rig, provisioning: Provisioning
) -> None:
    broken = start(rig, build={"start": "exit 1"})
    async with provisioning(quota_limits=ONE):
        assert not refused(await built(rig, broken))
        assert succeeded(await built(rig, start(rig)))
        mended = start(rig, 2, workspace_id=broken["workspace_id"])
        assert refused(await built(rig, mended))


async def test_a_workspace_counts_if_any_start_of_it_succeeded(
    rig: Rig, provisioning: Provisioning
) -> None:
    first = start(rig)
    failing = start(rig, 2, workspace_id=first["workspace_id"], build={"start": "exit 1"})
    async with provisioning(quota_limits=ONE):
        await built(rig, first)
        await built(rig, failing)
        assert refused(await built(rig, start(rig)))


async def test_only_one_of_two_concurrent_builds_gets_the_last_free_workspace(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    # The accepted build runs until the other one was refused.
    jobs = [start(rig, build={"start": f"read line < {gate}"}) for _ in range(2)]
    async with provisioning(quota_limits=ONE):
        builds = [await rig.ask(job) for job in jobs]
        await rig.fact(error_code="INSUFFICIENT_QUOTA")
        await built(rig, start(rig, owner_id=new_id(), build={"start": f"echo > {gate}"}))
        ends = [await rig.ended(build) for build in builds]
        assert refused(await built(rig, start(rig)))

    assert sorted(map(succeeded, ends)) == [False, True]
    assert sorted(map(refused, ends)) == [False, True]


async def test_a_failed_build_releases_its_reservation(
    rig: Rig, provisioning: Provisioning, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    first = start(rig, build={"start": f"read line < {gate}; exit 1"})
    async with provisioning(quota_limits=ONE):
        await rig.ask(first)
        await rig.fact(type="build_started", build_id=first["build_id"])
        assert refused(await built(rig, start(rig)))
        await built(rig, start(rig, owner_id=new_id(), build={"start": f"echo > {gate}"}))
        await rig.ended(first["build_id"])
        assert succeeded(await built(rig, start(rig)))
