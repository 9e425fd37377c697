"""A database with chats in every phase, written by a worker over the in-memory bus."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest

from statemachine.store.postgres import PostgresStore
from statemachine.store.postgres import connect as open_store
from tests.rigs.messages import new_id
from tests.unit.driver import ORG, PYTHON, template
from tests.worker.rig import Hand, Rig

SECRETIVE = template(
    """
name = "secretive"
[[parameter]]
name = "branch"
default = "main"
[[parameter]]
name = "token"
sensitive = true
required = true
[build]
start = "true"
""",
    version="secretive",
)
TOKEN = "s3cret"


@dataclass(slots=True)
class Place:
    """The database, and a worker that uses it."""

    url: str
    rig: Rig
    hand: Hand
    store: PostgresStore

    async def create(self, call: str = "c") -> str:
        """Return a chat whose workspace is being built."""
        chat = new_id()
        await self.rig.senders.create(chat, call)
        await self.hand.pump()
        return chat

    async def ready(self) -> str:
        """Return a chat whose workspace is ready."""
        chat = await self.create()
        await self.built()
        return chat

    async def built(self, agents: tuple[str, ...] = ("main",)) -> None:
        """Report the success of the newest build, and of the agents of a start build."""
        job = self.rig.job
        await self.rig.senders.built(job, "started")
        await self.rig.senders.built(job, agents=agents)
        for how, sequence in (("connected", 1), ("starting", 2), ("ready", 3)):
            if agents and job["transition"] == "start":
                await self.rig.senders.agent(job, how, sequence)
        await self.hand.pump()

    async def secretive(self) -> str:
        """Return a chat whose workspace was built with a value that logs mask."""
        chat, args = new_id(), {"branch": "next", "token": TOKEN}
        await self.rig.senders.ask(
            chat, "create_workspace", template_id=SECRETIVE.id, parameters=args
        )
        await self.hand.pump()
        await self.built(())
        return chat

    async def stopped(self) -> str:
        """Return a chat that was stopped, started and stopped."""
        chat = await self.ready()
        for call, tool in (("d", "stop"), ("e", "start"), ("f", "stop")):
            await self.rig.senders.ask(chat, f"{tool}_workspace", call)
            await self.hand.pump()
            await self.built()
        return chat

    async def replaced(self) -> str:
        """Return a chat with a replaced workspace, which is being stopped."""
        chat = await self.create()
        await self.built(())
        await self.rig.senders.create(chat, "d")
        await self.hand.pump()
        return chat

    async def every_kind(self) -> list[str]:
        made = [self.create, self.ready, self.secretive, self.stopped, self.replaced]
        return [await make() for make in made]

    async def execute(self, statement: str, *args: object) -> None:
        db = await asyncpg.connect(self.url)
        try:
            await db.execute(statement, *args)
        finally:
            await db.close()

    async def rows(self, statement: str, *args: object) -> list[tuple[object, ...]]:
        db = await asyncpg.connect(self.url)
        try:
            return [tuple(row) for row in await db.fetch(statement, *args)]
        finally:
            await db.close()


@pytest.fixture
async def place(migrated_url: str) -> AsyncIterator[Place]:
    rig = await Rig(began=time.time()).open()
    async with open_store(migrated_url) as store:
        for pushed in (PYTHON, SECRETIVE):
            await store.templates.push(ORG, pushed.active, b"")
        yield Place(migrated_url, rig, rig.hand(store=store), store)
