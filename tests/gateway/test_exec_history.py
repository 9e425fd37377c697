"""Pages of what an agent has published of a process, read from the stream."""

from __future__ import annotations

import json
from typing import Any, Final

from typing_extensions import override

from bus import Outbound, StoredMessage, subjects
from bus.streams import EXEC
from handlers.gateway.exec_history import kept_output
from statemachine.chat import Chat
from statemachine.exec_tools import ProcessOutputArguments
from tests.doubles.memory_bus import MemoryBus
from tests.doubles.memory_server import MemoryServer
from tests.rigs.messages import new_id

PIECES: Final = 3_000


class CountingBus(MemoryBus):
    """Counts the messages that are read one by one."""

    reads = 0

    @override
    async def get_next(self, stream: str, subject: str, after: int) -> StoredMessage | None:
        self.reads += 1
        return await super().get_next(stream, subject, after)


async def test_a_page_reads_little_more_of_a_long_output_than_it_shows() -> None:
    chat, exec_id = Chat(chat_id=new_id()), new_id()
    subject = subjects.exec_output(chat.chat_id, new_id(), exec_id)

    def event(type_name: str, **data: Any) -> Outbound:
        body = {"type": f"workspaced.{type_name}.v1", "data": {"exec_id": exec_id, **data}}
        return Outbound(subject, json.dumps(body).encode())

    pieces = [
        event("exec_output", offset=2 * number, next=2 * number + 2, output="ab")
        for number in range(PIECES)
    ]
    end = event("exec_exited", exit_code=4, size=2 * PIECES + 1)
    async with CountingBus(MemoryServer()) as bus:
        await bus.ensure_stream(EXEC)
        await bus.publish_many([*pieces, end])
        args = ProcessOutputArguments(exec_id=exec_id, after=1, limit=4)
        page = await kept_output(bus, chat, args)
        reads = bus.reads
        rest = await kept_output(bus, chat, args.model_copy(update={"after": 2 * PIECES - 1}))

    how = {"exec_id": exec_id, "status": "exited", "exit_code": 4, "dropped": 1}
    assert page == {**how, "output": "baba", "offset": 1, "next": 5}
    assert reads < 300
    assert rest == {**how, "output": "b", "offset": 2 * PIECES - 1, "next": 2 * PIECES}
