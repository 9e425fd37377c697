"""A provisioner on the kit that breaks one rule of the contract, for the tests of the conformance suite."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from typing import Any

import workspaced
from workspaced.provisioning import serving as kit

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


def accepting(session: Any, queued: Any) -> None:
    if FAULT == "acks-early":
        session._spawn(session._link.reply(queued.message.reply, b"+ACK"))
    before = session._queues
    if FAULT == "overlaps":
        session._queues = Queues()
    accept(session, queued)
    if FAULT == "overlaps":
        session._queues = Queues({**before, **session._queues})


accept = kit._Session._accept
kit._Session._accept = accepting
if FAULT == "ignores-cancel":
    kit._Session._cancel = lambda session, body: None


build.main()
