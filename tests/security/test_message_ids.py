"""If another client has used the message id of a fact, the fact is still stored."""

from __future__ import annotations

from bus.jetstream import connect
from bus.streams import IN
from handlers.access.identities import seed_file
from handlers.access.permissions import role_inbox_prefix
from handlers.embedded import Servers
from handlers.publishing import deliver, new_event
from tests.conftest import ConnectAs


async def test_a_fact_is_stored_although_its_message_id_was_used(
    own_nats: Servers, connect_as: ConnectAs
) -> None:
    operator = await connect_as("operator", on=own_nats)
    async with await connect(
        own_nats.nats_url, seed_file=seed_file(own_nats.credentials, "worker")
    ) as bus:
        await bus.ensure_stream(IN)
    fact = new_event("provisioner", "here", "chat", "build_canceled", {})
    thief = (await connect_as("chat-service", on=own_nats)).jetstream()
    taken = {"Nats-Msg-Id": fact.identity}
    await thief.publish("workspaced.in.tool.chat.svc", b"nothing", headers=taken)

    async with await connect(
        own_nats.nats_url,
        seed_file=seed_file(own_nats.credentials, "provisioner"),
        inbox_prefix=role_inbox_prefix("provisioner"),
    ) as bus:
        await deliver(bus, fact)

    last = await operator.jetstream().get_last_msg(IN.name, fact.subject)
    assert last.data == fact.body
