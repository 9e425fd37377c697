"""What travels on the bus for one pool, as the suite sees it, and the messages that the suite sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from workspaced import subjects
from workspaced.provisioning.events import cloud_event, encode
from workspaced.provisioning.link import CONTENT_TYPE, Link

if TYPE_CHECKING:
    from nats.aio.msg import Msg

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

    def __init__(self, link: Link, pool: str) -> None:
        self._link, self._pool = link, pool
        self.seen: list[Seen] = []
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Subscribe."""
        await self._link.subscribe(subjects.job(self._pool), self._take("job"))
        await self._link.subscribe(subjects.ALL_FACTS, self._take("provisioner"))
        await self._link.subscribe(subjects.ALL_AGENT_FACTS, self._take("agent"))
        await self._link.subscribe(subjects.ALL_LOGS, self._take("log"))
        await self._link.subscribe(subjects.ALL_RESULTS, self._take("result"))
        await self._link.subscribe(subjects.ALL_DEAD, self._take("dead"))
        await self._link.subscribe(subjects.acks(self._pool), self._take("ack"))

    def _take(self, kind: str) -> Callable[[Msg], None]:
        def take(message: Msg) -> None:
            at = asyncio.get_running_loop().time()
            if kind == "ack":
                sequence = int(message.subject.split(".")[5])
                word = message.data.decode(errors="replace").split(" ")[0] or "+ACK"
                self.seen.append(Seen(at, kind, message.subject, word, {}, sequence))
            else:
                self.seen.append(_event(at, kind, message))
            self._changed.set()
            self._changed = asyncio.Event()

        return take

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
        source = f"/chat/{_SERVICE}"
        event = cloud_event(type_name, source, chat.chat_id, data)
        subject = subjects.request(chat.chat_id, _SERVICE)
        await self._link.store(subject, encode(event).encode(), f"{source}:{event['id']}")

    async def put(self, job: Mapping[str, Any]) -> int:
        """Put a job into the queue of the pool; return its sequence."""
        headers = {"Content-Type": CONTENT_TYPE, "Nats-Msg-Id": str(uuid4())}
        subject = subjects.job(self._pool)
        answer = await self._link.request(subject, encode(job).encode(), headers)
        return int(json.loads(answer.data)["seq"])

    async def cancel(self, job: Mapping[str, Any]) -> None:
        """Ask the provisioners of the pool to cancel a build, as workers do."""
        data = {key: job["data"][key] for key in ("chat_id", "workspace_id", "build_id")}
        event = cloud_event("build_cancel", "/workspaced", data["chat_id"], data)
        await self._link.client.publish(
            subjects.cancel(self._pool),
            encode(event).encode(),
            headers={"Content-Type": CONTENT_TYPE},
        )

    async def ask_for_facts(self) -> None:
        """Ask all provisioners to publish their facts again, as workers do."""
        await self._link.client.publish(subjects.RESEND, b"")


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
