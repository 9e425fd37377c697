"""Subscriptions, requests and services, with both adapters."""

from __future__ import annotations

import asyncio

import pytest

from bus import Bus, Message, NoResponder, Refused, ServiceError, Unavailable


async def test_a_subscription_is_confirmed_when_its_context_is_entered(
    bus: Bus, other: Bus, prefix: str
) -> None:
    for n in range(20):
        async with bus.subscribe(f"{prefix}.{n}") as messages:
            await other.send(f"{prefix}.{n}", b"x", headers={"Own": "header"})

            message = await messages.next(timeout=5)

        assert (message.subject, message.data) == (f"{prefix}.{n}", b"x")
        assert message.headers == {"Own": "header"}


async def test_wildcards_match_as_in_nats(bus: Bus, other: Bus, prefix: str) -> None:
    async with bus.subscribe(f"{prefix}.*.b") as one, bus.subscribe(f"{prefix}.>") as rest:
        for subject in ("a.b", "a.b.c", "a.c", "end.b"):
            await other.send(f"{prefix}.{subject}", b"")

        stars = [(await one.next(timeout=5)).subject for _ in range(2)]
        all_of_them = [(await rest.next(timeout=5)).subject for _ in range(4)]

    assert stars == [f"{prefix}.a.b", f"{prefix}.end.b"]
    assert all_of_them == [f"{prefix}.{s}" for s in ("a.b", "a.b.c", "a.c", "end.b")]


async def test_next_raises_after_its_timeout(bus: Bus, prefix: str) -> None:
    async with bus.subscribe(prefix) as messages:
        with pytest.raises(TimeoutError):
            await messages.next(timeout=0.01)
        await bus.send(prefix, b"later")
        assert (await messages.next(timeout=5)).data == b"later"


async def test_messages_arrive_in_order(bus: Bus, prefix: str) -> None:
    async with bus.subscribe(prefix) as messages:
        for n in range(5):
            await bus.send(prefix, str(n).encode())

        seen = []
        async for message in messages:
            seen.append(message.data)
            if len(seen) == 5:
                break

    assert seen == [b"0", b"1", b"2", b"3", b"4"]


async def test_an_ended_subscription_receives_nothing(bus: Bus, prefix: str) -> None:
    async with bus.subscribe(prefix) as left:
        pass
    async with bus.subscribe(prefix) as entered:
        await bus.send(prefix, b"x")
        await entered.next(timeout=5)

    with pytest.raises(TimeoutError):
        await left.next(timeout=0.01)


async def test_a_request_without_responder_fails_immediately(bus: Bus, prefix: str) -> None:
    with pytest.raises(NoResponder):
        await bus.request(prefix, b"", timeout=60)


async def test_a_request_to_many_gets_every_reply_that_comes_in_time(
    bus: Bus, other: Bus, prefix: str
) -> None:
    assert await bus.request_many(prefix, b"", timeout=60) == [], "nobody is waited for"

    async def answer(message: Message) -> bytes:
        return b"re: " + message.data

    for name in ("one", "two"):
        await other.respond(prefix, name, answer)

    replies = await bus.request_many(prefix, b"hello", timeout=0.3)

    assert [reply.data for reply in replies] == [b"re: hello"] * 2


async def test_a_responder_receives_data_and_headers(bus: Bus, other: Bus, prefix: str) -> None:
    async def echo(message: Message) -> bytes:
        return message.data + message.headers["Own"].encode() + message.subject.encode()

    await other.respond(f"{prefix}.*", "q", echo)

    answer = await bus.request(f"{prefix}.a", b"x", timeout=5, headers={"Own": "y"})

    assert answer.data == f"xy{prefix}.a".encode()


async def test_a_responder_that_raises_sends_no_reply(
    bus: Bus, other: Bus, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_message: Message) -> bytes:
        raise ValueError("secret")

    await other.respond(prefix, "q", fail)

    with pytest.raises(TimeoutError):
        await bus.request(prefix, b"", timeout=0.1)
    assert "secret" in caplog.text


async def test_each_request_goes_to_one_member_of_the_queue_group(
    bus: Bus, other: Bus, prefix: str
) -> None:
    asked = []

    async def count(message: Message) -> bytes:
        asked.append(message.data)
        return b""

    for on in (bus, other):
        await on.respond(prefix, "q", count)
    for n in range(10):
        await bus.request(prefix, str(n).encode(), timeout=5)

    assert asked == [str(n).encode() for n in range(10)]


async def test_requests_are_processed_concurrently(bus: Bus, other: Bus, prefix: str) -> None:
    second = asyncio.Event()

    async def meet(message: Message) -> bytes:
        if message.data == b"first":
            await second.wait()
        else:
            second.set()
        return message.data

    await other.serve("meeting", "1.0.0", "", {f"{prefix}.meet": meet})

    answers = await asyncio.gather(
        *(bus.request(f"{prefix}.meet", data, timeout=5) for data in (b"first", b"second"))
    )

    assert [answer.data for answer in answers] == [b"first", b"second"]


async def test_the_error_of_a_service_reaches_the_caller(bus: Bus, other: Bus, prefix: str) -> None:
    async def refuse(_message: Message) -> bytes:
        raise ServiceError(403, "not yours")

    await other.serve("refusing", "1.0.0", "", {f"{prefix}.refuse": refuse})

    with pytest.raises(ServiceError) as refused:
        await bus.request(f"{prefix}.refuse", b"", timeout=5)

    assert (refused.value.code, refused.value.description) == (403, "not yours")


async def test_an_exception_in_a_service_is_logged_but_not_disclosed(
    bus: Bus, other: Bus, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_message: Message) -> bytes:
        raise ValueError("secret")

    await other.serve("failing", "1.0.0", "", {f"{prefix}.fail": fail})

    with pytest.raises(ServiceError) as failed:
        await bus.request(f"{prefix}.fail", b"", timeout=5)

    assert (failed.value.code, failed.value.description) == (500, "internal error")
    assert "secret" in caplog.text


async def test_a_closing_service_replies_503_to_requests_in_progress(
    bus: Bus, other: Bus, prefix: str
) -> None:
    asked = asyncio.Event()

    async def hold(_message: Message) -> bytes:
        asked.set()
        return await asyncio.get_running_loop().create_future()

    await other.serve("holding", "1.0.0", "", {f"{prefix}.hold": hold})
    held = asyncio.ensure_future(bus.request(f"{prefix}.hold", b"", timeout=60))
    await asked.wait()

    await other.close()

    with pytest.raises(ServiceError) as left:
        await held
    assert left.value.code == 503
    with pytest.raises(NoResponder):
        await bus.request(f"{prefix}.hold", b"", timeout=5)


async def test_closing_the_bus_sends_what_is_buffered(bus: Bus, other: Bus, prefix: str) -> None:
    async with other.subscribe(prefix) as messages:
        for _ in range(100):
            await bus.send(prefix, b"x" * 1000)
        await bus.close()

        for _ in range(100):
            await messages.next(timeout=5)


async def test_everything_that_waits_on_a_closed_bus_raises_unavailable(
    bus: Bus, prefix: str
) -> None:
    async with bus.subscribe(prefix) as messages:
        closed = asyncio.ensure_future(bus.wait_closed())
        waiting = asyncio.ensure_future(messages.next())

        await bus.close()

        assert await closed == ""
        assert not bus.connected
        with pytest.raises(Unavailable):
            await waiting
    with pytest.raises(Unavailable):
        await bus.send(prefix, b"")
    with pytest.raises(Unavailable):
        async with bus.subscribe(prefix):
            pass


async def test_an_invalid_subject_is_refused(bus: Bus) -> None:
    for subject in ("", "a b", "a\r\nPING"):
        with pytest.raises(Refused):
            await bus.send(subject, b"")
