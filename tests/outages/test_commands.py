"""A command outlives agent, gateways, worker and NATS, and no byte of its output is lost, doubled or out of order.

`make commands` runs it with a command of 60 s.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from handlers.publishing import agent_files
from tests.cli.template_folders import folder
from tests.rigs.client import Participant, ServiceError, connected, role_options
from tests.rigs.fleet import PATIENT, Fleet, fleet_on
from tests.rigs.messages import Event, new_id
from tests.rigs.processes import Process, resident_mib, run
from tests.rigs.reliable_client import AWAY, BACK_OFF, ReliableClient, kept_connected
from tests.rigs.servers import Nats, restartable_servers, servers_of
from tests.rigs.world import ORGANIZATION

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS = float(os.environ.get("COMMAND_SECONDS", "8"))
TEMPLATE = """
name = "working"
pool = "local"

[build]
start = "true"

[[agent]]
name = "main"
"""
UNDECIDED = (502, 503, 504)
"""Codes after which a caller asks again with the same call_id."""


@dataclass
class Stage:
    """Servers, all roles, and a chat whose workspace is ready."""

    nats: Nats
    fleet: Fleet
    chat: str
    roles: dict[str, Process] = field(default_factory=dict)

    def client(
        self, *subjects: str, hear: Callable[[Msg], Awaitable[None]] | None = None
    ) -> ReliableClient:
        async def subscribe(client: Client) -> None:
            for subject in subjects:
                await client.subscribe(subject, cb=hear)

        options = role_options(self.fleet.credentials, "chat-service")
        return ReliableClient(self.nats.url, options, subscribe)

    async def kill(self, role: str) -> None:
        """Kill a role with SIGKILL and start it again."""
        await self.fleet.end(self.roles[role])
        await self.start(role)

    async def start(self, role: str) -> None:
        self.roles[role] = await self.fleet.start(role.partition("-")[0])

    def agent(self) -> int:
        homes = self.fleet.home.glob("roles/**/.workspaced/agents/*")
        (pid,) = filter(None, map(agent_files.running_agent, homes))
        return pid


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    home = tmp_path_factory.mktemp("commands")
    async with AsyncExitStack() as stack:
        nats, postgres = await stack.enter_async_context(restartable_servers(home))
        fleet = await stack.enter_async_context(
            fleet_on(servers_of(nats, postgres), postgres.url, home, PATIENT)
        )
        stage = Stage(nats, fleet, new_id())
        await stage.start("worker")
        for role in ("gateway-1", "gateway-2", "provisioner"):
            await stage.start(role)
        pushed = await asyncio.to_thread(_push, fleet, folder(home, TEMPLATE))
        owner = {"organization_id": ORGANIZATION, "owner_id": new_id(), "owner_name": "ann"}
        async with kept_connected(stage.client()) as client:
            body = {"chat_id": stage.chat, **owner}
            create = {"template_id": pushed["template_id"]}
            created = await client.rpc("create_workspace", **body, args=create)
            assert created["result"].get("created"), created
            yield stage
            stopped = await client.rpc("stop_workspace", **body)
            assert stopped["result"].get("stopped"), stopped


def _push(fleet: Fleet, template: Path) -> Event:
    words = ("template", "push", template, "--organization", ORGANIZATION)
    done = run(*words, "--credentials", fleet.credentials / "operator.nk", env=fleet.urls())
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


class Caller:
    """Asks until it gets an answer, as the contract recommends it."""

    def __init__(self, client: ReliableClient, chat: str) -> None:
        self.client, self.chat = client, chat

    async def call(self, tool: str, call_id: str = "", /, **args: Any) -> Event:
        body = {"chat_id": self.chat, "call_id": call_id or new_id(), "args": args}
        while True:
            try:
                answer = json.loads(await self.client.ask(tool, json.dumps(body).encode(), 15))
            except ServiceError as error:
                if error.code not in UNDECIDED:
                    raise
            except AWAY:
                pass
            else:
                if not answer["is_error"]:
                    return dict(answer["result"])
                # The agent that was killed counts as lost until the next one has connected.
                assert answer["result"].get("next_step") in ("start_workspace", "stop_workspace"), (
                    answer
                )
            await asyncio.sleep(BACK_OFF)  # back-off


class Follower:
    """A frontend: it puts the pieces on the ui subject together, and asks for those that it missed."""

    def __init__(self, stage: Stage, exec_id: str) -> None:
        self.text, self.size, self.asked = "", 0, 0
        self.exited: Event | None = None
        self._heard: asyncio.Queue[Event | None] = asyncio.Queue()
        self._exec_id = exec_id
        subject = f"workspaced.ui.{stage.chat}.exec.*.{exec_id}"
        self.client = stage.client(subject, hear=self._hear)
        self.client.on_back.append(lambda: self._heard.put_nowait(None))
        self._caller = Caller(self.client, stage.chat)

    async def _hear(self, message: Msg) -> None:
        self._heard.put_nowait(json.loads(message.data))

    async def follow(self) -> None:
        """Follow until the end is known and all output is there."""
        while self.exited is None or self.size < self.exited["size"]:
            event = await self._heard.get()
            if event is None:  # connected: something may have been missed
                await self._fill(None)
                continue
            data = event["data"]
            if event["type"] == "workspaced.exec_exited.v1":
                self.exited = data
                await self._fill(data["size"])
            elif event["type"] == "workspaced.exec_output.v1":
                await self._fill(data["offset"])
                self._take(data)

    def _take(self, piece: Event) -> None:
        assert piece["offset"] <= self.size
        self.text += piece["output"].encode()[self.size - piece["offset"] :].decode()
        self.size = max(self.size, piece["next"])

    async def _fill(self, until: int | None) -> None:
        while until is None or self.size < until:
            page = await self._caller.call("process_output", exec_id=self._exec_id, after=self.size)
            self.asked += bool(page["output"])
            self._take(page)
            if until is None:
                if page["status"] == "exited":
                    self.exited = {**page, "size": self.size}
                return


async def test_no_byte_is_lost_or_doubled_while_each_process_is_killed(stage: Stage) -> None:
    lines = int(SECONDS * 10)
    loop = f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; sleep 0.1; done"
    command = f"echo run >> runs; {loop}; exit 9"
    expected = "".join(f"line {n}\n" for n in range(1, lines + 1))
    call, progress = new_id(), asyncio.Condition()
    read = ""
    async with kept_connected(stage.client()) as client, asyncio.TaskGroup() as group:
        caller = Caller(client, stage.chat)
        begun = await caller.call("execute", call, command=command, wait_seconds=0)
        follower = Follower(stage, begun["exec_id"])
        following = await _entered(group, follower)

        async def read_pages() -> Event:
            nonlocal read
            while True:
                page = await caller.call(
                    "process_output", exec_id=begun["exec_id"], after=len(read), wait_seconds=5
                )
                assert (page["offset"], page["next"]) == (
                    len(read),
                    len(read) + len(page["output"]),
                )
                async with progress:
                    read += page["output"]
                    progress.notify_all()
                if page["status"] == "exited" and not page["output"]:
                    return page

        reading = group.create_task(read_pages())

        async def until(part: float) -> None:
            async with progress:
                await progress.wait_for(lambda: len(read) >= part * len(expected) or reading.done())

        async def kill_nats() -> None:
            await stage.nats.stop(signal.SIGKILL)
            await stage.nats.start()

        async def kill_agent() -> None:
            os.kill(stage.agent(), signal.SIGKILL)

        kills = (
            kill_agent,
            lambda: stage.kill("gateway-1"),
            lambda: stage.kill("gateway-2"),
            lambda: stage.kill("worker"),
            kill_nats,
            kill_agent,
        )
        for number, kill in enumerate(kills, start=1):
            await until(number / (len(kills) + 2))
            await kill()
        ended = await reading
        again = await caller.call("execute", call, command=command)
        await following
    assert read == expected
    assert follower.text == expected
    for end in (ended, again, follower.exited):
        assert end is not None
        assert end["exit_code"] == 9
    assert again["exec_id"] == begun["exec_id"]
    runs = await _read(stage, "runs")
    assert runs == "run\n"
    await _check_stream(stage, begun["exec_id"], expected)


async def test_a_call_asked_100_times_from_two_gateways_starts_one_process(stage: Stage) -> None:
    call, command = new_id(), "echo once >> started; sleep 0.3; echo done"
    async with kept_connected(stage.client()) as client:
        caller = Caller(client, stage.chat)
        answers = await asyncio.gather(
            *(caller.call("execute", call, command=command, wait_seconds=20) for _ in range(100))
        )
    assert [answer for answer in answers if answer != answers[0]] == []
    assert (answers[0]["output"], answers[0]["exit_code"]) == ("done\n", 0)
    assert await _read(stage, "started") == "once\n"
    for gateway in ("gateway-1", "gateway-2"):
        assert call in stage.roles[gateway].output(), "both gateways were asked"


async def test_memory_of_agent_and_gateways_does_not_grow_with_100_mb_of_output(
    stage: Stage,
) -> None:
    size, kept = 100_000_000, 10 * 1024 * 1024
    pids = [stage.agent(), *(stage.roles[name].pid for name in ("gateway-1", "gateway-2"))]
    async with kept_connected(stage.client()) as client:
        caller = Caller(client, stage.chat)
        await caller.call("execute", command="head -c 1000000 /dev/zero | tr '\\0' x")
        before = list(map(resident_mib, pids))
        command = f"echo begin; head -c {size - 10} /dev/zero | tr '\\0' x; echo end"
        made = await caller.call("execute", command=command, wait_seconds=60)
        which = {"exec_id": made["exec_id"]}
        first = await caller.call("process_output", **which, limit=6)
        after = 6
        while (page := await caller.call("process_output", **which, after=after))["output"]:
            after, last = page["next"], page["output"]
        grown = [resident_mib(pid) - mib for pid, mib in zip(pids, before, strict=True)]

    assert (made["status"], made["exit_code"], made["dropped"]) == ("exited", 0, size - kept)
    assert first["output"] == "begin\n"
    assert (page["next"], last[-5:]) == (size, "xend\n")
    assert max(grown) < 20, grown


async def _entered(group: asyncio.TaskGroup, follower: Follower) -> asyncio.Task[None]:
    """Start to follow; return when the follower is connected."""

    async def follow() -> None:
        async with kept_connected(follower.client):
            await follower.follow()

    task = group.create_task(follow())
    await follower.client.up.wait()
    return task


async def _read(stage: Stage, path: str) -> str:
    async with kept_connected(stage.client()) as client:
        return str((await Caller(client, stage.chat).call("read_file", path=path))["content"])


async def _check_stream(stage: Stage, exec_id: str, expected: str) -> None:
    """Check that the stream holds the whole output, and its start and its end."""
    options = role_options(stage.fleet.credentials, "operator")
    async with connected(Participant(), stage.nats.url, **options) as operator:
        subject = f"workspaced.exec.{stage.chat}.*.{exec_id}"
        listening = await operator.js.subscribe(
            subject, stream="WORKSPACED_EXEC", ordered_consumer=True
        )
        text, started, exited = "", False, None
        while exited is None or len(text) < exited["size"]:
            event = json.loads((await listening.next_msg(10)).data)
            data = event["data"]
            match event["type"].split(".")[1]:
                case "exec_started":
                    started = True
                case "exec_exited":
                    exited = data
                case "exec_output":
                    assert data["offset"] <= len(text), "a piece is missing"
                    text += data["output"][len(text) - data["offset"] :]
    assert started
    assert exited["exit_code"] == 9
    assert text == expected
