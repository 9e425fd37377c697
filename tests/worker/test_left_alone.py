"""Chats that are left alone leave nothing behind, and nobody is stopped at work.

Over a real `workspaced up` with its local provisioner. `make left-alone` runs it with 1,000 chats, a lifetime of 30 s
and a retention of 60 s.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import asyncpg

from handlers.setting_flags import DEFAULT_ORGANIZATION
from tests.cli.template_folders import folder
from tests.rigs.client import Chat, ChatService, Participant, connected, role_options
from tests.rigs.messages import agent_fact, subject_of
from tests.rigs.processes import Up, agents_using, up

COUNT = int(os.environ.get("LEFT_ALONE_CHATS", "10"))
LIFETIME = float(os.environ.get("LEFT_ALONE_LIFETIME", "12"))
RETENTION = float(os.environ.get("LEFT_ALONE_RETENTION", "3"))
PATIENCE = 120.0 + COUNT
AT_ONCE = 8
"""Chats that are created at the same time: a small machine builds no more."""


class Worked:
    """A chat in whose workspace somebody works all the while."""

    def __init__(self, chat: Chat, operator: Participant) -> None:
        self.chat, self._operator, self._sequence = chat, operator, 10**15

    async def work(self, every: float) -> None:
        """Report activity until cancelled. As the contract says, it is said at once and then regularly."""
        while True:
            await self.report()
            try:
                async with asyncio.timeout(every):
                    await asyncio.get_running_loop().create_future()
            except TimeoutError:
                continue

    async def report(self) -> None:
        state, self._sequence = self.chat.now, self._sequence + 1
        build = {
            "chat_id": self.chat.id,
            "workspace_id": state["workspace"]["id"],
            "build_id": state["build"]["id"],
        }
        fact = agent_fact("agent_activity", build, state["agent"]["id"], self._sequence, {})
        await self._operator.publish(subject_of(fact), fact)


async def test_chats_left_alone_leave_nothing_and_those_with_activity_are_still_there(
    tmp_path: Path,
) -> None:
    quotas = {"WORKSPACED_WORKSPACES_PER_OWNER": "0", "WORKSPACED_DISK_PER_OWNER_MIB": "0"}
    with up(tmp_path / "data", env=quotas) as running:
        await asyncio.to_thread(_set_up, running, tmp_path)
        template = str(running.data("template", "list")["template_id"])
        credentials = running.directory / "credentials"
        async with (
            connected(
                ChatService(), running.nats, **role_options(credentials, "chat-service")
            ) as service,
            connected(
                Participant(), running.nats, **role_options(credentials, "operator")
            ) as operator,
            asyncio.TaskGroup() as group,
        ):
            gate, working = asyncio.Semaphore(AT_ONCE), list[asyncio.Task[None]]()

            async def live(number: int) -> Chat:
                async with gate:
                    chat = await service.chat()
                    chat.organization_id = DEFAULT_ORGANIZATION
                    created = await chat.call("create_workspace", {"template_id": template})
                    assert created.get("created") is True, created
                if number % 10 == 0:
                    await chat.state("ready")
                    work = Worked(chat, operator).work(max(1.0, LIFETIME // 3))
                    working.append(group.create_task(work))
                return chat

            chats = await asyncio.gather(*(live(number) for number in range(COUNT)))
            alone = [chat for number, chat in enumerate(chats) if number % 10]
            busy = chats[::10]
            async with asyncio.timeout(PATIENCE + LIFETIME + RETENTION):
                for chat in alone:
                    while chat.now["state"] != "none":
                        await chat.states.first(
                            lambda e, seen=chat.now["version"]: e["data"]["version"] > seen
                        )
            await _check(running, alone, busy)
            for task in working:
                task.cancel()


async def _check(running: Up, alone: Sequence[Chat], busy: Sequence[Chat]) -> None:
    """Check that directories, agents and rows of the busy chats are there, and no others."""
    assert {chat.now["state"] for chat in busy} == {"ready"}
    kept = {chat.now["workspace"]["id"] for chat in busy}
    root = running.directory / "provisioner" / "local"
    folders = {path.name for path in (root / "workspaces").iterdir()}
    assert {name for name in folders if not name.startswith(".")} == kept
    assert len(agents_using(running.directory)) == len(busy)
    database = await asyncpg.connect(running.database)
    try:
        rows = await database.fetch("select chat_id::text as id, state, rests_since from chat")
        names = await database.fetch(
            "select workspace_id::text as id from workspace where deleted_at is null"
        )
    finally:
        await database.close()
    states = {row["id"]: row["state"] for row in rows}
    assert {states[chat.id] for chat in alone} == {"none"}
    assert {states[chat.id] for chat in busy} == {"ready"}
    assert {row["rests_since"] for row in rows} == {None}
    assert {row["id"] for row in names} == kept
    assert running.data("workspace", "orphans") == {"workspaces": []}


def _set_up(running: Up, parent: Path) -> None:
    assert running.run("template", "push", folder(parent)).returncode == 0
    for key, value in (
        ("chat_workspace_ttl", f"{LIFETIME}s"),
        ("stopped_workspace_retention", f"{RETENTION}s"),
    ):
        assert running.run("settings", "set", key, value).returncode == 0
