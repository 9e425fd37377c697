"""One run of a provisioner: it takes jobs, has them built in order, and reports and repeats their facts."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from workspaced import subjects
from workspaced.build_log import BuildLog
from workspaced.errors import WorkspacedError
from workspaced.events import Fact, new_fact
from workspaced.provisioning.jobs import BadJob, BuildFailed, Built, Job, JobHead, read_cancel
from workspaced.provisioning.journal import Build, Journal, KeptJobs, Workspace
from workspaced.provisioning.link import Delivery, Link, NoDelivery
from workspaced.provisioning.scheduler import QueuedJob, Scheduler
from workspaced.tasks import cancel_and_wait, together

BUILDS: Final = 8
"""Builds that run at the same time."""
HEARTBEAT: Final = 5.0
"""Seconds between two `+WPI` of a job; without one for 30 s it is delivered again."""
_ACK_WAIT: Final = 30.0
_MOST_JOBS: Final = 64
"""Jobs taken and not answered yet, including those that wait for another job of their workspace."""
_SPREAD: Final = 1.0
"""Seconds over which provisioners spread the answers to a request that reaches all of them."""
_LAST_LINES: Final = 2.0
"""Seconds that the terminal fact waits at most for the last log lines to be sent before it."""
_CANCELS_KEPT: Final = 10_000
"""Requests to cancel that are remembered; workers repeat a request whenever its build is reported as begun."""
_ERROR_SIZE: Final = 4096
"""Characters of an error of the provisioner itself that are published."""
_CANCEL_REQUESTED: Final = "workspaced was asked to cancel it"
_OVERTAKEN: Final = "a newer build of the workspace was requested"

J = TypeVar("J", bound=Job)
W = TypeVar("W", bound=Workspace)
W_contra = TypeVar("W_contra", bound=Workspace, contravariant=True)
L = TypeVar("L", bound=BuildLog)
_log = logging.getLogger(__name__)


class Builds(Protocol[J, W_contra, L]):
    """Makes the builds of a provisioner; the session does everything else."""

    def read(self, body: bytes) -> J:
        """Read a job. Raises BadJob."""
        ...

    def new_log(self, head: JobHead, ledger: Path) -> L:
        """Return the log of a build."""
        ...

    def begin(self, job: J, record: W_contra) -> None:
        """Note in the workspace's record what a later process needs to know of a build that begins."""
        ...

    async def build(self, job: J, record: W_contra, log: L) -> Built:
        """Build. Raises BuildFailed, whose text contains no secret; another exception fails the build as well.

        It is cancelled if the build is canceled or the provisioner stops.
        """
        ...

    async def clean_up(self, job: J, record: W_contra, log: L) -> None:
        """Remove what a canceled build has left."""
        ...

    async def abandon(self, record: W_contra, build: Build) -> None:
        """Remove what a canceled build has left after whose begin a newer one began, or whose job can't be read."""
        ...

    def ended(self, record: W_contra) -> None:
        """Continue after a build of the workspace has ended and is saved, perhaps by an earlier process."""
        ...

    def resend(self) -> None:
        """Do what is necessary besides publishing facts again, when workers ask for that."""
        ...


class Cancels:
    """The builds that workers have asked to cancel, the newest requests last."""

    def __init__(self) -> None:
        self._builds: dict[str, None] = {}

    def add(self, build_id: str) -> None:
        """Remember a build, and forget the oldest one if there are too many."""
        self._builds[build_id] = None
        if len(self._builds) > _CANCELS_KEPT:
            del self._builds[next(iter(self._builds))]

    def __contains__(self, build_id: str) -> bool:
        return build_id in self._builds


class Session(Generic[J, W, L]):
    """Serves a pool, from its connection to the end of it. `directory` is this provisioner's alone."""

    def __init__(
        self,
        link: Link,
        builds: Builds[J, W, L],
        journal: Journal[W],
        *,
        pool: str,
        name: str,
        directory: Path,
        concurrency: int = BUILDS,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        self._link, self._builds, self.journal = link, builds, journal
        self._pool, self._name, self._heartbeat = pool, name, heartbeat
        self._ledgers = directory / "logs"
        self._ledgers.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._jobs = KeptJobs(directory / "jobs")
        self._alive = directory / "alive"
        """A file whose modification time is the last in-progress reply: until then, jobs in hand are ours."""
        self._scheduler: Scheduler[J] = Scheduler(self._run_job, concurrency)
        self._unanswered: dict[Delivery, None] = {}
        self._cancels = Cancels()
        self._ending: set[str] = set()
        """Builds that have ended and whose terminal fact is not stored yet; facts after it wait for it."""
        self._early_exits: dict[str, dict[str, Mapping[str, Any]]] = {}
        """The ends of agents reported before the build that lists them ended: by workspace, then by agent."""
        self._leaving = asyncio.Event()

    async def run(self, ready: asyncio.Event | None = None) -> None:
        """Serve until cancelled; jobs in hand are then handed back. Sets `ready` when it begins.

        Raises WorkspacedError if it can't serve any more.
        """
        resend_requested, resend_open = asyncio.Event(), asyncio.Event()
        self._jobs.drop_all_except({build.build_id for build in self.journal.unfinished()})
        await self._hand_back_unfinished()
        # Workers may have missed the last facts of the process before.
        resend_requested.set()
        _log.info("provisioner is ready: %s serves pool %s", self._name, self._pool)
        if ready is not None:
            ready.set()

        def resend(_: bytes) -> None:
            resend_requested.set()
            self._builds.resend()

        try:
            await together(
                self._take_jobs(),
                self._send_in_progress(),
                # A request to cancel that was missed is repeated when its build is reported as begun.
                self._link.listen(subjects.cancel(self._pool), self._cancel, resend_open.set),
                self._link.listen(subjects.RESEND, resend, lambda: None),
                self._resend(resend_requested, self.journal.newest_facts, _SPREAD),
                self._resend(resend_open, self.journal.open_facts, 0),
            )
        finally:
            self._leaving.set()
            await self._scheduler.cancel()
            self._alive.unlink(missing_ok=True)
            for delivery in self._unanswered:
                await delivery.nak()

    # -- jobs ----------------------------------------------------------------------------------

    async def _hand_back_unfinished(self) -> None:
        """Hand back the jobs that the process before this one was building when it was killed.

        After the ack wait a job may be in the hands of another provisioner, so then nothing is done.
        """
        ours = _ACK_WAIT - self._heartbeat
        if not (self._alive.exists() and time.time() - self._alive.stat().st_mtime < ours):
            return
        for build in self.journal.unfinished():
            if build.reply:
                await self._link.hand_back(build.reply)

    async def _take_jobs(self) -> None:
        async with aclosing(self._link.jobs(self._pool, _MOST_JOBS)) as deliveries:
            async for delivery in deliveries:
                await self._accept(delivery)

    async def _accept(self, delivery: Delivery) -> None:
        try:
            job = self._builds.read(delivery.data)
            queued: QueuedJob[J] = QueuedJob(job, job, "", delivery, late=job.late)
        except BadJob as error:
            _log.error("a job of pool %s can't be read: %s", self._pool, error)
            if error.head is None:
                # It can't be answered, and without an ack it would be redelivered for ever.
                await delivery.ack()
                return
            queued = QueuedJob(error.head, None, str(error), delivery)
        self._unanswered[delivery] = None
        self._touch_alive_file()
        self._schedule(queued)

    def _schedule(self, queued: QueuedJob[J]) -> None:
        head = queued.head
        queued.highest = self.journal.of(head.workspace_id, head.chat_id).highest
        if head.build_id in self._cancels:
            queued.cancel(_CANCEL_REQUESTED)
        self._scheduler.add(queued)

    async def _send_in_progress(self) -> None:
        """Tell the server regularly that the jobs in hand are in progress."""
        while True:
            await self._pause(self._heartbeat)
            if self._unanswered and self._link.connected:
                for delivery in list(self._unanswered):
                    await delivery.in_progress()
                self._touch_alive_file()

    def _touch_alive_file(self) -> None:
        """Record for the next process that the jobs in hand are ours now."""
        try:
            self._alive.touch()
        except OSError as error:  # the next process would only hand the jobs back later
            _log.warning("%s can't be changed: %s", self._alive, error)

    async def _run_job(self, queued: QueuedJob[J]) -> None:
        """Answer a job, and ack it when its terminal fact is stored."""
        try:
            await self._answer(queued)
        except Exception:  # noqa: BLE001 — it must not stop other jobs
            # Its job comes again, to this provisioner or another one.
            _log.exception("build %s can't be answered", queued.head.build_id)
            self._unanswered.pop(queued.delivery, None)
        else:
            self._unanswered.pop(queued.delivery, None)
            await queued.delivery.ack()

    async def _answer(self, queued: QueuedJob[J]) -> None:
        """Publish the facts of the job's build: all of one that has ended, else those that are missing."""
        head = queued.head
        record = self.journal.of(head.workspace_id, head.chat_id)
        build = record.find(head.build_id)
        if build is not None and build.finished:
            # It was redelivered: its ack was lost.
            self._builds.ended(record)
            for fact in build.facts:
                await self._store(fact)
            return
        begun, newer_begun = build is not None, head.build_number < record.highest
        if head.build_number < max(queued.highest, record.highest):
            queued.cancel(_OVERTAKEN)
        build = build or record.add(Build(head.build_id, head.build_number, head.transition))
        canceled = queued.canceled.is_set()
        removable = queued.job is not None and not newer_begun
        if (canceled and not (begun and removable)) or (queued.late and not begun):
            if begun:
                await self._abandon(record, build)
            self._finish(record, build, head, None)
            end = build.facts[-1]
            if begun:
                self._builds.ended(record)
            await self._store(end)
        else:
            await self._run_build(queued, record, build)

    async def _run_build(self, queued: QueuedJob[J], record: W, build: Build) -> None:
        """Run the build and publish its terminal fact. Any error in here makes the build fail."""
        head, ledger = queued.head, self._ledgers / f"{queued.head.build_id}.json"
        log = self._builds.new_log(head, ledger)
        tasks = [asyncio.create_task(log.run())]
        try:
            try:
                if queued.job is None:
                    raise BuildFailed(f"The job can't be read: {queued.problem}")
                self._begin(queued, queued.job, record, build)
                # In a task: the build goes on even if NATS is unavailable.
                tasks.append(asyncio.create_task(self._publish(build.facts[0])))
                outcome = await self._outcome(queued, queued.job, record, log)
            except BuildFailed as failure:
                outcome = failure
            except Exception as fault:  # noqa: BLE001 — any error becomes a build_failed
                _log.exception("build %s failed in the provisioner", head.build_id)
                outcome = provisioner_fault(fault)
            outcome = self._finish(record, build, head, outcome)
            ends_at = len(build.facts) - 1
            # From now on its agents may end, which adds facts.
            self._ending.add(head.build_id)
            for agent_id, ended in self._early_exits.pop(head.workspace_id, {}).items():
                self._add_exit(head.workspace_id, agent_id, ended)
            self._builds.ended(record)
            if isinstance(outcome, BuildFailed):
                log.verdict(head.transition, f"{outcome}\n")
            # So that readers see the last lines before the terminal fact.
            await log.drained(_LAST_LINES)
            for started in tasks[1:]:
                await started
            await self._store(build.facts[ends_at])
            self._ending.remove(head.build_id)
            for fact in build.facts[ends_at + 1 :]:
                await self._publish(fact)
        finally:
            self._ending.discard(head.build_id)
            await cancel_and_wait(*tasks)
            log.close()
        with suppress(OSError):
            ledger.unlink(missing_ok=True)

    def _begin(self, queued: QueuedJob[J], job: J, record: W, build: Build) -> None:
        """Save that the build has begun. Raises OSError."""
        job.again = bool(build.facts)
        job.be_canceled_by(queued.canceled)
        self._builds.begin(job, record)
        self._jobs.keep(job.build_id, queued.delivery.data)
        record.name, build.reply = job.workspace_name, queued.delivery.reply
        if not build.facts:
            build.facts.append(self._fact(job, "build_started", _names(job)))
        self.journal.save(record)

    async def _outcome(
        self, queued: QueuedJob[J], job: J, record: W, log: L
    ) -> Built | BuildFailed | None:
        """Run the build to its end, or until it is canceled; return None if it was canceled."""
        if not queued.canceled.is_set():
            building = asyncio.ensure_future(self._builds.build(job, record, log))
            canceled = asyncio.ensure_future(queued.canceled.wait())
            try:
                await asyncio.wait((building, canceled), return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel_and_wait(building, canceled)
            if not building.cancelled():
                error = building.exception()
                if error is None:
                    return building.result()
                if not queued.canceled.is_set():
                    raise error
                _log.error("build %s failed when it was canceled: %s", job.build_id, error)
            elif not queued.canceled.is_set():
                raise BuildFailed("The build has cancelled itself.")
        text = f"This build is canceled because {queued.canceled_because}.\n"
        log.write(job.transition, "warn", text)
        try:
            await self._builds.clean_up(job, record, log)
        except Exception as error:  # noqa: BLE001 — the build is canceled nevertheless
            _log.exception("what build %s has left can't be removed", job.build_id)
            log.write("delete", "warn", f"What the build has left can't be removed: {error}\n")
        return None

    def _finish(
        self, record: W, build: Build, head: JobHead, outcome: Built | BuildFailed | None
    ) -> Built | BuildFailed | None:
        """Save the outcome of the build, before it is published, and return it.

        A success that can't be saved is turned into a failure, because its agents could not be found again.
        Any other outcome is published even if it can't be saved: otherwise the job would be redelivered for ever.
        """
        before = record.copy()
        match outcome:
            case Built():
                agents = [agent.data() for agent in outcome.agents]
                version = {}
                if isinstance(head, Job) and head.template.version_id is not None:
                    version["template_version_id"] = head.template.version_id
                data = {**version, "agents": agents}
                build.facts.append(self._fact(head, "build_succeeded", data))
                record.succeed(head.transition, [agent.id for agent in outcome.agents])
            case BuildFailed():
                build.facts.append(self._fact(head, "build_failed", outcome.data()))
            case None:
                build.facts.append(self._fact(head, "build_canceled"))
        build.finished = True
        try:
            self.journal.save(record)
        except OSError as error:
            _log.exception("the end of build %s can't be saved", head.build_id)
            if isinstance(outcome, Built):
                build.facts.pop()
                record.restore(before)
                record.agents = []
                return self._finish(record, build, head, provisioner_fault(error))
        self._jobs.drop(build.build_id)
        _log.info(
            "%s build %s of workspace %s %s",
            *(head.transition, head.build_id, head.workspace_id, _in_words(outcome)),
        )
        return outcome

    def _fact(self, head: JobHead, type_name: str, more: Mapping[str, Any] | None = None) -> Fact:
        data = {**head.data(), **(more or {})}
        return new_fact(type_name, self._name, head.chat_id, data, head.traceparent)

    # -- cancels -------------------------------------------------------------------------------

    def _cancel(self, request: bytes) -> None:
        """End the build of the request, or remember the request until its job arrives."""
        if (cancel := read_cancel(request)) is None:
            return
        workspace_id, build_id = cancel
        self._cancels.add(build_id)
        jobs = self._scheduler.find(workspace_id, build_id)
        for queued in jobs:
            _log.info("build %s is canceled: %s", build_id, _CANCEL_REQUESTED)
            queued.cancel(_CANCEL_REQUESTED)
        if not jobs:
            self._scheduler.spawn(self._answer_without_job(workspace_id, build_id))

    async def _answer_without_job(self, workspace_id: str, build_id: str) -> None:
        """Answer the request to cancel a build that began here and whose job is not in hand.

        If the build has ended, its terminal fact, and what follows it, is published again. Otherwise the process
        that began it was killed, and its job may be gone: workers take the job of a canceled build out of the
        queue as long as they do not know that it has begun. Then the build ends here, with the job that was kept,
        in the queue of its workspace: if its job arrives meanwhile, it finds that the build has ended.
        """
        record = self.journal.find(workspace_id)
        build = None if record is None else record.find(build_id)
        if record is None or build is None:
            return
        if build.finished:
            for fact in build.facts[1:] or build.facts:
                await self._publish(fact)
        elif not self._scheduler.find(workspace_id, build_id):
            head = JobHead.model_validate(
                {
                    "chat_id": record.chat_id,
                    "workspace_id": workspace_id,
                    "build_id": build_id,
                    "build_number": build.number,
                    "transition": build.transition,
                    "traceparent": build.traceparent,
                }
            )
            job, problem = self._kept_job(build_id)
            self._schedule(QueuedJob(job or head, job, problem, NoDelivery()))

    def _kept_job(self, build_id: str) -> tuple[J | None, str]:
        """Return the job that was kept when the build began; else None, and why."""
        if (body := self._jobs.find(build_id)) is None:
            return None, "it is not in hand"
        try:
            return self._builds.read(body), ""
        except BadJob as error:
            return None, str(error)

    async def _abandon(self, record: W, build: Build) -> None:
        """Remove what a canceled build has left, if a newer build has begun or its job is not known."""
        try:
            await self._builds.abandon(record, build)
        except Exception:  # noqa: BLE001 — the build is canceled nevertheless
            _log.exception("what build %s has left can't be removed", build.build_id)

    # -- facts ---------------------------------------------------------------------------------

    async def report_exit(self, workspace_id: str, agent_id: str, ended: Mapping[str, Any]) -> None:
        """Save that an agent is gone and not started again, and publish it after its build's success.

        `ended` has what is known of `exit_code`, `signal` and `output`. An agent that no build lists yet may be
        one of the build that is under way: then this is remembered until the build ends.
        """
        record = self.journal.find(workspace_id)
        listed = record is not None and record.creator_of(agent_id) is not None
        if not listed and self._scheduler.has(workspace_id):
            self._early_exits.setdefault(workspace_id, {})[agent_id] = ended
        elif (build := self._add_exit(workspace_id, agent_id, ended)) is not None:
            fact = build.facts[-1]
            if build.build_id not in self._ending:
                await self._publish(fact)

    def _add_exit(self, workspace_id: str, agent_id: str, ended: Mapping[str, Any]) -> Build | None:
        """Save that an agent is gone; return the build that created it, or None if the agent should not run."""
        record = self.journal.find(workspace_id)
        build = None if record is None else record.creator_of(agent_id)
        if record is None or build is None:
            _log.warning(
                "the end of agent %s is not reported: no build of workspace %s lists this agent",
                *(agent_id, workspace_id),
            )
            return None
        if agent_id not in record.agents:
            return None
        data = {
            "workspace_id": workspace_id,
            "build_id": build.build_id,
            "build_number": build.number,
            "agent_id": agent_id,
            **ended,
        }
        fact = new_fact("agent_exited", self._name, record.chat_id, data, build.traceparent)
        build.facts.append(fact)
        record.agents.remove(agent_id)
        try:
            self.journal.save(record)
        except OSError:  # the next process reports it
            _log.exception("the end of agent %s can't be saved", agent_id)
        return build

    async def report_stop(self, workspace_id: str) -> None:
        """Report a stop made elsewhere, unless the workspace does not run or a build is under way."""
        record = self.journal.find(workspace_id)
        if record is None or not record.running or self._scheduler.has(workspace_id):
            return
        await self._save_and_publish(record, record.stop_elsewhere(self._name))

    async def report_deletion(self, workspace_id: str) -> None:
        """Report that a workspace is gone, unless a build of it is under way or it was deleted."""
        record = self.journal.find(workspace_id)
        if record is None or record.deleted or self._scheduler.has(workspace_id):
            return
        await self._save_and_publish(record, record.vanish(self._name))

    async def _save_and_publish(self, record: W, facts: list[Fact]) -> None:
        self.journal.save(record)
        for fact in facts:
            await self._publish(fact)

    async def _resend(
        self, requested: asyncio.Event, facts: Callable[[], list[Fact]], spread: float
    ) -> None:
        """Publish facts again, unchanged, on each request, within `spread` seconds."""
        while True:
            await requested.wait()
            await self._pause(random.uniform(0, spread))  # noqa: S311 — no secret
            requested.clear()
            for fact in facts():
                await self._publish(fact)

    async def _publish(self, fact: Fact) -> None:
        try:
            await self._store(fact)
        except WorkspacedError as error:
            _log.error("fact %s is refused: %s", fact.identity, error)

    async def _store(self, fact: Fact) -> None:
        await self._link.store(fact.subject, fact.body.encode(), fact.identity)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not longer than until this provisioner leaves."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._leaving.wait()


def provisioner_fault(fault: Exception) -> BuildFailed:
    """Return the failure for an error of the provisioner itself."""
    message = str(fault) if isinstance(fault, OSError) else f"{type(fault).__name__}: {fault}"
    error = f"The provisioner could not run this build: {message}"[:_ERROR_SIZE]
    return BuildFailed(error.encode(errors="replace").decode())


def _names(job: Job) -> dict[str, str]:
    """Return the names and ids with which a chat can recover a workspace that its database has lost."""
    given = {
        "workspace_name": job.workspace_name,
        "owner_name": job.owner_name,
        "template_id": job.template.id,
        "template_version_id": job.template.version_id,
    }
    return {key: value for key, value in given.items() if value}


def _in_words(outcome: Built | BuildFailed | None) -> str:
    match outcome:
        case Built():
            return "has succeeded"
        case BuildFailed():
            return f"has failed: {outcome}"
        case None:
            return "was canceled"
