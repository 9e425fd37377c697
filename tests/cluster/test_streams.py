"""The guarantees of streams on three servers, and the change from one replica to three."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from bus import Backoff, Bus, Conflict, Delivery, PubAck, Refused, Schedule, Unavailable, subjects
from bus.streams import CONSUMERS, DEAD, LOG, Tuning, pool_consumer

T = TypeVar("T")
PATIENCE = 60.0


async def elected(tried: Callable[[], Awaitable[T]]) -> T:
    """Retry an operation for which a new cluster may not be ready yet."""
    backoff = Backoff(limit=0.5)
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await tried()
            except Unavailable:
                await backoff.wait()


@pytest.fixture
async def streams(bus: Bus) -> Bus:
    """Create all streams and consumers of workers, on three servers."""

    async def make() -> None:
        for stream in Tuning(replicas=3).streams():
            await bus.ensure_stream(stream)
        for consumer in (*CONSUMERS, pool_consumer("local")):
            await bus.ensure_consumer(consumer)

    await elected(make)
    return bus


async def test_an_older_state_does_not_replace_a_newer_one_on_three_servers(streams: Bus) -> None:
    subject = subjects.state("older")
    first = await elected(
        lambda: streams.publish(subject, b"1", message_id="older:1", expected_last=0)
    )
    again = await streams.publish(subject, b"1", message_id="older:1", expected_last=0)

    with pytest.raises(Conflict):
        await streams.publish(subject, b"2", message_id="older:2", expected_last=0)

    assert (again.sequence, again.duplicate) == (first.sequence, True)


async def test_frontends_receive_a_copy_of_a_stored_state(streams: Bus) -> None:
    async with streams.subscribe("workspaced.ui.copied.>") as ui:
        await streams.publish(subjects.state("copied"), b"state")
        await streams.publish(subjects.log("copied", "b"), b"line")

        assert [(await ui.next(5)).data for _ in range(2)] == [b"state", b"line"]


async def test_timers_fire_and_nats_reports_an_expired_presence_message(streams: Bus) -> None:
    came: dict[str, list[Delivery]] = {}
    soon = datetime.now(UTC) + timedelta(seconds=1)
    shown = subjects.presence("c", "a")
    async with streams.pull(*CONSUMERS) as pull:
        alarm = subjects.alarm(round(soon.timestamp() * 1000))
        await streams.publish(alarm, b"{}", schedule=Schedule(subjects.ALARM_RANG, soon))
        await streams.publish(shown, b"", ttl=1)
        async with asyncio.timeout(PATIENCE):
            while subjects.ALARM_RANG not in came or len(came.get(shown, ())) < 2:
                for delivery in await pull.next(10):
                    came.setdefault(delivery.subject, []).append(delivery)
                    await delivery.ack()

    assert [one.is_delete_marker for one in came[shown]] == [False, True]


async def test_a_message_that_is_just_being_stored_is_not_refused_for_good(streams: Bus) -> None:
    async def once() -> PubAck | Unavailable:
        try:
            return await streams.publish(subjects.job("local"), b"{}", message_id="one build")
        except Unavailable as error:
            return error

    outcomes = await asyncio.gather(*(once() for _ in range(50)))

    acks = [one for one in outcomes if isinstance(one, PubAck)]
    assert len([ack for ack in acks if not ack.duplicate]) == 1
    assert len({ack.sequence for ack in acks}) == 1


async def test_a_stream_of_one_server_keeps_its_messages_when_it_grows_to_three(bus: Bus) -> None:
    alone = replace(DEAD, name="GROWING", subjects=["growing.*"])
    await elected(lambda: bus.ensure_stream(alone))
    # The other servers may not know the stream yet.
    await elected(lambda: bus.publish("growing.a", b"kept"))

    await elected(lambda: bus.ensure_stream(replace(alone, num_replicas=3)))

    stored = await elected(lambda: bus.get_last("GROWING", "growing.a"))
    assert stored is not None
    assert stored.data == b"kept"


async def test_the_error_for_a_log_stream_that_cannot_grow_to_three_servers_names_the_remedy(
    bus: Bus,
) -> None:
    alone = replace(LOG, name="ALONE", subjects=("alone.*.*",), republish=None)
    await elected(lambda: bus.ensure_stream(alone))

    with pytest.raises(Refused, match="delete the stream"):
        await bus.ensure_stream(replace(alone, num_replicas=3))


async def test_a_log_stream_of_three_servers_can_shrink_to_one(bus: Bus) -> None:
    three = replace(LOG, name="BACK", subjects=["back.*.*"], republish=None, num_replicas=3)
    await elected(lambda: bus.ensure_stream(three))

    await elected(lambda: bus.ensure_stream(replace(three, num_replicas=1)))
