"""The auth callout on real servers: with several gateways, with none, and for revoked keys."""

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
from statemachine.store.postgres import connect as open_store
from statemachine.workspace import Build, WorkspaceRecord
from tests.contract.stores import uid, write
from tests.doubles.memory_credentials import MemoryCredentials
from tests.doubles.memory_store import MemoryStore

IN_AN_HOUR = datetime.now(UTC) + timedelta(hours=1)
TIMEOUT = 10.0


class CalloutRig:
    """A nats-server, a database, and gateways that answer the auth callout."""

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

    async def auth_callout(self) -> tuple[AuthCallout, Bus]:
        """Start an auth callout; return it with its connection."""
        bus = await self.role("gateway")
        callout = AuthCallout(self.store, bus, self._issuer)
        await callout.start()
        return callout, bus

    async def key(self, credential: Credential | None = None) -> tuple[str, str]:
        """Issue a key, by default a frontend's; return its seed and public key."""
        seed = nkey.new_seed("user")
        key = nkey.public_key(seed)
        await self.store.credentials.issue(
            key, credential or Credential("frontend", (uid(),), IN_AN_HOUR)
        )
        return seed, key

    async def connect(self, seed: str) -> Bus:
        """Connect with a seed. Raises Refused."""
        prefix = issued_keys.inbox_prefix(nkey.public_key(seed))
        return await self._stack.enter_async_context(
            await connect(self.servers.nats_url, name="client", seed=seed, inbox_prefix=prefix)
        )


@pytest.fixture
async def rig(own_nats: Servers, migrated_url: str) -> AsyncIterator[CalloutRig]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(migrated_url))
        yield CalloutRig(own_nats, store, stack)


def in_a_few_seconds() -> datetime:
    """Return an expiry that is late enough for one connect even on a busy machine."""
    return datetime.now(UTC) + timedelta(seconds=4)


async def wait_until_closed(bus: Bus) -> str:
    """Wait until a connection is closed for good; return the reason."""
    return await asyncio.wait_for(bus.wait_closed(), TIMEOUT)


async def test_one_gateway_suffices_and_without_any_connections_stay_open(rig: CalloutRig) -> None:
    _, one = await rig.auth_callout()
    _, two = await rig.auth_callout()
    seed, _ = await rig.key()
    client = await rig.connect(seed)

    await one.close()
    await rig.connect(seed)
    await two.close()
    with pytest.raises(Refused, match="no gateway runs to check them"):
        await rig.connect(seed)

    await client.flush()
    await rig.auth_callout()
    await rig.connect(seed)


async def test_a_server_that_accepts_kick_requests_is_recognized(rig: CalloutRig) -> None:
    seen: list[str] = []
    callout, bus = await rig.auth_callout()
    seed, _ = await rig.key()
    meet = callout._register_server

    async def look(request: ConnectRequest) -> None:
        seen.append(request.server_id)
        await meet(request)

    callout._register_server = look  # type: ignore[method-assign]
    await rig.connect(seed)

    assert await can_disconnect(bus, seen[0])
    assert not await can_disconnect(bus, "NOBODY")


async def test_the_oldest_connection_is_closed_when_a_key_has_too_many(
    rig: CalloutRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statemachine.store.postgres_queries.CONNECTIONS_PER_KEY", 2)
    await rig.auth_callout()
    seed, _ = await rig.key()
    clients = [await rig.connect(seed) for _ in range(2)]

    await rig.connect(seed)

    await asyncio.wait_for(wait_until_reconnected(clients[0]), TIMEOUT)


async def wait_until_reconnected(bus: Bus) -> None:
    """Wait until a connection has been closed and restored."""
    lost = asyncio.Event()
    bus.on_reconnect(lost.set)
    await lost.wait()


def chat_with_build(chat_id: str, build_id: str, number: int) -> Chat:
    build = Build(
        id=build_id, number=number, transition=Transition.START, started_at=datetime.now(UTC)
    )
    return Chat(chat_id=chat_id, current=WorkspaceRecord(id=uid(), build=build))


async def test_a_starting_worker_disconnects_agents_that_a_crashed_worker_missed(
    rig: CalloutRig,
) -> None:
    await rig.auth_callout()
    chats = [chat_with_build(uid(), uid(), 1) for _ in range(2)]
    await write(rig.store, Changes(chats=chats))
    clients = []
    for chat in chats:
        assert chat.build is not None
        agent = Credential("agent", (chat.chat_id,), IN_AN_HOUR, uid(), chat.build.id, uid())
        seed, _ = await rig.key(agent)
        clients.append(await rig.connect(seed))
    await write(rig.store, Changes(chats=[chat_with_build(chats[0].chat_id, uid(), 2)]))

    superseded = asyncio.create_task(SupersededAgents(rig.store, await rig.role("worker")).run())

    assert "Authorization" in await wait_until_closed(clients[0])
    assert clients[1].connected
    assert await rig.store.credentials.invalid_connections() == []
    superseded.cancel()


async def test_a_failed_disconnect_is_retried(rig: CalloutRig) -> None:
    await rig.auth_callout()
    chat = chat_with_build(uid(), uid(), 1)
    await write(rig.store, Changes(chats=[chat]))
    assert chat.build is not None
    agent = Credential("agent", (chat.chat_id,), IN_AN_HOUR, uid(), chat.build.id, uid())
    seed, _ = await rig.key(agent)
    client, worker = await rig.connect(seed), await rig.role("worker")
    tried = asyncio.Event()

    class FailsOnce:
        async def request(self, *args: object, **more: object) -> object:
            if tried.is_set():
                return await worker.request(*args, **more)  # type: ignore[arg-type]
            tried.set()
            raise TimeoutError("no answer")

    superseded = SupersededAgents(rig.store, FailsOnce())  # type: ignore[arg-type]
    running = asyncio.create_task(superseded.run())
    await write(rig.store, Changes(chats=[chat_with_build(chat.chat_id, uid(), 2)]))
    superseded.disconnect_later({chat.chat_id})

    await wait_until_closed(client)
    assert tried.is_set()
    running.cancel()


async def test_a_silent_server_does_not_prevent_disconnects_on_others(rig: CalloutRig) -> None:
    await rig.auth_callout()
    seed, key = await rig.key()
    client, worker = await rig.connect(seed), await rig.role("worker")
    credential = Credential("frontend", (uid(),), IN_AN_HOUR)
    await rig.store.credentials.record_connection(
        key, ClientConnection("SILENT", 7), "other", credential
    )
    await rig.store.credentials.revoke(key)

    class OneServerSilent:
        async def request(self, subject: str, *args: object, **more: object) -> object:
            if "SILENT" in subject:
                raise TimeoutError("no answer")
            return await worker.request(subject, *args, **more)  # type: ignore[arg-type]

    with pytest.raises(TimeoutError):
        await disconnect_invalid(rig.store, OneServerSilent(), public_key=key)  # type: ignore[arg-type]

    await wait_until_closed(client)
    assert await rig.store.credentials.invalid_connections() == [ClientConnection("SILENT", 7)]


class RevokedMeanwhile(MemoryCredentials):
    """Revokes a key after the gateway's first check of it, before the second."""

    async def record_connection(
        self, public_key: str, at: ClientConnection, server_name: str, credential: Credential
    ) -> list[ClientConnection]:
        await self.revoke(public_key)
        return await super().record_connection(public_key, at, server_name, credential)


async def test_a_key_that_is_revoked_during_a_connect_is_denied() -> None:
    store = MemoryStore()
    store.credentials = RevokedMeanwhile(store.clock, store.chats.get)
    await store.credentials.issue("K", Credential("frontend", (uid(),), IN_AN_HOUR))
    callout = AuthCallout(store, None, nkey.new_seed("account"))  # type: ignore[arg-type]

    assert await callout.look_up(connect_request("K")) is DenialReason.REVOKED
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


def test_repeated_auth_failures_are_logged_once_a_minute_and_all_counted(
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


def test_the_number_of_remembered_auth_failures_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.access.auth_callout.MAX_REMEMBERED", 10)
    failures = AuthFailures()
    for number in range(50):
        failures.record(connect_request(f"K{number}"), DenialReason.UNKNOWN)

    assert len(failures._last_logged) == 10


async def test_a_role_ends_with_a_reason_when_its_key_expires(rig: CalloutRig) -> None:
    await rig.auth_callout()
    seed, _ = await rig.key(Credential("chat-service", (), in_a_few_seconds()))
    bus = await rig.connect(seed)

    with pytest.raises(Unavailable, match="expired"):
        await asyncio.wait_for(raise_when_closed(bus), TIMEOUT)


async def test_an_agent_reconnects_with_its_renewed_credential(
    rig: CalloutRig, tmp_path: Path
) -> None:
    await (await rig.role("operator")).ensure_stream(PRESENCE)
    await rig.auth_callout()
    chat = chat_with_build(uid(), uid(), 1)
    await write(rig.store, Changes(chats=[chat]))
    assert chat.build is not None
    assert chat.current is not None
    config = AgentConfig(
        chat_id=chat.chat_id,
        workspace_id=chat.current.id,
        build_id=chat.build.id,
        agent_id=uid(),
        name="main",
        nats_url=rig.servers.nats_url,
        directory=tmp_path,
    )
    agent = Credential(
        "agent",
        (chat.chat_id,),
        IN_AN_HOUR,
        chat.current.id,
        chat.build.id,
        config.agent_id,
    )

    async def credential(expires_at: datetime) -> AgentCredential:
        seed, _ = await rig.key(replace(agent, expires_at=expires_at))
        return AgentCredential(seed=seed, inbox_prefix=issued_keys.inbox_prefix(config.agent_id))

    agent_files.write_config(tmp_path, config)
    first = await credential(in_a_few_seconds())
    agent_files.write_credential(tmp_path, first)
    came: asyncio.Queue[tuple[AgentCredential, Bus]] = asyncio.Queue()

    async def dial(url: str, given: AgentCredential) -> Bus:
        bus = await connect(url, seed=given.seed, inbox_prefix=given.inbox_prefix)
        await came.put((given, bus))
        return bus

    link = Link(tmp_path, config, AgentJournal(tmp_path, config), dial)
    running = asyncio.create_task(link.run())
    used, bus = await asyncio.wait_for(came.get(), TIMEOUT)
    assert used.seed == first.seed
    second = await credential(IN_AN_HOUR)
    agent_files.write_credential(tmp_path, second)

    assert "expired" in await wait_until_closed(bus)
    used, bus = await asyncio.wait_for(came.get(), TIMEOUT)

    assert used.seed == second.seed
    assert bus.connected
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_a_key_allows_connections_for_many_browser_tabs() -> None:
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
def test_the_request_info_header_identifies_the_caller(headers: dict[str, str], who: str) -> None:
    assert issued_keys.caller_key(headers) == who


async def test_a_role_connects_with_a_static_or_an_issued_seed(
    rig: CalloutRig, tmp_path: Path
) -> None:
    await rig.auth_callout()
    issued, _ = await rig.key(Credential("provisioner", (), IN_AN_HOUR, name="box", pool="local"))
    own = seed_file(rig.servers.credentials, "provisioner").read_text()
    echo, asked_by = await rig.role("gateway"), []

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
        async with Endpoints(rig.servers.nats_url, None, file).bus("provisioner") as bus:
            forged = {issued_keys.REQUEST_INFO: '{"user": "FORGED"}'}
            subject = "workspaced.rpc.template_archive"
            found = await bus.request(subject, b"hello", timeout=5, headers=forged)
        assert found.data == b"hello", name
        assert asked_by.pop() == nkey.public_key(seed)
