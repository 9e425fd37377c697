"""Records the messages on the bus for one pool, and sends the messages of the suite."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from workspaced import subjects
from workspaced.connection import Connection
from workspaced.events import CONTENT_TYPE, cloud_event, encode
from workspaced.nats_py import Msg
from workspaced.tasks import cancel_and_wait

TERMINAL: Final = ("build_succeeded", "build_failed", "build_canceled")
"""The facts that end a build."""
_SERVICE: Final = "conformance"


@dataclass(frozen=True, slots=True)
class Seen:
    """A message of the bus: a job, a fact, an agent's fact, a log line, or a word of the ack protocol."""

    at: float
    kind: str
    """`job`, `provisioner`, `agent`, `log`, `result`, `dead` or `ack`."""
    subject: str
    name: str
    """The middle part of the event's type, for example `build_started`; of an ack, the word."""
    event: Mapping[str, Any] = field(default_factory=dict)
    sequence: int = 0
    """Of an ack: the job's sequence in its stream."""

    @property
    def data(self) -> Mapping[str, Any]:
        """The data of the event."""
        data = self.event.get("data")
        return data if isinstance(data, dict) else {}

    @property
    def identity(self) -> tuple[str, str]:
        """Source and id of the event."""
        return str(self.event.get("source")), str(self.event.get("id"))

    def __str__(self) -> str:
        number = self.data.get("build_number", "")
        return f"{self.name} {number}".strip()


class Observer:
    """Sees everything of one pool since it started. It needs a key that may read all (the operator's)."""

    def __init__(self, connection: Connection, pool: str) -> None:
        self._connection, self._pool = connection, pool
        self.seen: list[Seen] = []
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen during the block."""
        kinds = {
            subjects.job(self._pool): "job",
            subjects.ALL_FACTS: "provisioner",
            subjects.ALL_AGENT_FACTS: "agent",
            subjects.ALL_LOGS: "log",
            subjects.ALL_RESULTS: "result",
            subjects.ALL_DEAD: "dead",
            subjects.acks(self._pool): "ack",
        }
        # One subscription: the order of messages of all subjects matters.
        subscription = await self._connection.subscribe(*kinds)
        beginnings = {subject.rstrip("*>."): kind for subject, kind in kinds.items()}

        async def listen() -> None:
            while True:
                message = await subscription.next()
                if message is not None:
                    self._take(message, beginnings)

        task = asyncio.create_task(listen())
        try:
            yield
        finally:
            await cancel_and_wait(task)
            await self._connection.unsubscribe(subscription)

    def _take(self, message: Msg, beginnings: Mapping[str, str]) -> None:
        at, subject = asyncio.get_running_loop().time(), message.subject
        kind = next(kind for start, kind in beginnings.items() if subject.startswith(start))
        if kind == "ack":
            sequence = int(subject.split(".")[5])
            word = message.data.decode(errors="replace").split(" ")[0] or "+ACK"
            self.seen.append(Seen(at, kind, subject, word, {}, sequence))
        else:
            self.seen.append(_event(at, kind, message))
        self._changed.set()
        self._changed = asyncio.Event()

    def found(self, wanted: Callable[[Seen], object], since: int = 0) -> list[Seen]:
        """Return what was seen and is wanted, oldest first."""
        return [one for one in self.seen[since:] if wanted(one)]

    async def first(
        self, wanted: Callable[[Seen], object], within: float, since: int = 0
    ) -> Seen | None:
        """Return the first message that is wanted, waiting for it; None if it does not come."""
        found = await self.count(1, wanted, within, since)
        return found[0] if found else None

    async def count(
        self, number: int, wanted: Callable[[Seen], object], within: float, since: int = 0
    ) -> list[Seen]:
        """Wait until that many wanted messages were seen; return those that were, perhaps fewer."""
        deadline = asyncio.get_running_loop().time() + within
        while True:
            changed, found = self._changed, self.found(wanted, since)
            left = deadline - asyncio.get_running_loop().time()
            if len(found) >= number or left <= 0:
                return found
            waiting = asyncio.ensure_future(changed.wait())
            await asyncio.wait((waiting,), timeout=left)
            waiting.cancel()

    def facts(self, build_id: str) -> list[Seen]:
        """Return the facts of a build in the order they were published, repeats included."""
        return self.found(
            lambda one: one.kind == "provisioner" and one.data.get("build_id") == build_id
        )

    # -- what the suite says -------------------------------------------------------------------

    async def ask(self, chat: Chat, tool: str, args: Mapping[str, Any]) -> None:
        """Ask for a tool, as a chat service does."""
        call = {"call_id": f"call-{uuid4().hex}", "tool": tool, "args": args, **chat.identity}
        await self._say("tool_requested", chat, call)

    async def delete(self, chat: Chat) -> None:
        """Ask for the deletion of a chat's workspace."""
        await self._say("delete_requested", chat, {"reason": "the conformance suite is done"})

    async def _say(self, type_name: str, chat: Chat, data: Mapping[str, Any]) -> None:
        event = cloud_event(type_name, f"/chat/{_SERVICE}", chat.chat_id, data)
        await self._connection.store(subjects.request(chat.chat_id, _SERVICE), event)

    async def put(self, job: Mapping[str, Any]) -> int:
        """Put a job into the queue of the pool; return its sequence."""
        headers = {"Content-Type": CONTENT_TYPE, "Nats-Msg-Id": str(uuid4())}
        subject = subjects.job(self._pool)
        answer = await self._connection.request(subject, encode(job).encode(), headers)
        return int(json.loads(answer.data)["seq"])

    async def cancel(self, job: Mapping[str, Any]) -> None:
        """Ask the provisioners of the pool to cancel a build, as workers do."""
        data = {key: job["data"][key] for key in ("chat_id", "workspace_id", "build_id")}
        event = cloud_event("build_cancel", "/workspaced", data["chat_id"], data)
        await self._connection.send(
            subjects.cancel(self._pool),
            encode(event).encode(),
            headers={"Content-Type": CONTENT_TYPE},
        )

    async def ask_for_facts(self) -> None:
        """Ask all provisioners to publish their facts again, as workers do."""
        await self._connection.send(subjects.RESEND, b"")


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat that the suite makes up, and the template that it asks for."""

    organization_id: str
    template_id: str
    parameters: Mapping[str, str]
    chat_id: str = field(default_factory=lambda: str(uuid4()))
    owner_id: str = field(default_factory=lambda: str(uuid4()))

    @property
    def identity(self) -> dict[str, str]:
        """The keys with which a chat service names organization and owner."""
        return {
            "organization_id": self.organization_id,
            "owner_id": self.owner_id,
            "owner_name": "conformance",
        }


def next_job(
    job: Mapping[str, Any], transition: str, number: int, *, late: bool = False
) -> dict[str, Any]:
    """Return a job for the same workspace as `job`, with a new build id."""
    build_id = str(uuid4())
    limit = datetime.now(UTC) + timedelta(minutes=-1 if late else 10)
    data = {
        **job["data"],
        "build_id": build_id,
        "build_number": number,
        "transition": transition,
        "not_after": limit.isoformat().replace("+00:00", "Z"),
    }
    return {**job, "id": build_id, "data": data}


def _event(at: float, kind: str, message: Msg) -> Seen:
    try:
        event = json.loads(message.data)
        return Seen(at, kind, message.subject, str(event["type"]).split(".")[1], event)
    except (ValueError, KeyError, IndexError, TypeError):
        return Seen(at, kind, message.subject, "unreadable")
