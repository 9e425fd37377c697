"""An agent, played by the tests with a credential of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.wire.party import Event, Party, as_holder, connected, event, new_id


def agent_of(name: str = "main", **more: Any) -> Event:
    """An agent as build_succeeded lists it."""
    return {"id": new_id(), "name": name, **more}


class Agent(Party):
    """An agent, connected with a credential of its own."""

    def __init__(self, build: Event, agent_id: str) -> None:
        super().__init__()
        self.chat, self.id = build["chat_id"], agent_id
        self._data = {
            "workspace_id": build["workspace_id"],
            "build_id": build["build_id"],
            "agent_id": agent_id,
        }
        self.sequence = 0

    async def tell(self, type_name: str, **data: Any) -> Event:
        """Publish a fact."""
        self.sequence += 1
        fact = event(
            type_name,
            f"/agent/{self.id}",
            self.chat,
            {**self._data, "sequence": self.sequence, **data},
        )
        await self.publish(f"workspaced.in.agent.{self.chat}.{self.id}", fact)
        return fact

    async def connected(self) -> Event:
        return await self.tell("agent_connected")

    async def disconnected(self, reason: str = "a walk") -> Event:
        return await self.tell("agent_disconnected", reason=reason)

    async def reached(self, lifecycle: str) -> Event:
        return await self.tell("agent_lifecycle", lifecycle=lifecycle)

    async def log(self, number: int, output: str) -> None:
        line = {
            "build_id": self._data["build_id"],
            "origin": "agent",
            "stage": "startup",
            "level": "info",
            "output": output,
            "sequence": number,
        }
        told = event("log_appended", f"/agent/{self.id}", self.chat, line)
        await self.publish(f"workspaced.log.{self.chat}.{self._data['build_id']}", told)


@asynccontextmanager
async def agent(url: str, provisioner: Party, build: Event, agent_id: str) -> AsyncIterator[Agent]:
    """Get an agent its credential, and connect as the agent."""
    keys = ("chat_id", "workspace_id", "build_id")
    credential = await provisioner.rpc(
        "agent_credential", agent_id=agent_id, **{key: build[key] for key in keys}
    )
    async with connected(Agent(build, agent_id), url, **as_holder(credential)) as its_agent:
        yield its_agent
