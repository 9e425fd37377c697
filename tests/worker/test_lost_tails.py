"""The ends of streams that a killed NATS server had not written to the disk: older files are put back."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bus import Bus, PubAck, subjects
from bus.jetstream import connect
from bus.streams import IN, JOB, RESULT, STATE, TIMER, WORKER_IN
from handlers.worker.worker import Worker
from statemachine.chat import Limits
from statemachine.store import Store
from statemachine.store.migrator import migrate
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
async def store(database_url: str) -> AsyncIterator[Store]:
    await migrate(database_url)
    async with open_store(database_url) as store:
        await store.templates.push(ORG, PYTHON.active, b"")
        yield store


def files_of(directory: Path, stream: str) -> Path:
    (found,) = (directory / "store").glob(f"jetstream/*/streams/{stream}/msgs")
    return found


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
    server.stop()
    for name in names:
        shutil.copytree(files_of(tmp_path, name), tmp_path / "old" / name)
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
        files = files_of(tmp_path, name)
        shutil.rmtree(files)
        shutil.copytree(tmp_path / "old" / name, files)
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
