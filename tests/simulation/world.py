"""A small world for random runs: callers, a provisioner, agents, and workers that may die or be paused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pydantic import TypeAdapter

from bus import Delivery, PubAck
from bus.streams import CONSUMERS, WORKER_IN
from statemachine import events
from statemachine.chat import Chat, Limits
from statemachine.codec import event_of
from statemachine.fold import Unmoved
from statemachine.machine import Ignored, decide
from statemachine.replay import entry_of
from statemachine.states import Phase
from statemachine.views import state_changed
from statemachine.workspace import WorkspaceRecord
from tests.simulation.faults import Flaky, Forgetful
from tests.unit.facts import uid
from tests.worker.messages import TEMPLATE_ID, Job
from tests.worker.rig import Hand, Rig

BUSY: Final = (Phase.BEING_BUILT, Phase.BEING_STOPPED)
AGENTS: Final = (("main",), (), ("a-coderd-chat", "b-coderd-chat"), ("z", "one-coderd-chat"))
ROUNDS: Final = 12
LIMITS: Final = Limits()
TTL: Final = "chat_workspace_ttl"
GRACE: Final = LIMITS.orphan_grace


@dataclass(slots=True)
class Folded:
    """A chat's log, folded entry by entry."""

    workspace: Chat
    read: int = 0
    seen: set[tuple[str, str]] = field(default_factory=set)
    asked: dict[str, events.BuildRequested] = field(default_factory=dict)
    """The last build that was asked for, by workspace."""
    expired: set[str] = field(default_factory=set)
    """Start builds whose lifetime was over."""


class World:
    """What a random run acts on, and what must hold of it."""

    def __init__(self, chats: int = 2, hands: int = 2, ttl: str = "") -> None:
        self.chats = [uid(f"chat {n}") for n in range(chats)]
        self.rig = Rig()
        store = Forgetful(self.rig.now)
        self.rig.store = self.store = store
        self.store.setting_values[TTL] = ttl
        self.flaky = Flaky(self.rig.bus)
        self.hands = [Hand(self.rig, self.flaky, store) for _ in range(hands)]
        self.held: list[tuple[Hand, list[Delivery]]] = []
        self.calls: list[tuple[str, str]] = []
        self.asked: Counter[tuple[str, str]] = Counter()
        """How many events asked for each call."""
        self.sent: list[tuple[str, bytes]] = []
        self.told: set[str] = set()
        """Builds whose end was told."""
        self.agents: dict[str, str] = {}
        """The agent that is chosen of a build, if one can be."""
        self.reached: set[str] = set()
        self.met: Counter[str] = Counter()
        """What came about that only some runs come to."""
        self.over = False
        """All is drained: what is committed must be published now."""
        self.sequences: Counter[str] = Counter()
        self.folded = {chat: Folded(Chat(chat_id=chat)) for chat in self.chats}
        self.disturbed = False
        """A worker was paused or died: a reader may have missed a version."""

    async def open(self) -> World:
        await self.rig.open()
        publish = self.rig.bus.publish

        async def kept(subject: str, data: bytes, **more: Any) -> PubAck:
            if subject.startswith("workspaced.in."):
                self.sent.append((subject, data))
            return await publish(subject, data, **more)

        self.rig.senders.bus = _Recording(kept)  # type: ignore[assignment]  # all that senders use
        return self

    # -- what happens ---------------------------------------------------------------------------

    async def ask(self, chat: str, tool: str) -> None:
        call = self._next_call(chat)
        self.calls.append((chat, call))
        await self._ask(chat, tool, call)

    async def trouble(self, what: str, number: int, chat: str, tool: str) -> None:
        """Do what callers and networks do."""
        if what == "wake":
            await self.wake(number)
        elif what == "repeat":
            await self.repeat(-1 - number)
        elif what == "cancel ahead":
            await self.rig.senders.cancel(chat, self._next_call(chat))
        elif self.calls:
            chat, call = self.calls[-1 - number % min(len(self.calls), 4)]
            if what == "again":
                await self._ask(chat, tool, call)
            else:
                await self.rig.senders.cancel(chat, call)

    async def seldom(self, job: Job, what: str, number: int) -> None:
        """Have an agent show itself, a workspace deleted in one way or another, or made elsewhere."""
        if what == "show":
            agent = self.agents.get(job["build_id"], "main")
            await self.rig.senders.show(job, agent=agent)
        elif what == "delete":
            await self.rig.senders.delete(job["chat_id"])
        elif what == "elsewhere":
            how = ("started", "succeeded", "succeeded", "failed", "canceled")[number // 6 % 5]
            await self.elsewhere(job["chat_id"], number % 2, 1 + number // 2 % 3, how)
        else:
            await self.rig.senders.deleted(job)

    def _next_call(self, chat: str) -> str:
        """Number calls by chat, as chats do: their ids are a chat's own affair."""
        return f"call-{sum(asking == chat for asking, _ in self.calls)}"

    async def _ask(self, chat: str, tool: str, call: str) -> None:
        self.asked[chat, call] += 1
        if tool == "create_workspace":
            await self.rig.senders.create(chat, call)
        else:
            await self.rig.senders.ask(chat, tool, call)

    async def tell(self, job: Job, how: str, agents: tuple[str, ...]) -> None:
        if how != "started":
            self.told.add(job["build_id"])
        if how == "succeeded" and agents:
            self.agents.setdefault(job["build_id"], agents[-1])
        await self.rig.senders.built(job, how, agents=agents)

    async def bring_up(self, steps: int, how: str) -> None:
        """Let the newest start come as far as it should: built, its agent there, its scripts over."""
        job = next(job for job in reversed(self.rig.jobs()) if job["transition"] == "start")
        await self.tell(job, "succeeded", ("main",))
        agent = self.agents.get(job["build_id"], "main")
        for lives in ("connected", how)[: steps - 1]:
            await self.report(job, agent, lives, 0)

    async def elsewhere(self, chat: str, which: int, number: int, how: str) -> None:
        """Tell of a workspace that nobody here asked for: started, stopped, started again.

        Of the first of a chat's the template is known, when it is told in time.
        """
        workspace = uid(f"{chat}/elsewhere {which}")
        job: Job = {
            "chat_id": chat,
            "workspace_id": workspace,
            "build_id": uid(f"{workspace}/{number}"),
            "build_number": number,
            "transition": ("stop", "start")[number % 2],
            "template": {"version_id": None},
        }
        named = {"template_id": TEMPLATE_ID} if which == 0 and how == "started" else {}
        await self.rig.senders.built(job, how, agents=("main",)[number % 2 :], **named)

    async def report(self, job: Job, agent: str, how: str, back: int) -> None:
        """Have an agent report; what was overtaken has an older sequence."""
        self.sequences[job["build_id"]] += 1
        sequence = max(0, self.sequences[job["build_id"]] - back)
        await self.rig.senders.agent(job, how, sequence, agent=agent)

    async def repeat(self, number: int) -> None:
        """Send anything again, as it was."""
        if self.sent:
            subject, data = self.sent[number % len(self.sent)]
            await self.rig.bus.publish(subject, data)

    async def work(self, hand: int, most: int) -> None:
        worker = self.hands[hand]
        if deliveries := worker.take(most):
            await worker.work(deliveries)

    async def die(self, hand: int, most: int, breaks_in: int, *, after: bool, away: bool) -> None:
        """Have a worker lose its connection while it publishes, or the store afterwards."""
        self.disturbed = True
        self.flaky.breaks_in, self.flaky.after, self.store.away = breaks_in, after, away
        await self.work(hand, most)
        self.flaky.breaks_in, self.store.away = None, False

    async def pause(self, hand: int, most: int) -> None:
        if deliveries := self.hands[hand].take(most):
            self.held.append((self.hands[hand], deliveries))

    async def wake(self, number: int) -> None:
        if self.held:
            hand, deliveries = self.held.pop(number % len(self.held))
            await hand.work(deliveries)

    async def drain(self) -> None:
        """Let everything come to its end: workers live, builds end, limits pass."""
        while self.held:
            await self.wake(0)
        for _ in range(ROUNDS):
            await self._finish(WORKER_IN.ack_wait + 0.001)
            if not any([await self.store.chats.open_calls(chat) for chat in self.chats]):
                return
            self.rig.clock.advance(700)
            await self.hands[0].pump()

    async def rest(self) -> None:
        """Let lifetimes and graces pass, and the stops that follow succeed."""
        for _ in range(2):
            await self._finish(GRACE.total_seconds() + 1)

    async def _finish(self, seconds: float) -> None:
        """Let time pass, and every build succeed that nobody has told the end of."""
        self.rig.clock.advance(seconds)
        await self.hands[0].pump()
        for job in self.rig.jobs():
            if job["build_id"] not in self.told:
                await self.tell(job, "succeeded", ())
        await self.hands[0].pump()

    # -- what must hold -------------------------------------------------------------------------

    async def check(self) -> None:
        for chat in self.chats:
            await self._agrees(chat)
        self._answered_at_most_once()
        kept = [await self.store.chats.get(chat) for chat in self.chats]
        bound = [chat.current.id for chat in kept if chat is not None and chat.current is not None]
        assert len(set(bound)) == len(bound), "two chats have one workspace"
        jobs = self.rig.jobs()
        assert len({job["build_id"] for job in jobs}) == len(jobs)
        owners = {(job["workspace_id"], job["chat_id"]) for job in jobs}
        assert len({workspace for workspace, _ in owners}) == len(owners)
        assert self.rig.dead == [], self.rig.dead[0].headers

    async def _agrees(self, chat: str) -> None:
        """Fold what is new in the log: it must come to the snapshot, and that is what is published."""
        kept = await self.store.chats.get(chat)
        folded = self.folded[chat]
        for entry in await self.store.chats.log(chat, after=folded.read, limit=10_000):
            self._fold(folded, entry)
        if kept is None:
            return
        self.reached.add(kept.state)
        self._nothing_runs_beside(kept, folded)
        assert folded.chat.version == kept.version
        assert folded.read == kept.seq
        shown, view = state_changed(folded.chat), state_changed(kept)
        for differs in ("cause", "deadline", "failure"):  # of limits and causes the log holds less
            shown.pop(differs), view.pop(differs)
        assert shown == view
        versions = [state["version"] for state in self.rig.states.get(chat, [])]
        assert versions == sorted(set(versions)), versions
        if not kept.version or (self.store.outbox and not self.over):
            return
        assert self.rig.state(chat) == json.loads(json.dumps(state_changed(kept)))
        if not self.disturbed:
            assert versions == [*range(1, kept.version + 1)]

    def _fold(self, folded: Folded, entry: Any) -> None:
        event = event_of(entry["event"])
        before, identity = folded.chat, (event.source, event.id)
        at = TypeAdapter(datetime).validate_python(entry["at"])
        match event.data:
            case events.BuildRequested():
                self._in_turn(before, event.data)
                folded.asked[event.data.workspace_id] = event.data
            case events.TtlPassed():
                self._expired(folded, at)
            case events.OrphanGracePassed(workspace_id=orphan):
                former = before.previous_workspace(orphan)
                assert former is not None
                assert former.orphaned_at is not None
                assert former.orphaned_at + GRACE <= at
                assert not former.grace_over
                self.met["grace over"] += 1
            case _:
                pass
        if identity in folded.seen:
            decision: Any = Ignored(before, Unmoved.REPEAT)
        else:
            decision = decide(before, event, at, LIMITS)
        for key, value in entry_of(before, decision).items():
            assert entry[key] == value, (key, entry, value)
        folded.seen.add(identity)
        folded.chat = decision.chat
        folded.read = entry["seq"]

    def _in_turn(self, before: Chat, build: events.BuildRequested) -> None:
        """No build is asked for beside one that has not ended; but a delete may come at any time."""
        former = before.previous_workspace(build.workspace_id)
        if former is not None:
            assert former.build is not None
            assert build.transition is _ending_of(former)
            assert build.build_number == former.build.number + 1
            failed = former.build.transition is events.Transition.STOP
            self.met["stop tried again" if failed else "left stopped"] += 1
        elif build.transition is not events.Transition.DELETE:
            assert before.phase not in BUSY, (before.state, build)
        if before.current is not None and before.current.id == build.workspace_id and before.build:
            assert build.build_number == before.build.number + 1

    def _expired(self, folded: Folded, at: datetime) -> None:
        """A lifetime ends when its time comes, once for each start, while the workspace runs or may run."""
        chat = folded.chat
        start = chat.start_build
        assert start is not None
        assert start.succeeded
        assert start.id not in folded.expired
        assert chat.expires_at is not None
        assert chat.expires_at <= at
        assert chat.phase in (Phase.RUNNING, Phase.FAILED_DELETE)
        folded.expired.add(start.id)
        self.met["lifetime over"] += 1

    def _nothing_runs_beside(self, kept: Chat, folded: Folded) -> None:
        """A workspace that was last asked to start and runs is the chat's own, or an orphan."""
        mine = kept.current.id if kept.current else None
        for workspace_id, asked in folded.asked.items():
            if asked.transition is not events.Transition.START or workspace_id == mine:
                continue
            former = kept.previous_workspace(workspace_id)
            assert former is not None
            if not former.deleted and former.orphaned_at is None:
                assert former.build is not None
                started = former.build.transition is events.Transition.START
                assert not (started and former.build.succeeded), former
        for former in kept.orphans:
            assert former.build is not None
            assert former.build.outcome is not None
            assert not former.deleted

    async def check_rest(self) -> None:
        """When graces and lifetimes are over only those run on that nobody here can stop."""
        now = self.rig.now()
        for chat in self.chats:
            kept = await self.store.chats.get(chat)
            if kept is None:
                continue
            assert kept.expires_at is None or kept.expires_at > now
            for former in kept.orphans:
                self.met["left running"] += 1
                assert former.grace_over, former
                assert not _stoppable(former), former

    def _answered_at_most_once(self) -> None:
        for (chat, call), answers in self.rig.results.items():
            assert len(answers) <= self.asked[chat, call], (call, answers)
            assert all(answer == answers[0] for answer in answers), answers

    def runs_once(self, chat: str) -> None:
        """At most one workspace of the chat was last asked to start, of those whose start may run."""
        last: dict[str, Job] = {}
        for job in self.rig.jobs():
            if job["chat_id"] == chat:
                there = last.get(job["workspace_id"])
                if there is None or there["build_number"] < job["build_number"]:
                    last[job["workspace_id"]] = job
        ill = {
            e["event"]["data"]["build_id"]
            for e in self.store.entries.get(chat, [])
            if e["event"]["type"].split(".")[1] in ("build_failed", "build_canceled")
        }
        gone = {
            e["event"]["data"]["workspace_id"]
            for e in self.store.entries.get(chat, [])
            if e["event"]["type"] == "workspaced.workspace_deleted.v1"
        }
        running = [
            job
            for workspace, job in last.items()
            if job["transition"] == "start"
            and job["build_id"] not in ill
            and workspace not in gone
            and not self._changed_elsewhere(chat, job)
        ]
        assert len(running) <= 1, running

    def _changed_elsewhere(self, chat: str, job: Job) -> bool:
        """Say whether a newer build of the workspace is known that nobody here asked for."""
        former = self.folded[chat].chat.previous_workspace(job["workspace_id"])
        return former is not None and (
            former.build is None or former.build.number > job["build_number"]
        )

    async def check_end(self) -> None:
        self.over = True
        await self.check()
        for chat, call in self.calls:
            assert (chat, call) in self.rig.results, (call, self.folded[chat].chat.state)
            assert await self.store.chats.is_answered(chat, call)
        for declared in CONSUMERS:
            consumer = self.rig.bus.consumer(declared)
            assert consumer is not None
            assert consumer.take() is None


def _stoppable(former: WorkspaceRecord) -> bool:
    build = former.build
    told = former.template_id is not None
    return told or (build is not None and build.template is not None)


class _Recording:
    """The senders' bus."""

    def __init__(self, publish: Any) -> None:
        self.publish = publish


def _ending_of(former: WorkspaceRecord) -> events.Transition:
    """Return the build that a workspace without a chat gets.

    What a failed delete has left is deleted. Somebody's work may be in everything else.
    """
    build = former.build
    deleting = build is not None and build.transition is events.Transition.DELETE
    if deleting and former.ours and not build.untouched:
        return events.Transition.DELETE
    return events.Transition.STOP
