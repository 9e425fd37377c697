"""The ends of streams that a killed NATS server had not written to the disk: older files are put back."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from bus import Bus, BusError, Outbound, PubAck, Schedule, StoredMessage, subjects
from bus.jetstream import connect
from bus.streams import IN, JOB, PRESENCE, RESULT, STATE, TIMER, WORKER_ALARM, WORKER_IN
from handlers.worker.worker import Worker
from statemachine.chat import Limits
from statemachine.store import Store
from statemachine.store.postgres import connect as open_store
from tests.contract.conftest import NatsServer
from tests.unit.driver import ORG, PYTHON
from tests.worker.messages import Senders, new_id

WITHIN = 20.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path, "jetstream { sync_interval: always }")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def store(migrated_url: str) -> AsyncIterator[Store]:
    async with open_store(migrated_url) as store:
        await store.templates.push(ORG, PYTHON.active, b"")
        yield store


def files_of(directory: Path, stream: str) -> Path:
    (found,) = (directory / "store").glob(f"jetstream/*/streams/{stream}/msgs")
    return found


def keep_files(directory: Path, stream: str) -> None:
    shutil.copytree(files_of(directory, stream), directory / "old" / stream)


def put_back(directory: Path, stream: str) -> None:
    """Replace the files of a stream by those that were kept."""
    files = files_of(directory, stream)
    shutil.rmtree(files)
    shutil.copytree(directory / "old" / stream, files)


async def apply_events(worker: Worker, bus: Bus, stored: list[PubAck]) -> None:
    """Apply these events, without recording the positions of the streams again."""
    left = {ack.sequence for ack in stored}
    async with bus.pull(WORKER_IN) as pull:
        while left:
            deliveries = await asyncio.wait_for(pull.next(256), WITHIN)
            batch = await worker.commit(deliveries)
            assert batch is not None
            assert await worker.publish(batch)
            left -= {delivery.sequence for delivery in deliveries}
        await bus.flush()


class Watched:
    """A bus that records which messages are stored and looked for over it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.stored: list[str] = []
        self.looked_for: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish_many(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
        results = await self._bus.publish_many(messages)
        self.looked_for += [message.subject for message in messages]
        self.stored += [
            message.subject
            for message, result in zip(messages, results, strict=True)
            if isinstance(result, PubAck)
        ]
        return results

    async def get_last(self, stream: str, subject: str) -> StoredMessage | None:
        self.looked_for.append(subject)
        return await self._bus.get_last(stream, subject)


async def state_of(bus: Bus, chat: str) -> str | None:
    last = await bus.get_last(STATE.name, subjects.state(chat))
    return None if last is None else json.loads(last.data)["data"]["state"]


@pytest.mark.parametrize("streams", [(STATE, RESULT, TIMER), (STATE,), (RESULT,)])
async def test_what_a_power_cut_took_is_published_again_by_the_next_worker(
    server: NatsServer, store: Store, tmp_path: Path, streams: tuple[object, ...]
) -> None:
    names = [stream.name for stream in (STATE, RESULT, TIMER) if stream in streams]
    chats = [new_id() for _ in range(20)]
    async with await connect(server.url, wait=True) as bus:
        worker = Worker(store, bus, Limits())
        await worker.republisher.prepare()
        sent = [await Senders(bus).create(chat) for chat in chats[:10]]
        await apply_events(worker, bus, sent)
        await worker.watch.accept()
    server.end()
    for name in names:
        keep_files(tmp_path, name)
    server.start()
    async with await connect(server.url, wait=True) as bus:
        worker = Worker(store, bus, Limits())
        await worker.republisher.prepare()
        await worker.watch.accept()
        sent = [await Senders(bus).create(chat) for chat in chats[10:]]
        sent += [await Senders(bus).ask(chat, "list_templates", "list") for chat in chats[10:]]
        await apply_events(worker, bus, sent)
    server.stop()  # with the worker, before it recorded how far the streams are
    for name in names:
        put_back(tmp_path, name)
    server.start()

    async with await connect(server.url, wait=True) as bus:
        before = [await state_of(bus, chat) for chat in chats]
        lost = await Worker(store, bus, Limits()).republisher.prepare()

        assert not lost & {IN.name, JOB.name, STATE.name, RESULT.name}  # positions show no loss
        if STATE in streams:
            assert before == ["building"] * 10 + [None] * 10
        assert [await state_of(bus, chat) for chat in chats] == ["building"] * 20
        for chat in chats[10:]:
            answer = await bus.get_last(RESULT.name, subjects.result(chat, "list"))
            assert answer is not None
            assert json.loads(answer.data)["data"]["call_id"] == "list"


async def test_a_worker_that_lives_on_publishes_again_only_what_was_lost(
    server: NatsServer, store: Store, tmp_path: Path, migrated_url: str
) -> None:
    old, kept, lost = ([new_id() for _ in range(10)] for _ in range(3))
    async with await connect(server.url, wait=True) as real, asyncio.timeout(60):
        back = asyncio.Event()
        bus: Any = Watched(real)
        worker = Worker(store, bus, Limits())
        for callback in (worker.relay.forget, worker.gate.close, back.set):
            bus.on_reconnect(callback)
        await worker.republisher.prepare()
        await worker.watch.accept()
        sent = [await Senders(bus).create(chat) for chat in old + kept]
        await apply_events(worker, bus, sent)
        server.end()
        keep_files(tmp_path, STATE.name)
        server.start()
        await back.wait()
        await worker.republisher.prepare()
        await apply_events(worker, bus, [await Senders(bus).create(chat) for chat in lost])
        database = await asyncpg.connect(migrated_url)
        await database.execute(
            "update chat set updated_at = updated_at - interval '1 hour' where chat_id = any($1)",
            old,
        )
        await database.close()
        back.clear()
        server.stop()
        put_back(tmp_path, STATE.name)
        server.start()
        await back.wait()
        bus.stored.clear()
        bus.looked_for.clear()

        losses = await worker.republisher.prepare()

        assert losses == {PRESENCE.name}
        states = [s for s in bus.stored if s.startswith("workspaced.state.")]
        assert sorted(states) == sorted(subjects.state(chat) for chat in lost)
        looked = {subject for subject in bus.looked_for if subject.startswith("workspaced.state.")}
        assert looked == {subjects.state(chat) for chat in kept + lost}
        assert [await state_of(bus, c) for c in old + kept + lost] == ["building"] * 30
        bus.stored.clear()
        assert await worker.republisher.prepare() == frozenset()
        assert not [s for s in bus.stored if s.startswith("workspaced.state.")]


async def test_alarms_that_reuse_lost_sequences_are_delivered(
    server: NatsServer, tmp_path: Path
) -> None:
    """The consumer had delivered those sequences before, and some of them are not acknowledged."""

    async def ring(bus: Bus, *times: int, ack: bool = True) -> None:
        """Set alarms one after the other, each when the one before has rung."""
        async with asyncio.timeout(WITHIN), bus.pull(WORKER_ALARM) as pull:
            for at in times:
                schedule = Schedule(subjects.ALARM_RANG, datetime.now(UTC))
                await bus.publish(subjects.alarm(at), b"%d" % at, schedule=schedule)
                while True:
                    (delivery, *_) = await pull.next(1)
                    if ack:
                        await delivery.ack()
                    if delivery.data == b"%d" % at:
                        break
            await bus.flush()

    async with await connect(server.url, wait=True) as bus:
        await bus.ensure_stream(TIMER)
        await bus.ensure_consumer(WORKER_ALARM)
        await ring(bus, 1, 2)
    server.end()
    keep_files(tmp_path, TIMER.name)
    server.start()
    async with await connect(server.url, wait=True) as bus:
        await ring(bus, *range(3, 13))
        await ring(bus, *range(13, 23), ack=False)
        last = (await bus.stream_info(TIMER.name)).last
    server.stop()
    put_back(tmp_path, TIMER.name)
    server.start()
    async with await connect(server.url, wait=True) as bus:
        assert (await bus.ensure_stream(TIMER)).last < last
        await bus.ensure_consumer(WORKER_ALARM)

        await ring(bus, *range(23, 28))

        assert (await bus.stream_info(TIMER.name)).last < last
        assert (await bus.consumer_state(WORKER_ALARM)).undelivered == 0
