"""The in-memory adapter with a virtual clock, so that days pass at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from nats.js.api import RetentionPolicy

from bus import Message, Schedule, Stream, Unavailable
from bus.streams import Consumer
from tests.doubles.clock import VirtualClock
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_server import MemoryServer

DAY = 86_400.0
WORKER = Consumer("STREAM", "worker", ack_wait=30.0)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def server(clock: VirtualClock) -> MemoryServer:
    return MemoryServer(clock)


@pytest.fixture
async def bus(server: MemoryServer) -> MemoryBus:
    return MemoryBus(server)


async def test_a_repeated_message_id_after_the_window_is_stored(
    bus: MemoryBus, clock: VirtualClock
) -> None:
    await bus.ensure_stream(Stream(name="STREAM", subjects=["s.>"], duplicate_window=DAY))
    await bus.publish("s.a", b"", message_id="m")

    clock.advance(DAY - 1)
    assert (await bus.publish("s.a", b"", message_id="m")).duplicate
    clock.advance(2)
    assert not (await bus.publish("s.a", b"", message_id="m")).duplicate


async def test_messages_expire_at_max_age(bus: MemoryBus, clock: VirtualClock) -> None:
    await bus.ensure_stream(Stream(name="STREAM", subjects=["s.>"], max_age=DAY, allow_direct=True))
    await bus.publish("s.a", b"")

    clock.advance(DAY - 1)
    assert await bus.get_last("STREAM", "s.a") is not None
    clock.advance(1)
    assert await bus.get_last("STREAM", "s.a") is None


async def test_an_unacked_message_is_redelivered_without_limit(
    bus: MemoryBus, clock: VirtualClock
) -> None:
    await bus.ensure_stream(
        Stream(name="STREAM", subjects=["s.>"], retention=RetentionPolicy.WORK_QUEUE)
    )
    await bus.ensure_consumer(WORKER)
    await bus.publish("s.a", b"")
    async with bus.pull(WORKER) as pull:
        for _ in range(100):
            (delivery,) = await pull.next(1)
            assert delivery.sequence == 1
            clock.advance(30)


async def test_in_progress_keeps_a_message_from_redelivery(
    bus: MemoryBus, clock: VirtualClock
) -> None:
    await bus.ensure_stream(
        Stream(name="STREAM", subjects=["s.>"], retention=RetentionPolicy.WORK_QUEUE)
    )
    await bus.ensure_consumer(WORKER)
    await bus.publish("s.a", b"")
    async with bus.pull(WORKER) as one, bus.pull(WORKER) as two:
        (delivery,) = await one.next(1)
        waiting = asyncio.ensure_future(two.next(1))
        for _ in range(100):
            clock.advance(20)
            await delivery.in_progress()
        await bus.flush()
        assert not waiting.done()

        clock.advance(30)
        assert len(await waiting) == 1


async def test_schedules_fire_in_the_order_of_their_times(
    bus: MemoryBus, clock: VirtualClock
) -> None:
    await bus.ensure_stream(Stream(name="STREAM", subjects=["s.>"], allow_msg_schedules=True))
    await bus.ensure_consumer(fired := Consumer("STREAM", "worker", filter="s.fired.*"))
    now = datetime.fromtimestamp(clock.now(), UTC)
    for hours in (3, 1, 2):
        at = now + timedelta(hours=hours)
        await bus.publish(f"s.arm.{hours}", b"", schedule=Schedule(f"s.fired.{hours}", at))

    clock.advance(2 * 3600)
    async with bus.pull(fired) as pull:
        assert [d.subject for d in await pull.next(10)] == ["s.fired.1", "s.fired.2"]
    assert clock.next_due is not None


async def test_a_request_times_out_by_the_virtual_clock(
    bus: MemoryBus, clock: VirtualClock
) -> None:
    async def hold(_message: Message) -> bytes:
        return await asyncio.get_running_loop().create_future()

    await bus.respond("held", "q", hold)
    async with bus.subscribe("held") as asked:
        held = asyncio.ensure_future(bus.request("held", b"", timeout=25 * 60))
        await asked.next()

    clock.advance(25 * 60)

    with pytest.raises(TimeoutError):
        await held
    await bus.close()


async def test_messages_of_a_killed_process_are_redelivered_to_another(
    server: MemoryServer, bus: MemoryBus, clock: VirtualClock
) -> None:
    await bus.ensure_stream(
        Stream(name="STREAM", subjects=["s.>"], retention=RetentionPolicy.WORK_QUEUE)
    )
    await bus.ensure_consumer(WORKER)
    await bus.publish("s.a", b"")
    async with bus.pull(WORKER) as pull:
        (delivery,) = await pull.next(1)
        bus.end("killed")
        await delivery.ack()

    survivor = MemoryBus(server)
    clock.advance(30)
    async with survivor.pull(WORKER) as pull:
        assert len(await pull.next(1)) == 1


async def test_a_server_that_lost_its_store_has_new_streams(
    server: MemoryServer, bus: MemoryBus
) -> None:
    stream = Stream(name="STREAM", subjects=["s.>"])
    before = await bus.ensure_stream(stream)
    await bus.ensure_consumer(WORKER)
    await bus.publish("s.a", b"")
    async with bus.pull(WORKER) as pull:
        (stale,) = await pull.next(1)

        server.stop(lose=True)
        server.start()

        with pytest.raises(Unavailable):
            await pull.next(1)
        after = await bus.ensure_stream(stream)
        await bus.ensure_consumer(WORKER)
        await bus.publish("s.a", b"new")
        await stale.ack()

        assert after.created != before.created
        assert [d.data for d in await pull.next(1)] == [b"new"]


async def test_the_server_can_close_a_bus_for_good(bus: MemoryBus) -> None:
    closed = asyncio.ensure_future(bus.wait_closed())
    bus.end("user authentication expired")

    assert await closed == "user authentication expired"
    with pytest.raises(Unavailable, match="expired"):
        await bus.publish("s.a", b"")


async def test_a_publish_with_a_broken_connection_may_be_stored(
    server: MemoryServer, bus: MemoryBus
) -> None:
    await bus.ensure_stream(Stream(name="STREAM", subjects=["s.>"], allow_direct=True))
    publishing = asyncio.ensure_future(bus.publish("s.a", b"x"))
    while not server.streams["STREAM"].messages:
        await server.turn()
    server.stop()
    with pytest.raises(Unavailable):
        await publishing
    server.start()

    last = await bus.get_last("STREAM", "s.a")

    assert last is not None
    assert last.data == b"x"


async def test_a_stream_that_lost_its_tail_reuses_sequences(
    server: MemoryServer, bus: MemoryBus
) -> None:
    await bus.ensure_stream(
        Stream(name="STREAM", subjects=["s.>"], retention=RetentionPolicy.WORK_QUEUE)
    )
    await bus.ensure_consumer(WORKER)
    for data in (b"1", b"2", b"3"):
        await bus.publish("s.a", data, message_id=data.decode())
    async with bus.pull(WORKER) as pull:
        await pull.next(3)
        server.stop(tails={"STREAM": 2})
        server.start()

        assert (await bus.publish("s.b", b"new", message_id="2")).sequence == 2
        (new,) = await pull.next(3)

    assert new.data == b"new"
