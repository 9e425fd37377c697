"""Credentials, permissions, limits and the protocol: tests that need a real server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nkeys
import pytest
from nats.js.errors import APIError

from bus import Bus, Message, Outbound, PubAck, Refused, Stream, Unavailable, jetstream
from bus.jetstream import JetStreamBus, connect
from bus.management import bus_error
from bus.streams import LOG, RESULT, STATE, TIMER, Consumer
from tests.contract.conftest import NatsServer

GUARDED = """
jetstream {{}}
authorization {{ users: [
  {{ user: boss, password: secret }}
  {guest}
] }}
"""
GUEST = """{ user: guest, password: secret, permissions: {
  publish: ["allowed.>", "$JS.API.INFO", "Mixed.Case.allowed"],
  subscribe: ["allowed.>", "_INBOX_guest.>"] } }"""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with two users: one with all permissions, one with few."""
    server = NatsServer(tmp_path, GUARDED.format(guest=GUEST))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that the test can stop and start."""
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.stop()


def as_user(server: NatsServer, user: str) -> str:
    return server.url.replace("nats://", f"nats://{user}:secret@")


@pytest.fixture
async def guest(guarded: NatsServer) -> Bus:
    url = as_user(guarded, "guest")
    async with await connect(url, inbox_prefix="_INBOX_guest", wait=True) as bus:
        yield bus


@pytest.fixture
async def boss(guarded: NatsServer) -> Bus:
    async with await connect(as_user(guarded, "boss"), wait=True) as bus:
        yield bus


@pytest.fixture
async def bus(nats_server: NatsServer) -> JetStreamBus:
    async with await connect(nats_server.url, wait=True) as bus:
        yield bus


async def test_connecting_without_server_fails_immediately_and_names_the_url(
    tmp_path: Path,
) -> None:
    url = NatsServer(tmp_path).url  # the server is never started

    async with asyncio.timeout(20):
        with pytest.raises(Unavailable, match=url) as failed:
            await connect(url)

    assert "refused" in str(failed.value).lower() or "connect" in str(failed.value).lower()


async def test_connect_can_wait_for_a_server(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    waiting = asyncio.ensure_future(connect(server.url, wait=True))
    with pytest.raises(Unavailable):
        await connect(server.url)
    assert not waiting.done()

    server.start()
    try:
        async with await asyncio.wait_for(waiting, 10) as bus:
            assert bus.connected
    finally:
        server.stop()


async def test_waiting_for_a_server_is_logged_at_once_and_then_at_intervals(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: asyncio.Queue[None] = asyncio.Queue()

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.put_nowait(None)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1") as nobody, asyncio.timeout(10):
        where = f"127.0.0.1:{nobody.sockets[0].getsockname()[1]}"
        waiting = asyncio.ensure_future(connect(f"nats://boss:secret@{where}", wait=True))
        for _ in range(4):
            await tries.get()
        first = [record.getMessage() for record in caplog.records]
        monkeypatch.setattr("bus.connect.LOG_INTERVAL", 0.0)
        for _ in range(4):
            await tries.get()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    (line,) = first
    assert line.startswith(f"no NATS at nats://boss:***@{where}: ")
    assert line.endswith("; trying again")
    assert len(caplog.records) > len(first)
    assert {record.levelname for record in caplog.records} == {"WARNING"}


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@127.0.0.1:1",
        "unix:///run/nats",
        "nats://",
        "nats://:4222",
        "nats://user:secret@127.0.0.1:99999",
        "nats://127.0.0.1:0",
        "nats://127.0.0.1:abc",
        "nats://[::1",
        "nats://127.0.0.1:1,",
        " nats://127.0.0.1:1",
        "nats://user:12/secret@127.0.0.1:1",
    ],
)
async def test_a_url_that_no_server_can_have_is_refused_and_not_tried_again(url: str) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(Refused, match="is no URL of a NATS server") as refused:
            await connect(url, wait=True)

    assert "secret" not in str(refused.value)


async def test_wrong_credentials_are_refused(guarded: NatsServer, boss: Bus) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(Refused, match="credentials"):
            await connect(guarded.url.replace("nats://", "nats://boss:wrong@"), wait=True)


async def test_a_seed_is_accepted_as_text_or_in_a_file(tmp_path: Path) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    file = tmp_path / "role.nk"
    file.write_bytes(seed + b"\n")
    server = NatsServer(tmp_path, f"authorization {{ users: [ {{ nkey: {public} }} ] }}")
    server.start()
    try:
        async with await connect(server.url, seed_file=file, wait=True) as bus:
            await bus.flush()
        async with await connect(server.url, seed=seed.decode()) as bus:
            await bus.flush()
        with pytest.raises(Refused):
            await connect(server.url)
    finally:
        server.stop()


async def test_serving_without_permission_is_refused(guest: Bus) -> None:
    async def answer(_message: Message) -> bytes:
        return b""

    with pytest.raises(Refused):
        await guest.serve("denied", "1.0.0", "", {"denied.rpc": answer})
    with pytest.raises(Refused):
        await guest.respond("denied.raw", "q", answer)


async def test_publishing_without_permission_is_refused_immediately(
    guest: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(Refused, match="permissions violation"):
            await guest.publish("Not.Allowed", b"")

    assert [r.levelno for r in caplog.records if "violation" in r.message] == [logging.ERROR]


async def test_a_stream_of_an_earlier_version_is_kept(own_server: NatsServer) -> None:
    """The server can't change how a stream is persisted; atomic batches can be switched off."""
    async with await connect(own_server.url, wait=True) as bus:
        for stream in (STATE, RESULT, TIMER):
            old = replace(stream, persist_mode=None, allow_atomic=True)
            before = await bus.ensure_stream(old)

            assert await bus.ensure_stream(stream) == before
            info = await bus._management.manager.stream_info(stream.name)

            assert not info.config.allow_atomic
            assert info.config.persist_mode in (None, "default")


async def test_a_stream_for_one_server_says_what_to_do_to_replicate_it(
    own_server: NatsServer,
) -> None:
    async with await connect(own_server.url, wait=True) as bus:
        for stream, after in ((STATE, "publish again"), (LOG, "what it holds is lost")):
            await bus.ensure_stream(stream)

            with pytest.raises(Refused, match=after):
                await bus.ensure_stream(replace(stream, num_replicas=3))


async def test_among_many_messages_only_those_without_permission_are_refused(
    guest: Bus, boss: Bus
) -> None:
    await boss.ensure_stream(Stream(name="ALLOWED", subjects=["allowed.>"]))
    wanted = ["allowed.a", "denied.a", "allowed.b", "denied.a", "Denied.b", "allowed.c"]

    results = await guest.publish_many([Outbound(subject, b"") for subject in wanted])

    denied = [isinstance(result, Refused) for result in results]
    assert denied == [not subject.startswith("allowed.") for subject in wanted]
    assert [r.sequence for r in results if isinstance(r, PubAck)] == [1, 2, 3]


async def test_many_messages_time_out_when_none_of_them_is_answered_any_more(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time counts from the last reply: a slow disk may take long for all of them together."""
    monkeypatch.setattr(jetstream, "API_TIMEOUT", 0.3)
    silent = [Outbound(f"silent.{n}", b"") for n in range(3)]
    async with await connect(own_server.url, wait=True) as bus, bus.subscribe("silent.*") as heard:
        waiting = asyncio.ensure_future(bus.publish_many(silent))
        for number in range(2):
            message = await heard.next(5)
            await asyncio.wait({waiting}, timeout=0.2)
            assert not waiting.done()
            await bus.send(message.reply, b'{"stream": "SLOW", "seq": %d}' % number)

        first, second, third = await waiting

    assert (first, second) == (PubAck("SLOW", 0), PubAck("SLOW", 1))
    assert isinstance(third, Unavailable)


@pytest.mark.parametrize("permitted", [True, False])
async def test_messages_published_together_are_one_batch_if_the_stream_permits_it(
    boss: Bus, *, permitted: bool
) -> None:
    await boss.ensure_stream(
        Stream(name="TOGETHER", subjects=["together.*"], allow_direct=True, allow_atomic=permitted)
    )

    results = await boss.publish_together([Outbound(f"together.{n}", b"") for n in range(3)])

    assert results == [PubAck("TOGETHER", n) for n in (1, 2, 3)]
    found = [await boss.get_next("TOGETHER", "together.*", n) for n in range(3)]
    headers = [message.headers for message in found if message is not None]
    assert len({fields.get("Nats-Batch-Id") for fields in headers}) == 1
    numbers = ["1", "2", "3"] if permitted else [None] * 3
    assert [fields.get("Nats-Batch-Sequence") for fields in headers] == numbers


async def test_after_a_batch_without_an_answer_no_other_batch_is_sent(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream, "API_TIMEOUT", 0.1)
    silent = [Outbound("silent.batch", b"") for _ in range(1001)]
    async with await connect(own_server.url, wait=True) as bus, bus.subscribe("silent.*") as heard:
        results = await bus.publish_together(silent)
        await bus.send("silent.end", b"")

        count = 0
        while (await heard.next(5)).subject != "silent.end":
            count += 1

    assert count == 1000
    assert [type(result) for result in results] == [Unavailable] * 1001


async def test_a_denial_fails_the_request_that_was_denied_and_no_other(guest: Bus) -> None:
    async with guest.subscribe("allowed.ask") as asked:
        allowed = asyncio.ensure_future(guest.request("allowed.ask", b"", timeout=5))
        denied = asyncio.ensure_future(guest.request("denied.ask", b"", timeout=5))
        request = await asked.next(timeout=5)

        with pytest.raises(Refused):
            await denied
        await guest.send("allowed.unrelated", b"")
        assert not allowed.done()
        allowed.cancel()

    assert request.reply


async def test_sending_without_permission_is_logged_as_an_error(
    guest: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    await guest.send("not.allowed", b"")
    await guest.flush()

    assert any(r.levelno == logging.ERROR and "not.allowed" in r.message for r in caplog.records)


async def test_subscribing_without_permission_is_refused(guest: Bus) -> None:
    with pytest.raises(Refused):
        async with guest.subscribe("Not.Allowed.>"):
            pass
    async with guest.subscribe("allowed.>"):
        pass


async def test_pulling_without_permission_is_refused(guest: Bus) -> None:
    async with asyncio.timeout(20), guest.pull(Consumer("STREAM", "worker")) as pull:
        with pytest.raises(Refused):
            await pull.next(1)


async def test_requests_fail_immediately_without_permission_for_the_inbox(
    guarded: NatsServer,
) -> None:
    async with await connect(as_user(guarded, "guest"), wait=True) as bus, asyncio.timeout(20):
        with pytest.raises(Refused):
            await bus.request("allowed.ask", b"", timeout=60)


async def test_a_revoked_credential_closes_the_bus_with_the_reason(
    guarded: NatsServer, guest: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.nats_client.MAX_REJECTIONS", 2)
    closed = asyncio.ensure_future(guest.wait_closed())
    async with guest.subscribe("allowed.x") as messages:
        waiting = asyncio.ensure_future(messages.next())
        await guest.flush()

        guarded.reload(GUARDED.format(guest=""))

        assert await asyncio.wait_for(closed, 5) == "Authorization Violation"
        with pytest.raises(Unavailable):
            await waiting
    assert not guest.connected


async def test_an_expired_credential_closes_the_bus_with_the_reason(bus: JetStreamBus) -> None:
    async with bus.pull(Consumer("STREAM", "worker")) as pull:
        await bus._client._process_err("'user authentication expired'")

        assert await asyncio.wait_for(bus.wait_closed(), 5) == "user authentication expired"
        with pytest.raises(Unavailable, match="expired"):
            await pull.next(1)
    with pytest.raises(Unavailable, match="expired"):
        await bus.publish("a", b"")


async def test_a_message_above_the_payload_limit_is_refused_and_the_connection_stays(
    bus: JetStreamBus, prefix: str
) -> None:
    with pytest.raises(Refused):
        await bus.send(prefix, b"x" * (1 << 20), headers={"One": "more"})

    await bus.flush()
    assert bus.connected


async def test_a_cancelled_flush_does_not_break_the_connection(bus: JetStreamBus) -> None:
    flushes = [asyncio.ensure_future(bus.flush()) for _ in range(3)]
    await asyncio.wait(flushes, return_when=asyncio.FIRST_COMPLETED)
    abandoned = asyncio.ensure_future(bus.flush())
    turn = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turn.set_result, None)
    await turn
    abandoned.cancel()

    for _ in range(3):
        await bus.flush()
    assert bus.connected


async def test_ensuring_an_unchanged_stream_does_not_update_it(
    bus: JetStreamBus, declare: Callable[..., Stream]
) -> None:
    stream = declare()
    await bus.ensure_stream(stream)

    async with bus.subscribe("$JS.EVENT.ADVISORY.STREAM.UPDATED.>") as updates:
        await bus.ensure_stream(stream)
        with pytest.raises(TimeoutError):
            await updates.next(timeout=0.05)


async def test_an_update_keeps_what_an_operator_configured(
    bus: JetStreamBus, declare: Callable[..., Stream]
) -> None:
    stream = declare()
    await bus.ensure_stream(stream)
    name = f"$JS.API.STREAM.INFO.{stream.name}"
    config = json.loads((await bus.request(name, b"", timeout=5)).data)["config"]
    config["description"] = "by an operator"
    update = json.dumps(config).encode()
    await bus.request(f"$JS.API.STREAM.UPDATE.{stream.name}", update, timeout=5)

    await bus.ensure_stream(declare(max_msg_size=100))

    config = json.loads((await bus.request(name, b"", timeout=5)).data)["config"]
    assert (config["description"], config["max_msg_size"]) == ("by an operator", 100)


async def test_a_service_can_be_discovered(bus: JetStreamBus, prefix: str) -> None:
    async def answer(_message: Message) -> bytes:
        return b""

    await bus.serve(f"found-{prefix}", "1.2.3", "can be found", {f"{prefix}.rpc.find": answer})

    info = await bus.request(f"$SRV.INFO.found-{prefix}", b"", timeout=5)

    told = json.loads(info.data)
    assert (told["version"], told["description"]) == ("1.2.3", "can be found")
    assert [(e["name"], e["subject"]) for e in told["endpoints"]] == [
        ("find", f"{prefix}.rpc.find")
    ]


async def test_a_lost_pull_request_is_repeated(
    bus: JetStreamBus,
    declare: Callable[..., Stream],
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bus.pull_consumer.HEARTBEAT", 0.1)
    stream = declare()
    await bus.ensure_stream(stream)
    consumer = Consumer(stream.name, "worker")
    await bus.ensure_consumer(consumer)
    async with bus.pull(consumer) as pull:
        waiting = asyncio.ensure_future(pull.next(1))
        await bus.flush()
        (source,) = pull._sources  # type: ignore[attr-defined]
        # Without a subscription to the inbox, the server drops the request silently.
        await bus._client._subs[source._subscription]._conn._send_unsubscribe(source._subscription)
        await bus.flush()
        handler = bus._client._handlers.pop(source._subscription)
        number = await bus._client.listen(source._inbox, handler)
        source._subscription = number

        await bus.publish(f"{prefix}.a", b"x")

        assert len(await asyncio.wait_for(waiting, 5)) == 1


@pytest.mark.parametrize(
    ("status", "code"), [(503, 10008), (400, 10005), (500, 10118), (409, 10158), (429, 10167)]
)
def test_transient_errors_of_a_cluster_are_unavailable(status: int, code: int) -> None:
    """For example an election, a missing server, or a message that is just being stored."""
    error = APIError(code=status, err_code=code, description="not now")

    assert isinstance(bus_error(error, "S"), Unavailable)
    assert isinstance(bus_error(APIError(code=400, err_code=10054), "S"), Refused)


async def block_socket(bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch) -> asyncio.Task[None]:
    """Block the socket, send more than it takes, and return the task that waits for it."""
    takes_no_more = asyncio.Event()
    monkeypatch.setattr(bus._client._transport, "drain", takes_no_more.wait)

    async def flood() -> None:
        for _ in range(3):
            await bus.send("flood", b"x" * 700_000)

    flooding = asyncio.create_task(flood())
    while not bus._client.waiting:
        await asyncio.sleep(0)  # let other tasks run
    return flooding


async def test_waiting_for_the_socket_can_be_cancelled(
    bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py alone would wait for ever and swallow the cancellation."""
    flooding = await block_socket(bus, monkeypatch)
    flooding.cancel()

    await asyncio.wait({flooding}, timeout=5)

    assert flooding.cancelled()


async def test_waiting_for_the_socket_ends_when_the_connection_breaks(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await connect(own_server.url, wait=True) as bus:
        flooding = await block_socket(bus, monkeypatch)
        own_server.stop()

        with pytest.raises(Unavailable):
            await asyncio.wait_for(flooding, 5)


async def test_nothing_is_sent_before_the_callbacks_of_a_reconnect_have_run(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py reports that it is connected while it still restores the subscriptions."""
    async with await connect(own_server.url, wait=True) as bus:
        heard, tried = asyncio.Event(), list[bool]()
        bus.on_reconnect(heard.set)
        flush = bus._client.flush

        async def flush_and_try(*args: int) -> None:
            tried.append(bus._client.is_connected)
            with pytest.raises(Unavailable):
                await bus.send("early", b"")
            await flush(*args)

        monkeypatch.setattr(bus._client, "flush", flush_and_try)
        own_server.stop()
        own_server.start()

        await asyncio.wait_for(heard.wait(), 10)

        assert tried == [True]
        await bus.send("late", b"")
