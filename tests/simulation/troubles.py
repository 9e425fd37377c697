"""The faults of a run: they strike at random between callbacks, and each is temporary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from bus.streams import IN, RESULT, STATE, TIMER
from tests.simulation.loop import Process

if TYPE_CHECKING:
    from tests.simulation.run import Run

TAILS: Final = "tails lost"
KINDS: Final = (
    "worker killed",
    "worker killed",
    "worker paused",
    "worker paused",
    "provisioner killed",
    "provisioner paused",
    "agent killed",
    "agent paused",
    "connection cut",
    "nats restarted",
    "nats wiped",
    TAILS,
    "database away",
    "message repeated",
)
"""A kind that is listed twice is twice as likely."""
CHANCES: Final = ("word of nats lost", "word of database lost", "short windows", "slow network")
_WITH_TAILS: Final = (STATE.name, RESULT.name, TIMER.name)
"""The streams that are acknowledged before they are written. Workers publish again what these lose."""
PAUSES: Final = {"worker": (0.5, 3.0, 7.0, 16.0), "provisioner": (5.0, 35.0), "agent": (5.0, 30.0)}
_ELSEWHERE: Final = ("agent", "provisioner", "message")


class Troubles:
    """Draws and injects the faults of one run; each seed selects its own kinds."""

    def __init__(self, run: Run) -> None:
        self._run, self._random = run, run.random
        self.met: Counter[str] = Counter()
        share = self._random.choice((0.25, 0.6, 0.9))
        self.kinds = [kind for kind in KINDS if self._random.random() < share]
        self.chances = {kind for kind in CHANCES if self._random.random() < 0.4}
        self._aimed: tuple[str, Process] | None = None
        self._every = self._random.choice((15, 40, 100, 250))
        self.last = 0.0
        """The last time when a fault that affects workers began or ended."""
        self._on = False

    def begin(self) -> None:
        """Begin to inject faults."""
        run = self._run
        self._on = True
        run.loop.before_step = self._strike
        self._wait()
        run.network.slow = 0.4 if "slow network" in self.chances else 0.1
        self.met["slow network"] += "slow network" in self.chances
        run.network.loses_word = self._chance("word of nats lost", 0.03)
        run.database.on_commit = self._aim
        run.database.loses_word = self._chance("word of database lost", 0.06)

    def end(self) -> None:
        """End all faults, and inject no more."""
        run = self._run
        self._on = False
        run.loop.before_step = lambda: None
        run.network.slow = 0.1
        run.network.loses_word = run.database.loses_word = lambda: False
        self._server_back()
        self._database_back()
        for bus in list(run.network.buses.values()):
            run.loop.outside(bus.mend)
        for process in run.alive():
            self._wake(process)
        self.last = run.loop.now

    def _aim(self, process: Process | None) -> None:
        """Aim a fault between a commit and the steps after it, where it matters most."""
        kind = self._random.choice(("worker paused", "worker killed"))
        if process and self._on and kind in self.kinds and self._random.random() < 0.06:
            self._aimed = (kind, process)
            self._run.loop.patience = self._random.randint(1, 12)

    def _chance(self, kind: str, chance: float) -> Callable[[], bool]:
        if kind not in self.chances:
            return lambda: False

        def strikes() -> bool:
            struck = self._random.random() < chance
            self._count(kind) if struck else None
            return struck

        return strikes

    def _wait(self) -> None:
        self._run.loop.patience = 1 + int(self._random.expovariate(1 / self._every))

    def _count(self, kind: str, whom: object = "") -> None:
        self.met[kind] += 1
        if not kind.startswith(_ELSEWHERE):
            self.last = self._run.loop.now
        self._run.note(f"!! {kind} {whom}")

    def _strike(self) -> None:
        self._wait()
        if not (self.kinds and self._on):
            return
        kind = self._aimed[0] if self._aimed else self._random.choice(self.kinds)
        whom, _, what = kind.partition(" ")
        match what:
            case "killed":
                self._kill(kind, whom)
            case "paused":
                self._pause(kind, whom)
            case "cut":
                self._cut()
            case "restarted":
                self._restart(kind)
            case "wiped":
                self._restart(kind, lose=True)
            case "lost":
                tails = {name: self._random.randint(0, 4) for name in _WITH_TAILS}
                self._restart(kind, tails=tails)
            case "away":
                self._away()
            case _:
                self._repeat()
        self._aimed = None

    def _one(self, kind: str) -> Process | None:
        if self._aimed is not None:
            process = self._aimed[1]
            return None if process.dead or process.paused else process
        there = [p for p in self._run.alive() if p.kind == kind and not p.paused]
        return self._random.choice(there) if there else None

    def _kill(self, kind: str, whom: str) -> None:
        if (process := self._one(whom)) is not None:
            self._count(kind, process)
            self._run.loop.kill(process)
            self._run.start_again(process, self._run.pace(2.0))

    def _pause(self, kind: str, whom: str) -> None:
        if (process := self._one(whom)) is None:
            return
        self._count(kind, process)
        run = self._run
        run.loop.pause(process)
        run.loop.later(run.pace(self._random.choice(PAUSES[whom])), self._woken, process)

    def _woken(self, process: Process) -> None:
        if process.paused and not process.dead:
            self._run.note(f"{process} wakes")
            if process.kind == "worker":
                self.last = self._run.loop.now
            self._wake(process)

    def _wake(self, process: Process) -> None:
        """Resume a paused process, and restore its connection if it was lost in the meantime."""
        bus = self._run.network.buses.get(process)
        self._run.loop.wake(process)
        if process.kind == "provisioner":
            self._run.served_since = self._run.loop.now
        if bus is not None:
            self._run.loop.later(self._run.pace(0.05), bus.mend)

    def _cut(self) -> None:
        there = [bus for bus in self._run.network.buses.values() if bus.connected]
        if there:
            bus = self._random.choice(there)
            self._count("connection cut")
            self._run.loop.outside(bus.break_off)
            self._run.loop.later(self._run.pace(1.5), self._mended, bus)

    def _mended(self, bus: object) -> None:
        self.last = self._run.loop.now
        bus.mend()  # type: ignore[attr-defined]

    def _restart(
        self, kind: str, *, lose: bool = False, tails: dict[str, int] | None = None
    ) -> None:
        run = self._run
        if not run.network.up:
            return
        self._count(kind, tails or "")
        run.loop.outside(partial(run.network.stop, lose=lose, tails=tails))
        if lose:
            run.lost()
            run.loop.later(run.pace(6.0), run.callers.store_lost)
        elif tails:
            run.states.clear()
        run.loop.later(run.pace(1.5), self._server_back)

    def _server_back(self) -> None:
        if not self._run.network.up:
            self._run.note("nats is back")
            self.last = self._run.loop.now
            self._run.loop.outside(self._run.network.start)

    def _away(self) -> None:
        if self._run.database.up:
            self._count("database away")
            self._run.loop.outside(self._run.database.stop)
            self._run.loop.later(self._run.pace(2.0), self._database_back)

    def _database_back(self) -> None:
        if not self._run.database.up:
            self._run.note("the database is back")
            self.last = self._run.loop.now
            self._run.database.start()

    def _repeat(self) -> None:
        run = self._run
        stream = run.network.streams.get(IN.name)
        if run.inbound and stream is not None and run.network.up:
            subject, data = self._random.choice(run.inbound)
            self._count("message repeated", subject)
            run.loop.outside(stream.store, subject, data, {})
