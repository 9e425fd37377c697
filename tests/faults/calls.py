"""The chat service's tool calls: published until stored, and again after each reconnect.

The caller behaves as the contract describes. The checks judge what it records about each call.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.rigs.client import ServiceError
from tests.rigs.messages import Event, cloud_event, new_id
from tests.rigs.reliable_client import AWAY, BACK_OFF, ReliableClient

RPC_PATIENCE = 12.0
"""Seconds after which an rpc caller repeats its request, with the same call id."""
SERVICE = "chatd"


@dataclass
class Call:
    """One call of one chat, with all answers that the caller received."""

    chat_id: str
    call_id: str
    body: Event
    """`data` of tool_requested."""
    by_rpc: bool
    asked_at: float = field(default_factory=time.monotonic)
    accepted_at: float | None = None
    answered_at: float | None = None
    answers: list[Event] = field(default_factory=list)
    """`data` of tool_resolved; only different answers are kept, so there should be one."""
    copies: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def tool(self) -> str:
        return str(self.body["tool"])

    @property
    def waited(self) -> float:
        """Seconds from acceptance to the answer, or to now if there is no answer yet."""
        if self.accepted_at is None:
            return 0.0
        return (self.answered_at or time.monotonic()) - self.accepted_at

    def __str__(self) -> str:
        how = "rpc" if self.by_rpc else "event"
        return f"chat {self.chat_id} call {self.call_id} {self.tool} ({how})"


class Calls:
    """All calls of a run, over one connection with the role `chat-service`."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.line = ReliableClient(url, options, self._subscribe)
        self.line.on_back.append(self._ask_again)
        self.all: dict[tuple[str, str], Call] = {}
        self.unknown: list[str] = []
        """Subjects of results for calls that this service never made."""
        self.older: list[str] = []
        """States that arrived after a newer state on the same connection."""
        self._states: dict[str, tuple[int, int]] = {}
        self.refused: list[str] = []
        """Rpcs that got a service error which a retry does not fix."""
        self.answered = 0
        self.longest_gap = 0.0
        """The longest time, in seconds, in which calls were open and none was answered."""
        self._last = time.monotonic()
        self._moment = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.quiet = asyncio.Event()
        """Set while no call is open."""
        self.quiet.set()

    @property
    def open(self) -> list[Call]:
        return [call for call in self.all.values() if not call.over.is_set()]

    def gap(self) -> float:
        """Return for how many seconds no call has been answered while calls are open."""
        return 0.0 if self.quiet.is_set() else time.monotonic() - self._last

    async def ask(self, chat_id: str, body: Event, *, by_rpc: bool) -> Call:
        """Make a call; return when it is accepted. An rpc counts as accepted at once."""
        call_id = body["call_id"]
        call = Call(chat_id, call_id, body, by_rpc)
        self.all[chat_id, call_id] = call
        if self.quiet.is_set():
            self.quiet.clear()
            self._last = time.monotonic()
        if by_rpc:
            call.accepted_at = call.asked_at
            self._spawn(self._hold(call))
        else:
            await self.publish(chat_id, "tool_requested", call.body)
            call.accepted_at = time.monotonic()
        return call

    async def moment(self) -> None:
        """Wait until the next publication begins."""
        await self._moment.wait()

    async def publish(self, chat_id: str, type_name: str, data: Event) -> None:
        self._moment.set()
        self._moment = asyncio.Event()
        told = cloud_event(type_name, f"/chat/{SERVICE}", chat_id, data)
        await self.line.store(told)

    async def again(self, call: Call) -> None:
        """Request an answered call again; return when another copy of its answer arrives."""
        before = call.copies
        call.over.clear()
        self.quiet.clear()
        await self.publish(call.chat_id, "tool_requested", call.body)
        while call.copies == before:
            call.over.clear()
            await call.over.wait()

    def _ask_again(self) -> None:
        for call in self.open:
            if not call.by_rpc and call.accepted_at is not None:
                self._spawn(self.publish(call.chat_id, "tool_requested", call.body))

    async def _hold(self, call: Call) -> None:
        """Repeat the rpc until it is answered; the result may arrive on the bus first."""
        body = {
            key: call.body[key]
            for key in ("call_id", "args", "organization_id", "owner_id", "owner_name")
        }
        body["chat_id"] = call.chat_id
        while not call.over.is_set():
            try:
                reply = json.loads(await self.line.ask(call.tool, body, RPC_PATIENCE))
            except ServiceError as error:
                if error.code not in (429, 503):
                    self.refused.append(f"{call}: {error}")
                    return
            except AWAY:
                pass
            else:
                self._heard(call, reply)
                return
            await asyncio.sleep(BACK_OFF)  # back-off

    async def _subscribe(self, client: Client) -> None:
        await client.subscribe("workspaced.result.>", cb=self._result)
        await client.subscribe("workspaced.ui.*.state", cb=self._state)
        await client.flush()

    async def _result(self, message: Msg) -> None:
        chat_id, call_id = message.subject.split(".")[2:]
        call = self.all.get((chat_id, call_id))
        if call is None:
            self.unknown.append(message.subject)
        else:
            self._heard(call, json.loads(message.data)["data"])

    async def _state(self, message: Msg) -> None:
        """Record a state that arrives after a newer one on the same connection."""
        data = json.loads(message.data)["data"]
        chat_id, now = data["chat_id"], (self.line.epoch, data["version"])
        before = self._states.get(chat_id, (0, 0))
        if now[0] == before[0] and now[1] <= before[1]:
            self.older.append(f"chat {chat_id}: state {now[1]} came after {before[1]}")
        self._states[chat_id] = now

    def _heard(self, call: Call, data: Event) -> None:
        call.copies += 1
        if data not in call.answers:
            call.answers.append(data)
        if call.answered_at is None:
            call.answered_at = time.monotonic()
            self.answered += 1
        call.over.set()
        self.longest_gap = max(self.longest_gap, time.monotonic() - self._last)
        self._last = time.monotonic()
        if not self.open:
            self.quiet.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def new_call() -> str:
    return f"call-{new_id()[:13]}"
