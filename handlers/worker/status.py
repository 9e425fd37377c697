"""Answers who the workers are, and for the gateway what operators ask about NATS."""

from __future__ import annotations

import asyncio
import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final
from uuid import uuid4

import msgspec

from bus import Backoff, Bus, Message, Unavailable, subjects
from handlers.inspection.dead_letters import DeadLetters
from handlers.inspection.messages import WorkerStatus
from handlers.inspection.status import Inspection
from handlers.worker.call_limits import WaitingLimits
from statemachine.codec import timestamp
from statemachine.store import Store

QUEUE: Final = "workers"


@dataclass(slots=True)
class StatusAnswers:
    """Answers questions of operators."""

    store: Store
    bus: Bus
    limits: WaitingLimits
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def run(self) -> None:
        """Answer until cancelled."""
        backoff = Backoff()
        while True:
            try:
                await self.bus.respond(subjects.WORKER_PRESENCE, uuid4().hex, self._presence)
                await self.bus.respond(subjects.WORKER_STATUS, QUEUE, self._status)
                await self.bus.respond(subjects.WORKER_DEAD, QUEUE, self._dead)
                break
            except Unavailable:
                await backoff.wait()
        await asyncio.get_running_loop().create_future()

    @property
    def name(self) -> str:
        """The machine and the process."""
        return f"{platform.node()}/{os.getpid()}"

    async def _presence(self, _message: Message) -> bytes:
        status: WorkerStatus = {
            "name": self.name,
            "version": version("workspaced"),
            "started_at": timestamp(self.started_at),
            "limits": {
                "calls_per_chat": self.limits.calls_per_chat,
                "calls": self.limits.calls,
                "jobs": self.limits.jobs,
            },
        }
        return json.dumps(status).encode()

    async def _status(self, _message: Message) -> bytes:
        return json.dumps(await Inspection(self.store, self.bus).run()).encode()

    async def _dead(self, message: Message) -> bytes:
        asked, letters = _decode(message.data), DeadLetters(self.bus)
        if asked.sequence is not None:
            return json.dumps(await letters.read(asked.sequence)).encode()
        return json.dumps(await letters.page(asked.before)).encode()


class _Asked(msgspec.Struct):
    """What a gateway asks about dead letters: one of them, or a page."""

    sequence: int | None = None
    before: int | None = None


def _decode(data: bytes) -> _Asked:
    try:
        return msgspec.json.decode(data, type=_Asked)
    except msgspec.MsgspecError:
        return _Asked()  # whoever asks without knowing how gets the newest
