"""Durable consumers: delivery, acks and redelivery, with both adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from nats.js.api import RetentionPolicy

from bus import Bus, NoConsumer, Outbound, Stream, Unavailable
from bus.streams import Consumer

Declare = Callable[..., Stream]


@pytest.fixture
async def queue(bus: Bus, declare: Declare) -> Consumer:
    """The only consumer of a work queue."""
    stream = declare(retention=RetentionPolicy.WORK_QUEUE)
    await bus.ensure_stream(stream)
    consumer = Consumer(stream.name, "worker", ack_wait=0.4)
    await bus.ensure_consumer(consumer)
    return consumer


async def test_a_delivery_has_the_stream_and_sequence_of_its_message(
    bus: Bus, queue: Consumer, prefix: str
) -> None:
    await bus.publish(f"{prefix}.a", b"1")
    await bus.publish(f"{prefix}.b", b"2", headers={"Own": "header", "Status": "503"})

    async with bus.pull(queue) as pull:
        seen = [*await pull.next(1), *await pull.next(1)]

    assert [(d.stream, d.sequence, d.subject, d.data) for d in seen] == [
        (queue.stream, 1, f"{prefix}.a", b"1"),
        (queue.stream, 2, f"{prefix}.b", b"2"),
    ]
    assert seen[1].headers == {"Own": "header", "Status": "503"}
    assert not seen[1].is_delete_marker


async def test_next_returns_available_messages_up_to_the_limit(
    bus: Bus, queue: Consumer, prefix: str
) -> None:
    for _ in range(5):
        await bus.publish(f"{prefix}.a", b"")

    async with bus.pull(queue) as pull:
        taken: list[int] = []
        while len(taken) < 5:
            batch = await pull.next(2)
            assert 1 <= len(batch) <= 2
            taken += [delivery.sequence for delivery in batch]

    assert taken == [1, 2, 3, 4, 5]


async def test_next_waits_for_a_message(bus: Bus, other: Bus, queue: Consumer, prefix: str) -> None:
    async with bus.pull(queue) as pull:
        waiting = asyncio.ensure_future(pull.next(10))
        await other.publish(f"{prefix}.a", b"late")

        (delivery,) = await waiting

    assert delivery.data == b"late"


async def test_only_unacked_messages_are_redelivered(
    bus: Bus, other: Bus, queue: Consumer, prefix: str
) -> None:
    for data in (b"acked", b"not acked"):
        await bus.publish(f"{prefix}.a", data)
    async with bus.pull(queue, prefetch=1) as first:
        taken = [*await first.next(1), *await first.next(1)]
        await taken[0].ack()
        await bus.flush()

        async with other.pull(queue) as second:
            again = await second.next(10)

    assert [delivery.data for delivery in again] == [b"not acked"]


async def test_an_ack_deletes_the_message_of_a_work_queue(
    bus: Bus, queue: Consumer, prefix: str
) -> None:
    for data in (b"1", b"2"):
        await bus.publish(f"{prefix}.a", data)
    async with bus.pull(queue) as pull:
        seen = [*await pull.next(1), *await pull.next(1)]
        await seen[0].ack()
        await pull.next(1)  # the second message: the server has processed the ack

    first = await bus.get_next(queue.stream, f"{prefix}.a", 0)
    assert first is not None
    assert first.data == b"2"


async def test_in_progress_delays_redelivery(
    bus: Bus, other: Bus, queue: Consumer, prefix: str
) -> None:
    for data in (b"worked on", b"idle"):
        await bus.publish(f"{prefix}.a", data)
    async with bus.pull(queue, prefetch=1) as first, bus.subscribe(f"{prefix}x.silence") as silence:
        taken = [*await first.next(1), *await first.next(1)]
        with pytest.raises(TimeoutError):
            await silence.next(timeout=0.2)
        await taken[0].in_progress()
        await bus.flush()

        async with other.pull(queue) as second:
            again = [*await second.next(1), *await second.next(1)]

    assert [delivery.data for delivery in again] == [b"idle", b"worked on"]


async def test_waiting_pulls_receive_messages_in_turn(
    bus: Bus, other: Bus, queue: Consumer, prefix: str
) -> None:
    async with bus.pull(queue) as one, other.pull(queue) as two:
        waiting = [asyncio.ensure_future(pull.next(10)) for pull in (one, two)]
        await bus.flush()
        await other.flush()

        for _ in range(2):
            await bus.publish(f"{prefix}.a", b"")
        batches = await asyncio.gather(*waiting)

    assert [len(batch) for batch in batches] == [1, 1]


async def test_with_a_prefetch_of_one_nothing_is_requested_in_advance(
    bus: Bus, other: Bus, queue: Consumer, prefix: str
) -> None:
    for data in (b"1", b"2", b"3"):
        await bus.publish(f"{prefix}.a", data)

    async with bus.pull(queue, prefetch=1) as one, other.pull(queue) as two:
        (mine,) = await one.next(1)
        theirs = [*await two.next(1), *await two.next(1)]

    assert mine.data == b"1"
    assert [delivery.data for delivery in theirs] == [b"2", b"3"]


async def test_buffered_messages_are_redelivered_when_a_pull_ends(
    bus: Bus, other: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare(retention=RetentionPolicy.WORK_QUEUE)
    await bus.ensure_stream(stream)
    consumer = Consumer(stream.name, "worker", ack_wait=60.0)
    await bus.ensure_consumer(consumer)
    async with bus.pull(consumer) as ending:
        waiting = asyncio.ensure_future(ending.next(1))
        for data in (b"1", b"2", b"3"):
            await bus.publish(f"{prefix}.a", data)
        (mine,) = await waiting
        await bus.flush()

    async with asyncio.timeout(5), other.pull(consumer) as pull:
        theirs: set[bytes] = set()
        while len(theirs) < 2:
            theirs |= {delivery.data for delivery in await pull.next(10)}

    assert {mine.data} | theirs == {b"1", b"2", b"3"}


async def test_messages_on_their_way_when_a_pull_ends_are_redelivered(
    bus: Bus, other: Bus, queue: Consumer, prefix: str
) -> None:
    waiting = Consumer(queue.stream, queue.name, ack_wait=60.0)
    await bus.ensure_consumer(waiting)
    sent: set[bytes] = set()
    received: set[bytes] = set()
    for number in range(20):
        data = {f"{number}.{part}".encode() for part in range(20)}
        sent |= data
        async with bus.pull(waiting) as ending:
            first = asyncio.ensure_future(ending.next(1))
            await bus.flush()
            publishing = [other.publish(f"{prefix}.a", part) for part in sorted(data)]
            published = asyncio.gather(*publishing)
            (mine,) = await first
            received.add(mine.data)
            await mine.ack()
        await published

    async with asyncio.timeout(10), other.pull(waiting) as pull:
        while received != sent:
            received |= {delivery.data for delivery in await pull.next(100)}


async def test_a_pull_merges_several_consumers(bus: Bus, prefix: str) -> None:
    consumers = []
    for name in ("x", "y"):
        stream = Stream(name=f"{prefix.upper()}{name}", subjects=[f"{prefix}.{name}.>"])
        await bus.ensure_stream(stream)
        consumers.append(Consumer(stream.name, "worker"))
        await bus.ensure_consumer(consumers[-1])
        await bus.publish(f"{prefix}.{name}.a", b"")

    async with bus.pull(*consumers) as pull:
        seen = [*await pull.next(1), *await pull.next(1)]

    assert {d.stream for d in seen} == {consumer.stream for consumer in consumers}


async def test_a_filtered_consumer_delivers_only_its_subject(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare()
    await bus.ensure_stream(stream)
    consumer = Consumer(stream.name, "worker", filter=f"{prefix}.wanted.*")
    await bus.ensure_consumer(consumer)

    for name in ("other", "wanted.1", "wanted.1.2", "wanted.2"):
        await bus.publish(f"{prefix}.{name}", b"")
    async with bus.pull(consumer) as pull:
        seen = [*await pull.next(1), *await pull.next(1)]

    assert [d.subject for d in seen] == [f"{prefix}.wanted.1", f"{prefix}.wanted.2"]


async def test_a_new_consumer_delivers_messages_that_were_stored_before(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare()
    await bus.ensure_stream(stream)
    await bus.publish(f"{prefix}.a", b"before")

    consumer = Consumer(stream.name, "worker")
    await bus.ensure_consumer(consumer)

    async with bus.pull(consumer) as pull:
        (delivery,) = await pull.next(10)
    assert delivery.data == b"before"


async def test_ensuring_an_existing_consumer_keeps_its_position(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare()
    await bus.ensure_stream(stream)
    consumer = Consumer(stream.name, "worker")
    await bus.ensure_consumer(consumer)
    await bus.publish(f"{prefix}.a", b"1")
    async with bus.pull(consumer) as pull:
        await (await pull.next(1))[0].ack()

    await bus.ensure_consumer(replace(consumer, max_ack_pending=7))

    await bus.publish(f"{prefix}.a", b"2")
    async with bus.pull(consumer) as pull:
        assert [d.data for d in await pull.next(10)] == [b"2"]


async def test_a_headers_only_consumer_delivers_no_data(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare()
    await bus.ensure_stream(stream)
    consumer = Consumer(stream.name, "worker", headers_only=True)
    await bus.ensure_consumer(consumer)

    await bus.publish(f"{prefix}.a", b"body", headers={"Own": "header"})
    async with bus.pull(consumer) as pull:
        (delivery,) = await pull.next(10)

    assert delivery.data == b""
    assert delivery.headers == {"Own": "header", "Nats-Msg-Size": "4"}


async def test_pulling_fails_until_the_consumer_exists(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare()
    await bus.ensure_stream(stream)
    consumer = Consumer(stream.name, "worker")
    async with bus.pull(consumer) as pull:
        with pytest.raises(NoConsumer):
            await pull.next(1)

        await bus.ensure_consumer(consumer)
        await bus.publish(f"{prefix}.a", b"x")

        assert len(await pull.next(1)) == 1


async def test_a_waiting_pull_fails_when_the_consumer_is_deleted(
    bus: Bus, other: Bus, queue: Consumer
) -> None:
    async with bus.pull(queue) as pull:
        waiting = asyncio.ensure_future(pull.next(1))
        await bus.flush()

        await other.delete_consumer(queue)
        await other.delete_consumer(queue)

        with pytest.raises(NoConsumer):
            await waiting


async def test_a_consumer_of_a_missing_stream_is_unavailable(bus: Bus, prefix: str) -> None:
    with pytest.raises(Unavailable):
        await bus.ensure_consumer(Consumer(prefix.upper(), "worker"))


async def test_concurrent_pulls_receive_each_message_once(
    bus: Bus, other: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare(retention=RetentionPolicy.WORK_QUEUE)
    await bus.ensure_stream(stream)
    consumer = Consumer(stream.name, "worker", ack_wait=30.0)
    await bus.ensure_consumer(consumer)
    seen: list[int] = []
    done = asyncio.Event()

    async def work(on: Bus) -> None:
        async with on.pull(consumer, prefetch=100) as pull:
            while True:
                for delivery in await pull.next(50):
                    seen.append(delivery.sequence)
                    await delivery.ack()
                if len(seen) >= 3000:
                    done.set()

    workers = [asyncio.ensure_future(work(on)) for on in (bus, other)]
    for _ in range(3):
        await bus.publish_many([Outbound(f"{prefix}.{n}", b"") for n in range(1000)])
    await asyncio.wait_for(done.wait(), 20)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)

    assert sorted(seen) == list(range(1, 3001))


async def test_the_state_of_a_consumer_counts_its_backlog(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare(retention=RetentionPolicy.WORK_QUEUE)
    await bus.ensure_stream(stream)
    mine, other = (Consumer(stream.name, name, filter=f"{prefix}.{name}") for name in "ab")
    with pytest.raises(Unavailable):
        await bus.consumer_state(mine)
    await bus.ensure_consumer(mine)
    await bus.ensure_consumer(other)
    for name in "aaab":
        await bus.publish(f"{prefix}.{name}", b"")

    assert (await bus.consumer_state(mine)).undelivered == 3
    assert (await bus.consumer_state(other)).undelivered == 1
    async with bus.pull(mine, prefetch=1) as pull:
        (taken,) = await pull.next(1)
        state = await bus.consumer_state(mine)
        assert (state.undelivered, state.unacked, state.backlog) == (2, 1, 3)
        await taken.ack()


async def until_ack_floor(bus: Bus, consumer: Consumer, floor: int, *, unacked: int) -> None:
    """Wait until the server has processed the acks: it does so after it has received them."""
    async with asyncio.timeout(20):
        while True:
            state = await bus.consumer_state(consumer)  # each attempt is a round trip
            if (state.ack_floor, state.unacked) == (floor, unacked):
                return


async def test_the_ack_floor_is_below_the_oldest_message_that_is_not_acknowledged(
    bus: Bus, other: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare()
    await bus.ensure_stream(stream)
    consumer = Consumer(stream.name, "worker")
    await bus.ensure_consumer(consumer)
    for _ in range(5):
        await bus.publish(f"{prefix}.a", b"")
    async with bus.pull(consumer, prefetch=5) as mine, other.pull(consumer, prefetch=5) as theirs:
        deliveries = [*await mine.next(2)]
        while len(deliveries) < 5:
            deliveries += await mine.next(5)
        assert [d.sequence for d in deliveries] == [1, 2, 3, 4, 5]
        for delivery in deliveries[:2] + deliveries[3:]:
            assert await delivery.ack()
        await until_ack_floor(bus, consumer, 2, unacked=1)
        await deliveries[2].nak()
        (again,) = await theirs.next(5)
        await again.ack()
        await until_ack_floor(bus, consumer, 5, unacked=0)


async def test_a_purge_deletes_all_messages_up_to_a_sequence_in_every_consumer(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare()
    await bus.ensure_stream(stream)
    consumer = Consumer(stream.name, "worker", ack_wait=0.4)
    await bus.ensure_consumer(consumer)
    for number in range(5):
        await bus.publish(f"{prefix}.a", b"%d" % number)

    await bus.purge(stream.name, 3)

    info = await bus.stream_info(stream.name)
    assert (info.first, info.last, info.messages) == (4, 5, 2)
    assert (await bus.consumer_state(consumer)).undelivered == 2
    await bus.purge(stream.name, 5)
    info = await bus.stream_info(stream.name)
    assert (info.first, info.last, info.messages, info.size) == (6, 5, 0, 0)
    assert (await bus.publish(f"{prefix}.a", b"next")).sequence == 6
    async with bus.pull(consumer) as pull:
        (delivery,) = await pull.next(5)
        assert delivery.data == b"next"


async def test_a_single_message_is_deleted_once(bus: Bus, declare: Declare, prefix: str) -> None:
    stream = declare()
    await bus.ensure_stream(stream)
    for _ in range(3):
        await bus.publish(f"{prefix}.a", b"")

    for _ in range(2):
        await bus.delete_message(stream.name, 2)
    await bus.delete_message(stream.name, 99)

    info = await bus.stream_info(stream.name)
    assert (info.first, info.last, info.messages) == (1, 3, 2)


async def test_a_stream_with_another_retention_is_closed_and_replaced_when_it_is_empty(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    loop = asyncio.get_running_loop()
    old, new = declare(retention=RetentionPolicy.WORK_QUEUE), declare(max_bytes=1_000_000)
    before = await bus.ensure_stream(old)
    consumer = Consumer(old.name, "worker")
    await bus.ensure_consumer(consumer)
    await bus.publish(f"{prefix}.a", b"kept")

    closed = await bus.ensure_stream(new)

    assert (closed.created, closed.messages) == (before.created, 1)
    assert closed.retention is RetentionPolicy.WORK_QUEUE
    with pytest.raises(Unavailable):
        await bus.publish(f"{prefix}.a", b"refused")
    assert not await bus.replace_stream(new, until=loop.time() + 5)
    async with bus.pull(consumer) as pull:
        (delivery,) = await pull.next(1)
        assert delivery.data == b"kept"
        await delivery.ack()
        await bus.flush()
        with pytest.raises(Unavailable):  # empty now, and still closed
            await bus.publish(f"{prefix}.a", b"refused")
        with pytest.raises(Unavailable, match="in time"):
            await bus.replace_stream(new, until=loop.time() - 1)
        assert await bus.replace_stream(new, until=loop.time() + 5)
        with pytest.raises(NoConsumer):
            await pull.next(1)

    info = await bus.ensure_stream(new)
    assert info.created != before.created
    assert info.retention is RetentionPolicy.LIMITS
    assert (await bus.publish(f"{prefix}.a", b"first")).sequence == 2  # never one of the old stream
    assert await bus.replace_stream(new, until=loop.time() + 5)  # done before: nothing is deleted
    assert (await bus.stream_info(new.name)).messages == 1
