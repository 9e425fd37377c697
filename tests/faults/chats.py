"""The life of one chat: a random sequence of the requests that a user's model makes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

from tests.faults.calls import Call, Calls, new_call
from tests.rigs.messages import Event, call_data, new_id

PATIENCE = 240.0
"""Seconds after which a chat stops waiting for a call; the checks then report it as unanswered."""


@dataclass
class Chat:
    """One chat; it makes `steps` further requests after its first workspace."""

    calls: Calls
    rng: Random
    organization_id: str
    template_id: str
    pool: str
    steps: int
    ending: asyncio.Event
    """Set when chats must make no new requests."""
    id: str = field(default_factory=new_id)
    owner_id: str = field(default_factory=new_id)
    done: list[Call] = field(default_factory=list)

    async def live(self) -> None:
        """Make the requests one after the other, and wait for each answer."""
        steps: dict[Callable[[], Awaitable[None]], int] = {
            self._look: 30,
            self._start: 14,
            self._stop: 14,
            self._create: 8,
            self._at_once: 8,
            self._again: 14,
            self._canceled: 8,
            self._deleted: 4,
        }
        await self._first()
        for step in self.rng.choices(tuple(steps), tuple(steps.values()), k=self.steps):
            if self.ending.is_set():
                return
            await step()
        if not self.ending.is_set():
            await self.rng.choice((self._deleted, self._deleted, self._stop, self._look))()

    async def _first(self) -> None:
        both = self.rng.random() < 0.3
        await self._answers(*[await self._ask_create() for _ in range(2 if both else 1)])

    async def _look(self) -> None:
        if self.rng.random() < 0.5:
            await self._answers(await self._ask("list_templates", {}))
        else:
            await self._answers(await self._ask("read_template", {"template_id": self.template_id}))

    async def _start(self) -> None:
        await self._answers(await self._ask("start_workspace", {}))

    async def _stop(self) -> None:
        await self._answers(await self._ask("stop_workspace", {}))

    async def _create(self) -> None:
        await self._answers(await self._ask_create())

    async def _at_once(self) -> None:
        tools = self.rng.choices(("start_workspace", "stop_workspace"), k=3)
        asked = await asyncio.gather(*(self._ask(tool, {}) for tool in tools), self._ask_create())
        await self._answers(*asked)

    async def _again(self) -> None:
        answered = [call for call in self.done if call.answered_at is not None]
        if answered:
            async with asyncio.timeout(PATIENCE):
                await self.calls.again(self.rng.choice(answered))

    async def _canceled(self) -> None:
        call_id, first = new_call(), self.rng.random() < 0.3
        cancel = self.calls.publish(self.id, "tool_canceled", {"call_id": call_id})
        if first:
            await cancel
        tool = self.rng.choice(("start_workspace", "stop_workspace"))
        call = await self._ask(tool, {}, call_id)
        if not first:
            await cancel
        await self._answers(call)

    async def _deleted(self) -> None:
        await self.calls.publish(self.id, "delete_requested", {"reason": "the user left"})

    async def _ask_create(self) -> Call:
        return await self._ask("create_workspace", {"template_id": self.template_id})

    async def _ask(self, tool: str, args: Event, call_id: str | None = None) -> Call:
        by_rpc = call_id is None and self.rng.random() < 0.3
        whose = {"organization_id": self.organization_id, "owner_id": self.owner_id}
        body = call_data(call_id or new_call(), tool, args, **whose)
        call = await self.calls.ask(self.id, body, by_rpc=by_rpc)
        self.done.append(call)
        return call

    async def _answers(self, *calls: Call) -> None:
        async with asyncio.timeout(PATIENCE):
            for call in calls:
                await call.over.wait()
