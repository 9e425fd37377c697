"""The programs of the contract other than workspaced, as tests run them: chat service, provisioner, agent.

Built on nats-py and docs/contract.md; nothing is imported from the product. Every message that workspaced
publishes is checked for its shape when it arrives.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests import schemas
from tests.rigs import shapes
from tests.rigs.messages import (
    CONTENT_TYPE,
    Event,
    agent_entry,
    agent_fact,
    build_fact,
    call_data,
    cloud_event,
    headers_of,
    log_line,
    new_id,
    ready_agent_facts,
    subject_of,
    success_of,
    tool_request,
)

TIMEOUT = 15.0
"""Seconds after which a wait fails the test; no successful test waits that long."""
FULL_INBOX = ("operator", "worker")

T = TypeVar("T")
P = TypeVar("P", bound="Participant")


class Received(Generic[T]):
    """Items in their order of arrival, and waits for items still to come."""

    def __init__(self) -> None:
        self.all: list[T] = []
        self._changed = asyncio.Condition()

    async def add(self, one: T) -> None:
        async with self._changed:
            self.all.append(one)
            self._changed.notify_all()

    async def first(self, wanted: Callable[[T], object], timeout: float = TIMEOUT) -> T:
        """Wait for the first item that `wanted` accepts; items that arrived before count as well."""

        def found() -> list[T]:
            return [one for one in self.all if wanted(one)]

        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(found)
        except TimeoutError:
            came = "\n".join(map(str, self.all))
            raise AssertionError(f"the expected item did not arrive; received:\n{came}") from None
        return found()[0]

    async def count(self, number: int, timeout: float | None = TIMEOUT) -> list[T]:
        """Wait until that many items have arrived."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: len(self.all) >= number)
        return self.all


class ServiceError(Exception):
    """The answer to an rpc was a NATS service error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code, self.text = code, text


class Participant:
    """A program connected to NATS. `errors` receives what nats-py passes to its error callback."""

    def __init__(self) -> None:
        self.client = Client()
        self.js = self.client.jetstream(timeout=TIMEOUT)
        self.errors: Received[Exception] = Received()

    async def publish(
        self, subject: str, body: Event | bytes, headers: Mapping[str, str] | None = None
    ) -> bool:
        """Publish into a stream; return whether NATS dropped the message as a duplicate."""
        fields = {"Content-Type": CONTENT_TYPE}
        if isinstance(body, dict):
            fields = headers_of(body)
            body = json.dumps(body).encode()
        ack = await self.js.publish(subject, body, headers={**fields, **(headers or {})})
        return bool(ack.duplicate)

    async def ask(self, rpc: str, body: Event | bytes, patience: float = TIMEOUT) -> bytes:
        """Call an rpc and return its reply. Raises ServiceError."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = await self.client.request(f"workspaced.rpc.{rpc}", raw, timeout=patience)
        if reply.headers and (code := reply.headers.get("Nats-Service-Error-Code")):
            raise ServiceError(int(code), reply.headers["Nats-Service-Error"])
        if schemas.exists(described := f"rpcs/{rpc}.reply.json"):
            schemas.check(described, json.loads(reply.data))
        return reply.data

    async def rpc(self, name: str, /, **body: Any) -> Any:
        return json.loads(await self.ask(name, body))

    async def last(self, stream: str, subject: str) -> tuple[Event, dict[str, str]] | None:
        """Return body and headers of the last message of a subject (direct get), or None."""
        try:
            found = await self.js.get_last_msg(stream, subject, direct=True)
        except nats.js.errors.NotFoundError:
            return None
        assert found.data is not None
        return json.loads(found.data), dict(found.headers or {})

    async def last_state(self, chat: str) -> Event | None:
        """Return data of the chat's last state_changed, or None."""
        found = await self.last("WORKSPACED_STATE", f"workspaced.state.{chat}")
        if found is None:
            return None
        envelope, headers = found
        shapes.envelope(envelope, "state_changed", chat, headers)
        shapes.state_changed(envelope["data"], chat)
        return dict(envelope["data"])

    async def flush(self) -> None:
        """Wait until the server has processed everything sent so far."""
        await settled(self.client)

    async def hear(self, *subjects: str) -> Received[Msg]:
        """Subscribe; return the messages that arrive from now on."""
        heard: Received[Msg] = Received()
        for subject in subjects:
            await self.client.subscribe(subject, cb=heard.add)
        await self.flush()
        return heard


async def settled(client: Client) -> None:
    """Wait until the server has processed everything that the client has sent.

    One flush is not enough: nats-py's PING overtakes messages that wait to be written.
    """
    await client.flush()
    await client.flush()


async def connect(participant: Participant, url: str | list[str], **options: Any) -> None:
    """Connect once, without reconnecting; `options` are nats-py's. Raises what nats-py raises."""

    async def heard(error: Exception) -> None:
        await participant.errors.add(error)

    settings: dict[str, Any] = {
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0.1,
        "connect_timeout": 5,
        "error_cb": heard,
    }
    await participant.client.connect(url, **(settings | options))
    if not participant.client.is_connected:
        raise nats.errors.AuthorizationError  # nats-py reports success if the server closes early


async def cancel_and_wait(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for it to end.

    One cancellation may not suffice: `asyncio.wait_for` of Python 3.11, which nats-py uses, swallows a
    cancellation that coincides with its result.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1)
    with suppress(asyncio.CancelledError):
        task.result()


@asynccontextmanager
async def connected(participant: P, url: str, **options: Any) -> AsyncIterator[P]:
    """Connect a participant; close its connection at the end, also if connecting failed."""
    try:
        await connect(participant, url, **options)
        yield participant
    finally:
        await participant.client.close()


def role_options(credentials: Path, role: str) -> dict[str, Any]:
    """Return the nats-py options with which a role connects; `credentials` is the directory of seed files."""
    prefix = "_INBOX" if role in FULL_INBOX else f"_INBOX_{role}"
    return {"nkeys_seed": str(credentials / f"{role}.nk"), "inbox_prefix": prefix}


def credential_options(credential: Event) -> dict[str, Any]:
    """Return the nats-py options with which the holder of an issued credential connects."""
    assert {"seed", "inbox_prefix", "expires_at"} <= credential.keys()
    assert credential.keys() <= {"seed", "jwt", "inbox_prefix", "expires_at", "public_key"}
    assert shapes.is_time(credential["expires_at"])
    options = {"nkeys_seed_str": credential["seed"], "inbox_prefix": credential["inbox_prefix"]}
    if "jwt" in credential:
        options["user_jwt_cb"] = credential["jwt"].encode
    return options


class Chat:
    """One chat as its chat service and its front end see it."""

    def __init__(self, participant: Participant, chat_id: str, service: str) -> None:
        self.participant, self.id, self.service = participant, chat_id, service
        self.organization_id, self.owner_id, self.owner_name = new_id(), new_id(), "ann"
        self.states: Received[Event] = Received()
        """Events published for front ends."""
        self.logs: Received[Event] = Received()
        self.commands: Received[Event] = Received()
        self.results: Received[Event] = Received()
        """Answers; one that NATS delivers or workers publish again, with the same id, counts once."""
        self.workspace_ids: dict[str, str] = {}
        """The `workspace_id` of each answer that has one, by call."""
        self._answers: set[str] = set()
        self._version: int | None = None

    @property
    def identity(self) -> Event:
        return {
            "organization_id": self.organization_id,
            "owner_id": self.owner_id,
            "owner_name": self.owner_name,
        }

    @property
    def subject(self) -> str:
        """The subject of the chat service's events."""
        return f"workspaced.in.tool.{self.id}.{self.service}"

    @property
    def path(self) -> list[str]:
        """The states in the order in which the chat entered them; `failed:reason` for a failure."""
        path: list[str] = []
        for data in (envelope["data"] for envelope in self.states.all):
            state = data["state"]
            if data["failure"] is not None:
                state += f":{data['failure']['reason']}"
            if not path or path[-1] != state:
                path.append(state)
        return path

    async def entered(self, *states: str) -> None:
        """Wait until the chat has entered these states; fail if it entered others.

        An answer may arrive before the state of which it tells.
        """
        await self.states.first(lambda _: len(self.path) >= len(states))
        assert self.path == list(states)

    async def entered_last(self, *states: str) -> None:
        """Wait until these are the last states that the chat has entered."""
        await self.states.first(lambda _: self.path[-len(states) :] == list(states))

    @property
    def now(self) -> Event:
        """Data of the newest state received."""
        return dict(self.states.all[-1]["data"])

    async def publish_event(self, type_name: str, data: Event, /, **more: Any) -> Event:
        """Publish an event as the chat service."""
        told = cloud_event(type_name, f"/chat/{self.service}", self.id, data, **more)
        await self.participant.publish(self.subject, told)
        return told

    def request(
        self, tool: str, args: Event | None = None, *, call_id: str = "call", **more: Any
    ) -> Event:
        """Return the request for a tool call. `more`: identity keys and attributes of the event."""
        identity = {key: more.pop(key, value) for key, value in self.identity.items()}
        data = call_data(call_id, tool, args or {}, **identity)
        return tool_request(self.service, self.id, data, **more)

    async def ask(
        self, tool: str, args: Event | None = None, *, call_id: str | None = None, **more: Any
    ) -> str:
        """Request a tool call as `request` does; return its id."""
        call_id = call_id or f"call-{uuid4().hex[:12]}"
        asked = self.request(tool, args, call_id=call_id, **more)
        await self.participant.publish(self.subject, asked)
        return call_id

    async def answer(self, call_id: str, timeout: float = TIMEOUT) -> Event:
        """Wait for the answer to a call; return data of tool_resolved.

        `workspace_id` is left out of its result: every answer about a workspace has it
        (`shapes.tool_resolved`), and `workspace_ids` keeps it.
        """
        envelope = await self.results.first(lambda e: e["data"]["call_id"] == call_id, timeout)
        result = dict(envelope["data"]["result"])
        if "workspace_id" in result:
            self.workspace_ids[call_id] = result.pop("workspace_id")
        return {**envelope["data"], "result": result}

    def complete(self, answer: Event) -> Event:
        """Return an answer of `answer` with the `workspace_id` that it had."""
        known = self.workspace_ids.get(answer["call_id"])
        more = {} if known is None else {"workspace_id": known}
        return {**answer, "result": {**answer["result"], **more}}

    async def call(self, tool: str, args: Event | None = None, **more: Any) -> Event:
        """Call a tool and return its result. Fails if the answer is an error."""
        resolved = await self.answer(await self.ask(tool, args, **more))
        assert resolved["tool"] == tool
        assert not resolved["is_error"], resolved
        return dict(resolved["result"])

    async def call_error(self, tool: str, args: Event | None = None, **more: Any) -> str:
        """Call a tool and return the text of its error. Fails if the answer is no error."""
        resolved = await self.answer(await self.ask(tool, args, **more))
        assert resolved["is_error"], resolved
        return str(resolved["result"]["error"])

    async def cancel(self, call_id: str) -> None:
        await self.publish_event("tool_canceled", {"call_id": call_id})

    async def state(self, name: str, *, above: int = 0, **wanted: Any) -> Event:
        """Wait for a state with a version greater than `above`; return its data.

        `name` may be `failed:reason`; `wanted` are keys of the data with their values.
        """
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
        if ".exec." in message.subject:
            await self.commands.add(envelope)
            return
        assert message.subject == f"workspaced.ui.{self.id}.state"
        shapes.envelope(envelope, "state_changed", self.id, message.headers)
        data = envelope["data"]
        shapes.state_changed(data, self.id)
        if self.states.all and envelope["id"] == self.states.all[-1]["id"]:
            return  # delivered again
        if self._version is not None:
            assert (
                data["version"] > self._version
            )  # a subscriber may miss one if one of two workers is slow
            if data["version"] == self._version + 1:
                assert data["previous_state"] == self.states.all[-1]["data"]["state"]
        self._version = data["version"]
        await self.states.add(envelope)

    async def _hear_result(self, message: Msg) -> None:
        envelope = json.loads(message.data)
        shapes.envelope(envelope, "tool_resolved", self.id, message.headers)
        shapes.tool_resolved(envelope["data"])
        assert message.subject.split(".")[-1] == envelope["data"]["call_id"]
        if envelope["id"] not in self._answers:
            self._answers.add(envelope["id"])
            await self.results.add(envelope)


class ChatService(Participant):
    """A chat service that is the front end of its chats too."""

    def __init__(self, name: str = "chatd") -> None:
        super().__init__()
        self.name = name

    async def chat(self, chat_id: str | None = None) -> Chat:
        """Return a chat, subscribed to its states, logs and results from now on."""
        chat = Chat(self, chat_id or new_id(), self.name)
        await self.client.subscribe(f"workspaced.ui.{chat.id}.>", cb=chat._hear_ui)
        await self.client.subscribe(f"workspaced.result.{chat.id}.*", cb=chat._hear_result)
        await self.flush()
        return chat


class Job:
    """A job as a provisioner received it; the keys of its data are attributes."""

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


class Provisioner(Participant):
    """A provisioner of one pool: takes every job; the test decides how each build ends."""

    def __init__(self, pool: str, name: str = "forge") -> None:
        super().__init__()
        self.pool, self.name = pool, name
        self.jobs: Received[Job] = Received()

    async def take_jobs(self) -> None:
        """Add jobs to `jobs` until cancelled."""
        pulling = await self.js.pull_subscribe_bind(f"pool-{self.pool}", stream="WORKSPACED_JOB")
        while True:
            with suppress(nats.errors.TimeoutError):
                for message in await pulling.fetch(1, timeout=TIMEOUT):
                    await self.jobs.add(Job(message))

    async def job(self, chat: Chat | str, transition: str = "start", number: int = 0) -> Job:
        """Wait for a job of the chat with build number `number` or greater."""
        chat_id = chat if isinstance(chat, str) else chat.id
        return await self.jobs.first(
            lambda job: (
                job.chat_id == chat_id
                and job.transition == transition
                and job.build_number >= number
            )
        )

    async def publish_event(
        self, type_name: str, of: Job | Event, chat: str = "", **data: Any
    ) -> Event:
        """Publish a fact about a job's build, or about a build that the test made up."""
        build = of.data if isinstance(of, Job) else of
        more = {key: data.pop(key) for key in ("id", "traceparent", "source") if key in data}
        chat = chat or build["chat_id"]
        fact = build_fact(type_name, self.name, build, data, subject=chat, **more)
        await self.publish(f"workspaced.in.provisioner.{chat}.{self.name}", fact)
        return fact

    async def build_everything(self, agents: Participant) -> None:
        """Make every build succeed until cancelled; each started workspace has one agent.

        `agents` needs an operator's credential: it reports each agent as ready.
        """
        taking = asyncio.create_task(self.take_jobs())
        try:
            for done in itertools.count():
                job = (await self.jobs.count(done + 1, timeout=None))[done]
                listed = [agent_entry()] if job.transition == "start" else []
                await self.succeed(job, *listed)
                for one in listed:
                    for fact in ready_agent_facts(job.data, one["id"]):
                        await agents.publish(subject_of(fact), fact)
        finally:
            await cancel_and_wait(taking)

    async def succeed(self, job: Job, *agents: Event) -> Event:
        """Report that a build succeeded and ack its job."""
        told = await self.publish_event("build_succeeded", job, **success_of(job.data, *agents))
        await job.ack()
        return told

    async def fail(self, job: Job, error: str = "no disk left", **more: Any) -> Event:
        """Report that a build failed and ack its job."""
        told = await self.publish_event("build_failed", job, error=error, **more)
        await job.ack()
        return told

    async def log(self, build: Event, number: int, output: str, **more: Any) -> None:
        """Publish a line of a build's log."""
        subject, line = log_line(f"/provisioner/{self.name}", build, number, output, **more)
        await self.publish(subject, line)


class Agent(Participant):
    """An agent of a build; `connected_agent` connects it with a credential of its own."""

    def __init__(self, build: Event, agent_id: str) -> None:
        super().__init__()
        self.build, self.id = build, agent_id
        self.sequence = 0

    async def publish_event(self, type_name: str, **data: Any) -> Event:
        """Publish a fact under the agent's next sequence number."""
        self.sequence += 1
        fact = agent_fact(type_name, self.build, self.id, self.sequence, data)
        await self.publish(subject_of(fact), fact)
        return fact

    async def report_connected(self) -> Event:
        return await self.publish_event("agent_connected")

    async def report_disconnected(self, reason: str = "a walk") -> Event:
        return await self.publish_event("agent_disconnected", reason=reason)

    async def report_lifecycle(self, lifecycle: str) -> Event:
        return await self.publish_event("agent_lifecycle", lifecycle=lifecycle)

    async def log(self, number: int, output: str) -> None:
        of_agent = {"origin": "agent", "stage": "startup"}
        subject, line = log_line(f"/agent/{self.id}", self.build, number, output, **of_agent)
        await self.publish(subject, line)


@asynccontextmanager
async def connected_agent(
    url: str, provisioner: Participant, build: Event, agent_id: str
) -> AsyncIterator[Agent]:
    """Have the provisioner request a credential for the agent, and connect with it."""
    keys = ("chat_id", "workspace_id", "build_id")
    credential = await provisioner.rpc(
        "agent_credential", agent_id=agent_id, **{key: build[key] for key in keys}
    )
    async with connected(
        Agent(build, agent_id), url, **credential_options(credential)
    ) as its_agent:
        yield its_agent
