"""Requests arrive much faster than workers handle them: clear refusals, no growth, no loss."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import asyncpg
import nats.errors
import pytest
from nats.aio.msg import Msg

from handlers.embedded import Servers
from tests.rigs.client import Participant, Provisioner, connected, role_options
from tests.rigs.fleet import Fleet, fleet_on
from tests.rigs.messages import Event, call_data, new_id, subject_of, tool_request
from tests.rigs.processes import resident_mib
from tests.rigs.world import ORGANIZATION, POOL

SECONDS = float(os.environ.get("OVERLOAD_SECONDS", "3"))
EVERY = max(1.0, SECONDS / 15)
CHATS = 300
PUBLISHERS, ASKERS = min(600, round(15 * SECONDS)), 560
"""Each client repeats its request as soon as it may; workers need minutes for the calls that a long
flood publishes."""
ROOM = {
    "WORKSPACED_WAITING_CALLS_PER_CHAT": "5",
    "WORKSPACED_WAITING_CALLS": "1000",
    "WORKSPACED_JOB_QUEUE": "100",
    "WORKSPACED_HELD_CALLS": "500",
}
"""Limits that are low enough for a short flood to reach them."""
GROWTH = 1.25
"""Factor by which the memory may grow between the time when the limits are reached and the end."""
PATIENCE = 240.0


class Flood:
    """Makes calls over the bus and by rpc without waiting for answers, and counts the outcomes."""

    def __init__(self, template_id: str) -> None:
        self.service, self.provisioner, self.operator = (
            Participant(),
            Provisioner(POOL),
            Participant(),
        )
        self._template_id = template_id
        self.accepted: set[str] = set()
        """Calls that the stream stored, by chat and call id."""
        self.answered: set[str] = set()
        self.worked = 0
        """Number of calls that were answered when the flood ended."""
        self.refused = 0
        """Number of published calls that were answered with `too busy`."""
        self.rpcs: Counter[str] = Counter()
        self._chats = [(new_id(), new_id()) for _ in range(CHATS)]
        self._numbers = count()
        self._changed = asyncio.Condition()
        self._over = asyncio.Event()

    async def run(self, seconds: float) -> None:
        """Flood for this time, then have the requested builds done; return when all is answered."""
        await self.service.client.subscribe(
            "workspaced.result.>", cb=self._hear, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        await self.service.flush()
        asyncio.get_running_loop().call_later(seconds, self._over.set)
        publishing = [asyncio.create_task(self._publish()) for _ in range(PUBLISHERS)]
        asking = [asyncio.create_task(self._ask()) for _ in range(ASKERS)]
        building: asyncio.Task[None] | None = None
        try:
            await self._over.wait()
            self.worked = len(self.answered)
            building = asyncio.create_task(self.provisioner.build_everything(self.operator))
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*publishing, *asking)
                async with self._changed:
                    await self._changed.wait_for(lambda: self.accepted <= self.answered)
        finally:
            for task in (*publishing, *asking, *([building] if building else [])):
                task.cancel()
            await asyncio.gather(*publishing, *asking, return_exceptions=True)

    def _call(self) -> tuple[str, Event]:
        """Return a chat and the data of its next call."""
        chat, owner = random.choice(self._chats)
        args, call_id = {"template_id": self._template_id}, f"call-{next(self._numbers)}"
        whose = {"organization_id": ORGANIZATION, "owner_id": owner}
        return chat, call_data(call_id, "create_workspace", args, **whose)

    async def _publish(self) -> None:
        service = self.service
        while not self._over.is_set():
            chat, data = self._call()
            asked = tool_request("flood", chat, data)
            await service.publish(subject_of(asked), asked)
            self.accepted.add(f"{chat}.{data['call_id']}")

    async def _ask(self) -> None:
        client = self.operator.client
        while not self._over.is_set():
            chat, data = self._call()
            raw = json.dumps({"chat_id": chat, **data}).encode()
            try:
                reply = await client.request(
                    "workspaced.rpc.create_workspace", raw, timeout=PATIENCE
                )
            except nats.errors.NoRespondersError:
                self.rpcs["no gateway"] += 1
                continue
            code = (reply.headers or {}).get("Nats-Service-Error-Code", "answered")
            self.rpcs[code] += 1

    async def _hear(self, message: Msg) -> None:
        key = message.subject.removeprefix("workspaced.result.")
        self.answered.add(key)
        self.refused += b'"too busy: ' in message.data
        if self._over.is_set():
            async with self._changed:
                self._changed.notify_all()


@pytest.fixture
async def fleet(own_nats: Servers, database_url: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on(own_nats, database_url, tmp_path, ROOM) as fleet:
        yield fleet


async def test_a_flood_is_refused_in_clear_words_at_flat_memory_and_costs_no_accepted_call(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    worker, gateway = await asyncio.gather(fleet.start("worker"), fleet.start("gateway"))
    pids = {"worker": worker.pid, "gateway": gateway.pid}
    flood = Flood((await fleet.push("plain"))["template_id"])
    idle = {role: resident_mib(pid) for role, pid in pids.items()}
    samples: dict[str, list[float]] = {role: [] for role in pids}
    figures = [f"idle: worker {idle['worker']:.0f} MiB, gateway {idle['gateway']:.0f} MiB"]

    async with AsyncExitStack() as stack:
        for party, role in (
            (flood.service, "chat-service"),
            (flood.provisioner, "provisioner"),
            (flood.operator, "operator"),
        ):
            options = role_options(fleet.credentials, role)
            await stack.enter_async_context(connected(party, fleet.nats_url, **options))
        begun = time.monotonic()
        running = asyncio.create_task(flood.run(SECONDS))
        while not (await asyncio.wait({running}, timeout=EVERY))[0]:  # it measures, meanwhile
            for role, pid in pids.items():
                samples[role].append(resident_mib(pid))
            figures.append(
                f"{time.monotonic() - begun:4.0f} s: worker {samples['worker'][-1]:.0f} MiB, gateway "
                f"{samples['gateway'][-1]:.0f} MiB; {len(flood.accepted)} published, "
                f"{len(flood.answered)} answered"
            )
        await running
    figures.append(
        f"published {len(flood.accepted)}, by rpc {sum(flood.rpcs.values())} {dict(flood.rpcs)}; "
        f"answered in the flood {flood.worked}; refused as too busy {flood.refused}"
    )
    for role, seen in samples.items():
        figures.append(
            f"{role}: most {max(seen):.0f} MiB, {max(seen) / seen[0]:.2f} times the first"
        )
    with capsys.disabled():
        print("\n" + "\n".join(figures))  # noqa: T201 — `make overload` prints its results

    assert flood.refused
    assert flood.rpcs["429"]
    assert set(flood.rpcs) <= {"429", "answered"}
    database = await asyncpg.connect(fleet.database_url)
    try:
        assert await database.fetchval("select count(*) from call where resolved_at is null") == 0
    finally:
        await database.close()
    for role, seen in samples.items():
        assert max(seen) <= GROWTH * seen[len(seen) // 4], (role, seen)
