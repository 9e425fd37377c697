"""Workers over in-memory adapters. The test runs them batch by batch, and advances their clock."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from bus import Bus, Delivery, Message, subjects
from bus.streams import CONSUMERS, JOB, STREAMS, pool_consumer
from handlers.runtime import clock
from handlers.worker.recovery.stream_watch import StreamWatch
from handlers.worker.relay import Relay
from handlers.worker.remembered import Remembered
from handlers.worker.worker import Worker
from statemachine.chat import Limits, chat_to_json
from statemachine.replay import Fold
from statemachine.snapshot_audit import differences
from statemachine.store import Store
from statemachine.templates import Template
from statemachine.views import state_changed
from tests.doubles.clock import VirtualClock
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_consumer import MemoryDelivery
from tests.doubles.memory_server import Interest, MemoryServer
from tests.doubles.memory_store import MemoryStore
from tests.unit.driver import ORG, PYTHON, template
from tests.worker.messages import Job, Senders

POOL = pool_consumer("local")


class Hand:
    """One worker; the test takes and processes its batches."""

    def __init__(self, rig: Rig, bus: Bus, store: Store) -> None:
        self._rig = rig
        self.worker = Worker(store, bus, rig.limits)
        self.worker._remembered = Remembered(store, rig.clock.now)

    @property
    def relay(self) -> Relay:
        return self.worker.relay

    @property
    def watch(self) -> StreamWatch:
        return self.worker.watch

    async def prepare(self) -> frozenset[str]:
        """Do what a worker does at its start and after a reconnect; return the lost streams."""
        self.relay.forget()
        lost = await self.worker.republisher.prepare()
        await self.watch.accept()  # as after senders were asked for their facts
        return lost

    def take(self, most: int = 256) -> list[Delivery]:
        """Return the messages that the consumers have now, without waiting."""
        found: list[Delivery] = []
        bus = self._rig.bus
        for declared in CONSUMERS:
            consumer = bus.consumer(declared)
            assert consumer is not None
            while len(found) < most and (message := consumer.take()) is not None:
                found.append(MemoryDelivery(bus, consumer, message))
        return found

    async def work(self, deliveries: Sequence[Delivery]) -> None:
        batch = await self.worker.commit(deliveries)
        if batch is not None:
            await self.worker.publish(batch)

    async def pump(self, most: int = 256) -> int:
        """Process messages until there are none; return the number of deliveries."""
        done = 0
        while deliveries := self.take(most):
            await self.work(deliveries)
            done += len(deliveries)
        return done

    async def let_time_pass(self, seconds: float) -> None:
        """Advance the clock, and process what that makes available."""
        self._rig.clock.advance(seconds)
        await self.pump()


class Rig:
    """One server, one store, any number of workers, and records of everything they publish."""

    def __init__(self, limits: Limits | None = None, began: float = 1_900_000_000.0) -> None:
        self.limits = limits or Limits()
        self.clock, self._began = VirtualClock(began), began
        self.skew = timedelta(0)
        """How far the database's clock is behind NATS's."""
        self.server = MemoryServer(self.clock)
        self.bus = MemoryBus(self.server)
        self.store = MemoryStore(self.now)
        self.senders = Senders(self.bus)
        self.states: dict[str, list[dict[str, Any]]] = {}
        """The states that frontends received, by chat."""
        self.results: dict[tuple[str, str], list[dict[str, Any]]] = {}
        """The answers that callers received by chat and call, without duplicates in the stream."""
        self.envelopes: list[dict[str, Any]] = []
        self._named: set[str] = set()
        self.publications: Counter[str] = Counter()
        """How often each answer was published, by message id."""
        self.dead: list[Message] = []

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.now(), UTC) - self.skew

    def workers_clock(self) -> float:
        """Return the time of the clock of the workers' own machine, for `handlers.runtime.clock`."""
        return clock() + self.clock.now() - self._began

    async def open(self) -> Rig:
        for stream in STREAMS:
            await self.bus.ensure_stream(stream)
        for consumer in (*CONSUMERS, POOL):
            await self.bus.ensure_consumer(consumer)
        await self.push(PYTHON)
        taps: dict[str, Callable[[Message], None]] = {
            "workspaced.ui.*.state": self._state,
            "workspaced.result.>": self._result,
        }
        taps["workspaced.dead.*"] = self.dead.append
        for subject, take in taps.items():
            self.server.interests.append(Interest(subject, "", take))
        return self

    async def push(self, *pushed: Template | str) -> None:
        for one in pushed:
            found = template(one, version=f"version of {one}") if isinstance(one, str) else one
            await self.store.templates.push(ORG, found.active, b"")

    def hand(self, bus: Bus | None = None, store: Store | None = None) -> Hand:
        return Hand(self, bus or self.bus, store or self.store)

    def jobs(self) -> list[Job]:
        """Return all jobs that no provisioner of the pool has acknowledged, oldest first."""
        stream = self.server.streams[JOB.name]
        return [json.loads(m.data)["data"] for m in stream.messages.values()]

    @property
    def job(self) -> Job:
        """The newest job."""
        return self.jobs()[-1]

    def state(self, chat: str) -> dict[str, Any]:
        """Return the last message on the chat's state subject."""
        last = self.server.streams["WORKSPACED_STATE"].last_of(subjects.state(chat))
        assert last is not None
        data: dict[str, Any] = json.loads(last.data)["data"]
        return data

    def path(self, chat: str) -> list[str]:
        """Return the states that frontends saw, without consecutive repeats."""
        seen = self.states.get(chat, [])
        return [s["state"] for n, s in enumerate(seen) if n == 0 or s["state"] != s0(seen, n)]

    def answer(self, chat: str, call: str = "c") -> dict[str, Any]:
        """Return the last answer to a call, after a check that all are equal but for a later conflict."""
        found = self.results[chat, call]
        conflicts = [one.get("conflict", False) for one in found]
        assert conflicts == sorted(conflicts), found
        assert all({**one, "conflict": 0} == {**found[0], "conflict": 0} for one in found), found
        return found[-1]

    async def outcomes(self, chat: str) -> list[str]:
        return [e["outcome"] for e in await self.store.chats.log(chat, limit=10_000)]

    async def check(self, chat: str) -> None:
        """Check that bus, snapshot and log agree, and that versions rise by one."""
        kept = await self.store.chats.get(chat)
        assert kept is not None
        log = await self.store.chats.log(chat, limit=10_000)
        if kept.version:
            assert self.state(chat) == json.loads(json.dumps(state_changed(kept)))
        assert [s["version"] for s in self.states.get(chat, [])] == [*range(1, kept.version + 1)]
        assert [e["seq"] for e in log] == [*range(1, kept.seq + 1)]
        if log:
            fold = Fold(chat, self.limits)
            for entry in log:
                fold.take(entry)
            assert fold.differences == []
            stored = chat_to_json(kept)
            assert differences(stored, fold, kept.open_calls) == []

    def _state(self, message: Message) -> None:
        self._envelope(message)
        data = json.loads(message.data)["data"]
        self.states.setdefault(data["chat_id"], []).append(data)

    def _result(self, message: Message) -> None:
        name = message.headers["Nats-Msg-Id"]
        self.publications[name] += 1
        if name in self._named:
            return
        self._named.add(name)
        self._envelope(message)
        *_, chat, call = message.subject.split(".")
        self.results.setdefault((chat, call), []).append(json.loads(message.data)["data"])

    def _envelope(self, message: Message) -> None:
        self.envelopes.append(json.loads(message.data))


def s0(seen: list[dict[str, Any]], n: int) -> str:
    before: str = seen[n - 1]["state"]
    return before
