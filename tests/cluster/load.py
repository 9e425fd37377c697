"""The load on a cluster whose servers fail: participants retry, and count what they receive."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.rigs.client import (
    Participant,
    cancel_and_wait,
    credential_options,
    role_options,
    settled,
)
from tests.rigs.messages import (
    Event,
    agent_entry,
    build_fact,
    call_data,
    new_id,
    ready_agent_facts,
    success_of,
    tool_request,
)
from tests.rigs.reliable_client import AWAY, ReliableClient, Subscribe, kept_connected
from tests.rigs.world import ORGANIZATION, POOL, Deployment

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


class Load:
    """Runs some chats at the same time; each new chat begins when one has made its last call."""

    def __init__(self, place: Deployment, stack: AsyncExitStack) -> None:
        self._place, self._stack = place, stack
        self.service, self.provisioner, self.operator = (
            self._client(role_options(place.credentials, role), subscribe)
            for role, subscribe in (
                ("chat-service", self._subscribe),
                ("provisioner", None),
                ("operator", None),
            )
        )
        """`open` connects them."""
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
        self._facts: dict[str, Event] = {}
        """The end of each build, by build id."""
        self._waiting: dict[tuple[str, str], asyncio.Future[Event]] = {}
        self._stopping = asyncio.Event()

    async def open(self) -> None:
        """Connect all participants to any of the servers, until the stack is closed."""
        for client in (self.service, self.provisioner, self.operator):
            await self._stack.enter_async_context(kept_connected(client))

    def _client(
        self, options: Mapping[str, Any], subscribe: Subscribe | None = None
    ) -> ReliableClient:
        urls = self._place.nats.split(",")
        return ReliableClient(urls, {"ping_interval": 3, **options}, subscribe)

    async def _subscribe(self, client: Client) -> None:
        await client.subscribe("workspaced.result.>", cb=self._hear_result)
        await client.subscribe("workspaced.ui.*.state", cb=self._hear_state)
        await settled(client)

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
        data = call_data(key[1], tool, args, organization_id=ORGANIZATION, owner_id=owner)
        await self.service.store(tool_request("load", chat, data))
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
        epoch = self.service.epoch
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    return await asyncio.shield(answered)
            if self.service.epoch != epoch:
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
        async for message, _ in self.provisioner.jobs(POOL, batch=20):
            building.create_task(self._build(message))

    async def _build(self, message: Msg) -> None:
        job = json.loads(message.data)["data"]
        build, chat = job["build_id"], job["chat_id"]
        self.jobs[build] += 1
        self.built.setdefault(chat, set()).add(build)
        listed = [agent_entry()] if job["transition"] == "start" else []
        first = build not in self._facts
        if first:
            self._facts[build] = build_fact(
                "build_succeeded", "forge", job, success_of(job, *listed)
            )
        await self.provisioner.store(self._facts[build])
        with suppress(
            *AWAY
        ):  # a lost ack means redelivery after 30 s: harmless, but slow in a test
            await message.ack_sync(timeout=5)
        if first and listed:
            await self._agent(job, listed[0]["id"])

    async def _agent(self, job: Event, agent_id: str) -> None:
        """Act as the agent of a build, with its own credential."""
        credential = await self.provisioner.agent_credential(job, agent_id)
        assert credential is not None, job
        async with kept_connected(self._client(credential_options(credential))) as agent:
            for fact in ready_agent_facts(job, agent_id):
                await agent.store(fact)


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
