"""What this agent has said and how far its life has come, on disk; and what is still to be sent."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from handlers.publishing import FactMessage, new_fact
from handlers.publishing.agent_files import AgentConfig
from handlers.publishing.atomic_files import write_atomically
from statemachine.events import Lifecycle

_CONNECTION: Final = "connection"
_BEFORE_STARTED: Final = {None, Lifecycle.CREATED}
_ENDED: Final = {
    Lifecycle.SHUTTING_DOWN,
    Lifecycle.SHUTDOWN_TIMEOUT,
    Lifecycle.SHUTDOWN_ERROR,
    Lifecycle.OFF,
}


class AgentJournal:
    """Facts in the order in which they came about; the newest of each kind is kept.

    An older one of its kind has a lower `sequence`, so nobody would heed it if it came again.
    """

    def __init__(self, home: Path, config: AgentConfig) -> None:
        self._path, self._config = home / "journal.json", config
        self._sequence, self._machine = 0, ""
        self.lifecycle: Lifecycle | None = None
        self._kept: dict[str, tuple[int, FactMessage]] = {}
        self._pending: deque[FactMessage] = deque()
        self._some, self._none = asyncio.Event(), asyncio.Event()
        self._none.set()
        with suppress(FileNotFoundError, ValueError, KeyError):
            self._read(json.loads(self._path.read_bytes()))

    @property
    def must_start(self) -> bool:
        """Whether the startup script has not been started since the agent was made or shut down."""
        return self.lifecycle in _BEFORE_STARTED | _ENDED

    @property
    def moved(self) -> bool:
        """Whether the machine or container was started since then: nothing of before runs any more."""
        return self._machine != self._config.machine

    def connected(self) -> None:
        """State that the bus was reached, and where in its life the agent is, with new numbers."""
        self._state("agent_connected", _CONNECTION)
        if self.lifecycle is not None:
            self.reached(self.lifecycle)

    def disconnected(self, reason: str) -> None:
        """State that the agent leaves."""
        self._state("agent_disconnected", _CONNECTION, {"reason": reason})

    def reached(self, lifecycle: Lifecycle) -> None:
        """State a point of the agent's life."""
        self.lifecycle, self._machine = lifecycle, self._config.machine
        self._state("agent_lifecycle", lifecycle, {"lifecycle": lifecycle})

    def send_again(self) -> None:
        """Put all that is kept behind what is still to be sent, as it was."""
        for _, fact in sorted(self._kept.values(), key=lambda kept: kept[0]):
            if fact not in self._pending:
                self._queue(fact)

    async def next(self) -> FactMessage:
        """Wait for a fact that is to be sent; the same one until it is `sent`."""
        await self._some.wait()
        return self._pending[0]

    def sent(self) -> None:
        """Take the fact that `next` gave as stored."""
        self._pending.popleft()
        if not self._pending:
            self._some.clear()
            self._none.set()

    async def all_sent(self) -> None:
        """Wait until nothing is left to be sent."""
        await self._none.wait()

    def _state(self, type_name: str, kind: str, more: Mapping[str, Any] | None = None) -> None:
        # Rising also for an agent that lost its journal.
        self._sequence = max(self._sequence + 1, time.time_ns() // 1000)
        config = self._config
        data = {
            "workspace_id": config.workspace_id,
            "build_id": config.build_id,
            "agent_id": config.agent_id,
            "sequence": self._sequence,
            **(more or {}),
        }
        fact = new_fact(
            "agent",
            config.agent_id,
            config.chat_id,
            type_name,
            data,
            traceparent=config.traceparent,
        )
        self._kept[kind] = (self._sequence, fact)
        self._write()
        self._queue(fact)

    def _queue(self, fact: FactMessage) -> None:
        self._pending.append(fact)
        self._none.clear()
        self._some.set()

    def _write(self) -> None:
        content = {
            "sequence": self._sequence,
            "lifecycle": self.lifecycle,
            "machine": self._machine,
            "facts": {
                kind: {"sequence": sequence, **fact.kept()}
                for kind, (sequence, fact) in self._kept.items()
            },
        }
        write_atomically(self._path, json.dumps(content, ensure_ascii=False).encode())

    def _read(self, content: Mapping[str, Any]) -> None:
        self._kept = {
            kind: (int(kept["sequence"]), FactMessage.from_kept(kept))
            for kind, kept in content["facts"].items()
        }
        self._sequence, self._machine = int(content["sequence"]), str(content["machine"])
        reached = content["lifecycle"]
        self.lifecycle = None if reached is None else Lifecycle(reached)
        self.send_again()
