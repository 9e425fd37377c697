"""Publishes what a process of `execute` does: that it started, its output in pieces, and that it exited.

The agent notes beside the output how much it has published, so that its next process goes on from there. NATS
acknowledges these messages before it writes them, so after its restart the agent publishes the last ones again. After a
crash of either a piece may be published twice; its offsets tell.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from bus import CLOUDEVENT, Backoff, BusError, Outbound, PubAck, Unavailable, is_final, subjects
from handlers.agent.processes import Process
from handlers.publishing.agent_files import AgentConfig
from handlers.publishing.atomic_files import read_regular_file, write_atomically
from statemachine import codec

COLLECT_SECONDS: Final = 0.05
"""Seconds that output waits at most for more output of the same piece; that of a terminal does not wait."""
PIECE_SIZE: Final = 32 * 1024
"""The largest number of bytes of output in one message."""
PUBLISHED_PER_SECOND: Final = 1024 * 1024
"""Bytes of one process's output that are published at most in any second; the rest is left out."""
UNSAFE_SECONDS: Final = 1.0
"""Seconds of acknowledged messages that a killed NATS server may have lost."""
_AT_ONCE: Final = 8
"""Pieces that are published side by side."""
_COMMAND_SIZE: Final = 4096
_PUBLISHED: Final = "published"
_NOTE_SIZE: Final = 256

PublishMany = Callable[[Sequence[Outbound]], Awaitable[Sequence[PubAck | BusError]]]
"""Publishes messages of one stream in their order. Raises Unavailable without a connection."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Published:
    """How much of a process was published: the offset of the rest, and whether its start and its end were."""

    next: int = 0
    started: bool = False
    exited: bool = False


class ExecStream:
    """Publishes the events of one process."""

    def __init__(self, config: AgentConfig, process: Process, publish_many: PublishMany) -> None:
        self._config, self._process, self._publish_many = config, process, publish_many
        self._subject = subjects.exec_output(config.chat_id, config.agent_id, process.exec_id)
        self._path: Path = process.folder / _PUBLISHED
        self._done = _Published()
        with suppress(OSError, ValueError, TypeError):
            self._done = _Published(**json.loads(read_regular_file(self._path, _NOTE_SIZE)))
        self._lately: deque[tuple[float, int]] = deque()
        """When pieces were published in the last second, and their sizes."""
        self._unsafe: deque[tuple[float, int]] = deque()
        """When the last pieces were published, and their offsets: a crash of NATS may have taken them."""
        self._again = False
        self._refused = False
        self._backoff = Backoff(limit=1.0)

    async def run(self) -> None:
        """Publish until the process can't write any more and everything is published."""
        while self._again or not self._is_complete():
            if self._again:
                self._rewind()
            if not self._done.started:
                await self._publish_started()
            await self._process.wait_until(self._has_more)
            await self._collect()
            await self._publish_output()
            ended = self._process.ended
            if ended is not None and not self._done.exited and self._done.next >= ended.size:
                await self._publish_exited()

    def publish_again(self) -> None:
        """Let `run` publish again what NATS may have lost in a crash; what has ended must be run again."""
        self._again = True
        self._process.wake()

    def _rewind(self) -> None:
        self._again = False
        if self._unsafe:
            self._done.next = min(self._done.next, self._unsafe[0][1])
        self._done.started = self._done.started and self._done.next > 0
        self._done.exited = False

    def _has_more(self) -> bool:
        process = self._process
        ended = process.ended is not None and not self._done.exited
        return process.size > self._done.next or ended or process.finished or self._again

    def _is_complete(self) -> bool:
        process, done = self._process, self._done
        return process.finished and done.exited and done.next >= process.size

    async def _collect(self) -> None:
        process, begun = self._process, self._done.next
        if not process.note.terminal:
            await process.wait_until(
                lambda: process.ended is not None or process.size - begun >= PIECE_SIZE,
                COLLECT_SECONDS,
            )

    async def _publish_output(self) -> None:
        process = self._process
        waited = await self._wait_for_room()
        left = self._room()
        if waited and process.size - self._done.next > PUBLISHED_PER_SECOND:
            # More than may be published was written meanwhile: what is older is left out.
            self._done.next = process.size - PUBLISHED_PER_SECOND
        messages: list[Outbound] = []
        ends: list[tuple[int, int]] = []
        after = self._done.next
        while len(messages) < _AT_ONCE and left > 0:
            piece = process.read(after, min(PIECE_SIZE, left))
            if not piece.data:
                # Nothing is there to be read although the size says so: the file was removed.
                after = max(after, process.size)
                break
            after, left = piece.next, left - len(piece.data)
            messages.append(
                self._message(
                    "exec_output",
                    {
                        "exec_id": process.exec_id,
                        "offset": piece.offset,
                        "next": piece.next,
                        "output": piece.data.decode(),
                    },
                )
            )
            ends.append((piece.next, len(piece.data)))
        if not messages:
            self._done.next = after
            return
        sent = await self._publish(messages)
        now = asyncio.get_running_loop().time()
        for end, size in ends[:sent]:
            self._done.next = end
            self._lately.append((now, size))
            self._unsafe.append((now, end - size))
        while self._unsafe and self._unsafe[0][0] < now - UNSAFE_SECONDS:
            self._unsafe.popleft()
        self._save()

    def _room(self) -> int:
        """Return how many bytes may be published now."""
        second_ago = asyncio.get_running_loop().time() - 1
        while self._lately and self._lately[0][0] <= second_ago:
            self._lately.popleft()
        return PUBLISHED_PER_SECOND - sum(size for _, size in self._lately)

    async def _wait_for_room(self) -> bool:
        """Wait until something may be published; return whether it could not be at once."""
        loop, waited = asyncio.get_running_loop(), False
        while self._room() <= 0:
            waited = True
            free = loop.create_future()
            loop.call_at(self._lately[0][0] + 1, free.set_result, None)
            await free
        return waited

    async def _publish_started(self) -> None:
        note = self._process.note
        command = note.command.encode()[:_COMMAND_SIZE].decode(errors="ignore")
        data = {
            "exec_id": note.exec_id,
            "call_id": note.call_id,
            "command": command,
            "cwd": note.cwd,
        }
        await self._publish_one("exec_started", data)
        self._done.started = True
        self._save()

    async def _publish_exited(self) -> None:
        ended = self._process.ended
        if ended is None:
            return
        how = {"exit_code": ended.exit_code, "signal": ended.signal, "reason": ended.reason}
        given = {key: value for key, value in how.items() if value is not None}
        data = {"exec_id": self._process.exec_id, **given, "size": ended.size}
        await self._publish_one("exec_exited", data)
        self._done.exited = True
        self._save()

    async def _publish_one(self, type_name: str, data: Mapping[str, Any]) -> None:
        message = self._message(type_name, data)
        while not await self._publish([message]):
            pass  # `_publish` has waited

    async def _publish(self, messages: Sequence[Outbound]) -> int:
        """Publish messages; return how many of them count as published. Waits after an error."""
        try:
            results = await self._publish_many(messages)
        except Unavailable:
            await self._backoff.wait()
            return 0
        for number, result in enumerate(results):
            if not isinstance(result, BusError):
                continue
            if not is_final(result):
                await self._backoff.wait()
                return number
            if not self._refused:
                _log.error(
                    "NATS refuses what %s publishes, so it is lost: %s", self._subject, result
                )
            self._refused = True
        self._backoff.reset()
        return len(messages)

    def _message(self, type_name: str, data: Mapping[str, Any]) -> Outbound:
        body = codec.encode(
            type_name,
            f"/agent/{self._config.agent_id}",
            self._config.chat_id,
            data,
            event_id=str(uuid4()),
            time=datetime.now(UTC),
            traceparent=self._config.traceparent,
        )
        return Outbound(self._subject, body, CLOUDEVENT)

    def _save(self) -> None:
        with suppress(OSError):  # then more is published twice
            done = self._done
            note = {"next": done.next, "started": done.started, "exited": done.exited}
            write_atomically(self._path, json.dumps(note).encode(), durable=False)
