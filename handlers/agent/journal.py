"""The facts of this agent and its lifecycle state, on disk, and the facts that still have to be sent."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from handlers.publishing import OutgoingEvent, new_event
from handlers.publishing.agent_files import CONNECTION, AgentConfig, journal_path
from handlers.publishing.atomic_files import write_atomically
from statemachine.events import Lifecycle

_BEFORE_STARTED: Final = {None, Lifecycle.CREATED}
_ENDED: Final = {
    Lifecycle.SHUTTING_DOWN,
    Lifecycle.SHUTDOWN_TIMEOUT,
    Lifecycle.SHUTDOWN_ERROR,
    Lifecycle.OFF,
}


class AgentJournal:
    """The facts in the order they were made; the newest of each kind is kept.

    An older fact of the same kind has a lower `sequence`, so everybody would ignore it.

    """

    def __init__(self, home: Path, config: AgentConfig) -> None:
        self._path, self._config = journal_path(home), config
        self._sequence, self._machine = 0, ""
        self.lifecycle: Lifecycle | None = None
        self._newest: dict[str, tuple[int, OutgoingEvent]] = {}
        self._pending: deque[OutgoingEvent] = deque()
        self._has_pending, self._all_sent = asyncio.Event(), asyncio.Event()
        self._all_sent.set()
        with suppress(FileNotFoundError, ValueError, KeyError):
            self._read(json.loads(self._path.read_bytes()))

    @property
    def must_start(self) -> bool:
        """Whether the startup script has not been started since the agent was created or shut down."""
        return self.lifecycle in _BEFORE_STARTED | _ENDED

    @property
    def machine_restarted(self) -> bool:
        """Whether the machine or container was restarted since then, so that no earlier process is running."""
        return self._machine != self._config.machine

    def connected(self) -> None:
        """Add agent_connected, and the current lifecycle again, both with new sequences."""
        self._add("agent_connected", CONNECTION)
        if self.lifecycle is not None:
            self.reached(self.lifecycle)

    def disconnected(self, reason: str) -> None:
        """Add agent_disconnected."""
        self._add("agent_disconnected", CONNECTION, {"reason": reason})

    def reached(self, lifecycle: Lifecycle) -> None:
        """Add a lifecycle state that the agent has reached."""
        self.lifecycle, self._machine = lifecycle, self._config.machine
        self._add("agent_lifecycle", lifecycle, {"lifecycle": lifecycle})

    def send_again(self) -> None:
        """Queue all stored facts, unchanged, behind those that still have to be sent."""
        for _, fact in sorted(self._newest.values(), key=lambda kept: kept[0]):
            if fact not in self._pending:
                self._queue(fact)

    async def next(self) -> OutgoingEvent:
        """Wait for a fact to send. It returns the same one until `sent` is called."""
        await self._has_pending.wait()
        return self._pending[0]

    def sent(self) -> None:
        """Remove the fact that `next` returned: it is stored."""
        self._pending.popleft()
        if not self._pending:
            self._has_pending.clear()
            self._all_sent.set()

    async def all_sent(self) -> None:
        """Wait until no fact is left to send."""
        await self._all_sent.wait()

    def activity(self) -> OutgoingEvent:
        """Return an agent_activity. It is neither stored nor sent again."""
        return self._new("agent_activity")

    def _add(self, type_name: str, kind: str, more: Mapping[str, Any] | None = None) -> None:
        fact = self._new(type_name, more)
        self._newest[kind] = (self._sequence, fact)
        self._write()
        self._queue(fact)

    def _new(self, type_name: str, more: Mapping[str, Any] | None = None) -> OutgoingEvent:
        """Return an event with the next sequence."""
        # The time, so that it also rises for an agent that lost its journal.
        self._sequence = max(self._sequence + 1, time.time_ns() // 1000)
        config = self._config
        data = {
            "workspace_id": config.workspace_id,
            "build_id": config.build_id,
            "agent_id": config.agent_id,
            "sequence": self._sequence,
            **(more or {}),
        }
        return new_event(
            "agent",
            config.agent_id,
            config.chat_id,
            type_name,
            data,
            traceparent=config.traceparent,
        )

    def _queue(self, fact: OutgoingEvent) -> None:
        self._pending.append(fact)
        self._all_sent.clear()
        self._has_pending.set()

    def _write(self) -> None:
        content = {
            "sequence": self._sequence,
            "lifecycle": self.lifecycle,
            "machine": self._machine,
            "facts": {
                kind: {"sequence": sequence, **fact.to_json()}
                for kind, (sequence, fact) in self._newest.items()
            },
        }
        write_atomically(self._path, json.dumps(content, ensure_ascii=False).encode())

    def _read(self, content: Mapping[str, Any]) -> None:
        self._newest = {
            kind: (int(kept["sequence"]), OutgoingEvent.from_json(kept))
            for kind, kept in content["facts"].items()
        }
        self._sequence, self._machine = int(content["sequence"]), str(content["machine"])
        reached = content["lifecycle"]
        self.lifecycle = None if reached is None else Lifecycle(reached)
        self.send_again()
