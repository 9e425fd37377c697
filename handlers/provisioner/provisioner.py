"""Takes jobs of one pool from the bus and answers each with the facts of its build."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bus import NAK, Bus, BusError, Delivery, NoConsumer, Refused, subjects
from bus.backoff import Backoff
from bus.streams import pool_consumer
from bus.subscription import call_on_message
from handlers.errors import CannotServe
from handlers.provisioner.agent_supervisor import AgentSupervisor
from handlers.provisioner.archive import Archives
from handlers.provisioner.builder import Builder
from handlers.provisioner.job import BadJob, read_job
from handlers.provisioner.job_runner import JobRunner
from handlers.provisioner.journal import BuildJournal
from handlers.provisioner.quota import QuotaLimits, Quotas
from handlers.provisioner.scheduler import QueuedJob, Scheduler
from handlers.publishing import deliver
from handlers.publishing.agent_files import PRESENCE_TTL
from handlers.sandbox.policy import Confinement
from handlers.supervise import run_until_one_ends

BUILDS: Final = 8
"""Builds at once."""
HEARTBEAT: Final = 5.0
"""Seconds between two signs that a job is still being worked; 30 would be its end."""
IN_HAND: Final = 64
"""Jobs that are taken but not answered yet, those that wait for another of their workspace too."""
NO_LIMIT: Final = QuotaLimits()
PLAIN: Final = Confinement()
SPREAD: Final = 1.0
"""Seconds over which provisioners that are all asked at once spread their answers."""
AGENT: Final = (sys.executable, "-P", "-m", "handlers.agent")
"""Starts an agent, its configuration's path being added: a process that needs nothing of ours."""

_log = logging.getLogger(__name__)


class Provisioner:
    """The local provisioner: builds on this machine, in directories under `root`."""

    def __init__(
        self,
        bus: Bus,
        *,
        name: str,
        pool: str,
        root: Path,
        nats_url: str,
        nats_ca: Path | None = None,
        environ: Mapping[str, str],
        quota_limits: QuotaLimits = NO_LIMIT,
        confinement: Confinement = PLAIN,
        builds: int = BUILDS,
        heartbeat: float = HEARTBEAT,
        agent_command: Sequence[str] = AGENT,
        presence_ttl: float = PRESENCE_TTL,
        ready: asyncio.Event | None = None,
    ) -> None:
        self._bus, self._pool, self._root = bus, pool, root.resolve()
        self._name, self._nats_url, self._nats_ca = name, nats_url, nats_ca
        self._environ = environ
        self._heartbeat, self._builds, self._agent_command = heartbeat, builds, agent_command
        self._limits, self._stopped = quota_limits, asyncio.Event()
        self._in_hand: set[Delivery] = set()
        self._presence_ttl, self._confinement = presence_ttl, confinement
        self._alive = self._root / "alive"
        """Changed whenever jobs in hand were said to be worked: until when they surely are ours."""
        self.ready = ready or asyncio.Event()

    def stop(self) -> None:
        """Make `run` return: steps are ended and their jobs come again; agents go on."""
        self._stopped.set()

    async def run(self) -> None:
        """Work until stopped. Raises CannotServe when another provisioner has this `root`."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _owning(self._root):
            workspaces = self._root / "workspaces"
            journal = BuildJournal(self._root / "journal")
            archives = Archives(self._bus, self._root / "templates", workspaces)
            await archives.prune()
            quotas = Quotas(journal, workspaces, self._limits)
            agents = AgentSupervisor(
                self._bus,
                workspaces,
                command=self._agent_command,
                nats_url=self._nats_url,
                nats_ca=self._nats_ca,
                confinement=self._confinement,
            )
            builder = Builder(
                workspaces,
                archives,
                quotas,
                environ=self._environ,
                nats_url=self._nats_url,
                nats_ca=self._nats_ca,
                confinement=self._confinement,
                presence_ttl=self._presence_ttl,
            )
            runner = JobRunner(
                self._bus,
                name=self._name,
                journal=journal,
                builder=builder,
                agents=agents,
                quotas=quotas,
                ledgers=self._root / "logs",
            )
            scheduler = Scheduler(runner.run, self._builds)
            for record in journal.records():
                agents.ensure(record)
            await self._give_back(journal)
            asked = asyncio.Event()
            # After a restart the workers may have missed what was said last.
            asked.set()
            self.ready.set()
            _log.info("provisioner is ready")
            try:
                await run_until_one_ends(
                    self._take(scheduler, runner),
                    self._keep_alive(),
                    self._hear(asked, agents),
                    self._say_again(asked, journal),
                    self._stopped.wait(),
                )
            finally:
                await scheduler.cancel()
                await self._leave()
                await agents.leave()

    async def _give_back(self, journal: BuildJournal) -> None:
        """Have come again at once what we were building when we were killed.

        Later than this it may be in another's hands; then it came again by itself.
        """
        ours = pool_consumer(self._pool).ack_wait - self._heartbeat
        if not (self._alive.exists() and time.time() - self._alive.stat().st_mtime < ours):
            return
        for build in journal.unfinished():
            if build.reply:
                with suppress(BusError):
                    await self._bus.send(build.reply, NAK)

    async def _leave(self) -> None:
        """Give back what is in hand: we build no more."""
        self._alive.unlink(missing_ok=True)
        for delivery in self._in_hand:
            with suppress(BusError):
                await delivery.nak()

    async def _take(self, scheduler: Scheduler, runner: JobRunner) -> None:
        """Take jobs, until cancelled; a pool that no template has named yet has no consumer.

        Raises CannotServe when none may ever be taken.
        """
        consumer, backoff = pool_consumer(self._pool), Backoff()
        took, told = False, ""
        while True:
            try:
                async with self._bus.pull(consumer, prefetch=IN_HAND) as pull:
                    while True:
                        for delivery in await pull.next(IN_HAND):
                            self._accept(delivery, scheduler, runner)
                        took, told = True, ""
                        backoff.reset()
            except BusError as no:
                if isinstance(no, Refused) and not took:
                    raise CannotServe(
                        f"this key is not allowed to take jobs of pool {self._pool}: it is good for "
                        "another pool, or another role; see --pool, --name and `workspaced "
                        f"credentials list` ({no})"
                    ) from no
                words = f"no jobs of pool {self._pool} can be taken now: {no}"
                if isinstance(no, NoConsumer) and not took:
                    words = f"no template of pool {self._pool} was pushed yet; waiting"
                if words != told:
                    _log.info("%s", words)
                    told = words
            await backoff.wait()

    def _accept(self, delivery: Delivery, scheduler: Scheduler, runner: JobRunner) -> None:
        self._in_hand.add(delivery)
        self._show_life()

        async def over(*, answered: bool) -> None:
            self._in_hand.discard(delivery)
            if answered:
                with suppress(BusError):
                    await delivery.ack()

        try:
            job = read_job(delivery.data)
            queued = QueuedJob(job, job, None, over)
        except BadJob as bad:
            _log.error("a job of pool %s can't be read: %s", self._pool, bad)
            if bad.head is None:
                # Nobody can be answered; kept, it would only come again.
                scheduler.spawn(over(answered=True))
                return
            queued = QueuedJob(bad.head, None, str(bad), over)
        queued.reply = delivery.reply
        until = None if queued.job is None else queued.job.not_after
        queued.late = until is not None and datetime.now(UTC) > until
        queued.highest = runner.highest(queued.head)
        scheduler.add(queued)

    async def _keep_alive(self) -> None:
        """Tell the server that what is in hand is being worked."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat):
                    await self._stopped.wait()
                return
            if not (self._in_hand and self._bus.connected):
                continue
            for delivery in list(self._in_hand):
                with suppress(BusError):
                    await delivery.in_progress()
            self._show_life()

    def _show_life(self) -> None:
        """Note for whoever comes after us that the jobs in hand are ours now."""
        try:
            self._alive.touch()
        except OSError as no:  # it would only give them back sooner
            _log.warning("%s can't be changed: %s", self._alive, no)

    async def _hear(self, asked: asyncio.Event, agents: AgentSupervisor) -> None:
        def resend() -> None:
            asked.set()
            agents.renew()

        await call_on_message(self._bus, subjects.RESEND_PROVISIONER, resend, Backoff())

    async def _say_again(self, asked: asyncio.Event, journal: BuildJournal) -> None:
        """Publish the newest facts of each workspace again, as they were, whenever asked."""
        while True:
            await asked.wait()
            with suppress(TimeoutError):
                spread = random.uniform(0, SPREAD)  # noqa: S311 — no secret
                async with asyncio.timeout(spread):
                    await self._stopped.wait()
            asked.clear()
            for fact in journal.newest_facts():
                try:
                    await deliver(self._bus, fact)
                except Refused as no:
                    _log.error("fact %s is refused: %s", fact.identity, no)


@contextmanager
def _owning(root: Path) -> Iterator[None]:
    """Hold the directory: two provisioners in one would build over each other."""
    held = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotServe(
                f"{root} is in use by another provisioner (that of `up`?): stop it, or choose "
                "another --name or --data-dir"
            ) from None
        yield
    finally:
        os.close(held)
