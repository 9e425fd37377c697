"""A client that proves its key gets exactly the granted permissions, through the auth callout."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error

from bus import subjects
from handlers.access import nkey
from handlers.access.auth_protocol import (
    QUEUE,
    ConnectRequest,
    DenialReason,
    Grant,
    InvalidAuthRequest,
    answer,
)
from handlers.access.identities import ISSUER, seed_file
from handlers.access.issued_keys import (
    agent_grant,
    frontend_grant,
    inbox_prefix,
    provisioner_grant,
    role_grant,
)
from handlers.access.permissions import ROLES
from handlers.embedded import Servers
from tests.conftest import ConnectAs
from tests.rigs.client import settled
from tests.rigs.messages import new_id

CHAT, OTHER_CHAT, BUILD, AGENT = (new_id() for _ in range(4))
IN_AN_HOUR = datetime.now(UTC) + timedelta(hours=1)


class GrantTable(dict[str, Grant]):
    """Grants by public key, and a record of the denials."""

    def __init__(self) -> None:
        super().__init__()
        self.denials: list[tuple[DenialReason, ConnectRequest]] = []

    def add(self, make: Callable[..., Grant], **content: object) -> str:
        seed = nkey.new_seed("user")
        key = nkey.public_key(seed)
        if make in (role_grant, provisioner_grant):
            content["public_key"] = key
        self[key] = make(**{"expires_at": IN_AN_HOUR} | content)
        return seed

    async def look_up(self, request: ConnectRequest) -> Grant | DenialReason:
        return self.get(request.public_key, DenialReason.UNKNOWN)


@pytest.fixture
async def granted(connect_as: ConnectAs, servers: Servers) -> AsyncIterator[GrantTable]:
    """A gateway that answers auth callouts from a table of grants."""
    grants, issuer = GrantTable(), seed_file(servers.credentials, ISSUER).read_text()
    gateway = await connect_as("gateway")

    async def on_request(request: Msg) -> None:
        response = await answer(request.data, issuer, grants.look_up, datetime.now(UTC))
        if response.denial is not None:
            grants.denials.append((response.denial, response.request))
        await request.respond(response.token)

    await gateway.subscribe(subjects.AUTH_CALLOUT, queue=QUEUE, cb=on_request)
    await settled(gateway)
    return grants


class ConnectedClient:
    """A client that records its permission errors."""

    def __init__(self, client: Client, denied: list[str]) -> None:
        self.client, self._denied = client, denied

    async def may_publish(self, subject: str) -> bool:
        return await self._passes(self.client.publish(subject, b"{}"))

    async def may_subscribe(self, subject: str) -> bool:
        return await self._passes(self.client.subscribe(subject))

    async def _passes(self, request_sent) -> bool:
        self._denied.clear()
        await request_sent
        await settled(self.client)
        return not self._denied


@pytest.fixture
def connect_with(connect_as: ConnectAs, servers: Servers):
    async def connect(seed: str, name: str, /, **options: object) -> ConnectedClient:
        denied: list[str] = []

        async def note(error: Exception) -> None:
            denied.append(str(error))

        client = await connect_as(
            "operator",
            nkeys_seed=None,
            nkeys_seed_str=seed,
            inbox_prefix=inbox_prefix(name),
            error_cb=note,
            **options,
        )
        return ConnectedClient(client, denied)

    return connect


async def test_an_agent_may_only_report_about_itself(granted: GrantTable, connect_with) -> None:
    seed = granted.add(agent_grant, chat_id=CHAT, build_id=BUILD, agent_id=AGENT)
    agent = await connect_with(seed, AGENT)

    for subject in (
        f"workspaced.in.agent.{CHAT}.{AGENT}",
        f"workspaced.log.{CHAT}.{BUILD}",
        f"workspaced.presence.{CHAT}.{AGENT}",
    ):
        assert await agent.may_publish(subject), subject
    for subject in (
        f"workspaced.in.agent.{CHAT}.{new_id()}",
        f"workspaced.in.agent.{OTHER_CHAT}.{AGENT}",
        f"workspaced.in.tool.{CHAT}.chat",
        f"workspaced.log.{CHAT}.{new_id()}",
        f"workspaced.presence.{CHAT}.{new_id()}",
        "workspaced.rpc.list_chats",
        "$JS.API.STREAM.LIST",
        subjects.AUTH_CALLOUT,
    ):
        assert not await agent.may_publish(subject), subject
    for subject in ("workspaced.resend.agent", f"_INBOX_{AGENT}.>"):
        assert await agent.may_subscribe(subject), subject
    for subject in (">", "_INBOX.>", f"workspaced.ui.{CHAT}.>", "workspaced.resend.provisioner"):
        assert not await agent.may_subscribe(subject), subject


async def test_a_frontend_may_only_follow_its_chats(granted: GrantTable, connect_with) -> None:
    mine = [CHAT, new_id()]
    seed = granted.add(frontend_grant, name="page", chat_ids=mine)
    frontend = await connect_with(seed, "page")
    get = "$JS.API.DIRECT.GET.WORKSPACED_STATE"

    for chat in mine:
        assert await frontend.may_publish(f"{get}.workspaced.state.{chat}")
        assert await frontend.may_subscribe(f"workspaced.ui.{chat}.>")
    for subject in (
        f"{get}.workspaced.state.{OTHER_CHAT}",
        get,
        "$JS.API.CONSUMER.CREATE.WORKSPACED_STATE.x",
        f"workspaced.in.tool.{CHAT}.page",
    ):
        assert not await frontend.may_publish(subject), subject
    for subject in (f"workspaced.ui.{OTHER_CHAT}.>", "workspaced.ui.>", f"workspaced.state.{CHAT}"):
        assert not await frontend.may_subscribe(subject), subject


async def test_an_unknown_key_is_denied(granted: GrantTable, connect_with) -> None:
    seed = nkey.new_seed("user")

    with pytest.raises(Error, match="Authorization Violation"):
        await connect_with(seed, "stranger", name="a stranger")

    ((why, request),) = granted.denials
    assert why is DenialReason.UNKNOWN
    assert request.public_key == nkey.public_key(seed)
    assert (request.client_name, request.client_type, request.address) == (
        "a stranger",
        "nats",
        "127.0.0.1",
    )
    assert request.server_id
    assert request.client_id


async def test_a_client_without_a_key_is_denied(granted: GrantTable, connect_as: ConnectAs) -> None:
    with pytest.raises(Error, match="Authorization Violation"):
        await connect_as("operator", nkeys_seed=None)

    assert [why for why, _ in granted.denials] == [DenialReason.NO_KEY]


async def test_an_expired_grant_is_denied(granted: GrantTable, connect_with) -> None:
    seed = granted.add(
        agent_grant, chat_id=CHAT, build_id=BUILD, agent_id=AGENT, expires_at=datetime.now(UTC)
    )
    with pytest.raises(Error, match="Authorization Violation"):
        await connect_with(seed, AGENT)

    assert [why for why, _ in granted.denials] == [DenialReason.EXPIRED]


async def test_a_grant_is_denied_from_the_second_in_which_it_expires(
    granted: GrantTable, connect_with
) -> None:
    """The server counts whole seconds, so it has ended the connections of this grant before."""
    soon = datetime.now(UTC).replace(microsecond=999_999)
    seed = granted.add(agent_grant, chat_id=CHAT, build_id=BUILD, agent_id=AGENT, expires_at=soon)
    with pytest.raises(Error, match="Authorization Violation"):
        await connect_with(seed, AGENT)

    assert [why for why, _ in granted.denials] == [DenialReason.EXPIRED]


async def test_a_named_provisioner_may_only_use_its_name_and_pool(
    granted: GrantTable, connect_with
) -> None:
    seed = granted.add(provisioner_grant, pool="gpu", name="box")
    key = nkey.public_key(seed)
    box = await connect_with(seed, key)
    jobs = "WORKSPACED_JOB.pool-"

    for subject in (
        f"workspaced.in.provisioner.{CHAT}.box",
        f"workspaced.log.{CHAT}.{BUILD}",
        f"$JS.API.CONSUMER.MSG.NEXT.{jobs}gpu",
        f"$JS.ACK.{jobs}gpu.1.1.1.1.0",
        "workspaced.rpc.agent_credential",
        "workspaced.rpc.template_archive",
    ):
        assert await box.may_publish(subject), subject
    for subject in (
        f"workspaced.in.provisioner.{CHAT}.other",
        f"workspaced.in.agent.{CHAT}.{AGENT}",
        f"workspaced.in.tool.{CHAT}.box",
        f"$JS.API.CONSUMER.MSG.NEXT.{jobs}local",
        f"$JS.API.CONSUMER.MSG.NEXT.{jobs}gpu-2",
        f"$JS.ACK.{jobs}local.1.1.1.1.0",
        "$JS.API.CONSUMER.CREATE.WORKSPACED_JOB.x",
        "workspaced.rpc.issue_credential",
        "workspaced.rpc.get_chat",
        "$SYS.REQ.SERVER.X.KICK",
    ):
        assert not await box.may_publish(subject), subject
    for subject in (
        *("workspaced.resend.provisioner", "workspaced.cancel.gpu"),
        f"_INBOX_{key}.>",
    ):
        assert await box.may_subscribe(subject), subject
    for subject in (
        *("_INBOX_provisioner.>", "_INBOX.>", f"_INBOX_{AGENT}.>", "workspaced.job.gpu"),
        *("workspaced.cancel.gpu-2", "workspaced.cancel.*"),
    ):
        assert not await box.may_subscribe(subject), subject


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        ("operator", "workspaced.rpc.issue_credential", "workspaced.timer.x"),
        ("chat-service", f"workspaced.in.tool.{CHAT}.chat", "workspaced.rpc.issue_credential"),
        ("worker", f"workspaced.state.{CHAT}", f"workspaced.in.tool.{CHAT}.chat"),
        ("gateway", f"workspaced.in.tool.{CHAT}.chat", f"workspaced.state.{CHAT}"),
    ],
    ids=["operator", "chat-service", "worker", "gateway"],
)
async def test_an_issued_role_key_has_the_permissions_of_the_role_and_its_own_inbox(
    granted: GrantTable, connect_with, role: str, may: str, may_not: str
) -> None:
    seed = granted.add(role_grant, role=role)
    key = nkey.public_key(seed)
    holder = await connect_with(seed, key)

    assert await holder.may_publish(may)
    assert not await holder.may_publish(may_not)
    assert await holder.may_subscribe(f"_INBOX_{key}.>")
    everything = role in ("operator", "worker")
    assert await holder.may_subscribe(f"_INBOX_{role}.>") is everything


async def test_an_issued_gateway_key_may_respond_once_per_request(
    granted: GrantTable, connect_with, connect_as: ConnectAs
) -> None:
    seed = granted.add(role_grant, role="gateway")
    gateway = await connect_with(seed, nkey.public_key(seed))
    chat_service = await connect_as("chat-service")

    async def twice(request: Msg) -> None:
        await request.respond(b"one")
        await request.respond(b"two")

    await gateway.client.subscribe("workspaced.rpc.get_chat", cb=twice)
    await settled(gateway.client)
    response = await chat_service.request("workspaced.rpc.get_chat", b"", timeout=20)

    assert response.data == b"one"


class Forger(Client):
    """A client that presents one key and signs with another."""

    def _setup_nkeys_seed_connect(self) -> None:
        super()._setup_nkeys_seed_connect()
        other = nkey.new_seed("user")
        self._signature_cb = lambda nonce: base64.b64encode(nkey.sign(other, nonce.encode()))


async def test_a_client_that_does_not_hold_the_seed_of_its_key_is_denied(
    granted: GrantTable, connect_with
) -> None:
    seed = granted.add(agent_grant, chat_id=CHAT, build_id=BUILD, agent_id=AGENT)

    with pytest.raises(Error, match="Authorization Violation"):
        await connect_with(seed, AGENT, client=Forger())

    ((why, request),) = granted.denials
    assert why is DenialReason.BAD_SIGNATURE
    assert request.public_key == nkey.public_key(seed)


async def test_only_requests_signed_by_a_server_are_answered() -> None:
    async def nobody(_request: ConnectRequest) -> DenialReason:
        raise AssertionError

    stranger, server = nkey.new_seed("account"), nkey.public_key(nkey.new_seed("account"))
    claims = {
        "iss": server,
        "nats": {"type": "authorization_request", "server_id": {"id": server}, "user_nkey": "U"},
    }
    content = b".".join(base64.urlsafe_b64encode(json.dumps(p).encode()) for p in ({}, claims))
    signature = base64.urlsafe_b64encode(nkey.sign(stranger, content))
    for request in (b"", b"a.b.c", b"\xff.\xff.\xff", content + b"." + signature):
        with pytest.raises(InvalidAuthRequest):
            await answer(request, nkey.new_seed("account"), nobody, datetime.now(UTC))


@pytest.mark.parametrize("role", ROLES)
async def test_a_static_role_needs_no_gateway(role: str, connect_as: ConnectAs) -> None:
    client = await connect_as(role)

    assert client.is_connected


async def test_a_client_is_disconnected_when_its_grant_expires(
    granted: GrantTable, connect_with
) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=2)
    seed = granted.add(agent_grant, chat_id=CHAT, build_id=BUILD, agent_id=AGENT, expires_at=soon)
    closed = asyncio.Event()

    async def on_close() -> None:
        closed.set()

    await connect_with(seed, AGENT, closed_cb=on_close)

    await asyncio.wait_for(closed.wait(), 5)
