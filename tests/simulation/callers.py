"""The chat service of a run: it makes, repeats and cancels calls, cancels builds, and deletes chats."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any, Final

from bus import Bus, subjects
from handlers.publishing import OutgoingEvent, deliver
from tests.rigs.messages import call_data, cloud_event
from tests.simulation.loop import resolve
from tests.unit.driver import ANN, ORG, PYTHON
from tests.unit.facts import uid
from tests.worker.messages import TEMPLATE_ID

CREATE: Final = "create_workspace"
TOOLS: Final = (CREATE, CREATE, "start_workspace", "stop_workspace", "stop_workspace")
SOURCE: Final = "/chat/service"


class Callers:
    """The callers of all chats; `accepted` holds stored calls, `answers` received answers."""

    def __init__(self, bus: Bus, random: Random, pace: Callable[[float], float]) -> None:
        self._bus, self._random, self._pace = bus, random, pace
        self.accepted: dict[tuple[str, str], str] = {}
        """Calls that the bus confirmed as stored, with the requested tool."""
        self.answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.builds: dict[str, str] = {}
        """The build that each chat followed last, as far as it was published."""
        self.asked_again = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._elsewhere: list[OutgoingEvent] = []
        """The facts about workspaces made elsewhere, which their provisioner publishes again after a loss."""
        self._waiting: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._lost: dict[tuple[str, str], asyncio.Event] = {}

    def heard(self, subject: str, data: bytes) -> None:
        """Record a result."""
        *_, chat, call = subject.split(".")
        self.answers.setdefault((chat, call), []).append(json.loads(data)["data"])
        if (waiting := self._waiting.get((chat, call))) is not None:
            resolve(waiting)

    def store_lost(self) -> None:
        """React to a loss in NATS: every waiting call is requested again."""
        for lost in self._lost.values():
            lost.set()
        for fact in self._elsewhere:
            self._spawn(deliver(self._bus, fact))

    async def chat(self, chat: str, calls: int) -> None:
        """Make the calls of one chat; return when all of them are answered."""
        random, open_calls = self._random, list[asyncio.Task[None]]()
        for number in range(calls):
            tool = CREATE if number == 0 else random.choice(TOOLS)
            asking = asyncio.create_task(self._call(chat, f"call-{number}", tool))
            open_calls.append(asking)
            if random.random() < 0.12:
                open_calls.append(asyncio.create_task(self._cancel(chat, f"call-{number}")))
            if random.random() < 0.2:
                for _ in range(random.choice((1, 1, 2))):
                    open_calls.append(asyncio.create_task(self._cancel_some_build(chat)))
            if random.random() < 0.55:
                await asyncio.wait({asking}, timeout=25)
            if random.random() < 0.1:
                await asyncio.sleep(self._pace(1.0))
                await self._send(chat, "delete_requested", {"reason": "enough"})
                if random.random() < 0.4:
                    open_calls.append(asyncio.create_task(self._cancel_some_build(chat)))
            if random.random() < 0.15:
                await self._send(chat, "keep_requested", {"seconds": random.choice((1, 10, 30))})
            if random.random() < 0.6:
                await asyncio.sleep(self._pace(2.0))
        await asyncio.gather(*open_calls)

    async def _call(self, chat: str, call: str, tool: str) -> None:
        args = {"template_id": TEMPLATE_ID} if tool == CREATE else {}
        data = call_data(call, tool, args, organization_id=ORG, owner_id=ANN)
        patient = self._random.random() < 0.7
        key, loop = (chat, call), asyncio.get_running_loop()
        answered = self._waiting[key] = loop.create_future()
        lost = self._lost[key] = asyncio.Event()
        while key not in self.answers:
            lost.clear()
            await self._send(chat, "tool_requested", data)
            self.accepted[key] = tool
            silence = asyncio.create_task(lost.wait())
            limit = None if patient else 5 + self._pace(20.0)
            await asyncio.wait((answered, silence), timeout=limit, return_when="FIRST_COMPLETED")
            silence.cancel()
            self.asked_again += key not in self.answers
        del self._lost[key]

    async def _cancel(self, chat: str, call: str) -> None:
        await asyncio.sleep(self._pace(3.0))
        await self._send(chat, "tool_canceled", {"call_id": call})

    async def _cancel_some_build(self, chat: str) -> None:
        """Cancel the newest build, by name or not, after a time in which it may begin or end."""
        build = self.builds.get(chat)
        await asyncio.sleep(self._pace(self._random.choice((0.1, 1.0, 4.0))))
        named = self._random.choice((None, None, build, self.builds.get(chat)))
        await self.cancel_build(chat, named)

    async def cancel_build(self, chat: str, build: str | None) -> None:
        """Cancel a build of the chat; None: the newest one."""
        data = {} if build is None else {"build_id": build}
        await self._send(chat, "build_cancel_requested", data)

    async def make_elsewhere(self, chat: str, after: float) -> None:
        """Report a workspace that somebody made elsewhere, in the name of a chat that may have one."""
        await asyncio.sleep(after)
        source, data = (
            "/provisioner/elsewhere",
            {
                "workspace_id": uid(f"elsewhere {chat}"),
                "build_id": uid(f"made elsewhere {chat}"),
                "build_number": 1,
                "transition": "start",
            },
        )
        version = {"template_version_id": PYTHON.active.id}
        started = {**data, **version, "workspace_name": "elsewhere", "template_id": TEMPLATE_ID}
        ended = {**data, **version, "agents": []}
        for name, fact in (("build_started", started), ("build_succeeded", ended)):
            body = cloud_event(name, source, chat, fact, time=None)
            subject = subjects.inbound("provisioner", chat, "elsewhere")
            out = OutgoingEvent(subject, f"{source}:{body['id']}", json.dumps(body).encode())
            self._elsewhere.append(out)
            await deliver(self._bus, out)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(task := asyncio.ensure_future(work))
        task.add_done_callback(self._tasks.discard)

    async def _send(self, chat: str, name: str, data: dict[str, Any]) -> None:
        body = cloud_event(name, SOURCE, chat, data, time=None)
        subject = subjects.inbound("tool", chat, "service")
        fact = OutgoingEvent(subject, f"{SOURCE}:{body['id']}", json.dumps(body).encode())
        await deliver(self._bus, fact)


def plan(random: Random, chats: Sequence[str]) -> dict[str, int]:
    """Return the number of calls of each chat: mostly few, so that many runs are possible."""
    most = random.choice((1, 2, 3, 4, 8))
    return {chat: random.randint(1, most) for chat in chats}
