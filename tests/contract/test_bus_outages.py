"""What becomes of everything in hand when the server goes away and comes back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from nats.js.api import RetentionPolicy, StorageType

from bus import Bus, Conflict, Refused, Stream, Unavailable
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


class Comings:
    """Tells when the bus has come back."""

    def __init__(self, bus: Bus) -> None:
        self._back = asyncio.Event()
        bus.on_reconnect(self._back.set)

    async def back(self) -> None:
        await asyncio.wait_for(self._back.wait(), 10)
        self._back.clear()


async def gone(bus: Bus) -> None:
    """Wait until the bus knows: a request in flight fails then, or none can be sent."""
    with suppress(Unavailable):
        while True:
            await bus.flush()


async def test_what_is_published_during_an_outage_fails_and_is_not_sent_later(
    own_world: World, bus: Bus
) -> None:
    comings = Comings(bus)
    own_world.server.stop()
    await gone(bus)

    assert not bus.connected
    with pytest.raises(Unavailable):
        await bus.publish("q.a", b"x")
    with pytest.raises(Unavailable):
        await bus.send("q.a", b"x")

    own_world.server.start()
    await comings.back()
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


async def test_a_pull_goes_on_after_an_outage(own_world: World, bus: Bus) -> None:
    comings = Comings(bus)
    async with bus.pull(WORKER) as pull:
        waiting = asyncio.ensure_future(pull.next(10))
        await bus.flush()
        own_world.server.stop()
        await gone(bus)
        own_world.server.start()
        await comings.back()

        await bus.publish("q.a", b"x")

        (delivery,) = await asyncio.wait_for(waiting, 10)
        assert delivery.data == b"x"


async def test_a_pull_begun_in_an_outage_waits_for_its_end(own_world: World, bus: Bus) -> None:
    comings = Comings(bus)
    async with bus.pull(WORKER) as pull:
        own_world.server.stop()
        await gone(bus)
        waiting = asyncio.ensure_future(pull.next(10))
        own_world.server.start()
        await comings.back()

        await bus.publish("q.a", b"x")

        assert len(await asyncio.wait_for(waiting, 10)) == 1


async def test_what_was_in_hand_before_an_outage_is_void(own_world: World, bus: Bus) -> None:
    comings = Comings(bus)
    for data in (b"in hand", b"in the buffer"):
        await bus.publish("q.a", data)
    async with bus.pull(WORKER) as pull:
        (in_hand,) = await pull.next(1)
        own_world.server.stop()
        await gone(bus)
        await in_hand.ack()
        own_world.server.start()
        await comings.back()
        await in_hand.ack()

        seen: set[bytes] = set()
        while len(seen) < 2:
            seen |= {d.data for d in await asyncio.wait_for(pull.next(10), 10)}

    assert seen == {b"in hand", b"in the buffer"}


async def test_a_subscription_goes_on_after_an_outage(own_world: World, bus: Bus) -> None:
    comings = Comings(bus)
    async with bus.subscribe("news") as messages:
        own_world.server.stop()
        await gone(bus)
        own_world.server.start()
        await comings.back()

        await bus.send("news", b"x")

        assert (await messages.next(timeout=5)).data == b"x"


async def test_a_service_goes_on_after_an_outage(own_world: World, bus: Bus) -> None:
    async def answer(_message: object) -> bytes:
        return b"here"

    await bus.serve("lasting", "1.0.0", "", {"rpc.last": answer})
    await bus.respond("raw.last", "q", answer)
    comings = Comings(bus)
    own_world.server.stop()
    await gone(bus)
    own_world.server.start()
    await comings.back()

    for subject in ("rpc.last", "raw.last"):
        assert (await bus.request(subject, b"", timeout=5)).data == b"here"


async def test_streams_outlast_an_outage_with_numbers_repeats_and_timers(
    own_world: World, bus: Bus
) -> None:
    before = await bus.ensure_stream(QUEUE)
    await bus.publish("q.a", b"1", message_id="m")
    comings = Comings(bus)
    own_world.server.stop()
    await gone(bus)
    own_world.server.start()
    await comings.back()

    after = await bus.ensure_stream(QUEUE)
    assert (after.created, after.last) == (before.created, 1)
    assert (await bus.publish("q.b", b"2", message_id="m")).duplicate
    with pytest.raises(Conflict):
        await bus.publish("q.a", b"2", expected_last=0)


async def test_a_memory_stream_is_another_one_after_an_outage(own_world: World, bus: Bus) -> None:
    presence = Stream(name="PRESENCE", subjects=["p.>"], storage=StorageType.MEMORY)
    before = await bus.ensure_stream(presence)
    comings = Comings(bus)
    own_world.server.stop()
    await gone(bus)
    own_world.server.start()
    await comings.back()

    assert (await bus.ensure_stream(presence)).created != before.created


async def test_the_bus_can_be_closed_during_an_outage(own_world: World, bus: Bus) -> None:
    async with bus.pull(WORKER) as pull:
        waiting = asyncio.ensure_future(pull.next(1))
        own_world.server.stop()
        await gone(bus)

        await asyncio.wait_for(bus.close(), 5)

        with pytest.raises(Unavailable):
            await waiting


async def test_the_ids_of_messages_that_are_gone_are_forgotten_in_an_outage(
    own_world: World, bus: Bus
) -> None:
    """So a job that was done comes again when it is published again after a restart."""
    await bus.publish("q.a", b"1", message_id="done")
    await bus.publish("q.b", b"2", message_id="kept")
    async with bus.pull(WORKER, prefetch=1) as pull:
        (first,) = await pull.next(1)
        await first.ack()
        while await bus.get_last(QUEUE.name, "q.a") is not None:  # an ack has no answer to wait for
            pass
    comings = Comings(bus)
    own_world.server.stop()
    await gone(bus)
    own_world.server.start()
    await comings.back()

    assert not (await bus.publish("q.a", b"1", message_id="done")).duplicate
    assert (await bus.publish("q.b", b"2", message_id="kept")).duplicate


async def test_who_was_cut_off_takes_nothing_meanwhile(own_world: World, bus: Bus) -> None:
    """A request for what comes next ends with its connection."""
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
async def test_a_server_that_takes_small_messages_only_is_refused(
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
                except Unavailable:  # it is just starting
                    assert not wait
    finally:
        server.stop()


async def test_a_server_that_comes_back_narrower_is_left_in_words(tmp_path: Path) -> None:
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
