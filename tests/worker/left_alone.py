"""`make left-alone`: chats that are left alone leave nothing behind, and nobody is stopped at work.

    python -m tests.worker.left_alone [--chats 1000] [--lifetime 30] [--retention 60] [--at-once 8]

A real `workspaced up` with its local provisioner builds a workspace for each chat. In every tenth a command runs all
the while; nobody uses the others, so workers stop and then delete them. Afterwards no directory, process or row of
them may be left, and the others must be as they were. Then these are deleted as well, with their commands.
If a check fails, the exit status is 1 and the data directory is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import asyncpg

from handlers.setting_flags import DEFAULT_ORGANIZATION
from tests.cli.template_folders import folder
from tests.rigs.client import Chat, ChatService, cancel_and_wait, connected, role_options
from tests.rigs.messages import Event
from tests.rigs.processes import Up, agents_using, kill_processes, resident_mib, up

USED = 10
"""Every tenth chat is used."""
EVERY = 5.0
STUCK = 120.0
"""Seconds after which a chat that has not moved although it should have fails the run."""
PUBLISHED_AGAIN = 2.0
"""Seconds by which the time of a state may be too late: workers publish a state again if its events are redelivered."""
COMMAND = "while :; do sleep 1; done"
MARK = b"WORKSPACED_WORKSPACE_DIRECTORY="
NO_QUOTAS = {"WORKSPACED_WORKSPACES_PER_OWNER": "0", "WORKSPACED_DISK_PER_OWNER_MIB": "0"}


@dataclass(frozen=True)
class Plan:
    """The size of a run; times are in seconds."""

    chats: int
    lifetime: float
    retention: float
    at_once: int = 8
    """Workspaces that are created at the same time."""


@dataclass
class Report:
    """What a run found."""

    plan: Plan
    creating: float = 0.0
    """Seconds in which all chats were created."""
    agents: int = 0
    """The most agents that ran at the same time."""
    memory: float = 0.0
    """The most MiB that `up` itself used; it holds the worker, the gateway and the provisioner."""
    stop_delays: list[float] = field(default_factory=list)
    """Seconds from the end of each lifetime to its stop build."""
    delete_delays: list[float] = field(default_factory=list)
    """Seconds from the end of each retention to its delete build."""
    faults: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield the summary."""
        used = len(range(0, self.plan.chats, USED))
        yield f"{self.plan.chats} chats in {self.creating:.0f} s, {used} of them with a command that runs"
        yield f"at most {self.agents} agents at the same time; `up` used {self.memory:.0f} MiB"
        for what, delays, limit in (
            ("stops", self.stop_delays, self.plan.lifetime),
            ("deletions", self.delete_delays, self.plan.retention),
        ):
            ordered = sorted(delays) or [0.0]
            yield (
                f"{len(delays)} {what} after {limit:g} s: half of them within "
                f"{ordered[len(ordered) // 2]:.2f} s, all within {ordered[-1]:.2f} s of that moment"
            )
        yield from (f"FAULT: {fault}" for fault in self.faults)
        if not self.faults:
            alone = self.plan.chats - used
            yield f"nothing is left of the {alone} chats that nobody used; the other {used} were not touched"

    def check(self, what: str, found: object, wanted: object) -> None:
        """Note a fault unless the two are equal."""
        if found != wanted:
            self.faults.append(f"{what}: {_short(found)}, not {_short(wanted)}")


@dataclass
class Run:
    """One run on a running `up`."""

    running: Up
    service: ChatService
    template: str
    report: Report
    chats: list[Chat] = field(default_factory=list)
    used_since: dict[str, int] = field(default_factory=dict)
    """The version of each used chat when its command began."""

    @property
    def used(self) -> list[Chat]:
        return self.chats[::USED]

    @property
    def alone(self) -> list[Chat]:
        return [chat for number, chat in enumerate(self.chats) if number % USED]

    @property
    def workspaces(self) -> Path:
        return self.running.directory / "provisioner" / "local" / "workspaces"

    async def live(self) -> None:
        """Create all chats, and wait until the workspaces that nobody uses are deleted."""
        plan, began = self.report.plan, time.monotonic()
        gate = asyncio.Semaphore(plan.at_once)
        for _ in range(plan.chats):
            chat = await self.service.chat()
            chat.organization_id = DEFAULT_ORGANIZATION
            self.chats.append(chat)

        async def create(chat: Chat, *, used: bool) -> None:
            async with gate:
                call = await chat.ask("create_workspace", {"template_id": self.template})
                created = await chat.answer(call, STUCK)
                assert created["result"].get("created") is True, created
                if used:
                    await self.start_command(chat)

        created = (create(chat, used=n % USED == 0) for n, chat in enumerate(self.chats))
        await asyncio.gather(*created)
        self.report.creating = time.monotonic() - began
        patience = plan.lifetime + plan.retention + STUCK
        await asyncio.gather(*(self.gone(chat, patience) for chat in self.alone))

    async def start_command(self, chat: Chat) -> None:
        """Start the chat's command; start its workspace again if its lifetime has passed before."""
        args = {"command": COMMAND, "timeout_seconds": 0, "wait_seconds": 0}
        while True:
            answer = await self.service.rpc("execute", chat_id=chat.id, args=args)
            if answer["result"].get("status") == "running":
                self.used_since[chat.id] = chat.now["version"]
                return
            assert answer["result"].get("next_step") == "start_workspace", answer
            await chat.answer(await chat.ask("start_workspace"), STUCK)

    async def gone(self, chat: Chat, patience: float) -> None:
        """Wait until the chat has no workspace any more."""
        try:
            await chat.states.first(lambda e: e["data"]["state"] == "none", patience)
        except AssertionError:
            self.report.faults.append(f"chat {chat.id} is not deleted: {chat.path}")

    async def delete_used(self) -> None:
        """Delete the workspaces in which commands run."""
        for chat in self.used:
            await chat.publish_event("delete_requested", {})
        await asyncio.gather(*(self.gone(chat, STUCK) for chat in self.used))

    async def measure(self) -> None:
        """Measure until cancelled; print the progress."""
        began, report = time.monotonic(), self.report
        while True:
            agents = len(await asyncio.to_thread(agents_using, self.running.directory))
            report.agents = max(report.agents, agents)
            report.memory = max(report.memory, resident_mib(self.running.process.pid))
            states = Counter(chat.now["state"] for chat in self.chats if chat.states.all)
            words = ", ".join(f"{state} {count}" for state, count in sorted(states.items()))
            tell(f"{time.monotonic() - began:6.0f} s  {agents} agents; {words}")
            await asyncio.sleep(EVERY)

    async def check(self, kept: Sequence[Chat]) -> None:
        """Check that directories, processes and rows of the `kept` chats are there, and no others."""
        check, directory = self.report.check, self.running.directory
        ids = {chat.now["workspace"]["id"] for chat in kept if chat.now["workspace"]}
        folders = {path.name for path in self.workspaces.iterdir() if path.name[0] != "."}
        check("directories", folders, ids)
        check("agents", len(agents_using(directory)), len(kept))
        of_processes = {folder.name for folder in processes_in_workspaces(directory).values()}
        check("workspaces with processes", of_processes, ids)
        database = await asyncpg.connect(self.running.database)
        try:
            rows = await database.fetch("select chat_id::text, state, rests_since from chat")
            names = await database.fetch(
                "select workspace_id::text as id from workspace where deleted_at is null"
            )
        finally:
            await database.close()
        wanted = {chat.id: "none" for chat in self.chats} | {chat.id: "ready" for chat in kept}
        check("states of chats", {row["chat_id"]: row["state"] for row in rows}, wanted)
        check("chats at rest", {row["chat_id"] for row in rows if row["rests_since"]}, set())
        check("workspaces", {row["id"] for row in names}, ids)
        check("orphans", self.running.data("workspace", "orphans"), {"workspaces": []})
        for chat in kept:
            answer = await self.service.rpc("process_list", chat_id=chat.id, args={})
            found = [process["status"] for process in answer["result"].get("processes", [answer])]
            check(f"commands of chat {chat.id}", found, ["running"])
            since = self.used_since[chat.id]
            states = [one["data"] for one in chat.states.all if one["data"]["version"] >= since]
            check(f"states of chat {chat.id}", {data["state"] for data in states}, {"ready"})

    def judge_delays(self) -> None:
        """Note how long after its moment each build of the workers began, and builds that came early."""
        for chat in self.alone:
            data = [envelope["data"] for envelope in chat.states.all]
            for before, after in pairwise(data):
                if after["state"] != "stopping" or before["state"] == "stopping":
                    continue
                self._judge(chat, before, after)

    def _judge(self, chat: Chat, before: Event, after: Event) -> None:
        begun = datetime.fromisoformat(after["build"]["started_at"])
        if after["build"]["transition"] == "stop":
            due, delays = datetime.fromisoformat(before["stops_at"]), self.report.stop_delays
            delay = (begun - due).total_seconds()
        else:
            stopped = next(
                envelope["time"]
                for envelope in chat.states.all
                if envelope["data"]["state"] == "stopped"
                and envelope["data"]["build"] == before["build"]
            )
            rested = (begun - datetime.fromisoformat(stopped)).total_seconds()
            delay, delays = rested - self.report.plan.retention, self.report.delete_delays
        if delay < -PUBLISHED_AGAIN:
            self.report.faults.append(f"chat {chat.id} came {-delay:g} s too early: {after}")
        delays.append(delay)


def processes_in_workspaces(directory: Path) -> dict[int, Path]:
    """Return the processes that builds and agents of a data directory started, and the workspace of each."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            for variable in (entry / "environ").read_bytes().split(b"\0"):
                workspace = Path(os.fsdecode(variable.removeprefix(MARK)))
                if variable.startswith(MARK) and workspace.is_relative_to(directory):
                    found[int(entry.name)] = workspace
    return found


async def run(plan: Plan, parent: Path) -> Report:
    """Run the plan in a new data directory below `parent`."""
    report, data = Report(plan), parent / "data"
    try:
        with up(data, env=NO_QUOTAS) as running:
            template = await asyncio.to_thread(_set_up, running, plan, parent)
            options = role_options(data / "credentials", "chat-service")
            async with connected(ChatService(), running.nats, **options) as service:
                it = Run(running, service, template, report)
                measuring = asyncio.create_task(it.measure())
                try:
                    await it.live()
                    await it.check(it.used)
                    it.judge_delays()
                    await it.delete_used()
                    await it.check([])
                finally:
                    await cancel_and_wait(measuring)
                    (parent / "up.log").write_text(running.process.output())
    finally:
        kill_processes(list(processes_in_workspaces(data)))
    return report


def _set_up(running: Up, plan: Plan, parent: Path) -> str:
    template = running.data("template", "push", folder(parent))["template_id"]
    for key, value in (
        ("chat_workspace_ttl", f"{plan.lifetime}s"),
        ("stopped_workspace_retention", f"{plan.retention}s"),
    ):
        assert running.run("settings", "set", key, value).returncode == 0
    return str(template)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}…"


def tell(words: str) -> None:
    """Print a line at once."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the command line; return the exit status."""
    flags = argparse.ArgumentParser(description="Chats that are left alone.")
    flags.add_argument("--chats", type=int, default=1000)
    flags.add_argument("--lifetime", type=float, default=30.0, help="seconds")
    flags.add_argument("--retention", type=float, default=60.0, help="seconds")
    flags.add_argument("--at-once", type=int, default=8, help="workspaces created at a time")
    given = flags.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell's background job ignores SIGINT
        signal.signal(number, signal.default_int_handler)
    parent = Path(tempfile.mkdtemp(prefix="workspaced-left-alone-"))
    plan = Plan(given.chats, given.lifetime, given.retention, given.at_once)
    try:
        report = asyncio.run(run(plan, parent))
    except BaseException:
        tell(f"FAILED: data and up.log are kept in {parent}")
        raise
    for line in report.lines():
        tell(line)
    if report.faults:
        tell(f"FAILED: data and up.log are kept in {parent}")
        return 1
    shutil.rmtree(parent, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
