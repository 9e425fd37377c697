"""The cost of events and batches, counted in round trips, transactions and messages."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from bus import Bus, Delivery, Outbound
from bus.jetstream import connect
from bus.streams import IN, STREAMS, WORKER_ALARM, WORKER_IN, pool_consumer
from handlers.access.identities import seed_file
from handlers.embedded import Servers
from handlers.worker.worker import Worker
from statemachine.chat import Limits
from statemachine.store import Store
from statemachine.store import postgres as postgres_store
from statemachine.store.database import queries
from statemachine.store.postgres import connect as open_store
from tests.rigs.messages import new_id
from tests.unit.driver import ORG, PYTHON
from tests.worker.messages import Job, Senders

NAMES = {text: name for name, text in queries().items()}
SYNCED = {s.subjects[0].split(".")[1] for s in STREAMS if s.persist_mode is None}
TOGETHER = "together: "
SAMPLED = ("count_open_calls", "pools")
FACT = ["write_facts"]
"""A worker remembers the chats and provisioners that it has read or written lately."""
UNKNOWN_PROVISIONER = ["look_facts", "write_facts"]
CREATE = ["look", "look_up", "write", "mark_published"]
REPEAT = ["look", "look_up", "write_facts"]


class Counting:
    """A bus that records what is published over it."""

    def __init__(self, bus: Bus, cost: Cost) -> None:
        self._bus, self._cost = bus, cost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish_many(self, messages: Sequence[Outbound]) -> Any:
        counts = Counter(message.subject.split(".")[1] for message in messages)
        if counts.keys() >= {"state", "timer"}:  # beside states, alarms cost no round trip
            del counts["timer"]
            self._cost.alarms += [m.subject for m in messages if m.schedule is not None]
        if counts:
            self._cost.published.append(dict(counts))
        return await self._bus.publish_many(messages)

    async def publish_together(self, messages: Sequence[Outbound]) -> Any:
        (kind,) = {message.subject.split(".")[1] for message in messages}
        self._cost.published.append({f"{TOGETHER}{kind}": len(messages)})
        return await self._bus.publish_together(messages)

    async def purge(self, stream: str, last: int) -> None:
        self._cost.published.append({"purge": 1})
        await self._bus.purge(stream, last)

    async def delete_message(self, stream: str, sequence: int) -> None:
        self._cost.published.append({"delete": 1})
        await self._bus.delete_message(stream, sequence)

    async def get_last(self, stream: str, subject: str) -> Any:
        self._cost.asked.append(subject.split(".")[1])
        return await self._bus.get_last(stream, subject)


@dataclass
class Cost:
    """Statements, publications and lookups since the last call of `spent`."""

    statements: list[str] = field(default_factory=list)
    """Each is a round trip to PostgreSQL; a commit after a write is its only write to disk."""
    published: list[dict[str, int]] = field(default_factory=list)
    """Each is one round trip to NATS: how many messages of which kind were published side by side."""
    asked: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list, compare=False)
    """The subjects of alarms that were set beside states. Two times of a chat may have the same alarm."""

    @property
    def fsyncs(self) -> int:
        """How often NATS writes published messages to the disk before it acknowledges them.

        Once for a batch; its staging area, which costs three more, does not count.
        """
        kinds = [(kind, count) for some in self.published for kind, count in some.items()]
        batches = [kind for kind, _ in kinds if kind.startswith(TOGETHER)]
        return sum(count for kind, count in kinds if kind in SYNCED) + len(batches)

    def note(self, record: Any) -> None:
        """Record a statement, except asyncpg's queries of types and samples taken every second."""
        name = NAMES.get(record.query.strip())
        if name is not None and name not in SAMPLED:
            self.statements.append(name)


@dataclass
class Bench:
    """A worker over real servers, driven by the test, with its costs."""

    store: Store
    send: Senders
    work: Callable[[int], Awaitable[None]]
    """Take that many events as one batch, and process it."""
    commit: Callable[[int], Awaitable[None]]
    """Take that many events as one batch, and commit it; then NATS delivers them again."""
    ring: Callable[[], Awaitable[None]]
    """Wait until an alarm rings, and process it."""
    delete_acked: Callable[[], Awaitable[int]]
    """Delete what was acknowledged; return how many events are left."""
    jobs: Callable[[int], Awaitable[list[Job]]]
    cost: Cost

    def spent(self) -> Cost:
        """Return the cost since the last call."""
        spent = replace(self.cost)
        self.cost.statements, self.cost.published = [], []
        self.cost.asked, self.cost.alarms = [], []
        return spent


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture
async def bench(  # noqa: C901 — one small function for each step of a test
    own_nats: Servers, migrated_url: str, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    cost, plain = Cost(), asyncpg.create_pool

    async def counted(connection: Any) -> None:
        connection.add_query_logger(cost.note)

    def pool(*args: Any, **more: Any) -> Any:
        return plain(*args, init=counted, **more)

    monkeypatch.setattr(postgres_store.asyncpg, "create_pool", pool)
    async with AsyncExitStack() as stack:

        async def bus(role: str) -> Bus:
            file = seed_file(own_nats.credentials, role)
            made = await connect(own_nats.nats_url, name=role, seed_file=file)
            return await stack.enter_async_context(made)

        store = await stack.enter_async_context(open_store(migrated_url))
        await store.templates.push(ORG, PYTHON.active, b"")
        counting: Any = Counting(await bus("worker"), cost)
        worker = Worker(store, counting, limits)
        await worker.republisher.prepare()
        operator = await bus("operator")
        pull = await stack.enter_async_context(counting.pull(WORKER_IN, prefetch=1000))
        jobs = await stack.enter_async_context(operator.pull(pool_consumer("local"), prefetch=1000))

        async def taken(source: Any, count: int) -> list[Delivery]:
            found: list[Delivery] = []
            while len(found) < count:
                found += await source.next(count - len(found))
            return found

        alarms = await stack.enter_async_context(counting.pull(WORKER_ALARM, prefetch=1))

        async def work(count: int, source: Any = pull) -> None:
            batch = await worker.commit(await taken(source, count))
            assert batch is not None
            assert await worker.publish(batch)
            await operator.flush()  # meanwhile asyncpg calls the logger of the last statement

        async def commit(count: int) -> None:
            deliveries = await taken(pull, count)
            assert await worker.commit(deliveries) is not None
            await operator.flush()
            for delivery in deliveries:
                await delivery.nak()

        async def delete_acked() -> int:
            async with asyncio.timeout(20):
                while (await counting.consumer_state(WORKER_IN)).backlog:
                    pass  # one round trip each: the server does not confirm acks
            await worker.acked_events.delete()
            left: int = (await counting.stream_info(IN.name)).messages
            return left

        async def next_jobs(count: int) -> list[Job]:
            deliveries = await taken(jobs, count)
            return [json.loads(d.data)["data"] for d in deliveries]

        made = Bench(
            store,
            Senders(operator),
            work,
            commit,
            lambda: work(1, alarms),
            delete_acked,
            next_jobs,
            cost,
        )
        made.spent()
        yield made


async def test_a_create_costs_this_many_operations(bench: Bench) -> None:
    await bench.send.create(new_id())
    await bench.work(1)

    spent = bench.spent()
    assert spent.statements == CREATE
    assert spent.published == [{"state": 1}, {"job": 1}]
    assert spent.fsyncs == 1
    assert spent.asked == []
    assert len(spent.alarms) == len(await bench.store.recovery.alarm_times()) == 1


async def test_a_fact_costs_this_many_operations(
    bench: Bench,
) -> None:
    await bench.send.create(new_id())
    await bench.work(1)
    (job,) = await bench.jobs(1)
    bench.spent()

    await bench.send.built(job, "started")
    await bench.work(1)
    assert bench.spent() == Cost(UNKNOWN_PROVISIONER, [{"state": 1}])
    await bench.send.built(job)
    await bench.work(1)
    assert bench.spent() == Cost(FACT, [{"state": 1}])
    await bench.send.agent(job, "connected", 1)
    await bench.work(1)
    assert bench.spent() == Cost(FACT, [{"state": 1}])
    await bench.send.agent(job, "ready", 2)
    await bench.work(1)
    spent = bench.spent()
    assert spent == Cost(FACT, [{"state": 1}, {"result": 1}])
    assert spent.fsyncs == 0


async def test_a_redelivered_event_publishes_what_is_missing(bench: Bench) -> None:
    await bench.send.create(new_id())
    await bench.commit(1)
    bench.spent()

    await bench.work(1)

    read = ["chats_by_id", "now", "unpublished_jobs", "mark_published", "answers_of"]
    spent = bench.spent()
    assert spent == Cost([*REPEAT, *read], [{"state": 1}, {"job": 1}])
    assert len(spent.alarms) == 1


async def test_an_event_that_its_sender_published_again_publishes_nothing(bench: Bench) -> None:
    chat = new_id()
    await bench.send.create(chat, event_id="one")
    await bench.work(1)
    bench.spent()

    await bench.send.create(chat, event_id="one")
    await bench.work(1)

    assert bench.spent() == Cost(REPEAT, [])


@pytest.mark.parametrize("chats", [50, 200])
async def test_a_batch_of_many_chats_costs_as_much_as_one(bench: Bench, chats: int) -> None:
    """The number of round trips does not depend on the number of chats in the batch."""
    for _ in range(chats):
        await bench.send.create(new_id(), owner=new_id())
    await bench.work(chats)
    spent = bench.spent()
    assert spent == Cost(CREATE, [{"state": chats}, {f"{TOGETHER}job": chats}])
    assert spent.fsyncs == 1
    assert len(spent.alarms) == 1, "all limits of a batch are due at the same time"

    jobs = await bench.jobs(chats)
    for job in jobs:
        await bench.send.built(job)
    await bench.work(chats)
    assert bench.spent() == Cost(UNKNOWN_PROVISIONER, [{"state": chats}])
    for job in jobs:
        await bench.send.agent(job, "connected", 1)
        await bench.send.agent(job, "ready", 2)
    await bench.work(2 * chats)
    states: dict[str, int] = {
        "state": chats
    }  # two rounds: the second state of a chat follows its first
    assert bench.spent() == Cost(FACT, [states, states, {"result": chats}])


@pytest.mark.parametrize("limits", [Limits(build=timedelta(seconds=1))])
@pytest.mark.parametrize("chats", [1, 50])
async def test_one_alarm_lets_the_limits_of_many_chats_pass(bench: Bench, chats: int) -> None:
    for _ in range(chats):
        await bench.send.create(new_id(), owner=new_id())
    await bench.work(chats)
    assert len(bench.spent().alarms) == 1

    await bench.ring()

    statements = ["settings", "due_alarms", "look_facts", "look_up", "write", "delete_alarms"]
    assert bench.spent() == Cost(statements, [{"state": chats}, {"result": chats}])
    assert await bench.store.recovery.alarm_times() == []


async def test_one_purge_deletes_all_acknowledged_events(bench: Bench) -> None:
    """An ack of a work queue, or a deletion, would be one write to the disk for each event."""
    for _ in range(50):
        await bench.send.create(new_id(), owner=new_id())
    await bench.work(50)
    bench.spent()

    left = await bench.delete_acked()

    assert bench.spent() == Cost([], [{"purge": 1}])
    assert left == 0
