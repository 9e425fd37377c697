"""Files that must not accumulate while a provisioner runs for years."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from handlers.provisioner import archive
from handlers.provisioner.workspaces_folder import MARKER
from handlers.sandbox.processes import end_marked
from tests.provisioner.conftest import Provisioning
from tests.provisioner.rig import Rig
from tests.rigs.messages import new_id

MIB = 1024 * 1024


def cached(root: Path) -> set[str]:
    return {path.name.removesuffix(".tar.gz") for path in (root / "templates").iterdir()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


async def test_pruning_keeps_archives_of_existing_workspaces_and_recently_used_ones(
    rig: Rig, provisioning: Provisioning, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_UNUSED_KEPT", 2)
    versions = [rig.version({"a": str(n)}) for n in range(5)]
    async with provisioning():
        for number, version in enumerate(versions):
            # Build 0 has its own workspace; the others rebuild one workspace with newer versions.
            workspace = {} if number else {"workspace_id": new_id()}
            await rig.ended(await rig.ask(rig.job(number, version=version, **workspace)))

    assert cached(root) == {versions[n]["version_id"] for n in (0, 3, 4)}


async def test_archives_are_pruned_when_the_provisioner_starts(
    rig: Rig, provisioning: Provisioning, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = rig.version({"a": "1"}), rig.version({"a": "2"})
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(1, version=first)))
        await rig.ended(await rig.ask(rig.job(2, version=second)))
        await rig.ended(await rig.ask(rig.job(3, "delete", version=second)))
    before = cached(root)
    monkeypatch.setattr(archive, "_UNUSED_KEPT", 0)
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(1, "stop", version=first, workspace_id=new_id())))
        after = cached(root)

    assert before == {first["version_id"], second["version_id"]}
    assert after == set()


async def test_partly_unpacked_files_of_a_killed_provisioner_are_removed(
    rig: Rig, provisioning: Provisioning, root: Path
) -> None:
    (root / "workspaces" / f".{new_id()}.unpacked" / "half").mkdir(parents=True)
    async with provisioning():
        await rig.ended(await rig.ask(rig.job(version=rig.version({"a": "1"}))))

    assert {path.name for path in (root / "workspaces").iterdir()} == {rig.workspace, MARKER}


async def test_an_archive_that_is_being_unpacked_is_not_pruned(
    rig: Rig, provisioning: Provisioning, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no unused archive kept, pruning could delete an archive between fetch and unpacking."""
    monkeypatch.setattr(archive, "_UNUSED_KEPT", 0)
    jobs = [rig.job(1, version=rig.version({"a": str(n)}), workspace_id=new_id()) for n in range(6)]
    async with provisioning():
        builds = [await rig.ask(job) for job in jobs]
        ends = [await rig.ended(build) for build in builds]

    assert {end["type"] for end in ends} == {"workspaced.build_succeeded.v1"}


def test_a_fifo_in_place_of_a_version_file_does_not_block(tmp_path: Path) -> None:
    for name in ("pipe", "link", "none", "good"):
        (tmp_path / name / ".workspaced").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe" / ".workspaced" / "template")
    (tmp_path / "good" / ".workspaced" / "template").write_text("v1")
    (tmp_path / "other").write_text("v2")
    (tmp_path / "link" / ".workspaced" / "template").symlink_to(tmp_path / "other")

    assert archive._versions_in(tmp_path) - {""} == {"v1"}


async def test_a_large_agent_log_is_rotated_when_the_agent_starts(
    rig: Rig, provisioning: Provisioning, root: Path, tmp_path: Path
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    script = f"echo run; head -c {6 * MIB} /dev/zero; echo > {gate}; sleep 1000"
    agent = ("/bin/sh", "-c", script)
    for number in (1, 2, 3):
        async with provisioning(agent_command=agent):
            if number == 1:
                job = rig.job(version=rig.version({}), agent=[{"name": "main"}])
                await rig.ended(await rig.ask(job))
            await asyncio.to_thread(gate.read_text)
    await end_marked(f"WORKSPACED_WORKSPACE_ID={rig.workspace}", grace=0)

    (home,) = (root / "workspaces" / rig.workspace / ".workspaced" / "agents").iterdir()
    logs = {path.name: path for path in home.glob("agent.log*")}
    assert set(logs) == {"agent.log", "agent.log.1"}
    assert {path.read_bytes().count(b"run\n") for path in logs.values()} == {1}
