"""A provisioner on the kit that breaks one rule of the contract, for the tests of the conformance suite."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from typing import Any

import workspaced
from workspaced.provisioning.scheduler import Scheduler
from workspaced.provisioning.session import Session

FAULT, POOL = sys.argv[1], sys.argv[2]


@workspaced.provisioner(
    pool=POOL,
    name=POOL,
    directory=tempfile.mkdtemp(dir=".") if FAULT == "forgets" else f"journal-{POOL}",
)
async def build(job: workspaced.Job) -> workspaced.Built:
    job.log(f"{job.transition} begins")
    await asyncio.sleep(1)  # back-off of nobody: it stands for work
    return workspaced.Built()


class Queues(dict):
    """Queues of which a workspace may have several, since every job gets one of its own."""

    def __delitem__(self, workspace_id: str) -> None:
        self.pop(workspace_id, None)


async def accept_and_ack(session: Any, delivery: Any) -> None:
    await delivery.ack()
    await accept(session, delivery)


def add_beside(scheduler: Any, queued: Any) -> None:
    others, scheduler._queues = scheduler._queues, Queues()
    add(scheduler, queued)
    scheduler._queues = Queues({**others, **scheduler._queues})


accept, add = Session._accept, Scheduler.add
if FAULT == "acks-early":
    Session._accept = accept_and_ack
if FAULT == "overlaps":
    Scheduler.add = add_beside
if FAULT == "ignores-cancel":
    Session._cancel = lambda session, request: None


build.main()
