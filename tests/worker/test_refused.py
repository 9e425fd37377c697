"""A message that the bus refuses for good must not delay the other messages."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bus import BusError, Outbound, PubAck, Refused
from bus.streams import WORKER_IN
from tests.doubles.memory_bus import MemoryBus
from tests.rigs.messages import new_id
from tests.worker.messages import Senders
from tests.worker.rig import Rig


class Small(MemoryBus):
    """A bus that refuses long messages on subjects with a given prefix."""

    refused = ""

    async def publish_many(self, messages: Sequence[Outbound]) -> Sequence[PubAck | BusError]:
        return [await self._published(message) for message in messages]

    async def _published(self, message: Outbound) -> PubAck | BusError:
        prefix = self.refused
        if prefix and message.subject.startswith(prefix) and len(message.data) > 600:
            return Refused("maximum payload exceeded")
        (result,) = await super().publish_many([message])
        return result


@pytest.fixture
async def small(rig: Rig) -> Small:
    return Small(rig.server)


async def test_an_answer_that_is_too_large_is_replaced_by_an_error(
    rig: Rig, small: Small, send: Senders, chat: str
) -> None:
    small.refused = "workspaced.result."
    hand = rig.hand(bus=small)
    await send.ask(chat, "no_such_tool_" + "x" * 110, "c")
    await hand.pump()

    assert "can't be sent" in rig.answer(chat)["result"]["error"]
    assert (await rig.bus.consumer_state(WORKER_IN)).backlog == 0


async def test_a_refused_job_does_not_block_other_jobs(
    rig: Rig, small: Small, send: Senders, chat: str
) -> None:
    small.refused = "workspaced.job."
    hand, other = rig.hand(bus=small), new_id()
    await send.create(chat)
    await send.ask(other, "stop_workspace", "c")
    await hand.pump()

    assert rig.state(chat)["state"] == "building", "its limit will answer the call"
    assert rig.answer(other)["is_error"]
    assert (await rig.bus.consumer_state(WORKER_IN)).backlog == 0
