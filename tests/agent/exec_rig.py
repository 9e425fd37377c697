"""An agent of a workspace without a provisioner, and its gateway: requests to it, and what it publishes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from bus import Backoff, Bus, Message, NoResponder
from bus.jetstream import connect
from bus.streams import IN, LOG, PRESENCE, Stream
from handlers.access.identities import seed_file
from handlers.agent.__main__ import dial
from handlers.agent.agent import Agent
from handlers.embedded import Servers
from handlers.publishing import agent_files
from handlers.publishing.agent_files import AgentConfig, AgentCredential
from handlers.sandbox.processes import end_marked
from tests.rigs.messages import Event, new_id

PATIENCE = 20.0
SOURCE = Path(__file__).parents[2]


class ExecRig:
    """A workspace, and one connection that asks its agent and hears what it publishes."""

    def __init__(self, servers: Servers, bus: Bus, workspace: Path) -> None:
        self.servers, self.bus, self.workspace = servers, bus, workspace
        self.chat, self.workspace_id, self.agent = new_id(), new_id(), new_id()
        self.events: list[Event] = []
        """What the agent published on `workspaced.exec.>`."""
        self._changed = asyncio.Condition()
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    @asynccontextmanager
    async def on(cls, servers: Servers, workspace: Path) -> AsyncIterator[ExecRig]:
        seed = seed_file(servers.credentials, "operator").read_text().strip()
        bus = await connect(servers.nats_url, seed=seed)
        rig = cls(servers, bus, workspace)
        await rig.create_streams()
        listening = asyncio.Event()
        listener = asyncio.create_task(rig._listen(listening))
        await listening.wait()
        try:
            yield rig
        finally:
            if rig.process is not None:
                rig.kill()
            await end_marked(f"WORKSPACED_WORKSPACE_ID={rig.workspace_id}", grace=0)
            listener.cancel()
            await bus.close()

    async def create_streams(self) -> None:
        """Create the streams, as workers do."""
        exec_stream = Stream(name="WORKSPACED_EXEC", subjects=["workspaced.exec.*.*.*"])
        for stream in (IN, LOG, PRESENCE, exec_stream):
            await self.bus.ensure_stream(stream)

    @property
    def home(self) -> Path:
        return agent_files.agent_home(self.workspace, self.agent)

    def configure(self, **options: Any) -> None:
        """Write the files with which the agent starts."""
        env = {
            "PATH": os.environ["PATH"],
            "WORKSPACED_AGENT_ID": self.agent,
            "WORKSPACED_WORKSPACE_ID": self.workspace_id,
            **options.pop("env", {}),
        }
        config = AgentConfig(
            chat_id=self.chat,
            workspace_id=self.workspace_id,
            build_id=new_id(),
            agent_id=self.agent,
            name="main",
            nats_url=self.servers.nats_url,
            directory=self.workspace,
            env=env,
            log_limit=100_000,
            **options,
        )
        seed = seed_file(self.servers.credentials, "operator").read_text().strip()
        agent_files.write_config(self.home, config)
        agent_files.write_credential(self.home, AgentCredential(seed=seed, inbox_prefix="_INBOX"))

    @asynccontextmanager
    async def living(self, **options: Any) -> AsyncIterator[Agent]:
        """Run the agent in this process; in the end the workspace is stopped."""
        self.configure(**options)
        agent = Agent(self.home, partial(dial, self.home))
        running = asyncio.create_task(agent.run())
        try:
            await self.answers()
            yield agent
        finally:
            agent.stop()
            await running

    async def spawn(self) -> None:
        """Run the agent as a process of its own, with the configuration that was written."""
        with (self.home / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "handlers.agent", str(agent_files.config_path(self.home))],
                cwd=SOURCE,
                env={**os.environ, "PYTHONPATH": str(SOURCE)},
                stderr=log,
                start_new_session=True,
            )
        await self.answers()

    def kill(self) -> None:
        """Kill the agent's process."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    async def answers(self) -> None:
        """Wait until the agent answers requests: its presence comes before its subscription."""
        backoff = Backoff(first=0.02, limit=0.1)
        async with asyncio.timeout(PATIENCE):
            while True:
                # NATS may not have noticed yet that the process before has ended, and deliver a request to it.
                with suppress(NoResponder, TimeoutError):
                    async with asyncio.timeout(1):
                        await self.ask("process_list")
                    return
                await backoff.wait()

    async def ask(self, tool: str, call_id: str = "", /, **args: Any) -> dict[str, Any]:
        """Ask the agent and return its answer. Raises ServiceError, NoResponder."""
        body = {
            "chat_id": self.chat,
            "agent_id": self.agent,
            "call_id": call_id or new_id(),
            "args": args,
        }
        message = await self.request(tool, json.dumps(body).encode())
        answer = json.loads(message.data)
        assert answer.keys() == {"is_error", "result"}
        return dict(answer)

    async def request(self, tool: str, body: bytes) -> Message:
        subject = f"workspaced.agent.{self.chat}.{self.agent}.{tool}"
        return await self.bus.request(subject, body, timeout=70)

    async def done(self, tool: str, call_id: str = "", /, **args: Any) -> dict[str, Any]:
        """Ask for something that the agent does, and return the result."""
        answer = await self.ask(tool, call_id, **args)
        assert answer["is_error"] is False, answer
        return dict(answer["result"])

    async def refused(self, tool: str, call_id: str = "", /, **args: Any) -> str:
        """Ask for something that the agent refuses, and return its words."""
        answer = await self.ask(tool, call_id, **args)
        assert answer["is_error"] is True, answer
        return str(answer["result"]["error"])

    def exec_id(self, call_id: str) -> str:
        return str(uuid5(NAMESPACE_URL, f"workspaced:{self.workspace_id}:{call_id}"))

    def published(self, type_name: str, exec_id: str) -> list[Event]:
        wanted = f"workspaced.{type_name}.v1"
        return [
            event["data"]
            for event in self.events
            if event["type"] == wanted and event["data"]["exec_id"] == exec_id
        ]

    async def until(self, happened: Callable[[], object]) -> None:
        """Wait until a published event makes `happened` true."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(happened)

    async def exited(self, exec_id: str) -> Mapping[str, Any]:
        """Wait until the end of a process is published."""
        await self.until(lambda: bool(self.published("exec_exited", exec_id)))
        return self.published("exec_exited", exec_id)[-1]

    async def whole(self, exec_id: str, after: int = 0) -> str:
        """Read the output to the end of the process, page by page."""
        pages = []
        while True:
            page = await self.done("process_output", exec_id=exec_id, after=after, wait_seconds=20)
            pages.append(page["output"])
            if page["status"] == "exited" and not page["output"]:
                return "".join(pages)
            assert page["offset"] == after
            after = page["next"]

    async def _listen(self, listening: asyncio.Event) -> None:
        async with self.bus.subscribe(f"workspaced.exec.{self.chat}.*.*") as messages:
            listening.set()
            async for message in messages:
                async with self._changed:
                    self.events.append(json.loads(message.data))
                    self._changed.notify_all()
