"""The load on a cluster whose servers fail: participants retry, and count what they receive."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg

from tests.rigs.client import (
    Participant,
    cancel_and_wait,
    connect,
    credential_options,
    role_options,
)
from tests.rigs.messages import Event, agent_entry, cloud_event, new_id, ready_agent_facts
from tests.rigs.world import ORGANIZATION, POOL, Deployment

AWAY = (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError)
"""The exceptions that nats-py raises while there is no server, or no leader."""
ANSWERED_WITHIN = 60.0
"""Seconds within which every accepted call must be answered, during outages as well."""
CALLS = ("list_templates", "stop_workspace", "start_workspace", "stop_workspace")
"""The calls that each chat makes after its create_workspace."""


class Progress:
    """Counts arrivals, and measures the longest time without one."""

    def __init__(self) -> None:
        self.count, self.longest, self._last = 0, 0.0, time.monotonic()
        self._changed = asyncio.Condition()

    async def made(self) -> None:
        now = time.monotonic()
        self.longest, self._last = max(self.longest, now - self._last), now
        async with self._changed:
            self.count += 1
            self._changed.notify_all()

    async def more(self, number: int) -> None:
        """Wait for that many more arrivals."""
        wanted = self.count + number
        async with asyncio.timeout(2 * ANSWERED_WITHIN), self._changed:
            await self._changed.wait_for(lambda: self.count >= wanted)

    def begin(self) -> None:
        """Reset the longest time."""
        self.longest, self._last = 0.0, time.monotonic()


async def retry(tried: Callable[[], Awaitable[Any]]) -> Any:
    """Retry until it succeeds, as a client of a cluster must."""
    delay = 0.05
    while True:
        try:
            return await tried()
        except AWAY:
            await asyncio.sleep(delay)  # back-off
            delay = min(2 * delay, 1.0)


async def stored(party: Participant, subject: str, told: Event) -> None:
    """Publish until the stream has stored the event, always with the same identity."""
    headers = {"Nats-Msg-Id": f"{told['source']}:{told['id']}"}
    body = json.dumps(told).encode()
    await retry(lambda: party.js.publish(subject, body, timeout=3, headers=headers))


class Load:
    """Runs some chats at the same time; each new chat begins when one has made its last call."""

    def __init__(self, place: Deployment, stack: AsyncExitStack) -> None:
        self._place, self._stack = place, stack
        self.service, self.provisioner, self.operator = Participant(), Participant(), Participant()
        """They are connected by `open`."""
        self.answers, self.states = Progress(), Progress()
        self.slowest = 0.0
        """The longest time, in seconds, from acceptance to answer of a call; `begin` resets it."""
        self.versions: dict[str, list[int]] = {}
        """The versions of each chat that a frontend received."""
        self.chats: list[str] = []
        self.jobs: Counter[str] = Counter()
        """How often each build's job was taken, by build id."""
        self.requested: Counter[str] = Counter()
        """How many builds each chat must have requested."""
        self.built: dict[str, set[str]] = {}
        self.results: dict[tuple[str, str], list[Event]] = {}
        self._facts: dict[str, list[tuple[str, Event]]] = {}
        self._waiting: dict[tuple[str, str], asyncio.Future[Event]] = {}
        self._stopping = asyncio.Event()

    async def open(self) -> None:
        """Connect all participants to any of the servers; they reconnect until they are closed."""
        self.service, self.provisioner, self.operator = [
            await self._joined(**role_options(self._place.credentials, role))
            for role in ("chat-service", "provisioner", "operator")
        ]
        for party in (self.service, self.provisioner, self.operator):
            self._stack.push_async_callback(party.client.close)
        await self.service.client.subscribe("workspaced.result.>", cb=self._hear_result)
        await self.service.client.subscribe("workspaced.ui.*.state", cb=self._hear_state)
        await self.service.flush()

    async def run(self, chats: int) -> None:
        """Run chats until `stop` is called and every chat has made its last call."""
        async with asyncio.TaskGroup() as everybody:
            taking = everybody.create_task(self._take(everybody))
            async with asyncio.TaskGroup() as group:
                for _ in range(chats):
                    group.create_task(self._chats())
            # An ack may be lost with a server: its message is then redelivered and acked again.
            for stream in ("WORKSPACED_JOB", "WORKSPACED_IN"):
                await retry(partial(self._drained, stream))
            await cancel_and_wait(taking)

    def begin(self) -> None:
        """Reset the measurements."""
        self.answers.begin()
        self.states.begin()
        self.slowest = 0.0

    def stop(self) -> None:
        """Let no further chat begin."""
        self._stopping.set()

    async def _drained(self, stream: str) -> None:
        info = await self.operator.js.stream_info(stream)
        if info.state.messages:
            raise TimeoutError

    async def _joined(self, **options: Any) -> Participant:
        """Connect to any of the servers, and stay connected."""

        async def tried() -> Participant:
            party = Participant()
            try:
                await connect(party, self._place.nats.split(","), ping_interval=3, **options)
            except BaseException:
                await party.client.close()
                raise
            # Only now may it reconnect: if the first connection is refused, nats-py would both
            # retry and reconnect, on one socket.
            party.client.options |= {"allow_reconnect": True, "max_reconnect_attempts": -1}
            return party

        joined: Participant = await retry(tried)
        return joined

    async def _chats(self) -> None:
        while not self._stopping.is_set():
            await self._chat()

    async def _chat(self) -> None:
        chat, owner = new_id(), new_id()
        self.chats.append(chat)
        template = self._place.templates["plain"]["template_id"]
        created = await self._call(chat, owner, "create_workspace", {"template_id": template})
        assert created["result"].get("created"), created
        self.requested[chat] += 1
        for tool in CALLS:
            answer = await self._call(chat, owner, tool, {})
            assert not answer["is_error"], answer
            assert "error" not in answer["result"], answer
            self.requested[chat] += tool != "list_templates"

    async def _call(self, chat: str, owner: str, tool: str, args: Event) -> Event:
        """Publish a call and return its answer; fail if an accepted call is not answered."""
        key = (chat, f"call-{new_id()}")
        answered = self._waiting[key] = asyncio.get_running_loop().create_future()
        data = {"call_id": key[1], "tool": tool, "args": args, "owner_name": "ann"}
        data |= {"organization_id": ORGANIZATION, "owner_id": owner}
        told = cloud_event("tool_requested", "/chat/load", chat, data)
        await stored(self.service, f"workspaced.in.tool.{chat}.load", told)
        accepted = time.monotonic()
        try:
            async with asyncio.timeout(ANSWERED_WITHIN):
                return await self._answer(key, answered)
        except TimeoutError:
            raise AssertionError(
                f"{tool} of chat {chat} has no answer; {await self._about(key)}"
            ) from None
        finally:
            self.slowest = max(self.slowest, time.monotonic() - accepted)

    async def _answer(self, key: tuple[str, str], answered: asyncio.Future[Event]) -> Event:
        """Wait for the result; after a reconnect, read it from the stream."""
        reconnected = self.service.client.stats["reconnects"]
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    return await asyncio.shield(answered)
            if self.service.client.stats["reconnects"] != reconnected:
                subject = f"workspaced.result.{key[0]}.{key[1]}"
                with suppress(*AWAY):
                    found = await self.service.last("WORKSPACED_RESULT", subject)
                    if found is not None:
                        await self._resolved(key, dict(found[0]["data"]))

    async def _about(self, key: tuple[str, str]) -> str:
        """Describe an unanswered call: the chat's state, the stored result and its builds."""
        state = await retry(
            lambda: self.service.last("WORKSPACED_STATE", f"workspaced.state.{key[0]}")
        )
        result = await retry(
            lambda: self.service.last("WORKSPACED_RESULT", f"workspaced.result.{key[0]}.{key[1]}")
        )
        built = {build: self.jobs[build] for build in self.built.get(key[0], ())}
        return f"state {state and state[0]['data']}, result {result}, builds taken {built}"

    async def _hear_result(self, message: Msg) -> None:
        chat, call = message.subject.split(".")[-2:]
        await self._resolved((chat, call), dict(json.loads(message.data)["data"]))

    async def _resolved(self, key: tuple[str, str], data: Event) -> None:
        self.results.setdefault(key, []).append(data)
        waiting = self._waiting[key]
        if not waiting.done():
            waiting.set_result(data)
            await self.answers.made()

    async def _hear_state(self, message: Msg) -> None:
        data = json.loads(message.data)["data"]
        self.versions.setdefault(data["chat_id"], []).append(data["version"])
        await self.states.made()

    # -- builds ---------------------------------------------------------------------------------

    async def _take(self, building: asyncio.TaskGroup) -> None:
        """Take every job of the pool, and build them concurrently."""
        bound = await retry(
            lambda: self.provisioner.js.pull_subscribe_bind(f"pool-{POOL}", stream="WORKSPACED_JOB")
        )
        while True:
            try:
                messages = await bound.fetch(20, timeout=3)
            except AWAY:
                continue
            for message in messages:
                building.create_task(self._build(message))

    async def _build(self, message: Msg) -> None:
        job = json.loads(message.data)["data"]
        build, chat = job["build_id"], job["chat_id"]
        self.jobs[build] += 1
        self.built.setdefault(chat, set()).add(build)
        listed = [agent_entry()] if job["transition"] == "start" else []
        keys = ("workspace_id", "build_id", "build_number", "transition")
        data = {key: job[key] for key in keys}
        data |= {"agents": listed, "template_version_id": job["template"]["version_id"]}
        told = cloud_event("build_succeeded", "/provisioner/forge", chat, data)
        first = build not in self._facts
        kept = self._facts.setdefault(build, [(f"workspaced.in.provisioner.{chat}.forge", told)])
        for subject, fact in kept:
            await stored(self.provisioner, subject, fact)
        with suppress(
            *AWAY
        ):  # a lost ack means redelivery after 30 s: harmless, but a long wait for a test
            await message.ack_sync(timeout=5)
        if first and listed:
            await self._agent(job, listed[0]["id"])

    async def _agent(self, job: Event, agent_id: str) -> None:
        """Act as the agent of a build, with its own credential."""
        body = {key: job[key] for key in ("chat_id", "workspace_id", "build_id")}
        credential = await retry(
            lambda: self.provisioner.client.request(
                "workspaced.rpc.agent_credential",
                json.dumps(body | {"agent_id": agent_id}).encode(),
                timeout=3,
            )
        )
        agent = await self._joined(**credential_options(json.loads(credential.data)))
        try:
            for subject, fact in ready_agent_facts(job, agent_id):
                await stored(agent, subject, fact)
        finally:
            await agent.client.close()


async def leader(operator: Participant, stream: str) -> str:
    """Return the name of the node that leads a stream; retry while there is no leader."""

    async def found() -> str:
        info = await operator.js.stream_info(stream)
        if info.cluster is None or not info.cluster.leader:
            raise TimeoutError
        return str(info.cluster.leader)

    return str(await retry(found))


async def in_step(operator: Participant, stream: str) -> None:
    """Return when all three nodes hold the whole stream."""

    async def looked() -> None:
        info = await operator.js.stream_info(stream)
        replicas = (info.cluster.replicas or []) if info.cluster else []
        if len(replicas) != 2 or not all(one.current and not one.offline for one in replicas):
            raise TimeoutError

    await retry(looked)
