"""The other programs of the contract, played by the tests: chat service, provisioner, agents.

Nothing is imported from the product. Every message that workspaced publishes is checked for its
shape when it comes.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any
from uuid import uuid4

import nats.errors
from nats.aio.msg import Msg

from tests.wire import shapes
from tests.wire.party import (
    PATIENCE,
    Event,
    Heard,
    Party,
    ServiceFault,
    event,
    new_id,
    trace,
)

__all__ = [
    "PATIENCE",
    "Chat",
    "Event",
    "Heard",
    "Job",
    "Party",
    "Provisioner",
    "Service",
    "ServiceFault",
    "event",
    "new_id",
    "trace",
]


class Chat:
    """One chat as its service and its frontend see it."""

    def __init__(self, party: Party, chat_id: str, service: str) -> None:
        self.party, self.id, self.service = party, chat_id, service
        self.organization_id, self.owner_id, self.owner_name = new_id(), new_id(), "ann"
        self.states: Heard[Event] = Heard()
        """Envelopes of the ui's states."""
        self.logs: Heard[Event] = Heard()
        self.results: Heard[Event] = Heard()
        self._version: int | None = None

    @property
    def identity(self) -> Event:
        return {
            "organization_id": self.organization_id,
            "owner_id": self.owner_id,
            "owner_name": self.owner_name,
        }

    @property
    def path(self) -> list[str]:
        """The states in the order they were entered, failed with its reason."""
        path: list[str] = []
        for data in (envelope["data"] for envelope in self.states.all):
            state = data["state"]
            if data["failure"] is not None:
                state += f":{data['failure']['reason']}"
            if not path or path[-1] != state:
                path.append(state)
        return path

    @property
    def now(self) -> Event:
        """Data of the newest state that came."""
        return dict(self.states.all[-1]["data"])

    async def tell(self, type_name: str, data: Event, **more: Any) -> Event:
        """Publish an event of the chat service."""
        told = event(type_name, f"/chat/{self.service}", self.id, data, **more)
        await self.party.publish(f"workspaced.in.tool.{self.id}.{self.service}", told)
        return told

    async def ask(
        self, tool: str, args: Event | None = None, *, call_id: str | None = None, **more: Any
    ) -> str:
        """Ask a tool; return the call's id. `more`: other identity keys, attributes of the event."""
        call_id = call_id or f"call-{uuid4().hex[:12]}"
        data = {"call_id": call_id, "tool": tool, "args": args or {}, **self.identity}
        data |= {key: more.pop(key) for key in list(more) if key in data}
        await self.tell("tool_requested", data, **more)
        return call_id

    async def answer(self, call_id: str, patience: float = PATIENCE) -> Event:
        """Wait for a call's result; return data of tool_resolved."""
        envelope = await self.results.first(lambda e: e["data"]["call_id"] == call_id, patience)
        return dict(envelope["data"])

    async def call(self, tool: str, args: Event | None = None, **more: Any) -> Event:
        """Ask a tool and wait; return its result, which must be no error of the call."""
        resolved = await self.answer(await self.ask(tool, args, **more))
        assert resolved["tool"] == tool
        assert not resolved["is_error"], resolved
        return dict(resolved["result"])

    async def refused(self, tool: str, args: Event | None = None, **more: Any) -> str:
        """Ask a tool and wait for an error of the call; return its text."""
        resolved = await self.answer(await self.ask(tool, args, **more))
        assert resolved["is_error"], resolved
        return str(resolved["result"]["error"])

    async def cancel(self, call_id: str) -> None:
        await self.tell("tool_canceled", {"call_id": call_id})

    async def state(self, name: str, *, above: int = 0, **wanted: Any) -> Event:
        """Wait for a state with a version above; return its data. `failed:reason` for a reason."""
        name, _, reason = name.partition(":")

        def fits(envelope: Event) -> bool:
            data = envelope["data"]
            return (
                data["version"] > above
                and data["state"] == name
                and (not reason or data["failure"]["reason"] == reason)
                and all(data[key] == value for key, value in wanted.items())
            )

        return dict((await self.states.first(fits))["data"])

    async def _hear_ui(self, message: Msg) -> None:
        envelope = json.loads(message.data)
        if ".log." in message.subject:
            await self.logs.add(envelope)
            return
        assert message.subject == f"workspaced.ui.{self.id}.state"
        shapes.envelope(envelope, "state_changed", self.id, message.headers)
        data = envelope["data"]
        shapes.state_changed(data, self.id)
        if self._version is not None:
            assert data["version"] > self._version  # a reader may miss one: two workers, one slow
            if data["version"] == self._version + 1:
                assert data["previous_state"] == self.states.all[-1]["data"]["state"]
        self._version = data["version"]
        await self.states.add(envelope)

    async def _hear_result(self, message: Msg) -> None:
        envelope = json.loads(message.data)
        shapes.envelope(envelope, "tool_resolved", self.id, message.headers)
        shapes.tool_resolved(envelope["data"])
        assert message.subject.split(".")[-1] == envelope["data"]["call_id"]
        await self.results.add(envelope)


class Service(Party):
    """A chat service, which also is the frontend of its chats."""

    def __init__(self, name: str = "chatd") -> None:
        super().__init__()
        self.name = name

    async def chat(self, chat_id: str | None = None) -> Chat:
        """A chat, listened to from now on."""
        chat = Chat(self, chat_id or new_id(), self.name)
        await self.client.subscribe(f"workspaced.ui.{chat.id}.>", cb=chat._hear_ui)
        await self.client.subscribe(f"workspaced.result.{chat.id}.*", cb=chat._hear_result)
        await self.settled()
        return chat


class Job:
    """A build to be made, as a provisioner holds it."""

    def __init__(self, message: Msg) -> None:
        self.message, self.envelope = message, json.loads(message.data)
        self.data: Event = self.envelope["data"]
        shapes.envelope(self.envelope, "build_requested", self.data["chat_id"], message.headers)
        shapes.build_requested(self.data, self.data["chat_id"])

    def __repr__(self) -> str:
        return f"{self.data['transition']} {self.data['build_id']} of {self.data['chat_id']}"

    def __getattr__(self, key: str) -> Any:
        return self.data[key]

    async def working(self) -> None:
        await self.message.in_progress()

    async def ack(self) -> None:
        await self.message.ack()


class Provisioner(Party):
    """A provisioner of a pool of its own: takes every job, and builds what the test says."""

    def __init__(self, pool: str, name: str = "forge") -> None:
        super().__init__()
        self.pool, self.name = pool, name
        self.jobs: Heard[Job] = Heard()

    async def take(self) -> None:
        """Take jobs until cancelled."""
        pulling = await self.js.pull_subscribe_bind(f"pool-{self.pool}", stream="WORKSPACED_JOB")
        while True:
            with suppress(nats.errors.TimeoutError):
                for message in await pulling.fetch(1, timeout=PATIENCE):
                    await self.jobs.add(Job(message))

    async def job(self, chat: Chat | str, transition: str = "start", number: int = 0) -> Job:
        """Wait for a job of the chat, with that build number or above."""
        chat_id = chat if isinstance(chat, str) else chat.id
        return await self.jobs.first(
            lambda job: (
                job.chat_id == chat_id
                and job.transition == transition
                and job.build_number >= number
            )
        )

    async def tell(self, type_name: str, of: Job | Event, chat: str = "", **data: Any) -> Event:
        """Publish a fact of a job's build, or of a build that the test made up."""
        build = of.data if isinstance(of, Job) else of
        chat = chat or build["chat_id"]
        keys = ("workspace_id", "build_id", "build_number", "transition")
        more = {key: data.pop(key) for key in ("id", "traceparent", "source") if key in data}
        fact = event(
            type_name,
            f"/provisioner/{self.name}",
            chat,
            {**{key: build[key] for key in keys if key in build}, **data},
            **more,
        )
        await self.publish(f"workspaced.in.provisioner.{chat}.{self.name}", fact)
        return fact

    async def succeed(self, job: Job, *agents: Event) -> Event:
        """End a build well, and ack its job."""
        version = job.template["version_id"]
        told = await self.tell(
            "build_succeeded", job, template_version_id=version, agents=list(agents)
        )
        await job.ack()
        return told

    async def fail(self, job: Job, error: str = "no disk left", **more: Any) -> Event:
        """End a build ill, and ack its job."""
        told = await self.tell("build_failed", job, error=error, **more)
        await job.ack()
        return told

    async def log(self, build: Event, number: int, output: str, **more: Any) -> None:
        """Append to a build's log."""
        line = {
            "build_id": build["build_id"],
            "origin": "provisioner",
            "stage": "build",
            "level": "info",
            "output": output,
            "sequence": number,
        }
        chat = build["chat_id"]
        told = event("log_appended", f"/provisioner/{self.name}", chat, {**line, **more})
        await self.publish(f"workspaced.log.{chat}.{build['build_id']}", told)
