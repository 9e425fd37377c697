"""The door over real servers: several may keep it, nobody may, and who must go goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bus import Bus, Message, Refused, Unavailable
from bus.jetstream import connect
from bus.streams import PRESENCE
from handlers.access import issued_keys, nkey
from handlers.access.auth_callout import LOG_INTERVAL, AuthCallout, AuthFailures
from handlers.access.auth_protocol import ConnectRequest, DenialReason
from handlers.access.disconnect import SupersededAgents, can_disconnect, disconnect_invalid
from handlers.access.identities import ISSUER, seed_file
from handlers.access.permissions import role_inbox_prefix
from handlers.agent.journal import AgentJournal
from handlers.agent.link import Link
from handlers.app import Endpoints
from handlers.cli.commands.roles import raise_when_closed
from handlers.embedded import Servers
from handlers.publishing import agent_files
from handlers.publishing.agent_files import AgentConfig, AgentCredential
from statemachine.chat import Chat
from statemachine.events import Transition
from statemachine.store import CONNECTIONS_PER_KEY, Changes, ClientConnection, Credential, Store
from statemachine.store.migrator import migrate
from statemachine.store.postgres import connect as open_store
from statemachine.workspace import Build, WorkspaceRecord
from tests.contract.stores import uid, write
from tests.doubles.memory_credentials import MemoryCredentials
from tests.doubles.memory_store import MemoryStore

IN_AN_HOUR = datetime.now(UTC) + timedelta(hours=1)
A_WHILE = 10.0


class House:
    """A nats-server and a database, and whoever keeps the door."""

    def __init__(self, servers: Servers, store: Store, stack: AsyncExitStack) -> None:
        self.servers, self.store, self._stack = servers, store, stack
        self._issuer = seed_file(servers.credentials, ISSUER).read_text()

    async def role(self, role: str) -> Bus:
        return await self._stack.enter_async_context(
            await connect(
                self.servers.nats_url,
                name=role,
                seed_file=seed_file(self.servers.credentials, role),
                inbox_prefix=role_inbox_prefix(role),
            )
        )

    async def door(self) -> tuple[AuthCallout, Bus]:
        """Somebody who keeps the door, and the connection by which they do."""
        bus = await self.role("gateway")
        door = AuthCallout(self.store, bus, self._issuer)
        await door.start()
        return door, bus

    async def key(self, credential: Credential | None = None) -> tuple[str, str]:
        """A key that was issued, a frontend's if nothing else is said: its seed and its name."""
        seed = nkey.new_seed("user")
        key = nkey.public_key(seed)
        await self.store.credentials.issue(
            key, credential or Credential("frontend", (uid(),), IN_AN_HOUR)
        )
        return seed, key

    async def come(self, seed: str) -> Bus:
        """Come in. Raises Refused."""
        prefix = issued_keys.inbox_prefix(nkey.public_key(seed))
        return await self._stack.enter_async_context(
            await connect(self.servers.nats_url, name="guest", seed=seed, inbox_prefix=prefix)
        )


@pytest.fixture
async def house(own_nats: Servers, database_url: str) -> AsyncIterator[House]:
    await migrate(database_url)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(database_url))
        yield House(own_nats, store, stack)


def soon() -> datetime:
    """When a key ends that is only to be used once, also on a machine with much to do."""
    return datetime.now(UTC) + timedelta(seconds=4)


async def gone(bus: Bus) -> str:
    """Wait until a connection is closed for good; return why."""
    return await asyncio.wait_for(bus.wait_closed(), A_WHILE)


async def test_one_of_two_gateways_is_enough_and_with_none_who_is_in_stays(house: House) -> None:
    _, one = await house.door()
    _, two = await house.door()
    seed, _ = await house.key()
    inside = await house.come(seed)

    await one.close()
    await house.come(seed)
    await two.close()
    with pytest.raises(Refused, match="no gateway runs to check them"):
        await house.come(seed)

    await inside.flush()
    await house.door()
    await house.come(seed)


async def test_a_server_says_whether_it_cuts_off_whom_we_name(house: House) -> None:
    seen: list[str] = []
    door, bus = await house.door()
    seed, _ = await house.key()
    meet = door._register_server

    async def look(request: ConnectRequest) -> None:
        seen.append(request.server_id)
        await meet(request)

    door._register_server = look  # type: ignore[method-assign]
    await house.come(seed)

    assert await can_disconnect(bus, seen[0])
    assert not await can_disconnect(bus, "NOBODY")


async def test_of_too_many_connections_of_a_key_the_oldest_is_cut_off(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statemachine.store.postgres_queries.CONNECTIONS_PER_KEY", 2)
    await house.door()
    seed, _ = await house.key()
    guests = [await house.come(seed) for _ in range(2)]

    await house.come(seed)

    await asyncio.wait_for(_lost(guests[0]), A_WHILE)


async def _lost(bus: Bus) -> None:
    """Wait until a connection was closed; it may come back."""
    lost = asyncio.Event()
    bus.on_reconnect(lost.set)
    await lost.wait()


def following(chat_id: str, build_id: str, number: int) -> Chat:
    build = Build(
        id=build_id, number=number, transition=Transition.START, started_at=datetime.now(UTC)
    )
    return Chat(chat_id=chat_id, current=WorkspaceRecord(id=uid(), build=build))


async def test_a_worker_that_starts_cuts_off_whom_a_dead_one_did_not_get_to(house: House) -> None:
    await house.door()
    chats = [following(uid(), uid(), 1) for _ in range(2)]
    await write(house.store, Changes(chats=chats))
    guests = []
    for chat in chats:
        assert chat.build is not None
        agent = Credential("agent", (chat.chat_id,), IN_AN_HOUR, uid(), chat.build.id, uid())
        seed, _ = await house.key(agent)
        guests.append(await house.come(seed))
    await write(house.store, Changes(chats=[following(chats[0].chat_id, uid(), 2)]))

    cutting = asyncio.create_task(SupersededAgents(house.store, await house.role("worker")).run())

    assert "Authorization" in await gone(guests[0])
    assert guests[1].connected
    assert await house.store.credentials.invalid_connections() == []
    cutting.cancel()


async def test_what_can_not_be_cut_off_yet_is_tried_again(house: House) -> None:
    await house.door()
    chat = following(uid(), uid(), 1)
    await write(house.store, Changes(chats=[chat]))
    assert chat.build is not None
    agent = Credential("agent", (chat.chat_id,), IN_AN_HOUR, uid(), chat.build.id, uid())
    seed, _ = await house.key(agent)
    guest, worker = await house.come(seed), await house.role("worker")
    tried = asyncio.Event()

    class Deaf:
        async def request(self, *args: object, **more: object) -> object:
            if tried.is_set():
                return await worker.request(*args, **more)  # type: ignore[arg-type]
            tried.set()
            raise TimeoutError("no answer")

    cutting = SupersededAgents(house.store, Deaf())  # type: ignore[arg-type]
    running = asyncio.create_task(cutting.run())
    await write(house.store, Changes(chats=[following(chat.chat_id, uid(), 2)]))
    cutting.disconnect_later({chat.chat_id})

    await gone(guest)
    assert tried.is_set()
    running.cancel()


async def test_a_silent_server_keeps_nobody_in_on_another_one(house: House) -> None:
    await house.door()
    seed, key = await house.key()
    guest, worker = await house.come(seed), await house.role("worker")
    credential = Credential("frontend", (uid(),), IN_AN_HOUR)
    await house.store.credentials.record_connection(
        key, ClientConnection("SILENT", 7), "other", credential
    )
    await house.store.credentials.revoke(key)

    class HalfDeaf:
        async def request(self, subject: str, *args: object, **more: object) -> object:
            if "SILENT" in subject:
                raise TimeoutError("no answer")
            return await worker.request(subject, *args, **more)  # type: ignore[arg-type]

    with pytest.raises(TimeoutError):
        await disconnect_invalid(house.store, HalfDeaf(), public_key=key)  # type: ignore[arg-type]

    await gone(guest)
    assert await house.store.credentials.invalid_connections() == [ClientConnection("SILENT", 7)]


class RevokedMeanwhile(MemoryCredentials):
    """Revokes a key between the two times that the gateway checks it."""

    async def record_connection(
        self, public_key: str, at: ClientConnection, server_name: str, credential: Credential
    ) -> list[ClientConnection]:
        await self.revoke(public_key)
        return await super().record_connection(public_key, at, server_name, credential)


async def test_who_comes_in_while_the_key_is_taken_back_does_not_slip_through() -> None:
    store = MemoryStore()
    store.credentials = RevokedMeanwhile(store.clock, store.chats.get)
    await store.credentials.issue("K", Credential("frontend", (uid(),), IN_AN_HOUR))
    door = AuthCallout(store, None, nkey.new_seed("account"))  # type: ignore[arg-type]

    assert await door.look_up(connect_request("K")) is DenialReason.REVOKED
    assert store.credentials.connections == {}


def connect_request(public_key: str = "K", **more: object) -> ConnectRequest:
    of = ConnectRequest(
        public_key=public_key,
        client_name="n",
        client_type="nats",
        address="10.0.0.1",
        server_id="S",
        server_name="one",
        client_id=1,
    )
    return replace(of, **more)  # type: ignore[arg-type]


def test_the_same_refusal_is_logged_once_a_minute_and_counted_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    failures = AuthFailures(clock=lambda: now)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            failures.record(connect_request(), DenialReason.REVOKED)
        failures.record(connect_request(), DenialReason.EXPIRED)
        failures.record(connect_request(address="10.0.0.2"), DenialReason.REVOKED)
        now += LOG_INTERVAL
        failures.record(connect_request(), DenialReason.REVOKED)

    assert failures.counts == {DenialReason.REVOKED: 5, DenialReason.EXPIRED: 1}
    assert [record.why for record in caplog.records] == ["revoked", "expired", "revoked", "revoked"]
    assert "5 denied for this reason, 3 of them from this client" in caplog.messages[-1]


def test_what_is_remembered_of_refusals_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.access.auth_callout.MAX_REMEMBERED", 10)
    failures = AuthFailures()
    for number in range(50):
        failures.record(connect_request(f"K{number}"), DenialReason.UNKNOWN)

    assert len(failures._last_logged) == 10


async def test_a_role_whose_key_ends_ends_and_says_why(house: House) -> None:
    await house.door()
    seed, _ = await house.key(Credential("chat-service", (), soon()))
    bus = await house.come(seed)

    with pytest.raises(Unavailable, match="expired"):
        await asyncio.wait_for(raise_when_closed(bus), A_WHILE)


async def test_an_agent_whose_credential_ends_comes_back_with_the_one_that_took_its_place(
    house: House, tmp_path: Path
) -> None:
    await (await house.role("operator")).ensure_stream(PRESENCE)
    await house.door()
    chat = following(uid(), uid(), 1)
    await write(house.store, Changes(chats=[chat]))
    assert chat.build is not None
    assert chat.current is not None
    config = AgentConfig(
        chat_id=chat.chat_id,
        workspace_id=chat.current.id,
        build_id=chat.build.id,
        agent_id=uid(),
        name="main",
        nats_url=house.servers.nats_url,
        directory=tmp_path,
    )
    of_agent = Credential(
        "agent",
        (chat.chat_id,),
        IN_AN_HOUR,
        chat.current.id,
        chat.build.id,
        config.agent_id,
    )

    async def credential(expires_at: datetime) -> AgentCredential:
        seed, _ = await house.key(replace(of_agent, expires_at=expires_at))
        return AgentCredential(seed=seed, inbox_prefix=issued_keys.inbox_prefix(config.agent_id))

    agent_files.write_config(tmp_path, config)
    first = await credential(soon())
    agent_files.write_credential(tmp_path, first)
    came: asyncio.Queue[tuple[AgentCredential, Bus]] = asyncio.Queue()

    async def dial(url: str, given: AgentCredential) -> Bus:
        bus = await connect(url, seed=given.seed, inbox_prefix=given.inbox_prefix)
        await came.put((given, bus))
        return bus

    link = Link(tmp_path, config, AgentJournal(tmp_path, config), dial)
    running = asyncio.create_task(link.run())
    used, bus = await asyncio.wait_for(came.get(), A_WHILE)
    assert used.seed == first.seed
    second = await credential(IN_AN_HOUR)
    agent_files.write_credential(tmp_path, second)

    assert "expired" in await gone(bus)
    used, bus = await asyncio.wait_for(came.get(), A_WHILE)

    assert used.seed == second.seed
    assert bus.connected
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_a_key_has_room_for_a_browser_with_many_tabs() -> None:
    assert CONNECTIONS_PER_KEY >= 32


@pytest.mark.parametrize(
    ("headers", "who"),
    [
        ({"Nats-Request-Info": '{"acc": "APP", "user": "UKEY"}'}, "UKEY"),
        ({"nats-request-info": '{"user": "FORGED"}'}, ""),
        ({"Nats-Request-Info": "[]"}, ""),
        ({"Nats-Request-Info": "{"}, ""),
        ({}, ""),
    ],
)
def test_the_server_s_header_tells_who_asks(headers: dict[str, str], who: str) -> None:
    assert issued_keys.caller_key(headers) == who


async def test_a_seed_file_is_enough_whether_it_is_the_role_s_own_or_issued(
    house: House, tmp_path: Path
) -> None:
    await house.door()
    issued, _ = await house.key(Credential("provisioner", (), IN_AN_HOUR, name="box", pool="local"))
    own = seed_file(house.servers.credentials, "provisioner").read_text()
    echo, asked_by = await house.role("gateway"), []

    async def answer(message: Message) -> bytes:
        asked_by.append(issued_keys.caller_key(message.headers))
        return message.data

    await echo.respond("workspaced.rpc.template_archive", "q", answer)
    for name, seed in (
        ("provisioner.nk", own),
        ("mine.nk", own),
        ("box.nk", issued),
        ("elsewhere/provisioner.nk", issued),
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(seed)
        async with Endpoints(house.servers.nats_url, None, file).bus("provisioner") as bus:
            forged = {issued_keys.REQUEST_INFO: '{"user": "FORGED"}'}
            subject = "workspaced.rpc.template_archive"
            found = await bus.request(subject, b"hello", timeout=5, headers=forged)
        assert found.data == b"hello", name
        assert asked_by.pop() == nkey.public_key(seed)
