"""Publishes, requests, pulls, subscriptions and services when the server stops and starts again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from nats.js.api import RetentionPolicy, StorageType

from bus import Bus, Conflict, Outbound, PubAck, Refused, Stream, Unavailable
from bus.jetstream import connect
from bus.streams import Consumer
from tests.contract.conftest import NatsServer, World

QUEUE = Stream(
    name="QUEUE", subjects=["q.>"], retention=RetentionPolicy.WORK_QUEUE, allow_direct=True
)
WORKER = Consumer("QUEUE", "worker", ack_wait=0.4)


@pytest.fixture
async def bus(own_world: World) -> Bus:
    bus = await own_world.connect()
    await bus.ensure_stream(QUEUE)
    await bus.ensure_consumer(WORKER)
    return bus


class Reconnects:
    """Waits for the reconnects of a bus."""

    def __init__(self, bus: Bus) -> None:
        self._back = asyncio.Event()
        bus.on_reconnect(self._back.set)

    async def wait(self) -> None:
        await asyncio.wait_for(self._back.wait(), 10)
        self._back.clear()


async def wait_disconnected(bus: Bus) -> None:
    """Wait until the bus has noticed that the server is away."""
    with suppress(Unavailable):
        while True:
            await bus.flush()


async def test_a_publish_during_an_outage_fails_and_is_not_sent_later(
    own_world: World, bus: Bus
) -> None:
    reconnects = Reconnects(bus)
    own_world.server.stop()
    await wait_disconnected(bus)

    assert not bus.connected
    with pytest.raises(Unavailable):
        await bus.publish("q.a", b"x")
    with pytest.raises(Unavailable):
        await bus.send("q.a", b"x")

    own_world.server.start()
    await reconnects.wait()
    assert bus.connected
    assert (await bus.publish("q.a", b"y")).sequence == 1


async def test_a_request_in_flight_fails_when_the_connection_breaks(
    own_world: World, bus: Bus
) -> None:
    other = await own_world.connect()
    async with other.subscribe("nobody.answers") as asked:
        waiting = asyncio.ensure_future(bus.request("nobody.answers", b"", timeout=60))
        await asked.next(timeout=5)

        own_world.server.stop()

        with pytest.raises(Unavailable):
            await asyncio.wait_for(waiting, 5)


async def test_many_messages_in_flight_fail_when_the_connection_breaks(
    own_world: World, bus: Bus
) -> None:
    """Those that were not sent yet are not sent after the reconnect either."""
    reconnects = Reconnects(bus)
    many = [Outbound("q.a", bytes(100_000)) for _ in range(3000)]
    publishing = asyncio.ensure_future(bus.publish_many(many))
    while not (await bus.stream_info(QUEUE.name)).last:
        pass

    own_world.server.stop()
    results = await asyncio.wait_for(publishing, 10)
    stored = sum(isinstance(result, PubAck) for result in results)

    assert all(isinstance(result, PubAck) for result in results[:stored])
    assert all(isinstance(result, Unavailable) for result in results[stored:])
    own_world.server.start()
    await reconnects.wait()
    before = (await bus.stream_info(QUEUE.name)).last
    assert before >= stored
    assert (await bus.publish("q.a", b"")).sequence == before + 1


@pytest.mark.parametrize("committed", [False, True])
async def test_messages_published_together_in_an_outage_are_stored_once_when_published_again(
    own_world: World, bus: Bus, *, committed: bool
) -> None:
    """`committed`: the server goes away when it has begun to store them."""
    await bus.ensure_stream(replace(QUEUE, allow_atomic=True))
    reconnects = Reconnects(bus)
    many = [Outbound("q.a", bytes(5_000), message_id=str(n)) for n in range(1000)]
    publishing = asyncio.ensure_future(bus.publish_together(many))
    await bus.flush()
    while committed and not (await bus.stream_info(QUEUE.name)).last:
        pass

    own_world.server.stop()
    first = await asyncio.wait_for(publishing, 10)
    own_world.server.start()
    await reconnects.wait()
    again = await bus.publish_together(many)

    expected = range(1, len(many) + 1)
    assert [ack.sequence for ack in again if isinstance(ack, PubAck)] == [*expected]
    assert (await bus.stream_info(QUEUE.name)).messages == len(many)
    for result, sequence in zip(first, expected, strict=True):
        assert result == PubAck(QUEUE.name, sequence) or isinstance(result, Unavailable)


async def test_a_pull_continues_after_an_outage(own_world: World, bus: Bus) -> None:
    reconnects = Reconnects(bus)
    async with bus.pull(WORKER) as pull:
        waiting = asyncio.ensure_future(pull.next(10))
        await bus.flush()
        own_world.server.stop()
        await wait_disconnected(bus)
        own_world.server.start()
        await reconnects.wait()

        await bus.publish("q.a", b"x")

        (delivery,) = await asyncio.wait_for(waiting, 10)
        assert delivery.data == b"x"


async def test_a_pull_that_starts_in_an_outage_waits_for_its_end(
    own_world: World, bus: Bus
) -> None:
    reconnects = Reconnects(bus)
    async with bus.pull(WORKER) as pull:
        own_world.server.stop()
        await wait_disconnected(bus)
        waiting = asyncio.ensure_future(pull.next(10))
        own_world.server.start()
        await reconnects.wait()

        await bus.publish("q.a", b"x")

        assert len(await asyncio.wait_for(waiting, 10)) == 1


async def test_deliveries_from_before_an_outage_are_redelivered(own_world: World, bus: Bus) -> None:
    reconnects = Reconnects(bus)
    for data in (b"in hand", b"in the buffer"):
        await bus.publish("q.a", data)
    async with bus.pull(WORKER) as pull:
        (in_hand,) = await pull.next(1)
        own_world.server.stop()
        await wait_disconnected(bus)
        await in_hand.ack()
        own_world.server.start()
        await reconnects.wait()
        await in_hand.ack()

        seen: set[bytes] = set()
        while len(seen) < 2:
            seen |= {d.data for d in await asyncio.wait_for(pull.next(10), 10)}

    assert seen == {b"in hand", b"in the buffer"}


async def test_a_subscription_continues_after_an_outage_and_reports_it(
    own_world: World, bus: Bus
) -> None:
    reconnects = Reconnects(bus)
    async with bus.subscribe("news") as messages:
        own_world.server.stop()
        await wait_disconnected(bus)
        own_world.server.start()
        await reconnects.wait()

        await bus.send("news", b"x")

        assert await messages.next_or_reconnect() is None
        assert (await messages.next(timeout=5)).data == b"x"


async def test_a_service_continues_after_an_outage(own_world: World, bus: Bus) -> None:
    async def answer(_message: object) -> bytes:
        return b"here"

    await bus.serve("lasting", "1.0.0", "", {"rpc.last": answer})
    await bus.respond("raw.last", "q", answer)
    reconnects = Reconnects(bus)
    own_world.server.stop()
    await wait_disconnected(bus)
    own_world.server.start()
    await reconnects.wait()

    for subject in ("rpc.last", "raw.last"):
        assert (await bus.request(subject, b"", timeout=5)).data == b"here"


async def test_streams_keep_sequences_and_message_ids_over_an_outage(
    own_world: World, bus: Bus
) -> None:
    before = await bus.ensure_stream(QUEUE)
    await bus.publish("q.a", b"1", message_id="m")
    reconnects = Reconnects(bus)
    own_world.server.stop()
    await wait_disconnected(bus)
    own_world.server.start()
    await reconnects.wait()

    after = await bus.ensure_stream(QUEUE)
    assert (after.created, after.last) == (before.created, 1)
    assert (await bus.publish("q.b", b"2", message_id="m")).duplicate
    with pytest.raises(Conflict):
        await bus.publish("q.a", b"2", expected_last=0)


async def test_an_outage_replaces_memory_streams(own_world: World, bus: Bus) -> None:
    presence = Stream(name="PRESENCE", subjects=["p.>"], storage=StorageType.MEMORY)
    before = await bus.ensure_stream(presence)
    reconnects = Reconnects(bus)
    own_world.server.stop()
    await wait_disconnected(bus)
    own_world.server.start()
    await reconnects.wait()

    assert (await bus.ensure_stream(presence)).created != before.created


async def test_the_bus_can_be_closed_during_an_outage(own_world: World, bus: Bus) -> None:
    async with bus.pull(WORKER) as pull:
        waiting = asyncio.ensure_future(pull.next(1))
        own_world.server.stop()
        await wait_disconnected(bus)

        await asyncio.wait_for(bus.close(), 5)

        with pytest.raises(Unavailable):
            await waiting


async def test_a_restart_forgets_the_ids_of_deleted_messages(own_world: World, bus: Bus) -> None:
    """So if a finished job is published again after a restart, it is delivered again."""
    await bus.publish("q.a", b"1", message_id="done")
    await bus.publish("q.b", b"2", message_id="kept")
    async with bus.pull(WORKER, prefetch=1) as pull:
        (first,) = await pull.next(1)
        await first.ack()
        while await bus.get_last(QUEUE.name, "q.a") is not None:  # acks are not confirmed
            pass
    reconnects = Reconnects(bus)
    own_world.server.stop()
    await wait_disconnected(bus)
    own_world.server.start()
    await reconnects.wait()

    assert not (await bus.publish("q.a", b"1", message_id="done")).duplicate
    assert (await bus.publish("q.b", b"2", message_id="kept")).duplicate


async def test_a_closed_bus_takes_no_messages(own_world: World, bus: Bus) -> None:
    """The server drops a pull request when the connection closes."""
    other = await own_world.connect()
    async with bus.pull(WORKER) as pull:
        waiting = asyncio.ensure_future(pull.next(1))
        await bus.flush()
        await bus.close()
        with pytest.raises(Unavailable):
            await waiting
    await other.publish("q.a", b"x")

    async with other.pull(WORKER) as pull:
        (taken,) = await asyncio.wait_for(pull.next(1), 5)

    assert taken.data == b"x"


NARROW = "jetstream {}\nmax_payload: 65536"


@pytest.mark.parametrize("wait", [False, True])
async def test_a_server_with_a_small_payload_limit_is_refused(
    tmp_path: Path, *, wait: bool
) -> None:
    server = NatsServer(tmp_path, NARROW)
    server.start()
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    with pytest.raises(Refused, match=r"65536 bytes at most.*raise max_payload"):
                        await connect(server.url, wait=wait)
                    break
                except Unavailable:  # the server is still starting
                    assert not wait
    finally:
        server.stop()


async def test_a_server_that_returns_with_a_small_payload_limit_closes_the_bus(
    tmp_path: Path,
) -> None:
    server = NatsServer(tmp_path)
    server.start()
    try:
        async with await connect(server.url, wait=True) as bus, asyncio.timeout(20):
            server.stop()
            server.config.write_text(NARROW)
            server.start()

            assert "raise max_payload" in await bus.wait_closed()
    finally:
        server.stop()
