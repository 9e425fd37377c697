"""A client of one server in a cluster can close a connection to another server."""

from __future__ import annotations

import asyncio

from bus import Unavailable
from bus.jetstream import JetStreamBus, connect
from handlers.access.disconnect import can_disconnect, disconnect
from statemachine.store import ClientConnection
from tests.cluster.nodes import ClusterNodes
from tests.cluster.test_streams import elected
from tests.doubles.memory_store import MemoryStore


async def test_a_client_can_close_a_connection_to_another_server_of_the_cluster(
    cluster: ClusterNodes,
) -> None:
    one, two, _ = (node.url for node in cluster.nodes)

    async def role(name: str, url: str) -> JetStreamBus:
        seed_file = cluster.credentials / f"{name}.nk"
        return await elected(lambda: connect(url, seed_file=seed_file))

    async with await role("worker", one) as worker, await role("operator", two) as operator:
        client = operator._client
        at, lost = ClientConnection(client.server_id, client.client_id), asyncio.Event()
        client.on_disconnect.append(lost.set)

        async def found() -> None:
            if not await can_disconnect(worker, at.server):
                raise Unavailable("the servers have not found each other yet")

        await elected(found)

        assert await disconnect(MemoryStore(), worker, [at]) == 1
        await asyncio.wait_for(lost.wait(), 10)
        assert await disconnect(MemoryStore(), worker, [ClientConnection("NOBODY", 1)]) == 0
