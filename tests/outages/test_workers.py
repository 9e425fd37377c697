"""A worker that is killed or paused at an exact instant: another takes over, and nothing is done twice.

Limits are short: an ack's wait, a transaction, the window in which NATS knows a repeat. Where a
worker stands still it is a proxy that holds what it says to a server, from certain words on.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from handlers.embedded import Servers
from tests.rigs.client import Chat, Event, Job, Received, agent_entry
from tests.rigs.fleet import PATIENT, SHORT, WINDOW, Fleet, Proxies, fleet_on, proxies_to
from tests.rigs.processes import Process
from tests.rigs.world import World, connected_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

FREED = 8.0
"""Seconds within which another worker has done what one that stands still had in hand: about twice
`LIMIT` when the machine has nothing else to do."""
CONNECT_WITHIN = 1.0
"""Seconds that an agent may take to connect."""


@dataclass(frozen=True)
class Instant:
    """Where a worker stands still, in which of its works."""

    words: bytes
    """What it says then: to NATS, or to the database."""
    answers: bool = False
    """What it says has been heard; the answer does not come."""
    database: bool = False

    def __str__(self) -> str:
        return self.words.decode()


REQUESTED = {
    "before the commit": Instant(b"commit", database=True),
    "at the commit": Instant(b"commit", database=True, answers=True),
    "before the state": Instant(b"PUB workspaced.state."),
    "after the state": Instant(b"PUB workspaced.state.", answers=True),
    "before the job": Instant(b"PUB workspaced.job."),
    "before the ack": Instant(b"PUB $JS.ACK.WORKSPACED_IN."),
}
"""In the work of a request that makes a build."""
WAKING = {name: at for name, at in REQUESTED.items() if name != "before the job"}
FAILED = {
    "before the answer": Instant(b"PUB workspaced.result."),
    "after the answer": Instant(b"PUB workspaced.result.", answers=True),
}
"""In the work of a fact that answers a call."""
BUILT = {"before the timer": Instant(b"PUB workspaced.timer.arm.")}
"""In the work of a fact that sets a deadline."""


@dataclass
class Stage:
    """Two workers; the first is the one that stands still, the other one is cut off until then."""

    fleet: Fleet
    world: World
    way: Proxies
    other_way: Proxies
    other: Process
    one: Process | None = None

    async def first(self) -> Process:
        """The worker that is to stand still, started anew when it was killed."""
        if self.one is None:
            self.way.mend()
            self.one = await self.fleet.start("worker", proxies=self.way)
        return self.one

    def alone(self, at: Instant) -> None:
        """Let only the first worker work, and stand still there."""
        self.other_way.nats.cut()
        proxy = self.way.database if at.database else self.way.nats
        (proxy.hold_answers if at.answers else proxy.hold)(at.words)

    async def stands_still(self, at: Instant) -> None:
        """Wait until it does; then the other one may work."""
        await (self.way.database if at.database else self.way.nats).held()
        self.other_way.nats.mend()

    async def killed(self) -> None:
        assert self.one is not None
        await self.fleet.end(self.one)
        self.way.cut()
        self.one = None

    async def awake(self, chat: Chat) -> None:
        """Let the paused worker go on, and do more work alone: then it has done the former."""
        assert self.one is not None
        self.way.release()
        self.one.send(signal.SIGCONT)
        self.other_way.nats.cut()
        try:
            await chat.call("list_templates")
        except AssertionError as silent:
            raise AssertionError(self.one.output()[-4000:]) from silent
        self.other_way.nats.mend()

    async def agree(self, chat: Chat) -> None:
        """What was published last is what the database has, and nothing came out of turn."""
        known = await self.world.service.rpc("get_chat", chat_id=chat.id)
        known = {key: known[key] for key in known.keys() - {"open_calls", "notice"}}
        assert await self.world.service.last_state(chat.id) == known
        assert not [b for b in self.world.service.errors.all if isinstance(b, AssertionError)]

    def builds(self, chat: Chat) -> list[str]:
        """The build of each job that came, in their order."""
        return [job.build_id for job in self.world.provisioner.jobs.all if job.chat_id == chat.id]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(module_servers: tuple[Servers, str, Path]) -> AsyncIterator[Stage]:
    servers, database_url, home = module_servers
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        fleet = await enter(fleet_on(servers, database_url, home, PATIENT))
        fleet.env["WORKSPACED_AGENT_CONNECT_TIMEOUT"] = str(CONNECT_WITHIN)
        way = await enter(proxies_to(servers, database_url))
        other_way = await enter(proxies_to(servers, database_url))
        await fleet.start("gateway")
        other = await fleet.start("worker", proxies=other_way)
        world = await enter(connected_world(await fleet.deployment("plain")))
        yield Stage(fleet, world, way, other_way, other)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _as_before(stage: Stage) -> AsyncIterator[None]:
    """What a test leaves behind when it fails is nothing to the next one."""
    yield
    stage.other_way.nats.mend()
    if stage.one is not None:
        stage.way.release()
        stage.one.send(signal.SIGCONT)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def forgetful(stage: Stage) -> Stage:
    """The same, with a NATS that soon knows no job any more by its id."""
    stage.fleet.env |= SHORT
    if stage.one is not None:
        await stage.killed()
    await stage.fleet.end(stage.other)
    stage.other = await stage.fleet.start("worker", proxies=stage.other_way)
    return stage


async def built(stage: Stage, chat: Chat, job: Job, call: str) -> Event:
    """End a build without agents: the chat is ready, and the call answered."""
    ended = await stage.world.provisioner.succeed(job)
    result = (await chat.answer(call))["result"]
    assert (result["created"], result["build_id"]) == (True, job.build_id)
    assert chat.path == ["building", "ready"]
    return ended


async def duplicate_window_passed(stage: Stage) -> None:
    """Wait until NATS has forgotten the ids of earlier jobs: a deadline of another chat passes meanwhile."""
    assert CONNECT_WITHIN > WINDOW
    other = await stage.world.chat()
    call, job = await stage.world.building(other)
    await stage.world.provisioner.succeed(job, agent_entry())
    assert (await other.answer(call))["result"]["agent_status"] == "not_ready"


@pytest.mark.parametrize("at", REQUESTED.values(), ids=REQUESTED)
async def test_a_request_outlives_the_worker_that_is_killed_over_it(
    stage: Stage, at: Instant
) -> None:
    chat = await stage.world.chat()
    await stage.first()
    stage.alone(at)
    call = await chat.ask("create_workspace", {"template_id": stage.world.plain})
    await stage.stands_still(at)
    began = time.monotonic()

    await stage.killed()
    job = await stage.world.provisioner.job(chat)

    assert time.monotonic() - began < FREED
    await built(stage, chat, job, call)
    assert stage.builds(chat) == [job.build_id]
    await stage.agree(chat)


@pytest.mark.parametrize("at", FAILED.values(), ids=FAILED)
async def test_a_call_is_answered_though_the_worker_that_answers_it_is_killed(
    stage: Stage, at: Instant
) -> None:
    chat = await stage.world.chat()
    await stage.first()
    call, job = await stage.world.building(chat)
    stage.alone(at)
    await stage.world.provisioner.fail(job)
    await stage.stands_still(at)
    began = time.monotonic()

    await stage.killed()
    answer = await chat.answer(call)

    assert time.monotonic() - began < FREED
    assert answer["result"]["build_id"] == job.build_id
    assert chat.path == ["building", "failed:build_failed"]
    await stage.agree(chat)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("at", BUILT.values(), ids=BUILT)
async def test_a_deadline_holds_though_the_worker_that_sets_it_stands_still(
    stage: Stage, at: Instant, how: signal.Signals
) -> None:
    chat = await stage.world.chat()
    one = await stage.first()
    call, job = await stage.world.building(chat)
    stage.alone(at)
    await stage.world.provisioner.succeed(job, agent_entry())
    await stage.stands_still(at)
    began = time.monotonic()

    if how is signal.SIGKILL:
        await stage.killed()
    else:
        one.send(how)
    answer = await chat.answer(call)

    assert time.monotonic() - began < CONNECT_WITHIN + FREED
    assert answer["result"]["agent_status"] == "not_ready"
    if how is signal.SIGSTOP:
        await stage.awake(chat)
    assert chat.path == ["building", "agent_connecting", "failed:agent_not_ready"]
    await stage.agree(chat)


async def test_workers_come_and_go_under_load(stage: Stage) -> None:
    fleet, world = stage.fleet, stage.world
    chats = [await world.chat() for _ in range(20)]
    done: Received[Event] = Received()
    extra = [await fleet.start("worker"), await fleet.start("worker")]

    async def provide() -> None:
        """Build what is asked, each build once."""
        taken: set[str] = set()
        number = len(world.provisioner.jobs.all)
        while True:
            job = (await world.provisioner.jobs.count(number + 1))[number]
            number += 1
            if job.build_id in taken:
                await job.ack()
            else:
                taken.add(job.build_id)
                await world.provisioner.succeed(job)

    async def live(chat: Chat) -> None:
        """Get a workspace, and stop it."""
        await done.add(await chat.call("create_workspace", {"template_id": world.plain}))
        await done.add(await chat.call("stop_workspace"))

    async def come_and_go() -> None:
        await done.count(4)
        await fleet.end(extra[0])
        extra[1].send(signal.SIGSTOP)
        await done.count(10)
        newcomer = await fleet.start("worker")
        await done.count(16)
        extra[1].send(signal.SIGCONT)
        assert await fleet.end(newcomer, signal.SIGTERM) == 0
        await done.count(24)
        await fleet.end(extra[1])
        extra[:] = [await fleet.start("worker")]

    providing = asyncio.create_task(provide())
    await asyncio.gather(come_and_go(), *map(live, chats))
    providing.cancel()
    await fleet.end(extra[0], signal.SIGTERM)

    for chat in chats:
        assert chat.path == ["building", "ready", "stopping", "stopped"]
        assert len(stage.builds(chat)) == len(set(stage.builds(chat))) == 2
        await stage.agree(chat)


@pytest.mark.parametrize("at", WAKING.values(), ids=WAKING)
async def test_a_worker_that_wakes_over_a_request_does_no_harm(
    forgetful: Stage, at: Instant
) -> None:
    stage = forgetful
    chat = await stage.world.chat()
    one = await stage.first()
    stage.alone(at)
    call = await chat.ask("create_workspace", {"template_id": stage.world.plain})
    await stage.stands_still(at)
    began = time.monotonic()

    one.send(signal.SIGSTOP)
    job = await stage.world.provisioner.job(chat)
    freed = time.monotonic() - began
    await built(stage, chat, job, call)
    builds = stage.builds(chat)
    await stage.awake(chat)

    assert freed < FREED
    assert stage.builds(chat) == builds
    assert set(builds) == {job.build_id}
    assert chat.path == ["building", "ready"]
    await stage.agree(chat)


async def test_a_job_that_was_on_its_way_to_nats_meanwhile_is_no_second_build(
    forgetful: Stage,
) -> None:
    """Nobody can call it back: it comes again as the same build, which its provisioner knows."""
    stage, at = forgetful, REQUESTED["before the job"]
    chat = await stage.world.chat()
    one = await stage.first()
    stage.alone(at)
    call = await chat.ask("create_workspace", {"template_id": stage.world.plain})
    await stage.stands_still(at)

    one.send(signal.SIGSTOP)
    job = await stage.world.provisioner.job(chat)
    ended = await built(stage, chat, job, call)
    await duplicate_window_passed(stage)
    await stage.awake(chat)
    again = await stage.world.provisioner.jobs.first(
        lambda other: other is not job and other.chat_id == chat.id
    )
    subject = f"workspaced.in.provisioner.{chat.id}.{stage.world.provisioner.name}"
    await stage.world.provisioner.publish(subject, ended)
    await again.ack()
    await chat.call("list_templates")

    assert again.data == job.data
    assert chat.path == ["building", "ready"]
    await stage.agree(chat)


@pytest.mark.parametrize("at", FAILED.values(), ids=FAILED)
async def test_a_worker_that_wakes_over_an_answer_answers_no_differently(
    forgetful: Stage, at: Instant
) -> None:
    stage = forgetful
    chat = await stage.world.chat()
    one = await stage.first()
    call, job = await stage.world.building(chat)
    stage.alone(at)
    await stage.world.provisioner.fail(job)
    await stage.stands_still(at)

    one.send(signal.SIGSTOP)
    answer = await chat.answer(call)
    # The chat is another one by now, of which the same question would be answered otherwise.
    await chat.ask("create_workspace", {"template_id": stage.world.plain})
    await chat.state("building", above=2)
    await stage.awake(chat)

    answers = [e["data"] for e in chat.results.all if e["data"]["call_id"] == call]
    assert answers == [answer] * len(answers)
    assert answer["result"]["build_id"] == job.build_id
    last = await stage.world.service.last(
        "WORKSPACED_RESULT", f"workspaced.result.{chat.id}.{call}"
    )
    assert last is not None
    assert last[0]["data"] == answer
    await stage.agree(chat)
