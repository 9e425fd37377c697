"""Workers over real servers, PostgreSQL and NATS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from bus import Bus, Subscription, subjects
from bus.jetstream import connect
from bus.streams import JOB, STATE, pool_consumer
from handlers.access.identities import seed_file
from handlers.embedded import Servers
from handlers.worker.worker import Worker
from statemachine.chat import Limits
from statemachine.store import Store
from statemachine.store.postgres import connect as open_store
from tests.rigs.messages import new_id
from tests.unit.driver import ORG, PYTHON
from tests.unit.facts import uid
from tests.worker.messages import Answers, Job, Senders

WITHIN = 20.0
Start = Callable[..., Awaitable[Worker]]


@dataclass(slots=True)
class Place:
    """The servers, a connection with the rights of senders and callers, and the store."""

    bus: Bus
    store: Store
    send: Senders
    start: Start

    async def next_job(self) -> Job:
        async with self.bus.pull(pool_consumer("local"), prefetch=1) as pull:
            (delivery,) = await asyncio.wait_for(pull.next(1), WITHIN)
            await delivery.ack()
            job: Job = json.loads(delivery.data)["data"]
            return job

    @asynccontextmanager
    async def answers(self, chat: str = "*") -> AsyncIterator[Answers]:
        """Subscribe to the answers of one chat, or of all chats."""
        async with self.bus.subscribe(f"workspaced.result.{chat}.*") as found:
            yield Answers(found)

    @asynccontextmanager
    async def states(self, chat: str) -> AsyncIterator[Subscription]:
        async with self.bus.subscribe(subjects.ui_state(chat)) as found:
            yield found


async def next_data(subscription: Subscription | Answers) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await subscription.next(WITHIN)).data)["data"]
    return found


async def wait_for_state(subscription: Subscription, state: str) -> dict[str, Any]:
    while (seen := await next_data(subscription))["state"] != state:
        pass
    return seen


@pytest.fixture
async def new_place(own_nats: Servers, migrated_url: str) -> AsyncIterator[Place]:
    """Servers without streams."""
    async with AsyncExitStack() as stack:

        async def bus(role: str) -> Bus:
            file = seed_file(own_nats.credentials, role)
            made = await connect(own_nats.nats_url, name=role, seed_file=file)
            return await stack.enter_async_context(made)

        async def start(limits: Limits | None = None) -> Worker:
            own = await stack.enter_async_context(open_store(migrated_url))
            worker = Worker(own, await bus("worker"), limits or Limits())
            running = asyncio.create_task(worker.run())
            stack.push_async_callback(asyncio.wait, [running])
            stack.callback(running.cancel)
            await asyncio.wait_for(worker.ready.wait(), WITHIN)
            return worker

        store = await stack.enter_async_context(open_store(migrated_url))
        await store.templates.push(ORG, PYTHON.active, b"")
        operator = await bus("operator")
        yield Place(operator, store, Senders(operator), start)


@pytest.fixture
async def place(new_place: Place) -> Place:
    """Servers with streams; the first worker on new ones may publish the first answers a second time."""
    first = Worker(new_place.store, new_place.bus, Limits())
    await first.republisher.prepare()
    await first.watch.accept()
    return new_place


async def test_a_create_is_answered_when_the_workspace_is_ready(place: Place) -> None:
    chat = new_id()
    await place.start()
    async with place.answers(chat) as answers, place.states(chat) as states:
        await place.send.create(chat, name="blue")
        job = await place.next_job()
        await place.send.built(job)
        await place.send.agent(job, "connected", 1)
        await place.send.agent(job, "ready", 2)
        answer = await next_data(answers)
        seen = [(await next_data(states))["state"] for _ in range(4)]

    assert answer["result"]["created"] is True
    assert answer["result"]["build_id"] == job["build_id"]
    assert seen == ["building", "agent_connecting", "scripts_running", "ready"]
    last = await place.bus.get_last(STATE.name, subjects.state(chat))
    assert last is not None
    assert json.loads(last.data)["data"]["version"] == 4


async def test_fifty_concurrent_creates_on_three_workers_make_one_workspace(place: Place) -> None:
    chat = new_id()
    workers = [await place.start() for _ in range(3)]
    async with place.answers(chat) as answers:
        await asyncio.gather(*(place.send.create(chat, f"call-{n}") for n in range(50)))
        job = await place.next_job()
        await place.send.built(job)
        await place.send.agent(job, "connected", 1)
        await place.send.agent(job, "ready", 2)
        found = [await next_data(answers) for _ in range(50)]

    assert sum(answer["result"]["created"] for answer in found) == 1
    assert {answer["call_id"] for answer in found} == {f"call-{n}" for n in range(50)}
    # A call that was evaluated after the build had ended names no build.
    assert {answer["result"].get("build_id") for answer in found} <= {job["build_id"], None}
    stream = await place.bus.ensure_stream(JOB)
    assert stream.last == 1, "one job was ever published"
    assert sum(worker.dead_letters for worker in workers) == 0


async def test_many_chats_on_three_workers_each_get_one_workspace(place: Place) -> None:
    """The calls have equal ids and the same owner, and each event is delivered twice."""
    chats = {new_id(): new_id() for _ in range(30)}
    for _ in range(3):
        await place.start()
    async with place.answers() as answers:
        for _ in range(2):
            await asyncio.gather(
                *(place.send.create(c, "call_1", event_id=e, name="x") for c, e in chats.items())
            )
        jobs = [await place.next_job() for _ in chats]
        await asyncio.gather(*(place.send.built(job, agents=()) for job in jobs))
        found = [await next_data(answers) for _ in chats]

    assert {job["chat_id"] for job in jobs} == set(chats)
    for key in ("workspace_id", "build_id"):
        assert len({job[key] for job in jobs}) == len(chats)
    assert len({job["workspace_name"] for job in jobs}) == len(chats)
    assert all(answer["result"]["created"] for answer in found)


async def test_a_limit_passes_by_a_timer_of_the_real_server(place: Place) -> None:
    chat = new_id()
    await place.start(Limits(build=timedelta(seconds=0.2)))
    async with place.answers(chat) as answers:
        await place.send.create(chat)
        answer = await next_data(answers)

    assert answer["result"].keys() == {"error", "build_id", "workspace_id"}
    log = await place.store.chats.log(chat)
    fired = [e for e in log if e["event"]["type"] == "workspaced.deadline_passed.v1"]
    assert len(fired) == 1
    assert [e["state_after"] for e in fired] == ["failed"]


async def test_a_damaged_chat_does_not_stop_the_alarms_of_others(
    place: Place, migrated_url: str
) -> None:
    """Several workers ring the same alarm, and one chat's snapshot can't be read."""
    limits, chats = Limits(build=timedelta(seconds=1)), [new_id() for _ in range(20)]
    workers = [await place.start(limits) for _ in range(3)]
    database = await asyncpg.connect(migrated_url)
    async with (
        place.answers() as answers,
        place.states(chats[0]) as states,
        place.bus.subscribe("workspaced.dead.timer") as dead,
    ):
        await place.send.create(chats[0])
        await wait_for_state(states, "building")
        await database.execute("update chat set snapshot = '{}'")
        for chat in chats[1:]:
            await place.send.create(chat, owner=new_id())
        found = {(await next_data(answers))["result"]["build_id"] for _ in chats[1:]}
        letter = await dead.next(WITHIN)
    await asyncio.gather(*(worker.bus.flush() for worker in workers))

    assert len(found) == len(chats) - 1
    assert json.loads(letter.data) == {"chat_id": chats[0]}
    async with asyncio.timeout(WITHIN):
        while await database.fetchval("select count(*) from alarm"):
            pass  # one round trip each: workers do not announce that they deleted alarms
    await database.close()


async def test_a_silent_agent_is_noticed_by_a_marker_of_the_real_server(place: Place) -> None:
    chat = new_id()
    await place.start()
    async with place.states(chat) as states:
        await place.send.create(chat)
        job = await place.next_job()
        await place.send.show(job, ttl=1.0)
        await place.send.built(job)
        await place.send.agent(job, "connected", 1)
        await place.send.agent(job, "ready", 2)
        await wait_for_state(states, "ready")
        while (seen := await next_data(states))["agent"]["status"] != "disconnected":
            pass

    assert seen["state"] == "ready"
    assert seen["cause"]["source"] == "/workspaced"


async def test_a_value_that_postgresql_cannot_store_fails_only_its_call(place: Place) -> None:
    """The id has the length and hyphens of a UUID, but PostgreSQL rejects it."""
    chat, none = new_id(), "z" * 8 + "-zzzz" * 3 + "-" + "z" * 12
    worker = await place.start()
    async with place.answers(chat) as answers:
        await place.send.ask(chat, "create_workspace", template_id=none)
        answer = await next_data(answers)
    async with place.bus.subscribe("workspaced.dead.tool") as dead:
        await place.send.create(none)
        letter = await dead.next(WITHIN)

    assert answer["is_error"] is True
    assert "UUID" in answer["result"]["error"]
    assert letter.headers["Workspaced-Reason"] == "bad_data"
    assert worker.dead_letters <= 1


async def test_a_starting_worker_takes_over_the_calls_and_limits_of_another_one(
    place: Place,
) -> None:
    """Calls were made while no worker ran, and a limit began before."""
    chat, waiting = new_id(), new_id()
    limits = Limits(build=timedelta(seconds=0.5))
    first = await place.start(limits)
    async with place.states(waiting) as states:
        await place.send.create(waiting)
        await wait_for_state(states, "building")
    await first.bus.close()
    await place.send.ask(chat, "list_templates")

    async with place.answers(chat) as answers, place.states(waiting) as states:
        await place.start(limits)
        assert (await next_data(answers))["result"]["count"] == 1
        assert (await wait_for_state(states, "failed"))["failure"]["reason"] == "build_timeout"


async def test_any_json_in_arguments_survives_the_database(place: Place) -> None:
    chat = new_id()
    deep: dict[str, Any] = {"a": [1, 2.5, {"ä": None}], "big": 10**300}
    await place.start()
    async with place.answers(chat) as answers:
        await place.send.ask(chat, "list_templates", **deep)
        await next_data(answers)
        await place.send.ask(chat, "list_templates", owner=uid("somebody else"))
        again = await next_data(answers)

    assert again["result"]["count"] == 1
    (asked, _) = await place.store.chats.log(chat)
    assert asked["event"]["data"]["args"] == deep
