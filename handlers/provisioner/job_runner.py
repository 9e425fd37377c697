"""Runs one job: answers it from the journal if it was done before, otherwise builds and publishes facts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, assert_never

from bus import Bus, Refused
from handlers.provisioner.agent_supervisor import AgentSupervisor
from handlers.provisioner.builder import OWN_LOG, Builder, Succeeded
from handlers.provisioner.job import Job, JobHead
from handlers.provisioner.journal import BuildJournal, BuildRecord, LocalWorkspace
from handlers.provisioner.quota import Quotas
from handlers.provisioner.scheduler import QueuedJob
from handlers.provisioner.step import Failed
from handlers.publishing import BuildLog, OutgoingEvent, deliver, new_event
from handlers.runtime.supervise import cancel_and_wait, run_until_one_ends
from handlers.sandbox.processes import machine_identity
from statemachine.events import Transition

_LAST_LINES: Final = 2.0
"""Seconds that the terminal fact waits at most for the last log lines to be sent before it."""

_ERROR_SIZE: Final = 4096
"""Characters of an error of the provisioner that are published."""

_log = logging.getLogger(__name__)


class Canceled:
    """The build was ended before it could succeed or fail, or was not begun."""


JobOutcome = Succeeded | Failed | Canceled


class JobRunner:
    """Runs jobs. Each is answered by one terminal fact, the same one on every delivery."""

    def __init__(
        self,
        bus: Bus,
        *,
        name: str,
        journal: BuildJournal,
        builder: Builder,
        agents: AgentSupervisor,
        quotas: Quotas,
        ledgers: Path,
    ) -> None:
        self._bus, self._name, self._journal = bus, name, journal
        self._builder, self._agents, self._quotas = builder, agents, quotas
        self._ledgers = ledgers
        ledgers.mkdir(mode=0o700, parents=True, exist_ok=True)

    def highest(self, head: JobHead) -> int:
        """Return the highest known build number of the job's workspace."""
        return self._journal.of(head).highest

    async def run(self, queued: QueuedJob) -> None:
        """Answer the job, and ack it when its terminal fact is stored."""
        head, record = queued.head, self._journal.of(queued.head)
        build = record.find(head.build_id)
        if build is not None and build.finished:
            # It was redelivered: its ack was lost.
            self._agents.ensure(record)
            for fact in build.facts:
                await deliver(self._bus, fact)
        else:
            highest = max(queued.highest, record.highest)
            begun = build is not None
            build = build or record.add(head)
            unwanted = queued.late or queued.canceled.is_set()
            if head.build_number < highest or (unwanted and not begun):
                self._finish(record, build, head, Canceled())
                await deliver(self._bus, build.facts[-1])
            else:
                await self._build(queued, record, build)
        await queued.finish(answered=True)

    async def repeat_end(self, workspace_id: str, build_id: str) -> None:
        """Publish the terminal fact of a build again, and what follows it, if the build has ended here."""
        record = self._journal.find(workspace_id)
        build = None if record is None else record.find(build_id)
        if build is not None and build.finished:
            for fact in build.facts[1:] or build.facts:
                await self._publish(fact)

    async def _build(self, queued: QueuedJob, record: LocalWorkspace, build: BuildRecord) -> None:
        """Run the build and publish its terminal fact. Any error in here makes the build fail."""
        head, log = queued.head, self._log_of(queued.head)
        log_task = asyncio.create_task(log.run())
        publishing_started: asyncio.Task[None] | None = None
        try:
            try:
                if queued.job is None:
                    outcome: JobOutcome = Failed(f"The job can't be read: {queued.problem}")
                else:
                    self._begin(queued, queued.job, record, build)
                    # In a task: the build goes on even if NATS is unavailable.
                    publishing_started = asyncio.create_task(self._publish(build.facts[0]))
                    outcome = await self._outcome(queued, queued.job, record, log)
            except Exception as fault:  # noqa: BLE001 — any error becomes a build_failed
                _log.exception("build %s failed in the provisioner", head.build_id)
                outcome = _fault(fault)
            outcome = self._finish(record, build, head, outcome)
            self._quotas.release(head.workspace_id)
            self._agents.ensure(record)
            if isinstance(outcome, Failed):
                log.verdict(head.transition.value, f"{outcome.error}\n")
            # So that readers see the last lines before the terminal fact.
            await log.drained(_LAST_LINES)
            if publishing_started is not None:
                await publishing_started
            await deliver(self._bus, build.facts[-1])
        finally:
            self._quotas.release(head.workspace_id)
            tasks = [task for task in (publishing_started, log_task) if task is not None]
            await cancel_and_wait(*tasks)
            log.close()
        with suppress(OSError):
            (self._ledgers / f"{head.build_id}.json").unlink(missing_ok=True)

    async def _publish(self, fact: OutgoingEvent) -> None:
        try:
            await deliver(self._bus, fact)
        except Refused as error:
            _log.error("fact %s is refused: %s", fact.identity, error)

    def _begin(
        self, queued: QueuedJob, job: Job, record: LocalWorkspace, build: BuildRecord
    ) -> None:
        """Save that the build has begun. Raises OSError."""
        changed = self._update_identity(record, job) or build.reply != queued.reply
        build.reply = queued.reply
        if not build.facts:
            self._add_fact(build, job, "build_started", _workspace_identity(job))
            changed = True
        if changed:
            self._journal.save(record)

    def _update_identity(self, record: LocalWorkspace, job: Job) -> bool:
        """Set the workspace's owner, name and `new`; return whether anything changed."""
        starts = job.transition is Transition.START
        new = record.new or (starts and not self._builder.exists(job.workspace_id))
        before = (record.owner_id, record.name, record.new)
        record.owner_id = job.owner_id or record.owner_id
        record.name, record.new = job.workspace_name, new
        return before != (record.owner_id, record.name, record.new)

    def _log_of(self, head: JobHead) -> BuildLog:
        return BuildLog(
            head.chat_id,
            head.build_id,
            "provisioner",
            f"/provisioner/{self._name}",
            self._bus.send,
            ledger=self._ledgers / f"{head.build_id}.json",
            limit=OWN_LOG,
            traceparent=head.traceparent,
        )

    async def _outcome(
        self, queued: QueuedJob, job: Job, record: LocalWorkspace, log: BuildLog
    ) -> JobOutcome:
        async def build() -> JobOutcome:
            await self._agents.shut_down(record)
            if record.agents:
                record.agents = []
                self._journal.save(record)
            return await self._builder.build(job, log, new=record.new)

        async def cancel() -> JobOutcome:
            await queued.canceled.wait()
            return Canceled()

        outcome: JobOutcome = Canceled()
        if not queued.canceled.is_set():
            outcome = await run_until_one_ends(build(), cancel())
        if isinstance(outcome, Canceled):
            text = f"This build is canceled because {queued.canceled_because}.\n"
            log.write(job.transition.value, "warn", text)
            # They were asked to shut down when the build began.
            await self._agents.shut_down(record, at_once=True)
            record.agents = []
            await self._builder.clean_up(job, log, new=record.new)
        return outcome

    def _finish(
        self, record: LocalWorkspace, build: BuildRecord, head: JobHead, outcome: JobOutcome
    ) -> JobOutcome:
        """Save the outcome of the build, before it is published, and return it.

        A success that can't be saved is turned into a failure, because its agents could not be found again.
        Any other outcome is published even if it can't be saved: otherwise the job would be redelivered for ever.

        """
        was_new = record.new
        match outcome:
            case Succeeded():
                self._add_fact(build, head, "build_succeeded", outcome.data())
                record.agents = [config.agent_id for config in outcome.agents]
                if head.transition is Transition.START:
                    record.new, record.machine = False, machine_identity()
            case Failed():
                self._add_fact(build, head, "build_failed", outcome.data())
            case Canceled():
                self._add_fact(build, head, "build_canceled")
            case _:
                assert_never(outcome)
        build.finished = True
        try:
            self._journal.save(record)
        except OSError as error:
            _log.exception("the end of build %s can't be saved", head.build_id)
            if isinstance(outcome, Succeeded):
                build.facts.pop()
                record.agents, record.new = [], was_new
                return self._finish(record, build, head, _fault(error))
        _log.info(
            "%s build %s of workspace %s %s",
            *(head.transition.value, head.build_id, head.workspace_id, _in_words(outcome)),
        )
        return outcome

    def _add_fact(
        self,
        build: BuildRecord,
        head: JobHead,
        type_name: str,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        data = {
            "workspace_id": head.workspace_id,
            "build_id": head.build_id,
            "build_number": head.build_number,
            "transition": head.transition.value,
            **(more or {}),
        }
        fact = new_event(
            "provisioner",
            self._name,
            head.chat_id,
            type_name,
            data,
            traceparent=head.traceparent,
        )
        build.facts.append(fact)


def _fault(fault: Exception) -> Failed:
    """Return the failure for an error of the provisioner itself."""
    message = str(fault) if isinstance(fault, OSError) else f"{type(fault).__name__}: {fault}"
    error = f"The provisioner could not run this build: {message}"[:_ERROR_SIZE]
    return Failed(error.encode(errors="replace").decode())


def _workspace_identity(job: Job) -> dict[str, str]:
    """Return the names and ids with which a chat can recover a workspace that its database has lost."""
    data = {
        "workspace_name": job.workspace_name,
        "owner_name": job.owner_name,
        "template_id": job.template.id,
        "template_version_id": job.template.version_id,
    }
    return {key: value for key, value in data.items() if value}


def _in_words(outcome: JobOutcome) -> str:
    match outcome:
        case Succeeded():
            return "has succeeded"
        case Failed():
            return f"has failed: {outcome.error}"
        case Canceled():
            return "was canceled"
