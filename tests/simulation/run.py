"""One run of a seed: servers, workers, provisioner, agents and callers, with faults, then rest."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Coroutine
from datetime import datetime, timedelta
from random import Random
from typing import Any, Final

import handlers.agent.agent
from bus import BusError
from bus.streams import DEAD, IN, JOB, PRESENCE, RESULT, STATE, STREAMS, pool_consumer
from handlers.provisioner.provisioner import Provisioner
from handlers.worker.worker import Worker
from statemachine.chat import Limits
from statemachine.store import StoreUnavailableError
from tests.simulation import checks, edge, models, network
from tests.simulation.callers import Callers, plan
from tests.simulation.database import Database, SimulatedStore
from tests.simulation.loop import EPOCH, Process, SeededLoop
from tests.simulation.machine import Machine, Ways
from tests.simulation.network import Network
from tests.simulation.troubles import Troubles
from tests.unit.driver import ORG, PYTHON
from tests.unit.facts import uid

TROUBLED: Final = 35.0
"""The longest time, in seconds, during which faults happen; it may end early when all calls are
answered."""
REST: Final = 7200.0
"""Seconds within which the system must be at rest after the last fault. A stop or delete that fails is tried again
after 1, 5 and 25 minutes."""
HANGS: Final = 600.0
"""Seconds for which the step of a build hangs that the chat no longer follows."""
IMPATIENCE: Final = 30.0
"""Seconds after which a user cancels a build that hangs, once the faults are over."""
ASKING: Final = 34.0
"""Seconds that a recovery takes at most, including all requests to publish facts again."""


SETTINGS: Final = {
    "chat_workspace_ttl": ("", "", "3s", "12s"),
    "chat_workspace_activity_bump": (None, "2s", "0"),
    "stopped_workspace_retention": (None, "", "2s", "15s"),
}
"""Operators' settings -> the values of which a run has one; None: the setting is not set."""


class Run:
    """The state and the result of one seed's run."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        others = Random(f"elsewhere {seed}")
        self.loop = SeededLoop(self.random)
        edge.use(self.loop, seed)
        self.trace: list[str] = []
        self.processes: dict[str, Process] = {}
        self.violations: list[str] = []
        self.over = False
        self.losses = 0
        """How often NATS lost data."""
        draw = self.random.choice
        self.limits = Limits(
            build=timedelta(seconds=draw((8, 20, 60, 150))),
            agent_connect=timedelta(seconds=draw((4, 10, 40))),
            startup_scripts=timedelta(seconds=draw((5, 15, 40))),
            cancel=timedelta(seconds=draw((1.5, 6, 20))),
            orphan_grace=timedelta(seconds=draw((10, 20))),
        )
        self.troubles = Troubles(self)
        short = "short windows" in self.troubles.chances
        self.troubles.met["short windows"] += short
        self.database = Database(self.loop, behind=draw((0.0, 0.0, 0.05)))
        self.database.note = self.note
        self.network = Network(self.loop, 0.0, draw((0.2, 2.0)) if short else None)
        network.watch(self.network)
        self.network.on_stored = self._stored
        ways = Ways(
            build=draw((0.3, 0.3, 2.0, 6.0)),
            agent=draw((0.0, 0.0, 8.0)),
            script=draw((0.3, 3.0, 9.0)),
            hangs=draw((0.0, 0.0, 0.0, 0.15)),
            exits=draw((0.0, 0.1)),
        )
        self.machine = Machine(self.loop, ways, self.pace)
        self.machine.start_agent = self._start_agent
        models.belongs(self.machine)
        self.inbound: list[tuple[str, bytes]] = []
        """All messages that the stream IN stored."""
        self.activity: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
        """When each report of activity was first stored, and its event, by identity."""
        self.disturbed: list[float] = []
        """Times at which something was amiss, so that reports of activity may take effect late."""
        self.served_since = 0.0
        """Since when the provisioner runs and is not paused."""
        self.unheeded: dict[str, float] = {}
        """Canceled builds whose step runs, with the time when a check first saw that."""
        self._canceled_again: dict[str, float] = {}
        self._cancels: set[asyncio.Task[None]] = set()
        self.states: dict[str, list[dict[str, Any]]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.dead: list[bytes] = []
        self.overdue: dict[tuple[str, Any, datetime, str], float] = {}
        """Timers that are overdue or not armed, each with the time when a check first saw that."""
        self.met: Counter[str] = Counter()
        self.chats = [uid(f"chat {n}") for n in range(draw((1, 1, 1, 2, 2, 3, 4)))]
        self.elsewhere = {
            chat: others.uniform(0, 12) for chat in self.chats if others.random() < 0.1
        }
        """The chats in whose name somebody makes a workspace elsewhere, with the seconds until then."""
        self.callers: Callers

    def pace(self, about: float) -> float:
        """Draw a duration: mostly a little shorter than `about`, sometimes much longer."""
        return min(self.random.expovariate(1 / about), about * 6) if about else 0.0

    def note(self, words: str) -> None:
        """Append a line to the trace."""
        self.trace.append(f"{self.loop.now - EPOCH:9.3f} {words}")

    @property
    def digest(self) -> str:
        """A hash over everything that happened, in order."""
        words = "\n".join(self.trace).encode()
        return hashlib.sha256(bytes(self.loop.picks) + words).hexdigest()[:16]

    # -- processes ------------------------------------------------------------------------------

    def alive(self) -> list[Process]:
        """Return the processes that run or are paused."""
        return list(self.processes.values())

    def start(self, name: str, kind: str, main: Coroutine[Any, Any, None]) -> Process:
        """Start a process."""
        process = self.processes[name] = Process(name, kind)
        process.at_end.append(lambda: self._gone(process))
        self.loop.spawn(process, self._living(process, main))
        return process

    def _gone(self, process: Process) -> None:
        if self.processes.get(process.name) is process:
            del self.processes[process.name]
        if process.kind == "agent":
            self.machine.over(process.name, well=False)

    def start_again(self, process: Process, delay: float) -> None:
        """Start a replacement after the delay, if the process is a worker or a provisioner."""
        if process.kind == "worker":
            self.loop.later(delay, self._start_worker, process.name)
        elif process.kind == "provisioner":
            self.loop.later(delay, self._start_provisioner)

    async def _living(self, process: Process, main: Coroutine[Any, Any, None]) -> None:
        """Run a process until it ends; restart it if it ended by itself."""
        try:
            await main
        except (BusError, StoreUnavailableError) as error:
            self.note(f"{process} ends: {error}")
        except Exception as error:  # noqa: BLE001 — any exception here is a bug
            self.violations.append(f"{process} died of {error!r}")
        finally:
            if not self.over and self.processes.get(process.name) is process:
                self.loop.outside(self._left, process)

    def _left(self, process: Process) -> None:
        if process.kind == "agent":
            self.machine.over(process.name, well=True)
        self.loop.kill(process)
        self.start_again(process, self.pace(1.0))

    def _start_worker(self, name: str) -> None:
        async def main() -> None:
            bus = self.network.connect()
            await Worker(SimulatedStore(self.database), bus, self.limits).run()  # type: ignore[arg-type]

        if name not in self.processes:
            self.troubles.last = self.loop.now
            self.start(name, "worker", main())

    def _start_provisioner(self) -> None:
        async def main() -> None:
            await Provisioner(
                self.network.connect(),
                name="local",
                pool="local",
                root=self.machine.root,  # type: ignore[arg-type]
                nats_url="",
                environ={},
            ).run()

        if "provisioner" not in self.processes:
            self.served_since = self.loop.now
            self.start("provisioner", "provisioner", main())

    def _start_agent(self, agent_id: str) -> None:
        async def connect(_url: str, _credential: Any) -> Any:
            return self.network.connect()

        async def main() -> None:
            home = self.machine.root / agent_id
            agent = handlers.agent.agent.Agent(home, connect)  # type: ignore[arg-type]
            self.machine.instances[agent_id] = agent
            await agent.run()

        self.machine.agents[agent_id] = self.start(agent_id, "agent", main())

    # -- what is seen ---------------------------------------------------------------------------

    def _stored(self, stream: str, subject: str, data: bytes, sequence: int) -> None:
        if stream == PRESENCE.name:
            return
        name = hashlib.sha256(data).hexdigest()[:8]
        self.note(f"{stream} {sequence} {subject} {name}")
        if stream == IN.name:
            self.inbound.append((subject, data))
            if b"workspaced.agent_activity.v1" in data:
                now = self.loop.now, json.loads(data)
                self.activity.setdefault(checks.identity(data), now)
        elif stream == STATE.name:
            state = json.loads(data)["data"]
            self.states.setdefault(state["chat_id"], []).append(state)
            if state["build"] is not None:
                self.callers.builds[state["chat_id"]] = state["build"]["id"]
            self.violations += checks.state_in_turn(self.states[state["chat_id"]])
        elif stream == RESULT.name:
            self.callers.heard(subject, data)
        elif stream == JOB.name:
            job = json.loads(data)["data"]
            self.jobs[job["build_id"]] = job
        elif stream == DEAD.name:
            self.dead.append(data)

    def lost(self) -> None:
        """Record a loss in NATS: messages that were stored but not yet applied may be gone."""
        self.losses += 1
        there = self.network.streams.get(IN.name)
        kept = set() if there is None else {message.data for message in there.messages.values()}
        heard = checks.heard(self)
        self.inbound = [
            (subject, data)
            for subject, data in self.inbound
            if data in kept or checks.identity(data) in heard
        ]
        self.states.clear()

    # -- the run --------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Run to the end; return the violations."""
        try:
            self.loop.run_until_complete(self._all())
        except Exception as error:  # noqa: BLE001 — any exception becomes a violation
            self.violations.append(f"the run broke: {error!r}")
        self.met += self.troubles.met
        self._count()
        found, self.over = list(dict.fromkeys(self.violations)), True
        self.loop.bury()
        edge.leave()
        return found

    def _count(self) -> None:
        """Count faults and outcomes, to notice if the seeds let too little happen."""
        self.met["callbacks"] += self.loop.steps
        self.met["virtual seconds"] += int(self.loop.now - EPOCH)
        self.met["chats that changed while others applied events"] += self.database.skipped
        for entries in self.database.store.entries.values():
            for entry in entries:
                self.met[f"outcome {entry['outcome']}"] += 1
                name = entry["event"]["type"].split(".")[1]
                self.met[f"event {name}"] += 1
                if name == "build_cancel_requested":
                    self.met[f"cancel {entry['outcome']}"] += 1
        for states in self.states.values():
            for state in states:
                reason = f":{state['failure']['reason']}" if state["failure"] else ""
                self.met[f"state {state['state']}{reason}"] += 1
        self.met["calls"] += len(self.callers.accepted)
        self.met["asked again"] += self.callers.asked_again
        self.met["published twice"] += sum(len(a) > 1 for a in self.callers.answers.values())

    async def _all(self) -> None:
        await self._prepare()
        begun = self.loop.now
        self.troubles.begin()
        asking = [
            asyncio.create_task(self.callers.chat(chat, calls))
            for chat, calls in plan(self.random, self.chats).items()
        ]
        asking += [
            asyncio.create_task(self.callers.make_elsewhere(chat, after))
            for chat, after in self.elsewhere.items()
        ]
        while self.loop.now < begun + TROUBLED:
            await self._look()
            if all(task.done() for task in asking) and self.random.random() < 0.2:
                break
        self.troubles.end()
        self.note("everything is mended")
        mended = self.loop.now
        # After a loss, workers ask provisioners and agents for their facts several times.
        until = mended + (ASKING if self.losses else 0.0)
        while (
            self.loop.now < until
            or not all(task.done() for task in asking)
            or not checks.is_at_rest(self)
        ):
            await self._look()
            self._end_hung_builds()
            if self.loop.now > mended + REST or self.violations:
                self.violations += checks.unrest(self)
                self.violations += [f"callers wait: {task}" for task in asking if not task.done()]
                break
        if not self.violations:
            self.violations += checks.at_rest(self)

    async def _look(self) -> None:
        await asyncio.sleep(checks.LOOK)
        self.violations += checks.deadlines(self)
        self.violations += checks.cancels(self)
        if not checks.is_calm(self):
            self.disturbed.append(self.loop.now)

    def _end_hung_builds(self) -> None:
        """Cancel builds whose step hangs: a user loses patience, and does so again after a time.

        Nobody can cancel a build that the chat no longer follows. The limit of its provisioner ends it.
        """
        for build, step in list(self.machine.hung.items()):
            if self.callers.builds.get(step.chat) != build:
                if self.loop.now > step.since + HANGS and not step.goes_on.done():
                    self.loop.outside(step.goes_on.set_result, None)
            elif self.loop.now > self._canceled_again.get(build, step.since) + IMPATIENCE:
                self._canceled_again[build] = self.loop.now
                cancel = self.callers.cancel_build(step.chat, build)
                self._cancels.add(task := asyncio.create_task(cancel))
                task.add_done_callback(self._cancels.discard)

    async def _prepare(self) -> None:
        store = self.database.store
        await store.templates.push(ORG, PYTHON.active, b"")
        for key, values in SETTINGS.items():
            if (value := self.random.choice(values)) is not None:
                store.setting_values[key] = value
        bus = self.network.connect()
        for stream in STREAMS:
            await bus.ensure_stream(stream)
        await bus.ensure_consumer(pool_consumer("local"))
        self.callers = Callers(bus, self.random, self.pace)
        for number in range(self.random.choice((1, 2, 2, 3))):
            self._start_worker(f"worker {number + 1}")
        self._start_provisioner()
