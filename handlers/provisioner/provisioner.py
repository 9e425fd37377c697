"""The local provisioner: it takes the jobs of one pool, and answers each with the facts of its build."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bus import NAK, Backoff, Bus, BusError, Delivery, NoConsumer, Refused, subjects
from bus.streams import pool_consumer
from bus.subscription import call_on_message
from handlers.errors import CannotServe
from handlers.provisioner.agent_exits import AgentExits
from handlers.provisioner.agent_supervisor import AgentSupervisor
from handlers.provisioner.archive import Archives
from handlers.provisioner.builder import Builder
from handlers.provisioner.cancels import Cancels, read_cancel
from handlers.provisioner.job import BadJob, read_job
from handlers.provisioner.job_runner import JobRunner
from handlers.provisioner.journal import BuildJournal
from handlers.provisioner.quota import QuotaLimits, Quotas
from handlers.provisioner.scheduler import QueuedJob, Scheduler
from handlers.provisioner.start_check import StartCheck
from handlers.publishing import OutgoingEvent, deliver
from handlers.publishing.agent_files import PRESENCE_TTL
from handlers.runtime.supervise import run_until_one_ends
from handlers.sandbox.policy import Confinement
from handlers.sandbox.processes import machine_identity, umask_fault

BUILDS: Final = 8
"""Builds that run at the same time."""
HEARTBEAT: Final = 5.0
"""Seconds between two in-progress replies for a job; after 30 without one it is redelivered."""
MAX_UNANSWERED_JOBS: Final = 64
"""Jobs taken and not answered yet, including those that wait for another job of their workspace."""
NO_LIMIT: Final = QuotaLimits()
UNCONFINED: Final = Confinement()
SPREAD: Final = 1.0
"""Seconds over which provisioners spread the answers to a request that reaches all of them."""
AGENT: Final = (sys.executable, "-P", "-m", "handlers.agent")
"""The command that starts an agent; the path of its configuration is appended."""

_CANCEL_REQUESTED: Final = "workspaced was asked to cancel it"

_log = logging.getLogger(__name__)


class Provisioner:
    """The provisioner that builds on this machine, in directories below `root`."""

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
        confinement: Confinement = UNCONFINED,
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
        self._unanswered: set[Delivery] = set()
        self._cancels = Cancels()
        self._presence_ttl, self._confinement = presence_ttl, confinement
        self._alive = self._root / "alive"
        """A file whose modification time is the last in-progress reply: until then, jobs in hand are ours."""
        self.ready = ready or asyncio.Event()

    def stop(self) -> None:
        """Make `run` return: running steps are ended and their jobs are redelivered; agents go on running."""
        self._stopped.set()

    async def run(self) -> None:
        """Work until stopped.

        Raises CannotServe if another provisioner uses `root`, the key may not take jobs, or the umask is unusable.

        """
        if (fault := umask_fault()) is not None:
            raise CannotServe(fault)
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _root_lock(self._root):
            workspaces = self._root / "workspaces"
            journal = BuildJournal(self._root / "journal")
            StartCheck(journal, workspaces, name=self._name, machine=machine_identity()).run()
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
                exits=AgentExits(self._bus, journal, name=self._name),
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
            await self._nak_unfinished(journal)
            resend_requested, resend_open = asyncio.Event(), asyncio.Event()
            # After a restart, workers may have missed the last facts.
            resend_requested.set()
            self.ready.set()
            _log.info("provisioner is ready")
            try:
                await run_until_one_ends(
                    self._take_jobs(scheduler, runner),
                    self._send_in_progress(),
                    self._serve_cancels(scheduler, runner, resend_open),
                    self._serve_resend_requests(resend_requested, agents),
                    self._resend_facts(resend_requested, journal.newest_facts, spread=SPREAD),
                    self._resend_facts(resend_open, journal.open_facts, spread=0),
                    self._stopped.wait(),
                )
            finally:
                await scheduler.cancel()
                await self._nak_unanswered()
                await agents.leave()

    async def _nak_unfinished(self, journal: BuildJournal) -> None:
        """Nak the jobs that this provisioner was building when it was killed.

        After the ack wait a job may be in the hands of another provisioner, so then nothing is done.

        """
        ours = pool_consumer(self._pool).ack_wait - self._heartbeat
        if not (self._alive.exists() and time.time() - self._alive.stat().st_mtime < ours):
            return
        for build in journal.unfinished():
            if build.reply:
                with suppress(BusError):
                    await self._bus.send(build.reply, NAK)

    async def _nak_unanswered(self) -> None:
        """Nak all jobs in hand when this provisioner stops."""
        self._alive.unlink(missing_ok=True)
        for delivery in self._unanswered:
            with suppress(BusError):
                await delivery.nak()

    async def _take_jobs(self, scheduler: Scheduler, runner: JobRunner) -> None:
        """Take jobs until cancelled. The pool has no consumer until a template names it.

        Raises CannotServe if this key may never take jobs.

        """
        consumer, backoff = pool_consumer(self._pool), Backoff()
        took_jobs, logged = False, ""
        while True:
            try:
                async with self._bus.pull(consumer, prefetch=MAX_UNANSWERED_JOBS) as pull:
                    while True:
                        for delivery in await pull.next(MAX_UNANSWERED_JOBS):
                            self._accept(delivery, scheduler, runner)
                        took_jobs, logged = True, ""
                        backoff.reset()
            except BusError as error:
                if isinstance(error, Refused) and not took_jobs:
                    raise CannotServe(
                        f"this key may not take jobs of pool {self._pool}: it is valid for "
                        "another pool or another role; see --pool, --name and `workspaced "
                        f"credentials list` ({error})"
                    ) from error
                message = f"jobs of pool {self._pool} can't be taken now: {error}"
                if isinstance(error, NoConsumer) and not took_jobs:
                    message = f"no template of pool {self._pool} has been pushed yet; waiting"
                if message != logged:
                    _log.info("%s", message)
                    logged = message
            await backoff.wait()

    def _accept(self, delivery: Delivery, scheduler: Scheduler, runner: JobRunner) -> None:
        self._unanswered.add(delivery)
        self._touch_alive_file()

        async def finish(*, answered: bool) -> None:
            self._unanswered.discard(delivery)
            if answered:
                with suppress(BusError):
                    await delivery.ack()

        try:
            job = read_job(delivery.data)
            queued = QueuedJob(job, job, None, finish)
        except BadJob as error:
            _log.error("a job of pool %s can't be read: %s", self._pool, error)
            if error.head is None:
                # It can't be answered, and without an ack it would be redelivered for ever.
                scheduler.spawn(finish(answered=True))
                return
            queued = QueuedJob(error.head, None, str(error), finish)
        queued.reply = delivery.reply
        until = None if queued.job is None else queued.job.not_after
        queued.late = until is not None and datetime.now(UTC) > until
        queued.highest = runner.highest(queued.head)
        if queued.head.build_id in self._cancels:
            queued.cancel(_CANCEL_REQUESTED)
        scheduler.add(queued)

    async def _send_in_progress(self) -> None:
        """Tell the server regularly that the jobs in hand are in progress."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat):
                    await self._stopped.wait()
                return
            if not (self._unanswered and self._bus.connected):
                continue
            for delivery in list(self._unanswered):
                with suppress(BusError):
                    await delivery.in_progress()
            self._touch_alive_file()

    def _touch_alive_file(self) -> None:
        """Record for the next process that the jobs in hand are ours now."""
        try:
            self._alive.touch()
        except OSError as error:  # the next process would only nak the jobs later
            _log.warning("%s can't be changed: %s", self._alive, error)

    async def _serve_cancels(
        self, scheduler: Scheduler, runner: JobRunner, resend_open: asyncio.Event
    ) -> None:
        """End the builds that workers ask to cancel, until cancelled.

        A request that was missed while disconnected is repeated when its build is reported as begun, so
        the facts of open builds are published again after each reconnect.

        """
        backoff, subject = Backoff(), subjects.cancel(self._pool)
        while True:
            try:
                async with self._bus.subscribe(subject) as messages:
                    resend_open.set()
                    backoff.reset()
                    while True:
                        message = await messages.next_or_reconnect()
                        if message is None:
                            resend_open.set()
                        else:
                            self._cancel(message.data, scheduler, runner)
            except BusError as error:
                _log.info("requests to cancel builds can't be received now: %s", error)
            await backoff.wait()

    def _cancel(self, request: bytes, scheduler: Scheduler, runner: JobRunner) -> None:
        """End the build of the request, or remember the request until its job arrives."""
        if (cancel := read_cancel(request)) is None:
            return
        self._cancels.add(cancel.build_id)
        jobs = scheduler.find(cancel.workspace_id, cancel.build_id)
        for queued in jobs:
            _log.info("build %s is canceled: %s", cancel.build_id, _CANCEL_REQUESTED)
            queued.cancel(_CANCEL_REQUESTED)
        if not jobs:
            scheduler.spawn(runner.repeat_end(cancel.workspace_id, cancel.build_id))

    async def _serve_resend_requests(
        self, resend_requested: asyncio.Event, agents: AgentSupervisor
    ) -> None:
        def resend() -> None:
            resend_requested.set()
            agents.renew()

        await call_on_message(self._bus, subjects.RESEND_PROVISIONER, resend, Backoff())

    async def _resend_facts(
        self, requested: asyncio.Event, facts: Callable[[], list[OutgoingEvent]], *, spread: float
    ) -> None:
        """Publish facts again, unchanged, on each request, within `spread` seconds."""
        while True:
            await requested.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(0, spread)):  # noqa: S311 — no secret
                    await self._stopped.wait()
            requested.clear()
            for fact in facts():
                try:
                    await deliver(self._bus, fact)
                except Refused as error:
                    _log.error("fact %s is refused: %s", fact.identity, error)


@contextmanager
def _root_lock(root: Path) -> Iterator[None]:
    """Hold the lock of the directory: two provisioners in one would overwrite each other's builds."""
    held = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotServe(
                f"{root} is in use by another provisioner (perhaps that of `workspaced up`): stop it, or choose "
                "another --name or --data-dir"
            ) from None
        yield
    finally:
        os.close(held)
