"""A worker is killed or paused at an exact instant: another takes over and repeats no effect.

Time limits are short: ack_wait, the limit of a transaction, NATS's duplicate window. A proxy stops
the worker: from certain bytes on, it holds the worker's messages to a server, or the replies.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from handlers.embedded import Servers
from tests.rigs.client import Chat, Job, Received
from tests.rigs.fleet import PATIENT, SHORT, WINDOW, Fleet, Proxies, fleet_on, proxies_to
from tests.rigs.messages import Event, agent_entry
from tests.rigs.processes import Process
from tests.rigs.world import World, connected_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONNECT_WITHIN = 1.0
"""Seconds that an agent may take to connect."""


@dataclass(frozen=True)
class Instant:
    """The step of its work at which a worker is stopped."""

    words: bytes
    """The bytes of that step's message, to NATS or to the database."""
    answers: bool = False
    """If true, the server receives the message, and the proxy holds its reply."""
    database: bool = False

    def __str__(self) -> str:
        return self.words.decode()


LOGGED = b"workspaced.tool_requested.v1"
"""Bytes of the log entry in the only statement that writes and commits."""
REQUESTED = {
    "before the commit": Instant(LOGGED, database=True),
    "at the commit": Instant(LOGGED, database=True, answers=True),
    "before the state": Instant(b"PUB workspaced.state."),
    "after the state": Instant(b"PUB workspaced.state.", answers=True),
    "before the job": Instant(b"PUB workspaced.job."),
    "before the ack": Instant(b"PUB $JS.ACK.WORKSPACED_IN."),
}
"""Steps of the work on a request that leads to a build."""
WAKING = {name: at for name, at in REQUESTED.items() if name != "before the job"}
FAILED = {
    "before the answer": Instant(b"PUB workspaced.result."),
    "after the answer": Instant(b"PUB workspaced.result.", answers=True),
}
"""Steps of the work on a fact that leads to an answer."""
BUILT = {"before the alarm": Instant(b"PUB workspaced.timer.arm.")}
"""Steps of the work on a fact that sets a deadline."""


@dataclass
class Stage:
    """Two workers: the test stops the first one; the other one is cut off until then."""

    fleet: Fleet
    world: World
    way: Proxies
    other_way: Proxies
    other: Process
    one: Process | None = None

    async def first(self) -> Process:
        """Return the worker that the test will stop; start it if there is none."""
        if self.one is None:
            self.way.mend()
            self.one = await self.fleet.start("worker", proxies=self.way)
        return self.one

    def alone(self, at: Instant) -> None:
        """Cut off the other worker, and stop the first one at this step of its work."""
        self.other_way.nats.cut()
        proxy = self.way.database if at.database else self.way.nats
        (proxy.hold_answers if at.answers else proxy.hold)(at.words)

    async def stands_still(self, at: Instant) -> None:
        """Wait until the first worker is stopped, then reconnect the other one."""
        await (self.way.database if at.database else self.way.nats).held()
        self.other_way.nats.mend()

    async def killed(self) -> None:
        assert self.one is not None
        await self.fleet.end(self.one)
        self.way.cut()
        self.one = None

    async def awake(self, chat: Chat) -> None:
        """Resume the paused worker and let it handle a new call alone, after its earlier work."""
        assert self.one is not None
        self.way.release()
        self.one.send(signal.SIGCONT)
        self.other_way.nats.cut()
        try:
            await chat.call("list_templates")
        except AssertionError as error:
            raise AssertionError(self.one.output()[-4000:]) from error
        self.other_way.nats.mend()

    async def agree(self, chat: Chat) -> None:
        """Check that the last published state is the database's, and no state came out of order."""
        known = await self.world.service.rpc("get_chat", chat_id=chat.id)
        known = {key: known[key] for key in known.keys() - {"open_calls", "notice"}}
        assert await self.world.service.last_state(chat.id) == known
        assert not [b for b in self.world.service.errors.all if isinstance(b, AssertionError)]

    def builds(self, chat: Chat) -> list[str]:
        """Return the build ids of the chat's jobs, in order of arrival."""
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
    """Undo what a failed test may leave behind."""
    yield
    stage.other_way.nats.mend()
    if stage.one is not None:
        stage.way.release()
        stage.one.send(signal.SIGCONT)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def forgetful(stage: Stage) -> Stage:
    """The same stage with a short duplicate window: NATS soon forgets the ids of jobs."""
    stage.fleet.env |= SHORT
    if stage.one is not None:
        await stage.killed()
    await stage.fleet.end(stage.other)
    stage.other = await stage.fleet.start("worker", proxies=stage.other_way)
    return stage


async def built(stage: Stage, chat: Chat, job: Job, call: str) -> Event:
    """Report success of a build without agents; check that the chat is ready, the call answered."""
    ended = await stage.world.provisioner.succeed(job)
    result = (await chat.answer(call))["result"]
    assert (result["created"], result["build_id"]) == (True, job.build_id)
    await chat.entered("building", "ready")
    return ended


async def duplicate_window_passed(stage: Stage) -> None:
    """Wait until NATS has forgotten earlier job ids, by waiting for another chat's deadline."""
    assert CONNECT_WITHIN > WINDOW
    other = await stage.world.chat()
    call, job = await stage.world.building(other)
    await stage.world.provisioner.succeed(job, agent_entry())
    assert (await other.answer(call))["result"]["agent_status"] == "not_ready"


@pytest.mark.parametrize("at", REQUESTED.values(), ids=REQUESTED)
async def test_a_request_survives_the_kill_of_its_worker(stage: Stage, at: Instant) -> None:
    chat = await stage.world.chat()
    await stage.first()
    stage.alone(at)
    call = await chat.ask("create_workspace", {"template_id": stage.world.plain})
    await stage.stands_still(at)

    await stage.killed()
    job = await stage.world.provisioner.job(chat)

    await built(stage, chat, job, call)
    assert stage.builds(chat) == [job.build_id]
    await stage.agree(chat)


@pytest.mark.parametrize("at", FAILED.values(), ids=FAILED)
async def test_a_call_is_answered_after_the_kill_of_the_answering_worker(
    stage: Stage, at: Instant
) -> None:
    chat = await stage.world.chat()
    await stage.first()
    call, job = await stage.world.building(chat)
    stage.alone(at)
    await stage.world.provisioner.fail(job)
    await stage.stands_still(at)

    await stage.killed()
    answer = await chat.answer(call)

    assert answer["result"]["build_id"] == job.build_id
    await chat.entered("building", "failed:build_failed")
    await stage.agree(chat)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("at", BUILT.values(), ids=BUILT)
async def test_a_deadline_fires_although_the_worker_that_armed_it_is_paused(
    stage: Stage, at: Instant, how: signal.Signals
) -> None:
    chat = await stage.world.chat()
    one = await stage.first()
    call, job = await stage.world.building(chat)
    stage.alone(at)
    await stage.world.provisioner.succeed(job, agent_entry())
    await stage.stands_still(at)

    if how is signal.SIGKILL:
        await stage.killed()
    else:
        one.send(how)
    answer = await chat.answer(call)

    assert answer["result"]["agent_status"] == "not_ready"
    if how is signal.SIGSTOP:
        await stage.awake(chat)
    await chat.entered("building", "agent_connecting", "failed:agent_not_ready")
    await stage.agree(chat)


async def test_workers_may_start_and_die_under_load(stage: Stage) -> None:
    fleet, world = stage.fleet, stage.world
    chats = [await world.chat() for _ in range(20)]
    done: Received[Event] = Received()
    extra = [await fleet.start("worker"), await fleet.start("worker")]

    async def provide() -> None:
        """Build every requested build once."""
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
        """Create a workspace, then stop it."""
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
        await chat.entered("building", "ready", "stopping", "stopped")
        assert len(stage.builds(chat)) == len(set(stage.builds(chat))) == 2
        await stage.agree(chat)


@pytest.mark.parametrize("at", WAKING.values(), ids=WAKING)
async def test_a_worker_resumed_during_a_request_does_no_harm(
    forgetful: Stage, at: Instant
) -> None:
    stage = forgetful
    chat = await stage.world.chat()
    one = await stage.first()
    stage.alone(at)
    call = await chat.ask("create_workspace", {"template_id": stage.world.plain})
    await stage.stands_still(at)

    one.send(signal.SIGSTOP)
    job = await stage.world.provisioner.job(chat)
    await built(stage, chat, job, call)
    builds = stage.builds(chat)
    await stage.awake(chat)

    assert stage.builds(chat) == builds
    assert set(builds) == {job.build_id}
    await chat.entered("building", "ready")
    await stage.agree(chat)


async def test_a_job_published_late_causes_no_second_build(
    forgetful: Stage,
) -> None:
    """The late job repeats the same build, which its provisioner already knows."""
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
    await chat.entered("building", "ready")
    await stage.agree(chat)


@pytest.mark.parametrize("at", FAILED.values(), ids=FAILED)
async def test_a_worker_resumed_before_its_answer_gives_the_same_answer(
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
    # By now the chat has changed, so the same call would get a different answer.
    await chat.ask("create_workspace", {"template_id": stage.world.plain})
    await chat.state("building", above=2)
    await stage.awake(chat)

    answers = [e["data"] for e in chat.results.all if e["data"]["call_id"] == call]
    assert answers == [chat.complete(answer)] * len(answers)
    assert answer["result"]["build_id"] == job.build_id
    last = await stage.world.service.last(
        "WORKSPACED_RESULT", f"workspaced.result.{chat.id}.{call}"
    )
    assert last is not None
    assert last[0]["data"] == chat.complete(answer)
    await stage.agree(chat)
