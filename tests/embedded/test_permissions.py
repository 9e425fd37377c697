"""The permission table of the contract, written a second time and tested on a real server."""

from __future__ import annotations

import nats.micro
import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy
from nats.micro.request import Request

from handlers.access.permissions import PERMISSIONS, Permissions
from handlers.access.server_config import permissions_block
from handlers.embedded import Servers
from tests.conftest import ConnectAs
from tests.rigs.client import settled

ALL_PUBLISHED = {
    "tool": "workspaced.in.tool.c.s",
    "provisioner": "workspaced.in.provisioner.c.p",
    "agent": "workspaced.in.agent.c.a",
    "job": "workspaced.job.local",
    "state": "workspaced.state.c",
    "log": "workspaced.log.c.b",
    "result": "workspaced.result.c.1",
    "dead": "workspaced.dead.tool",
    "resend": "workspaced.resend.agent",
    "timer": "workspaced.timer.arm.c.build.1",
    "presence": "workspaced.presence.c.a",
    "ui": "workspaced.ui.c.state",
    "rpc of chats": "workspaced.rpc.create_workspace",
    "rpc of frontends": "workspaced.rpc.frontend_credential",
    "rpc of builds": "workspaced.rpc.template_archive",
    "rpc of agents": "workspaced.rpc.agent_credential",
    "last state": "$JS.API.DIRECT.GET.WORKSPACED_STATE.workspaced.state.c",
    "last result": "$JS.API.DIRECT.GET.WORKSPACED_RESULT.workspaced.result.c.1",
    "log line": "$JS.API.DIRECT.GET.WORKSPACED_LOG",
    "inbound": "$JS.API.DIRECT.GET.WORKSPACED_IN",
    "pull of a job": "$JS.API.CONSUMER.MSG.NEXT.WORKSPACED_JOB.pool-local",
    "pull of an event": "$JS.API.CONSUMER.MSG.NEXT.WORKSPACED_IN.worker",
    "ack of a job": "$JS.ACK.WORKSPACED_JOB.pool-local.1.1.1.1.0",
    "ack of an event": "$JS.ACK.WORKSPACED_IN.worker.1.1.1.1.0",
    "making a stream": "$JS.API.STREAM.CREATE.X",
    "making a consumer": "$JS.API.CONSUMER.CREATE.WORKSPACED_JOB.x",
    "another's inbox": "_INBOX_worker.x",
}
MAY_PUBLISH = {
    "operator": set(ALL_PUBLISHED) - {"timer"},
    "worker": set(ALL_PUBLISHED) - {"tool", "provisioner", "agent"},
    "chat-service": {"tool", "rpc of chats", "rpc of frontends", "last state", "last result"},
    "provisioner": {
        "provisioner",
        "log",
        "pull of a job",
        "ack of a job",
        "rpc of builds",
        "rpc of agents",
    },
    "gateway": {"tool", "last state", "last result", "log line"},
}
ALL_SUBSCRIBED = {
    "everything": ">",
    "in": "workspaced.in.>",
    "job": "workspaced.job.*",
    "state": "workspaced.state.*",
    "result": "workspaced.result.>",
    "ui": "workspaced.ui.>",
    "cancels": "workspaced.cancel.*",
    "resend to provisioners": "workspaced.resend.provisioner",
    "resend to agents": "workspaced.resend.agent",
    "rpc": "workspaced.rpc.>",
    "callout": "$SYS.REQ.USER.AUTH",
    "inbox of everybody": "_INBOX.>",
    "inbox of chat-service": "_INBOX_chat-service.>",
    "inbox of provisioner": "_INBOX_provisioner.>",
    "inbox of gateway": "_INBOX_gateway.>",
}
MAY_SUBSCRIBE = {
    "operator": set(ALL_SUBSCRIBED),
    "worker": set(ALL_SUBSCRIBED),
    "chat-service": {"result", "ui", "inbox of chat-service"},
    "provisioner": {"cancels", "resend to provisioners", "inbox of provisioner"},
    "gateway": {"rpc", "result", "ui", "callout", "inbox of gateway"},
}


async def denied_to(client_as: ConnectAs, role: str, on: Servers) -> tuple[Client, list[str]]:
    denied: list[str] = []

    async def note(error: Exception) -> None:
        denied.append(str(error))

    return await client_as(role, on=on, error_cb=note), denied


@pytest.mark.parametrize("role", PERMISSIONS)
async def test_a_role_may_publish_on_the_subjects_of_the_contract(
    role: str, connect_as: ConnectAs, own_nats: Servers
) -> None:
    client, denied = await denied_to(connect_as, role, own_nats)
    passed = set()
    for name, subject in ALL_PUBLISHED.items():
        denied.clear()
        await client.publish(subject, b"")
        await settled(client)
        if not denied:
            passed.add(name)

    assert passed == MAY_PUBLISH[role]


@pytest.mark.parametrize("role", PERMISSIONS)
async def test_a_role_may_subscribe_to_the_subjects_of_the_contract(
    role: str, connect_as: ConnectAs, own_nats: Servers
) -> None:
    client, denied = await denied_to(connect_as, role, own_nats)
    passed = set()
    for name, subject in ALL_SUBSCRIBED.items():
        denied.clear()
        await client.subscribe(subject)
        await settled(client)
        if not denied:
            passed.add(name)

    assert passed == MAY_SUBSCRIBE[role]


async def test_a_provisioner_pulls_and_acks_with_its_permissions(
    connect_as: ConnectAs, own_nats: Servers
) -> None:
    operator = (await connect_as("operator", on=own_nats)).jetstream()
    await operator.add_stream(
        name="WORKSPACED_JOB", subjects=["workspaced.job.*"], retention=RetentionPolicy.WORK_QUEUE
    )
    config = ConsumerConfig(durable_name="pool-local", ack_policy=AckPolicy.EXPLICIT)
    await operator.add_consumer("WORKSPACED_JOB", config)
    await operator.publish("workspaced.job.local", b"build")

    provisioner, denied = await denied_to(connect_as, "provisioner", own_nats)
    pull = await provisioner.jetstream().pull_subscribe_bind("pool-local", "WORKSPACED_JOB")
    (job,) = await pull.fetch(1, timeout=20)
    await job.in_progress()
    await job.ack_sync()

    assert (await operator.stream_info("WORKSPACED_JOB")).state.messages == 0
    assert denied == []


async def test_the_gateway_serves_rpcs_with_its_permissions(
    connect_as: ConnectAs, own_nats: Servers
) -> None:
    gateway, denied = await denied_to(connect_as, "gateway", own_nats)
    service = await nats.micro.add_service(gateway, name="workspaced", version="0.1.0")

    async def echo(request: Request) -> None:
        await request.respond(request.data)

    await service.add_endpoint(name="get_chat", subject="workspaced.rpc.get_chat", handler=echo)
    await settled(gateway)

    chat_service = await connect_as("chat-service", on=own_nats)
    for words in (b"one", b"two"):
        answer = await chat_service.request("workspaced.rpc.get_chat", words, timeout=20)
        assert answer.data == words
    operator = await connect_as("operator", on=own_nats)
    assert b"workspaced" in (await operator.request("$SRV.PING", b"", timeout=20)).data
    assert denied == []
    await service.stop()


def test_permissions_are_rendered_for_the_configuration() -> None:
    everything = Permissions(
        publish=(">",), deny_publish=("x.>",), subscribe=("a",), allow_responses=True
    )

    assert permissions_block(everything) == (
        '{ publish: { allow: [">"], deny: ["x.>"] }, subscribe: { allow: ["a"] }, '
        'allow_responses: { max: 1, expires: "30m" } }'
    )
