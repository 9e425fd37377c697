"""A full disk: `up` reports it, restarts its nats-server, and loses nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nats.errors
import pytest

from tests.rigs.processes import get_json, up
from tests.rigs.world import connected_world, deployment_of

CHATS = 20
LARGE = "4g"
"""Size of the disk when it has room; the unused part takes no memory."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", where], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


async def test_work_continues_after_a_full_disk_without_losses(disk: Path, tmp_path: Path) -> None:
    with up(disk / "data") as running:
        templates = tmp_path / "templates"
        templates.mkdir()
        place = await asyncio.to_thread(deployment_of, running, templates)
        async with connected_world(place) as world:
            chats = [await world.chat() for _ in range(CHATS)]
            building = await asyncio.gather(*(world.building(chat) for chat in chats))

            used = os.statvfs(disk)
            resize(disk, f"{(used.f_blocks - used.f_bfree) * used.f_frsize + 8192}")
            with suppress(nats.errors.Error, TimeoutError, ExceptionGroup):
                async with asyncio.timeout(3), asyncio.TaskGroup() as group:
                    for _, job in building:
                        group.create_task(world.provisioner.succeed(job))
        await asyncio.to_thread(running.process.wait_for_output, "can't store messages")
        status, body = await asyncio.to_thread(get_json, f"{running.http}/readyz")
        assert (status, "can't store messages" in body["problems"]["nats"]) == (503, True)

        resize(disk, LARGE)
        await asyncio.to_thread(running.process.wait_for_output, "was restarted")

        async with connected_world(place) as world:
            for chat, (call, job) in zip(chats, building, strict=True):
                again = await world.service.chat(chat.id)
                again.organization_id, again.owner_id = chat.organization_id, chat.owner_id
                await again.ask("create_workspace", {"template_id": world.plain}, call_id=call)
                version = job.template["version_id"]
                # Senders publish a message again when they got no confirmation.
                await world.provisioner.publish_event(
                    "build_succeeded", job, template_version_id=version, agents=[]
                )
                assert (await again.answer(call, 30))["result"]["build_id"] == job.build_id
            assert (await asyncio.to_thread(get_json, f"{running.http}/readyz"))[0] == 200
        assert running.process.process.poll() is None
