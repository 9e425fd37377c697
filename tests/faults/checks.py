"""The checks after a run, when all chats are at rest; they use only what the contract offers.

One exception: alarms are not part of the contract, so their check queries the database.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from tests.faults.calls import Call, Calls
from tests.faults.chat_view import SETTLED, ChatView, look_at
from tests.faults.scenario import CONTRACT, FaultScenario
from tests.faults.shared_journal import Record, SharedJournal
from tests.rigs.client import Participant, connected
from tests.rigs.processes import agents_using
from tests.rigs.reliable_client import BACK_OFF

TERMINAL = ("build_succeeded", "build_failed", "build_canceled")


@dataclass
class Findings:
    """The problems found, by kind."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def all(self) -> list[str]:
        kinds = ("lost", "doubled", "stuck", "other")
        return [f"{kind}: {words}" for kind in kinds for words in getattr(self, kind)]


class Checks:
    """Reads all data about the chats of a run and checks it."""

    def __init__(
        self, place: FaultScenario, calls: Calls, chats: Sequence[str], *, wiped: bool
    ) -> None:
        self._place, self._calls, self._chats = place, calls, chats
        self._wiped = wiped
        self._let_go: set[str] = set()
        """Superseded builds whose job NATS lost when its store was wiped; they need no terminal
        fact."""
        self.found = Findings()

    async def judge(self, patience: float) -> Findings:
        """Wait until the streams are drained, then run all checks."""
        async with connected(
            Participant(), self._place.nats_url, **self._place.role_options("operator")
        ) as operator:
            await self._drained(operator, patience)
            limit = asyncio.Semaphore(8)

            async def one(chat_id: str) -> ChatView:
                async with limit:
                    return await look_at(operator, chat_id, patience)

            seen = dict(zip(self._chats, await asyncio.gather(*map(one, self._chats)), strict=True))
            await self._dead_letters(operator)
        by_chat = defaultdict(list)
        for call in self._calls.all.values():
            by_chat[call.chat_id].append(call)
        for chat_id, chat in seen.items():
            self._chat(chat_id, chat)
            self._answers(chat, by_chat[chat_id])
            self._creations(chat_id, chat, by_chat[chat_id])
            self._builds(chat_id, chat)
        self._books(seen)
        self._machine(seen)
        await self._replayed(seen)
        await self._alarms()
        self.found.other += [f"nobody asked for {subject}" for subject in self._calls.unknown]
        self.found.other += self._calls.refused
        self.found.other += self._calls.older
        return self.found

    async def _drained(self, operator: Participant, patience: float) -> None:
        """Wait until the queues are empty. This polls, because the server does not announce it."""
        left: dict[str, int] = {}
        try:
            async with asyncio.timeout(patience):
                while True:
                    for stream in ("WORKSPACED_IN", "WORKSPACED_JOB"):
                        left[stream] = (await operator.js.stream_info(stream)).state.messages
                    if not any(left.values()):
                        return
                    await asyncio.sleep(BACK_OFF)  # back-off
        except TimeoutError:
            self.found.stuck.append(f"not drained after {patience:.0f} s: {left}")

    async def _dead_letters(self, operator: Participant) -> None:
        if dead := (await operator.js.stream_info("WORKSPACED_DEAD")).state.messages:
            self.found.other.append(f"{dead} dead letters")

    def _chat(self, chat_id: str, seen: ChatView) -> None:
        """Check that the chat is settled, its last state published, and its log without gaps."""
        chat = seen.chat
        for call in chat["open_calls"]:
            self.found.stuck.append(f"chat {chat_id}: call {call['call_id']} is open")
        if chat["state"] not in SETTLED:
            self.found.stuck.append(f"chat {chat_id} is still {chat['state']}")
        if not seen.published:
            self.found.other.append(f"chat {chat_id}: published {seen.last}, but it is {chat}")
        if [e["seq"] for e in seen.log] != list(range(1, len(seen.log) + 1)):
            self.found.other.append(f"chat {chat_id}: its log has a gap")
        versions = seen.versions
        if versions != sorted(set(versions)) or versions[-1:] not in ([], [chat["version"]]):
            self.found.other.append(f"chat {chat_id}: versions {versions}, now {chat['version']}")

    def _answers(self, seen: ChatView, calls: Iterable[Call]) -> None:
        """Check that every accepted call has exactly one answer."""
        waiting = {call["call_id"] for call in seen.chat["open_calls"]}
        for call in calls:
            if len(call.answers) > 1:
                self.found.doubled.append(f"{call} has {len(call.answers)} answers: {call.answers}")
            if not call.answers:
                kind = self.found.stuck if call.call_id in waiting else self.found.lost
                accepted = "accepted" if call.accepted_at is not None else "never accepted"
                kind.append(f"{call} ({accepted}) has no answer after {call.waited:.1f} s")
            elif not call.over.is_set():
                self.found.lost.append(f"{call} was asked again and got no answer again")

    def _creations(self, chat_id: str, seen: ChatView, calls: Iterable[Call]) -> None:
        """Check that each workspace belongs to a create, and to only one that reports it as new."""
        first = {i: b for i, b in seen.builds.items() if b["build_number"] == 1}
        if len({build["workspace_id"] for build in first.values()}) != len(first):
            self.found.doubled.append(f"chat {chat_id}: a workspace has two first builds")
        creates = [
            c.answers[0]["result"] for c in calls if c.tool == "create_workspace" and c.answers
        ]
        created = Counter(result["build_id"] for result in creates if result.get("created"))
        for build_id, times in created.items():
            if times > 1 or build_id not in first:
                self.found.doubled.append(f"chat {chat_id}: build {build_id} created {times} times")
        named = {result.get("build_id") for result in creates}
        for build_id in first.keys() - named:
            self.found.doubled.append(f"chat {chat_id}: no create was answered with {build_id}")

    def _builds(self, chat_id: str, seen: ChatView) -> None:
        """Check that a workspace's builds are numbered without gaps and end exactly once."""
        numbers = Counter((b["workspace_id"], b["build_number"]) for b in seen.builds.values())
        for (workspace_id, number), times in numbers.items():
            if times > 1:
                words = f"workspace {workspace_id} has {times} builds {number}"
                self.found.doubled.append(f"chat {chat_id}: {words}")
            if number > 1 and not numbers[workspace_id, number - 1]:
                words = f"workspace {workspace_id} has no build {number - 1}"
                self.found.lost.append(f"chat {chat_id}: {words}")
        ends = defaultdict(set)
        for end in seen.events(*TERMINAL):
            ends[end["data"]["build_id"]].add((end["id"], end["type"]))
        for build_id in seen.builds:
            if len(ends[build_id]) > 1:
                self.found.doubled.append(
                    f"chat {chat_id}: build {build_id} ended as {ends[build_id]}"
                )
            if ends[build_id]:
                continue
            if self._wiped and seen.superseded(build_id):
                self._let_go.add(build_id)
            else:
                self.found.lost.append(f"chat {chat_id}: build {build_id} has no end")
        for build_id in ends.keys() - seen.builds.keys():
            self.found.other.append(f"chat {chat_id}: nobody asked for build {build_id}")

    def _books(self, seen: dict[str, ChatView]) -> None:
        """Check that the harness built every requested build, and no others."""
        asked = {
            build_id
            for chat in seen.values()
            for build_id, build in chat.builds.items()
            if (build["template"] or {}).get("pool") == CONTRACT
        }
        books: list[Record] = list(SharedJournal(self._place.yard).records())
        made = {build_id: build for record in books for build_id, build in record["builds"].items()}
        for build_id in asked - made.keys() - self._let_go:
            self.found.lost.append(f"build {build_id} never came to a provisioner")
        for build_id in made.keys() - asked:
            self.found.doubled.append(f"build {build_id} was built and never asked for")
        for build_id, build in made.items():
            if build["finished"] is None and build_id not in self._let_go:
                words = f"chat {build['chat_id']}: build {build_id} was begun and not finished"
                self.found.stuck.append(words)
        self.found.notes["builds by the contract"] = len(made)
        again = sum(len(build["places"]) > 1 for build in made.values())
        self.found.notes["jobs that came by two messages"] = again

    def _machine(self, seen: dict[str, ChatView]) -> None:
        """Check for leftover directories, agents of stopped workspaces, and duplicate agents."""
        known = {b["workspace_id"] for chat in seen.values() for b in chat.builds.values()}
        ended = dict(pair for chat in seen.values() for pair in chat.ended())
        for directory in self._place.local_workspaces:
            if directory.name not in known or ended.get(directory.name, False):
                self.found.other.append(f"{directory} has no workspace")
        agents = {
            pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0")[-2]
            for pid in agents_using(self._place.directory)
        }
        for pid, config in agents.items():
            if ended.keys() & set(Path(config).parts):
                self.found.other.append(f"agent {pid} runs in a stopped workspace: {config}")
        for config, times in Counter(agents.values()).items():
            if times > 1:
                self.found.doubled.append(f"{times} processes are the agent of {config}")
        self.found.notes["workspaces by local provisioners"] = len(self._place.local_workspaces)
        self.found.notes["agents that still run"] = len(agents)

    async def _replayed(self, seen: dict[str, ChatView]) -> None:
        """Check that a replay of every event log yields the recorded states."""
        logs = self._place.directory / "events.jsonl"
        with logs.open("w") as file:
            for chat in seen.values():
                file.writelines(json.dumps(entry) + "\n" for entry in chat.log)
        status, _, err = await self._place.command("replay", logs, patience=300)
        if status != 0:
            self.found.other.append(f"replay: {err}")
        self.found.notes["events"] = sum(len(chat.log) for chat in seen.values())

    async def _alarms(self) -> None:
        """Check that everything that followed from an alarm was published."""
        connection = await asyncpg.connect(self._place.database_url)
        try:
            rows = await connection.fetch(
                "select at::text, chat_id::text from alarm where handled_at is not null"
            )
        finally:
            await connection.close()
        if rows:
            left = [tuple(row) for row in rows[:5]]
            self.found.stuck.append(f"{len(rows)} handled alarms were not deleted: {left}")
