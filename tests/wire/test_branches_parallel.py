"""Many simultaneous calls on one chat, with several gateway and worker processes."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from handlers.embedded import Servers
from tests.rigs.client import Chat, Job
from tests.rigs.messages import Event, agent_entry
from tests.rigs.world import World, connected_world
from tests.wire import steps
from tests.wire.steps import CREATE, FAILURE, START, STOP
from tests.wire.test_crashes import Fleet, fleet_on

EACH = 3
"""The number of gateways, and of workers."""


@pytest.fixture
async def fleet(own_nats: Servers, database_url: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on(own_nats, database_url, tmp_path) as fleet:
        await asyncio.gather(*map(fleet.start, ("gateway", "worker") * EACH))
        yield fleet


@pytest.fixture
async def world(fleet: Fleet) -> AsyncIterator[World]:
    async with connected_world(await fleet.deployment()) as world:
        yield world


async def call_by_event(chat: Chat, tool: str, args: Event, call_id: str) -> Event:
    await chat.ask(tool, args, call_id=call_id)
    return await chat.answer(call_id)


async def call_by_rpc(chat: Chat, tool: str, args: Event, call_id: str) -> Event:
    body = {"chat_id": chat.id, "call_id": call_id, **chat.identity, "args": args}
    return dict(await chat.participant.rpc(tool, **body))


async def call_by_turns(chat: Chat, tool: str, args: Event, number: int) -> Event:
    """Make a call by event or by rpc; return the data of its `tool_resolved`."""
    way = (call_by_event, call_by_rpc)[number % 2]
    answer = await way(chat, tool, args, f"call-{number}")
    assert (answer["call_id"], answer["tool"]) == (f"call-{number}", tool)
    return answer


async def assert_each_answered_once(fleet: Fleet, world: World, chat: Chat, number: int) -> None:
    """Check that so many calls were answered, none of them twice, also after the processes have stopped."""
    await chat.results.count(number)
    found = await world.service.rpc("get_chat", chat_id=chat.id)
    assert found["open_calls"] == []
    ends = [fleet.end(process, signal.SIGTERM) for process in list(fleet.running)]
    assert set(await asyncio.gather(*ends)) == {0}
    await world.service.flush()

    asked = Counter(envelope["data"]["call_id"] for envelope in chat.results.all)
    assert len(asked) == number
    assert set(asked.values()) == {1}
    assert await last_sequence(world, "WORKSPACED_RESULT") == number
    assert await last_sequence(world, "WORKSPACED_DEAD") == 0


async def last_sequence(world: World, stream: str) -> int:
    """Return how many messages the stream has ever stored."""
    return int((await world.operator.js.stream_info(stream)).state.last_seq)


async def test_c8_200_concurrent_creates_make_one_workspace(fleet: Fleet, world: World) -> None:
    chat, listed = await world.chat(), agent_entry()
    args = {"template_id": world.plain}

    calls = asyncio.gather(*(call_by_turns(chat, CREATE, args, number) for number in range(200)))
    job = await world.provisioner.job(chat)
    await world.provisioner.succeed(job, listed)
    agent = await world.agent(job, listed["id"])
    await agent.report_connected()
    await agent.report_lifecycle("ready")
    answers = [answer["result"] for answer in await calls]

    assert Counter(answer["created"] for answer in answers) == {True: 1, False: 199}
    assert {answer["status"] for answer in answers if not answer["created"]} == {"already_exists"}
    assert {answer.get("build_id", job.build_id) for answer in answers} == {job.build_id}
    await assert_each_answered_once(fleet, world, chat, 200)
    assert world.provisioner.jobs.all == [job]
    assert await last_sequence(world, "WORKSPACED_JOB") == 1
    await chat.entered("building", "agent_connecting", "scripts_running", "ready")


@dataclass
class Builder:
    """Builds the jobs of one chat, some with failures, and checks that a workspace has one job at a time.

    A replaced workspace is stopped or deleted beside the builds of the new one.
    """

    world: World
    chat: Chat
    random: Random
    under_way: dict[str, Job] = field(default_factory=dict)
    """The job of each workspace."""
    breaches: list[str] = field(default_factory=list)
    done: list[Job] = field(default_factory=list)

    async def work(self) -> None:
        """Build until cancelled. Each job is taken at once, so that a superfluous one is noticed."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(1, 1000):
                job = (await self.world.provisioner.jobs.count(number))[number - 1]
                if (other := self.under_way.get(job.workspace_id)) is not None:
                    self.breaches.append(f"{job} while {other} is under way")
                self.under_way[job.workspace_id] = job
                tasks.create_task(self.build(job))

    async def build(self, job: Job) -> None:
        # A superfluous job would arrive during these round trips.
        for _ in range(self.random.randrange(4)):
            await self.world.service.rpc("get_chat", chat_id=self.chat.id)
        how = self.random.choice(("succeeded", "succeeded", "succeeded", "failed", "canceled"))
        self.under_way.pop(job.workspace_id, None)  # the next job may arrive before this PubAck
        self.done.append(job)
        if how == "succeeded" and job.transition == "start":
            listed = agent_entry()
            await self.world.provisioner.succeed(job, listed)
            with suppress(Exception):  # after a superseding stop there is no credential
                agent = await self.world.agent(job, listed["id"])
                await agent.report_connected()
                await agent.report_lifecycle("ready")
        else:
            await steps.finish_build(self.world, job, how)


@pytest.mark.parametrize("others", [1, 4], ids=["as many stops", "fewer stops"])
async def test_w2_any_mix_of_concurrent_calls_makes_one_build_at_a_time(
    fleet: Fleet, world: World, others: int
) -> None:
    chat, random = await world.chat(), Random(others)
    plain: Event = {"template_id": world.plain}
    builder = Builder(world, chat, random)
    building = asyncio.create_task(builder.work())

    async def caller(numbers: range) -> list[Event]:
        answers = []
        for number in numbers:
            tool = random.choice((*(CREATE, START) * others, STOP))
            args = plain if tool == CREATE else {}
            answers.append(await call_by_turns(chat, tool, args, number))
        return answers

    per = 12
    callers = (caller(range(first, first + per)) for first in range(0, 10 * per, per))
    answers = [answer for some in await asyncio.gather(*callers) for answer in some]
    building.cancel()
    with suppress(asyncio.CancelledError):
        await building

    assert builder.breaches == []
    assert len(answers) == 10 * per
    await assert_each_answered_once(fleet, world, chat, 10 * per)
    ids = [job.build_id for job in builder.done]
    assert len(ids) == len(set(ids))
    assert len({(job.workspace_id, job.build_number) for job in builder.done}) == len(ids)
    own = [a["result"]["build_id"] for a in answers if "build_id" in a["result"]]
    assert set(own) <= set(ids)
    assert len(ids) > 5, "hardly anything was built"
    for answer in answers:
        if answer["is_error"]:
            assert CREATE in answer["result"]["error"]
        elif "error" in answer["result"]:
            assert answer["result"].keys() - {"workspace_id"} == FAILURE
