"""A provisioner that implements only the contract; it builds nothing, but records every build.

Run as `python -m tests.faults.provisioner CONFIG` with a JSON object. It may be killed or paused
at any time.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.faults.plans import Plan, plan
from tests.faults.shared_journal import Record, SharedJournal
from tests.rigs.client import role_options
from tests.rigs.messages import Event, build_fact, success_of
from tests.rigs.reliable_client import AWAY, ReliableClient

HANDS = 12
"""How many tasks fetch jobs at the same time."""
SIGN_OF_LIFE = 5.0


class Provisioner:
    """Takes jobs, builds them or answers from the journal, and acks when the facts are stored."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._name, self._pool = config["name"], config["pool"]
        self._machines, self._slow = config["machines"], config["slow"]
        self._yard = SharedJournal(Path(config["yard"]))
        options = role_options(Path(config["credentials"]), "provisioner")
        self._line = ReliableClient(config["url"], options, self._listen)
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._asked = asyncio.Event()
        self._asked.set()  # publish the facts again after a restart

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._line.run())
            group.create_task(self._say_again())
            for _ in range(HANDS):
                group.create_task(self._take(group))

    async def _listen(self, client: Client) -> None:
        async def asked(_message: Msg) -> None:
            self._asked.set()

        await client.subscribe("workspaced.resend.provisioner", cb=asked)

    async def _take(self, group: asyncio.TaskGroup) -> None:
        async for message, epoch in self._line.jobs(self._pool):
            group.create_task(self._work(message, epoch))

    async def _say_again(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            for record in self._yard.records():
                newest = max(record["builds"].values(), key=lambda build: build["number"])
                for fact in newest["facts"]:
                    if fact["source"] == f"/provisioner/{self._name}":
                        await self._line.store(fact)

    async def _work(self, message: Msg, epoch: int) -> None:
        job = json.loads(message.data)["data"]
        living = asyncio.create_task(self._live(message, epoch))
        try:
            async with self._turns[job["workspace_id"]], self._yard.held(job["workspace_id"]):
                record = self._yard.read(job["workspace_id"])
                await self._answer(job, record, message.metadata.sequence.stream)
            # After a reconnect the job's sequence may belong to another message, so it must not be
            # acked.
            if self._line.epoch == epoch:
                with suppress(*AWAY):
                    await message.ack()
        finally:
            living.cancel()

    async def _live(self, message: Msg, epoch: int) -> None:
        while self._line.epoch == epoch:
            await asyncio.sleep(SIGN_OF_LIFE)
            with suppress(*AWAY):
                await message.in_progress()

    async def _answer(self, job: Event, record: Record, place: int) -> None:
        build = record["builds"].get(job["build_id"])
        if build is None:
            build = {
                "number": job["build_number"],
                "transition": job["transition"],
                "chat_id": job["chat_id"],
                "facts": [],
                "places": [],
                "finished": None,
            }
            late = datetime.now(UTC) > datetime.fromisoformat(job["not_after"])
            highest = max((b["number"] for b in record["builds"].values()), default=-1)
            record["builds"][job["build_id"]] = build
            if late or job["build_number"] < highest:
                self._end(record, build, job, "build_canceled")
            else:
                build["facts"].append(self._fact("build_started", job))
        if place not in build["places"]:
            build["places"].append(place)
        self._yard.write(record)
        if build["finished"] is None:
            await self._line.store(build["facts"][0])
            await self._build(job, record, build)
        for fact in build["facts"]:
            await self._line.store(fact)

    async def _build(self, job: Event, record: Record, build: Record) -> None:
        will = plan(job["build_id"], job["transition"], self._slow)
        self._yard.remove(record)
        await asyncio.sleep(will.seconds)
        if will.outcome != "succeeded":
            error = {"error": "no disk left"} if will.outcome == "failed" else {}
            self._end(record, build, job, f"build_{will.outcome}", **error)
            self._yard.write(record)
            return
        agents = []
        if job["transition"] == "start" and will.agents:
            agent_id = str(uuid5(NAMESPACE_URL, job["build_id"]))
            agents.append({"id": agent_id, "name": "main", "display_order": 0})
            if will.life != "silent":
                await self._let_run(job, record, agent_id, will)
        self._end(record, build, job, "build_succeeded", **success_of(job, *agents))
        self._yard.write(record)

    async def _let_run(self, job: Event, record: Record, agent_id: str, will: Plan) -> None:
        credential = await self._line.agent_credential(job, agent_id)
        if credential is None:
            return
        machine = self._machines[int(agent_id[0], 16) % len(self._machines)]
        record["agents"] = [[machine, agent_id]]
        self._yard.write(record)
        keys = {key: job[key] for key in ("chat_id", "workspace_id", "build_id")}
        agent = {**keys, "agent_id": agent_id, **will._asdict(), "credential": credential}
        self._yard.place(machine, agent)

    def _end(self, record: Record, build: Record, job: Event, type_name: str, **data: Any) -> None:
        build["facts"].append(self._fact(type_name, job, **data))
        build["finished"] = type_name

    def _fact(self, type_name: str, job: Event, **data: Any) -> Event:
        return build_fact(type_name, self._name, job, data)


if __name__ == "__main__":
    asyncio.run(Provisioner(json.loads(sys.argv[1])).run())
