"""A deployed workspaced, and chat service, provisioner and operator connected to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.rigs.client import (
    Agent,
    Chat,
    ChatService,
    Job,
    Participant,
    Provisioner,
    cancel_and_wait,
    connected,
    connected_agent,
    role_options,
)
from tests.rigs.messages import Event, agent_entry, new_id
from tests.rigs.processes import Up, up

P = TypeVar("P", bound=Participant)
POOL = "wire"
ORGANIZATION = new_id()
"""The organization whose templates the tests push."""

PLAIN = """
name = "plain"
display_name = "Plain"
description = "Nothing but a name"
pool = "wire"
"""
RICH = """
name = "rich"
display_name = "All there is"
description = "Parameters of every kind"
pool = "wire"

[[parameter]]
name = "branch"
type = "string"
default = "main"
description = "Branch to check out"
options = [{ name = "Main", value = "main" }, { name = "Next", value = "next" }]

[[parameter]]
name = "size"
type = "number"
default = 3
mutable = false
validation_min = 1
validation_max = 9

[[parameter]]
name = "word"
type = "string"
required = true
validation_regex = "^[a-z]+$"

[[parameter]]
name = "secret"
type = "string"
default = "hush"
sensitive = true

[[preset]]
name = "next"
default = true
parameters = { branch = "next", word = "preset" }

[build]
start = "./build.sh"

[[agent]]
name = "main"
"""
TEMPLATES: Mapping[str, str] = {"plain": PLAIN, "rich": RICH}


@dataclass(frozen=True)
class Deployment:
    """How to reach a running workspaced, and the answers to the pushes of its templates, by name."""

    nats: str
    credentials: Path
    templates: Mapping[str, Event]
    up: Up | None = None


def template_folder(parent: Path, name: str, text: str) -> Path:
    """Write the folder of a template."""
    folder = parent / name
    folder.mkdir()
    (folder / "template.toml").write_text(text)
    (folder / "README.md").write_text(f"# {name}\n\nFor the tests.\n")
    return folder


def deployment_of(running: Up, folders: Path) -> Deployment:
    """Push the templates of the tests to a running `up`."""
    templates = {
        name: running.data(
            "template",
            "push",
            template_folder(folders, name, text),
            "--organization",
            ORGANIZATION,
        )
        for name, text in TEMPLATES.items()
    }
    return Deployment(running.nats, running.directory / "credentials", templates, running)


@contextmanager
def deployment_with_timeouts(parent: Path, seconds: float) -> Iterator[Deployment]:
    """Run an `up` on which builds, cancels, connecting agents and startup scripts time out after `seconds`."""
    names = ("BUILD", "CANCEL", "AGENT_CONNECT", "STARTUP_SCRIPTS")
    env = {f"WORKSPACED_{name}_TIMEOUT": str(seconds) for name in names}
    with up(parent / "data", env=env) as running:
        yield deployment_of(running, parent)


@dataclass
class World:
    """Participants connected to one deployment, and the steps that tests often take with them."""

    deployment: Deployment
    service: ChatService
    provisioner: Provisioner
    operator: Participant
    _stack: AsyncExitStack

    @property
    def plain(self) -> str:
        return str(self.deployment.templates["plain"]["template_id"])

    @property
    def rich(self) -> str:
        return str(self.deployment.templates["rich"]["template_id"])

    async def chat(self, chat_id: str | None = None) -> Chat:
        """Return a new chat of the tests' organization."""
        chat = await self.service.chat(chat_id)
        chat.organization_id = ORGANIZATION
        return chat

    async def agent(self, build: Job | Event, agent_id: str) -> Agent:
        """Connect as an agent of the build, until the end of the test."""
        data = build.data if isinstance(build, Job) else build
        return await self._stack.enter_async_context(
            connected_agent(self.deployment.nats, self.provisioner, data, agent_id)
        )

    async def building(self, chat: Chat) -> tuple[str, Job]:
        """Request a workspace; return the call and the job."""
        call = await chat.ask("create_workspace", {"template_id": self.plain})
        return call, await self.provisioner.job(chat)

    async def connecting(self, chat: Chat) -> tuple[str, Job, Agent]:
        """Bring the chat to `agent_connecting`; return the call, the job and the agent."""
        call, job = await self.building(chat)
        listed = agent_entry()
        await self.provisioner.succeed(job, listed)
        await chat.state("agent_connecting")
        return call, job, await self.agent(job, listed["id"])

    async def ready(self, chat: Chat) -> tuple[Job, Agent]:
        """Bring the chat to `ready`."""
        call, job, its_agent = await self.connecting(chat)
        await its_agent.report_connected()
        await its_agent.report_lifecycle("ready")
        result = (await chat.answer(call))["result"]
        assert result.keys() == {"created", "workspace_name", "build_id"}, result
        return job, its_agent

    async def stopped(self, chat: Chat) -> Job:
        """Bring the chat to `stopped`; return the stop job."""
        await self.ready(chat)
        call = await chat.ask("stop_workspace")
        job = await self.provisioner.job(chat, "stop")
        await self.provisioner.succeed(job)
        await chat.answer(call)
        return job


@asynccontextmanager
async def connected_world(deployment: Deployment) -> AsyncIterator[World]:
    """Connect all participants; fail at the end if a message had a wrong shape."""
    async with AsyncExitStack() as stack:

        async def join(party: P, role: str) -> P:
            options = role_options(deployment.credentials, role)
            return await stack.enter_async_context(connected(party, deployment.nats, **options))

        service = await join(ChatService(), "chat-service")
        provisioner = await join(Provisioner(POOL), "provisioner")
        operator = await join(Participant(), "operator")
        taking = asyncio.create_task(provisioner.take_jobs())
        try:
            yield World(deployment, service, provisioner, operator, stack)
        finally:
            await cancel_and_wait(taking)
        # nats-py reports an AssertionError of a subscription's callback here only.
        assert not [bad for bad in service.errors.all if isinstance(bad, AssertionError)]
