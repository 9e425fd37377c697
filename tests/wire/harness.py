"""The other programs of the contract, played by the tests: chat service, provisioner, agents.

Everything here is nats-py and contract.md; nothing is imported from the product. Every message
that workspaced publishes is checked for its shape when it comes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.wire import shapes

PATIENCE = 15.0
"""Seconds after which a test gives up; none waits that long when all is well."""
CONTENT_TYPE = "application/cloudevents+json"
FULL_INBOX = ("operator", "worker")

Event = dict[str, Any]
T = TypeVar("T")
P = TypeVar("P", bound="Party")


def new_id() -> str:
    return str(uuid4())


def trace() -> tuple[str, str]:
    """A new trace id, and the traceparent that carries it."""
    trace_id = uuid4().hex
    return trace_id, f"00-{trace_id}-{uuid4().hex[:16]}-01"


def event(type_name: str, source: str, chat: str, data: Mapping[str, Any], **more: Any) -> Event:
    """An event as any other program would make it; `more` replaces attributes, None drops one."""
    made = {
        "specversion": "1.0",
        "id": new_id(),
        "source": source,
        "type": f"workspaced.{type_name}.v1",
        "subject": chat,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "data": dict(data),
        **more,
    }
    return {key: value for key, value in made.items() if value is not None}


class Heard(Generic[T]):
    """What came, in its order, and a wait for what is still to come."""

    def __init__(self) -> None:
        self.all: list[T] = []
        self._changed = asyncio.Condition()

    async def add(self, one: T) -> None:
        async with self._changed:
            self.all.append(one)
            self._changed.notify_all()

    async def first(self, wanted: Callable[[T], object], patience: float = PATIENCE) -> T:
        """The first that is wanted, also one that came already."""

        def found() -> list[T]:
            return [one for one in self.all if wanted(one)]

        try:
            async with asyncio.timeout(patience), self._changed:
                await self._changed.wait_for(found)
        except TimeoutError:
            came = "\n".join(map(str, self.all))
            raise AssertionError(f"what was awaited never came; what came:\n{came}") from None
        return found()[0]

    async def count(self, number: int) -> list[T]:
        """Wait until so many have come."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: len(self.all) >= number)
        return self.all


class ServiceFault(Exception):
    """An rpc was answered by a NATS service error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code, self.text = code, text


class Party:
    """One program on the bus."""

    def __init__(self) -> None:
        self.client = Client()
        self.js = self.client.jetstream(timeout=PATIENCE)
        self.errors: Heard[Exception] = Heard()

    async def publish(
        self, subject: str, body: Event | bytes, headers: Mapping[str, str] | None = None
    ) -> bool:
        """Publish into a stream; say whether NATS took it for a duplicate."""
        fields = {"Content-Type": CONTENT_TYPE}
        if isinstance(body, dict):
            fields["Nats-Msg-Id"] = f"{body.get('source')}:{body.get('id')}"
            body = json.dumps(body).encode()
        ack = await self.js.publish(subject, body, headers={**fields, **(headers or {})})
        return bool(ack.duplicate)

    async def ask(self, rpc: str, body: Event | bytes) -> bytes:
        """Ask an rpc. Raises ServiceFault."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = await self.client.request(f"workspaced.rpc.{rpc}", raw, timeout=PATIENCE)
        if reply.headers and (code := reply.headers.get("Nats-Service-Error-Code")):
            raise ServiceFault(int(code), reply.headers["Nats-Service-Error"])
        return reply.data

    async def rpc(self, name: str, **body: Any) -> Any:
        return json.loads(await self.ask(name, body))

    async def last(self, stream: str, subject: str) -> tuple[Event, dict[str, str]] | None:
        """Direct-get the last message of a subject."""
        try:
            found = await self.js.get_last_msg(stream, subject, direct=True)
        except nats.js.errors.NotFoundError:
            return None
        assert found.data is not None
        return json.loads(found.data), dict(found.headers or {})

    async def last_state(self, chat: str) -> Event | None:
        """The snapshot: data of the last state_changed."""
        found = await self.last("WORKSPACED_STATE", f"workspaced.state.{chat}")
        if found is None:
            return None
        envelope, headers = found
        shapes.envelope(envelope, "state_changed", chat, headers)
        shapes.state_changed(envelope["data"], chat)
        return dict(envelope["data"])

    async def settled(self) -> None:
        """Wait until the server has worked all that was sent: nats-py's PING overtakes its queue."""
        await self.client.flush()
        await self.client.flush()


async def connect(party: Party, url: str, **options: Any) -> None:
    """Connect with `options` of nats-py, for once and for all. Raises what nats-py raises."""

    async def heard(error: Exception) -> None:
        await party.errors.add(error)

    settings: dict[str, Any] = {
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0.1,
        "connect_timeout": 5,
        "error_cb": heard,
    }
    await party.client.connect(url, **(settings | options))
    if not party.client.is_connected:
        raise nats.errors.AuthorizationError  # nats-py takes an early end for a yes


@asynccontextmanager
async def connected(party: P, url: str, **options: Any) -> AsyncIterator[P]:
    """Connect a party; closed at the end, also when it was refused."""
    try:
        await connect(party, url, **options)
        yield party
    finally:
        await party.client.close()


def as_role(credentials: Path, role: str) -> dict[str, Any]:
    """Options with which a role of the data directory connects."""
    prefix = "_INBOX" if role in FULL_INBOX else f"_INBOX_{role}"
    return {"nkeys_seed": str(credentials / f"{role}.nk"), "inbox_prefix": prefix}


def as_holder(credential: Event) -> dict[str, Any]:
    """Options with which the holder of an issued credential connects."""
    assert {"seed", "inbox_prefix", "expires_at"} <= credential.keys()
    assert credential.keys() <= {"seed", "jwt", "inbox_prefix", "expires_at"}
    assert shapes.is_time(credential["expires_at"])
    options = {"nkeys_seed_str": credential["seed"], "inbox_prefix": credential["inbox_prefix"]}
    if "jwt" in credential:
        options["user_jwt_cb"] = credential["jwt"].encode
    return options


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
            assert data["version"] == self._version + 1
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
