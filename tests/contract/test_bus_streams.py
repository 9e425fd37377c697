"""Streams: publishing, batches, limits, direct gets, schedules and TTLs, with both adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from nats.js.api import DiscardPolicy, RePublish, StorageType

from bus import (
    CLOUDEVENT,
    Bus,
    Conflict,
    Outbound,
    PubAck,
    Refused,
    Schedule,
    Stream,
    Unavailable,
)
from bus.streams import CONSUMERS, STREAMS, Consumer, pool_consumer
from tests.contract.conftest import World

Declare = Callable[..., Stream]


def soon(seconds: float = 0.3) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def test_all_streams_and_consumers_can_be_created_and_ensured_again(
    own_world: World,
) -> None:
    bus = await own_world.connect()

    first = [await bus.ensure_stream(stream) for stream in STREAMS]
    for consumer in (*CONSUMERS, pool_consumer("local")) * 2:
        await bus.ensure_consumer(consumer)
    second = [await bus.ensure_stream(stream) for stream in STREAMS]

    assert first == second


async def test_a_message_gets_the_next_sequence(bus: Bus, declare: Declare, prefix: str) -> None:
    stream = declare()
    await bus.ensure_stream(stream)

    acks = [await bus.publish(f"{prefix}.a", b"x") for _ in range(2)]

    assert acks == [PubAck(stream.name, 1), PubAck(stream.name, 2)]
    assert (await bus.ensure_stream(stream)).last == 2


async def test_server_time_is_the_clock_of_the_streams_server(bus: Bus, declare: Declare) -> None:
    stream = declare()
    with pytest.raises(Unavailable):
        await bus.server_time(stream.name)
    await bus.ensure_stream(stream)

    shown = [await bus.server_time(stream.name) for _ in range(3)]

    assert shown == sorted(shown)
    assert abs(datetime.now(UTC) - shown[-1]) < timedelta(seconds=60)


async def test_concurrent_processes_create_one_stream(
    bus: Bus, other: Bus, declare: Declare
) -> None:
    stream = declare()

    infos = await asyncio.gather(*(b.ensure_stream(stream) for b in (bus, other) * 5))

    assert len({info.created for info in infos}) == 1


async def test_ensuring_a_changed_stream_updates_it(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    before = await bus.ensure_stream(declare())
    await bus.publish(f"{prefix}.a", b"1")

    after = await bus.ensure_stream(declare(max_msg_size=100))

    assert after.created == before.created
    with pytest.raises(Refused):
        await bus.publish(f"{prefix}.a", b"x" * 200)


async def test_an_impossible_update_of_a_stream_is_refused(bus: Bus, declare: Declare) -> None:
    await bus.ensure_stream(declare())

    with pytest.raises(Refused):
        await bus.ensure_stream(declare(storage=StorageType.MEMORY))


async def test_a_repeated_message_id_within_the_window_is_a_duplicate(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare())
    first = await bus.publish(f"{prefix}.a", b"x", message_id="m")

    again = await bus.publish(f"{prefix}.b", b"y", message_id="m")

    assert again == PubAck(first.stream, first.sequence, duplicate=True)
    assert await bus.get_last(prefix.upper(), f"{prefix}.b") is None


async def test_an_outdated_expected_sequence_is_a_conflict_with_the_actual_one(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare())
    await bus.publish(f"{prefix}.a", b"1", expected_last=0)
    await bus.publish(f"{prefix}.b", b"of no interest")
    await bus.publish(f"{prefix}.a", b"2", expected_last=1)

    with pytest.raises(Conflict) as conflict:
        await bus.publish(f"{prefix}.a", b"3", expected_last=1)

    assert conflict.value.last == 3
    assert (await bus.get_last(prefix.upper(), f"{prefix}.a")).data == b"2"  # type: ignore[union-attr]


async def test_the_expected_sequence_is_checked_before_the_message_id(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare())
    await bus.publish(f"{prefix}.a", b"1", message_id="m", expected_last=0)

    with pytest.raises(Conflict):
        await bus.publish(f"{prefix}.a", b"1", message_id="m", expected_last=0)


async def test_publishing_to_a_subject_without_stream_is_unavailable(bus: Bus, prefix: str) -> None:
    with pytest.raises(Unavailable):
        await bus.publish(f"{prefix}.a", b"x")


async def test_headers_count_towards_the_size_limit(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare(max_msg_size=100))

    with pytest.raises(Refused):
        await bus.publish(f"{prefix}.a", b"x" * 80, headers={"H": "y" * 80})


async def test_a_full_stream_that_discards_new_messages_keeps_the_old_ones(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare(max_bytes=1000, discard=DiscardPolicy.NEW))
    await bus.publish(f"{prefix}.a", b"x" * 600)

    with pytest.raises(Unavailable):
        await bus.publish(f"{prefix}.b", b"x" * 600)

    assert await bus.get_last(prefix.upper(), f"{prefix}.a") is not None


async def test_a_full_stream_that_discards_old_messages_drops_the_oldest(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare(max_bytes=1000))

    for name in "ab":
        await bus.publish(f"{prefix}.{name}", b"x" * 600)

    assert await bus.get_last(prefix.upper(), f"{prefix}.a") is None
    assert await bus.get_last(prefix.upper(), f"{prefix}.b") is not None


@pytest.mark.parametrize("power", [{"Nats-TTL": "1s"}, {"Nats-Rollup": "sub"}])
async def test_a_stream_ignores_instructions_in_headers_unless_enabled(
    bus: Bus, declare: Declare, prefix: str, power: dict[str, str]
) -> None:
    await bus.ensure_stream(declare())

    with pytest.raises(Refused):
        await bus.publish(f"{prefix}.a", b"x", headers=power)


async def test_schedules_are_refused_unless_enabled(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare())

    with pytest.raises(Refused):
        await bus.publish(f"{prefix}.arm", b"x", schedule=Schedule(f"{prefix}.fired", soon()))


async def test_protocol_injection_by_subject_or_header_is_refused(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare())

    with pytest.raises(Refused):
        await bus.publish(f"{prefix}.a\r\nPUB x 0", b"")
    with pytest.raises(Refused):
        await bus.publish(f"{prefix}.a", b"", headers={"A: b\r\nC": "d"})


async def test_a_line_break_in_a_header_value_adds_no_header(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare())

    await bus.publish(f"{prefix}.a", b"", headers={"A": "b\r\nNats-TTL: 1s"})

    assert set((await bus.get_last(prefix.upper(), f"{prefix}.a")).headers) == {"A"}  # type: ignore[union-attr]


async def test_a_limit_of_one_per_subject_keeps_the_last_message(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare(max_msgs_per_subject=1))

    for data in (b"1", b"2"):
        await bus.publish(f"{prefix}.a", data)

    only = await bus.get_next(prefix.upper(), f"{prefix}.a", 0)
    assert only is not None
    assert (only.sequence, only.data) == (2, b"2")


async def test_get_last_returns_the_message_as_published(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare())
    await bus.publish(f"{prefix}.a", b"1")
    await bus.publish(f"{prefix}.a", b"2", headers={"Own": "header"}, message_id="m")

    last = await bus.get_last(prefix.upper(), f"{prefix}.a")

    assert last is not None
    assert (last.subject, last.data, last.sequence) == (f"{prefix}.a", b"2", 2)
    assert last.headers == {"Own": "header", "Nats-Msg-Id": "m"}
    assert not last.is_delete_marker


async def test_a_direct_get_of_a_missing_message_is_none(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare())

    assert await bus.get_last(prefix.upper(), f"{prefix}.a") is None
    assert await bus.get_next(prefix.upper(), f"{prefix}.a", 0) is None


async def test_a_direct_get_from_a_missing_stream_is_unavailable(bus: Bus, prefix: str) -> None:
    with pytest.raises(Unavailable):
        await bus.get_last(prefix.upper(), f"{prefix}.a")


async def test_get_next_reads_a_subject_message_by_message(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare())
    for name in "aba":
        await bus.publish(f"{prefix}.{name}", name.encode())

    places, after = [], 0
    while (message := await bus.get_next(prefix.upper(), f"{prefix}.a", after)) is not None:
        places.append(after := message.sequence)

    assert places == [1, 3]


@pytest.mark.parametrize("how_many", [0, 1, 3, 2500])
async def test_many_messages_are_stored_in_their_order(
    bus: Bus, declare: Declare, prefix: str, how_many: int
) -> None:
    stream = declare()
    await bus.ensure_stream(stream)

    results = await bus.publish_many(
        [Outbound(f"{prefix}.{n}", b"x", message_id=str(n)) for n in range(how_many)]
    )

    assert results == [PubAck(stream.name, n) for n in range(1, how_many + 1)]
    for n in range(0, how_many, 500):
        assert (await bus.get_last(stream.name, f"{prefix}.{n}")).sequence == n + 1  # type: ignore[union-attr]


@pytest.mark.parametrize("how_many", [0, 1, 2, 2500])
async def test_messages_are_stored_together(
    bus: Bus, declare: Declare, prefix: str, how_many: int
) -> None:
    stream = declare(allow_atomic=True)
    await bus.ensure_stream(stream)
    messages = [
        Outbound(f"{prefix}.{n}", b"%d" % n, CLOUDEVENT, f"id-{n}") for n in range(how_many)
    ]

    results = await bus.publish_together(messages)
    again = await bus.publish_together(messages)

    assert results == [PubAck(stream.name, n) for n in range(1, how_many + 1)]
    assert again == [PubAck(stream.name, n, duplicate=True) for n in range(1, how_many + 1)]
    for n in range(0, how_many, 500):
        found = await bus.get_last(stream.name, f"{prefix}.{n}")
        assert found is not None
        assert (found.sequence, found.data) == (n + 1, b"%d" % n)
        assert found.headers["Content-Type"] == CLOUDEVENT["Content-Type"]


async def test_among_messages_published_together_each_has_its_own_result(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare(max_msg_size=2000, allow_atomic=True)
    await bus.ensure_stream(stream)
    await bus.publish(f"{prefix}.old", b"1", message_id="known")
    for other, wanted in (
        (
            Outbound(f"{prefix}.old", b"", message_id="known"),
            PubAck(stream.name, 1, duplicate=True),
        ),
        (Outbound(f"{prefix}.large", bytes(3000)), Refused),
        (Outbound(f"{prefix}.huge", bytes(2_000_000)), Refused),
    ):
        place = (await bus.stream_info(stream.name)).last
        new = [Outbound(f"{prefix}.{n}", b"") for n in range(2)]
        for messages in ([other, *new], [new[0], other, new[1]], [*new, other]):
            results = list(await bus.publish_together(messages))

            found = results.pop(messages.index(other))
            assert found == wanted or type(found) is wanted
            assert results == [PubAck(stream.name, place + 1), PubAck(stream.name, place + 2)]
            place += 2


async def test_a_stream_that_permits_no_batches_stores_messages_nevertheless(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare()
    await bus.ensure_stream(stream)

    results = await bus.publish_together([Outbound(f"{prefix}.{n}", b"") for n in range(3)])

    assert results == [PubAck(stream.name, n) for n in (1, 2, 3)]


@pytest.mark.parametrize("together", [False, True])
async def test_many_large_messages_are_stored(
    bus: Bus, declare: Declare, prefix: str, *, together: bool
) -> None:
    """Together they are larger than what may be under way at once."""
    stream = declare(allow_atomic=together)
    await bus.ensure_stream(stream)
    messages = [Outbound(f"{prefix}.{n}", bytes(900_000)) for n in range(25)]

    publish = bus.publish_together if together else bus.publish_many

    assert await publish(messages) == [PubAck(stream.name, n) for n in range(1, 26)]


async def test_each_of_many_messages_has_its_own_result(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare(max_msg_size=2000)
    await bus.ensure_stream(stream)
    await bus.publish(f"{prefix}.old", b"1", message_id="known")

    results = await bus.publish_many(
        [
            Outbound(f"{prefix}.old", b"", expected_last=0),
            Outbound(f"{prefix}.old", b"", message_id="known"),
            Outbound(f"{prefix}.large", bytes(3000)),
            Outbound(f"{prefix}.huge", bytes(2_000_000)),
            Outbound(f"no.stream.of.{prefix}", b""),
            Outbound(f"{prefix}.not a subject", b""),
            Outbound(f"{prefix}.arm", b"", schedule=Schedule(f"{prefix}.fired", soon())),
            Outbound(f"{prefix}.old", b"2", CLOUDEVENT, "new", expected_last=1),
            Outbound(f"{prefix}.old", b"3", expected_last=2),
        ]
    )

    conflict, known, large, huge, nowhere, invalid, timer, second, third = results
    assert isinstance(conflict, Conflict)
    assert conflict.last == 1
    assert known == PubAck(stream.name, 1, duplicate=True)
    assert isinstance(nowhere, Unavailable)
    assert all(type(refused) is Refused for refused in (large, huge, invalid, timer))
    assert (second, third) == (PubAck(stream.name, 2), PubAck(stream.name, 3))
    last = await bus.get_last(stream.name, f"{prefix}.old")
    assert last is not None
    assert last.data == b"3"


async def test_messages_for_several_streams_are_published_together(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    streams = [
        replace(declare(), name=f"{prefix}_{n}".upper(), subjects=[f"{prefix}.{n}.>"])
        for n in range(2)
    ]
    for stream in streams:
        await bus.ensure_stream(stream)

    results = await bus.publish_many([Outbound(f"{prefix}.{n}.a", b"") for n in (0, 1, 1)])

    assert results == [
        PubAck(streams[n].name, sequence) for n, sequence in ((0, 1), (1, 1), (1, 2))
    ]


async def test_many_schedules_fire(bus: Bus, declare: Declare, prefix: str) -> None:
    stream = declare(allow_msg_schedules=True)
    await bus.ensure_stream(stream)
    consumer = Consumer(stream.name, "w", filter=f"{prefix}.fired.>")
    await bus.ensure_consumer(consumer)
    due, seen = soon(), set[str]()

    results = await bus.publish_many(
        [
            Outbound(f"{prefix}.arm.{n}", b"x", schedule=Schedule(f"{prefix}.fired.{n}", due))
            for n in range(20)
        ]
    )
    async with bus.pull(consumer) as pull:
        while len(seen) < 20:
            seen |= {delivery.subject for delivery in await pull.next(20)}

    assert all(isinstance(result, PubAck) for result in results)
    assert seen == {f"{prefix}.fired.{n}" for n in range(20)}


async def test_a_plain_subscriber_also_receives_messages_that_the_stream_refused(
    bus: Bus, other: Bus, declare: Declare, prefix: str
) -> None:
    await bus.ensure_stream(declare())
    async with other.subscribe(f"{prefix}.a") as messages:
        with pytest.raises(Conflict):
            await bus.publish(f"{prefix}.a", b"refused", expected_last=7)

        assert (await messages.next(timeout=5)).data == b"refused"


async def test_only_stored_messages_are_republished_with_their_sequence(
    bus: Bus, other: Bus, prefix: str
) -> None:
    rule = RePublish(f"{prefix}.in.*.*", f"{prefix}.ui.{{{{wildcard(2)}}}}.{{{{wildcard(1)}}}}")
    await bus.ensure_stream(
        Stream(name=prefix.upper(), subjects=[f"{prefix}.in.*.*"], republish=rule)
    )
    async with other.subscribe(f"{prefix}.ui.>") as copies:
        await bus.publish(f"{prefix}.in.a.b", b"1", headers={"Own": "header"})
        with pytest.raises(Conflict):
            await bus.publish(f"{prefix}.in.a.b", b"refused", expected_last=7)
        await bus.publish(f"{prefix}.in.a.b", b"2")

        first, second = await copies.next(timeout=5), await copies.next(timeout=5)

    assert (first.subject, first.data, first.headers["Own"]) == (f"{prefix}.ui.b.a", b"1", "header")
    assert [m.headers["Nats-Sequence"] for m in (first, second)] == ["1", "2"]
    assert [m.headers["Nats-Last-Sequence"] for m in (first, second)] == ["0", "1"]
    assert second.data == b"2"


async def test_a_scheduled_message_is_stored_on_its_target_at_its_time(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare(allow_msg_schedules=True)
    await bus.ensure_stream(stream)
    fired = Consumer(stream.name, "w", filter=f"{prefix}.fired.>")
    await bus.ensure_consumer(fired)

    schedule = Schedule(f"{prefix}.fired.a", soon())
    await bus.publish(
        f"{prefix}.arm.a", b"x", headers={"Own": "1"}, message_id="m", schedule=schedule
    )
    async with bus.pull(fired) as pull:
        (delivery,) = await pull.next(10)

    assert (delivery.subject, delivery.data) == (f"{prefix}.fired.a", b"x")
    assert delivery.headers["Own"] == "1"
    assert "Nats-Msg-Id" not in delivery.headers
    assert await bus.get_last(stream.name, f"{prefix}.arm.a") is None


async def test_a_schedule_replaces_the_earlier_one_on_its_subject(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare(allow_msg_schedules=True)
    await bus.ensure_stream(stream)
    fired = Consumer(stream.name, "w", filter=f"{prefix}.fired.>")
    await bus.ensure_consumer(fired)

    await bus.publish(
        f"{prefix}.arm.a", b"replaced", schedule=Schedule(f"{prefix}.fired.a", soon(0.3))
    )
    await bus.publish(
        f"{prefix}.arm.a", b"second", schedule=Schedule(f"{prefix}.fired.a", soon(0.6))
    )
    await bus.publish(
        f"{prefix}.arm.b", b"other", schedule=Schedule(f"{prefix}.fired.b", soon(1.2))
    )
    async with bus.pull(fired) as pull:
        deliveries = [*await pull.next(10), *await pull.next(10)]

    assert [delivery.data for delivery in deliveries] == [b"second", b"other"]


async def test_a_schedule_in_the_past_fires_immediately(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = declare(allow_msg_schedules=True)
    await bus.ensure_stream(stream)
    fired = Consumer(stream.name, "w", filter=f"{prefix}.fired.>")
    await bus.ensure_consumer(fired)

    await bus.publish(f"{prefix}.arm.a", b"late", schedule=Schedule(f"{prefix}.fired.a", soon(-60)))
    async with bus.pull(fired) as pull:
        (delivery,) = await pull.next(10)

    assert delivery.data == b"late"


async def ensured_presence_stream(bus: Bus, declare: Declare) -> Stream:
    """Create a stream in memory, in which a marker takes the place of an expired message."""
    stream = declare(
        storage=StorageType.MEMORY,
        max_msgs_per_subject=1,
        allow_msg_ttl=True,
        subject_delete_marker_ttl=3600.0,
    )
    await bus.ensure_stream(stream)
    return stream


async def test_an_expired_message_leaves_a_delete_marker(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = await ensured_presence_stream(bus, declare)
    worker = Consumer(stream.name, "w", headers_only=True)
    await bus.ensure_consumer(worker)

    await bus.publish(f"{prefix}.a", b"alive", ttl=1.0)
    async with bus.pull(worker) as pull:
        (beat,) = await pull.next(1)
        (mark,) = await pull.next(1)

    assert (beat.subject, beat.data, beat.is_delete_marker) == (f"{prefix}.a", b"", False)
    assert (mark.subject, mark.data, mark.is_delete_marker) == (f"{prefix}.a", b"", True)
    last = await bus.get_last(stream.name, f"{prefix}.a")
    assert last is not None
    assert last.is_delete_marker


async def test_a_replaced_message_leaves_no_delete_marker(
    bus: Bus, declare: Declare, prefix: str
) -> None:
    stream = await ensured_presence_stream(bus, declare)
    worker = Consumer(stream.name, "w")
    await bus.ensure_consumer(worker)

    await bus.publish(f"{prefix}.a", b"1", ttl=1.0)
    await bus.publish(f"{prefix}.a", b"2", ttl=2.0)
    await bus.publish(f"{prefix}.b", b"other", ttl=1.0)
    async with bus.pull(worker) as pull:
        seen = []
        while len(marks := [d.subject for d in seen if d.is_delete_marker]) < 2:
            seen += await pull.next(10)

    assert marks == [f"{prefix}.b", f"{prefix}.a"]
