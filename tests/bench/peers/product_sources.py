"""The provisioner of the benchmark's pool and all the agents, on one connection.

It takes jobs by an open pull, keeps what it holds with `+WPI`, and acks a job when the end of its
build is stored. An operator's credential stands for those of many agents. Messages are read and written by
msgspec, because the sources share the machine with what is measured.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from nats.aio.msg import Msg

from tests.bench.peers.product_wire import POOL, PROVISIONER, chat_id, connect, fixed_id
from tests.rigs.messages import (
    BUILD_KEYS,
    Event,
    agent_fact,
    build_fact,
    headers_of,
    subject_of,
    success_of,
)

_ASKED: Final = 1000
"""Jobs of one request."""
_EXPIRES: Final = 300
_WORKING: Final = 10.0
"""Seconds between signs that a job is still being worked."""
_NEXT: Final = f"$JS.API.CONSUMER.MSG.NEXT.WORKSPACED_JOB.pool-{POOL}"


@dataclass
class Job:
    """A build that is to be made."""

    message: Msg
    build: Event
    """Those keys of the job that its facts need."""


class Sources:
    """Takes jobs, and tells their facts when it is told to."""

    def __init__(self) -> None:
        self._jobs: dict[str, asyncio.Future[Job]] = {}
        self._held: dict[str, Job] = {}
        self._open = 0

    async def connect(self, url: str, seed: str) -> None:
        """Connect, and begin to take jobs."""
        self._party = await connect(url, Path(seed))
        self._client = self._party.client
        self._inbox = self._client.new_inbox()
        await self._client.subscribe(
            self._inbox, cb=self._take, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        await self._ask()
        self._working = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Leave."""
        self._working.cancel()
        await self._client.close()

    async def job(self, chat: str) -> Job:
        """Wait for the job of a chat."""
        return await self._job(chat_id(chat))

    async def tell(self, chat: str, kind: str) -> None:
        """Publish a fact of the chat's build."""
        job = await self.job(chat)
        # As with the other systems, a second copy of an event has the same id.
        agent, same = fixed_id(f"{chat}/agent"), {"id": f"{chat}/{kind}"}
        if kind.startswith("build_"):
            ends = kind == "build_succeeded"
            data = success_of(job.build, {"id": agent, "name": "main"}) if ends else {}
            await self._publish(build_fact(kind, PROVISIONER, job.build, data, **same))
            if ends and self._held.pop(chat_id(chat), None):
                await job.message.ack()
            return
        name, data = kind, {}
        if kind == "lifecycle_ready":
            name, data = "agent_lifecycle", {"lifecycle": "ready"}
        sequence = time.time_ns() // 1000
        await self._publish(agent_fact(name, job.build, agent, sequence, data, **same))

    async def _publish(self, fact: Event) -> None:
        body = msgspec.json.encode(fact)
        await self._party.js.publish(subject_of(fact), body, headers=headers_of(fact))

    def _job(self, chat: str) -> asyncio.Future[Job]:
        if chat not in self._jobs:
            self._jobs[chat] = asyncio.get_running_loop().create_future()
        return self._jobs[chat]

    async def _ask(self) -> None:
        request = {"batch": _ASKED, "expires": _EXPIRES * 1_000_000_000}
        self._open += _ASKED
        await self._client.publish(_NEXT, msgspec.json.encode(request), reply=self._inbox)

    async def _take(self, message: Msg) -> None:
        if message.headers and "Status" in message.headers:
            if message.headers["Status"] != "100":
                left = int(message.headers.get("Nats-Pending-Messages", _ASKED))
                self._open = max(0, self._open - left)
                if self._open == 0:
                    await self._ask()
            return
        self._open -= 1
        if self._open * 2 < _ASKED:
            await self._ask()
        data = msgspec.json.decode(message.data)["data"]
        job = Job(message, {key: data[key] for key in ("chat_id", "template", *BUILD_KEYS)})
        if job.build["transition"] != "start":
            await self._ended(job)
            return
        waiting = self._job(data["chat_id"])
        if waiting.done():  # it came again
            await message.ack()
            return
        self._held[data["chat_id"]] = job
        waiting.set_result(job)

    async def _ended(self, job: Job) -> None:
        """End a stop build at once: nothing is measured of it."""
        same = {"id": f"{job.build['build_id']}/stopped"}
        data = success_of(job.build)
        await self._publish(build_fact("build_succeeded", PROVISIONER, job.build, data, **same))
        await job.message.ack()

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(_WORKING)
            for job in list(self._held.values()):
                await job.message.in_progress()
