"""Everybody of the contract at once, around one running workspaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.rigs.client import (
    Agent,
    Chat,
    ChatService,
    Event,
    Job,
    Participant,
    Provisioner,
    agent_entry,
    cancel_and_wait,
    connected,
    connected_agent,
    new_id,
    role_options,
)
from tests.rigs.processes import Up

P = TypeVar("P", bound=Participant)
POOL = "wire"
ORGANIZATION = new_id()
"""Whose templates the tests push."""

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
    """A workspaced that runs, and the templates that it was given."""

    nats: str
    credentials: Path
    templates: Mapping[str, Event]
    up: Up | None = None


def template_folder(parent: Path, name: str, text: str) -> Path:
    """Write a template's folder."""
    folder = parent / name
    folder.mkdir()
    (folder / "template.toml").write_text(text)
    (folder / "README.md").write_text(f"# {name}\n\nFor the tests.\n")
    return folder


def deployment_of(up: Up, folders: Path) -> Deployment:
    """Push the templates to a running `up`."""
    templates = {
        name: up.data(
            "template",
            "push",
            template_folder(folders, name, text),
            "--organization",
            ORGANIZATION,
        )
        for name, text in TEMPLATES.items()
    }
    return Deployment(up.nats, up.directory / "credentials", templates, up)


@dataclass
class World:
    """The parties, and what they often do together."""

    place: Deployment
    service: ChatService
    provisioner: Provisioner
    operator: Participant
    _stack: AsyncExitStack

    @property
    def plain(self) -> str:
        return str(self.place.templates["plain"]["template_id"])

    @property
    def rich(self) -> str:
        return str(self.place.templates["rich"]["template_id"])

    async def chat(self, chat_id: str | None = None) -> Chat:
        """A new chat of the tests' organization."""
        chat = await self.service.chat(chat_id)
        chat.organization_id = ORGANIZATION
        return chat

    async def agent(self, build: Job | Event, agent_id: str) -> Agent:
        """Connect as an agent of the build."""
        data = build.data if isinstance(build, Job) else build
        return await self._stack.enter_async_context(
            connected_agent(self.place.nats, self.provisioner, data, agent_id)
        )

    async def building(self, chat: Chat) -> tuple[str, Job]:
        """Ask for a workspace; return the call and its job."""
        call = await chat.ask("create_workspace", {"template_id": self.plain})
        return call, await self.provisioner.job(chat)

    async def connecting(self, chat: Chat) -> tuple[str, Job, Agent]:
        """Have a workspace built, whose agent does not connect yet."""
        call, job = await self.building(chat)
        listed = agent_entry()
        await self.provisioner.succeed(job, listed)
        await chat.state("agent_connecting")
        return call, job, await self.agent(job, listed["id"])

    async def ready(self, chat: Chat) -> tuple[Job, Agent]:
        """Have a workspace, all the way."""
        call, job, its_agent = await self.connecting(chat)
        await its_agent.report_connected()
        await its_agent.report_lifecycle("ready")
        result = (await chat.answer(call))["result"]
        assert result.keys() == {"created", "workspace_name", "build_id"}, result
        return job, its_agent

    async def stopped(self, chat: Chat) -> Job:
        """Have a workspace that is stopped."""
        await self.ready(chat)
        call = await chat.ask("stop_workspace")
        job = await self.provisioner.job(chat, "stop")
        await self.provisioner.succeed(job)
        await chat.answer(call)
        return job


@asynccontextmanager
async def connected_world(place: Deployment) -> AsyncIterator[World]:
    """Connect everybody."""
    async with AsyncExitStack() as stack:

        async def join(party: P, role: str) -> P:
            options = role_options(place.credentials, role)
            return await stack.enter_async_context(connected(party, place.nats, **options))

        service = await join(ChatService(), "chat-service")
        provisioner = await join(Provisioner(POOL), "provisioner")
        operator = await join(Participant(), "operator")
        taking = asyncio.create_task(provisioner.take_jobs())
        try:
            yield World(place, service, provisioner, operator, stack)
        finally:
            await cancel_and_wait(taking)
        # A message of the wrong shape fails in a callback, which nats-py tells to this list only.
        assert not [bad for bad in service.errors.all if isinstance(bad, AssertionError)]
