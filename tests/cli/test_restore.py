"""`pg_dump` while chats are active, `pg_restore`, and reconciliation afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from bus import Bus, subjects
from bus.jetstream import connect
from bus.streams import STATE
from handlers.embedded.postgresql import _binaries
from tests.cli.template_folders import QUICK, folder
from tests.rigs.messages import new_id
from tests.rigs.processes import Process, Up, kill_processes, processes_using, start_up

WITHIN = 30.0


def postgres(program: str, *words: str | Path) -> None:
    done = subprocess.run(
        [_binaries() / program, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


async def made_anew(url: str) -> None:
    """Drop the database and create an empty one with its name."""
    name = url.split("/")[3].split("?", maxsplit=1)[0]
    server = await asyncpg.connect(url.replace(f"/{name}?", "/postgres?"))
    try:
        await server.execute(f"drop database {name} with (force)")
        await server.execute(f"create database {name} template template0")
    finally:
        await server.close()


async def restored_into_a_new_one(url: str, dump: Path) -> None:
    await made_anew(url)
    postgres("pg_restore", "--exit-on-error", "-d", url, dump)


async def restored_in_place(url: str, dump: Path) -> None:
    postgres("pg_restore", "--clean", "--if-exists", "--single-transaction", "-d", url, dump)


@dataclass
class Place:
    """The data directory of an `up` whose PostgreSQL is not embedded."""

    directory: Path
    url: str
    up: Up = field(init=False)

    def start(self) -> None:
        # A step of a test reads a pipe in /tmp, which stronger confinement hides.
        env = {"WORKSPACED_DATABASE_URL": self.url, "WORKSPACED_CONFINEMENT": "rlimits"}
        self.up = start_up(self.directory, env=env)

    def create(self, chat: str, template: str, call: str = "create") -> Any:
        args = ("--arg", f"template_id={template}", "--call-id", call)
        return self.up.data("tool", "create_workspace", "--chat", chat, *args)

    def stop(self, chat: str, call: str = "stop") -> Any:
        return self.up.data("tool", "stop_workspace", "--chat", chat, "--call-id", call)

    def shown(self, chat: str) -> dict[str, Any]:
        found: dict[str, Any] = self.up.data("chat", "show", chat, "--json")
        return found

    def workspaces(self) -> dict[str, int]:
        """Return the inode of each workspace's directory by name."""
        folders = (self.directory / "provisioner" / "local" / "workspaces").glob("[!.]*")
        return {folder.name: folder.stat().st_ino for folder in folders}

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        seed = self.up.seed_file("operator")
        async with await connect(self.up.nats, name="test", seed_file=seed) as bus:
            yield bus

    async def published(self, chat: str) -> dict[str, Any]:
        async with self.bus() as bus:
            return await last(bus, chat)

    async def until(self, chat: str, there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a state as a frontend does that connects late."""
        async with self.bus() as bus, bus.subscribe(subjects.ui_state(chat)) as states:
            state = await last(bus, chat)
            while not there(state):
                state = json.loads((await states.next(WITHIN)).data)["data"]
            return state


async def last(bus: Bus, chat: str) -> dict[str, Any]:
    found = await bus.get_last(STATE.name, subjects.state(chat))
    data: dict[str, Any] = json.loads(found.data)["data"] if found else {"state": "none"}
    return data


@pytest.fixture
def place(tmp_path: Path, database_url: str) -> Iterator[Place]:
    place = Place(tmp_path / "data", database_url)
    try:
        place.start()
        yield place
        place.up.process.stop()
    finally:
        kill_processes(processes_using(place.directory))


@contextmanager
def in_flight(place: Place, chat: str, template: str) -> Iterator[Process]:
    """Start a call that creates a workspace; kill the command when the context is left."""
    ask = ("create_workspace", "--chat", chat, "--arg", f"template_id={template}")
    call = Process("tool", *ask, "--call-id", "create", "--json", "--data-dir", place.directory)
    try:
        yield call
    finally:
        call.kill()


@pytest.mark.parametrize("restore", [restored_into_a_new_one, restored_in_place])
async def test_after_a_restore_all_parts_reconcile(
    place: Place, tmp_path: Path, restore: Any
) -> None:
    stopped, built, new, deleted, quiet = chats = [new_id() for _ in range(5)]
    pipe, dump = tmp_path / "pipe", tmp_path / "dump"
    os.mkfifo(pipe)
    quick = place.up.data("template", "push", folder(tmp_path))["template_id"]
    text = QUICK.replace("quick", "slow").replace("echo $", f"cat {pipe}; echo $")
    slow = place.up.data("template", "push", folder(tmp_path, text, "slow"))["template_id"]
    for chat in (stopped, deleted, quiet):
        place.create(chat, quick)
    with in_flight(place, built, slow) as call:
        await place.until(built, lambda state: state["state"] == "building")

        postgres("pg_dump", "-Fc", "-f", dump, place.url)

        pipe.write_bytes(b"go on\n")
        assert call.ended() == 0
        answers = {built: json.loads(call.rest)}
    place.stop(stopped)
    answers[new] = place.create(new, quick)
    assert place.up.run("workspace", "delete", deleted, "--json").returncode == 0
    before = {chat: await place.published(chat) for chat in chats}
    directories = place.workspaces()
    assert place.up.process.stop(signal.SIGTERM) == 0

    await restore(place.url, dump)
    place.start()

    wanted = {stopped: "stopped", built: "ready", new: "ready", deleted: "none", quiet: "ready"}
    for chat, state in wanted.items():
        after = await place.until(chat, lambda now, state=state: now["state"] == state)
        if chat != quiet:
            assert after["version"] > before[chat]["version"]
        assert (after["workspace"] or {}).get("id") == (before[chat]["workspace"] or {}).get("id")
        assert {**place.shown(chat), "open_calls": None} == {**after, "open_calls": None}
    assert place.create(built, slow) == answers[built]
    assert place.create(new, quick) == answers[new]
    assert place.create(new, quick, "another")["status"] == "already_exists"
    assert place.stop(stopped)["stopped"] is True
    assert place.workspaces() == directories
    assert place.stop(new)["stopped"] is True
    verified = place.up.run("replay", "--all")
    assert verified.returncode == 0, verified.stderr
    for chat in (built, quiet):  # end their agents
        place.stop(chat, "the-last")


async def test_an_empty_database_learns_what_exists(place: Place, tmp_path: Path) -> None:
    chat = new_id()
    template = folder(tmp_path)
    quick = place.up.data("template", "push", template)["template_id"]
    answer = place.create(chat, quick)
    before, directories = await place.published(chat), place.workspaces()
    assert place.up.process.stop(signal.SIGTERM) == 0

    await made_anew(place.url)
    place.start()
    place.up.data("template", "push", template)

    after = await place.until(chat, lambda state: state["state"] == "ready")
    assert after["version"] > before["version"]
    assert after["workspace"] == before["workspace"]
    assert place.create(chat, quick) == answer
    assert place.create(chat, quick, "another")["status"] == "already_exists"
    assert place.workspaces() == directories
    assert place.stop(chat)["stopped"] is True
    assert place.up.run("replay", "--all").returncode == 0
