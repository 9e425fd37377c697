"""One job from its turn to its ack: what is answered from the journal, and what is built."""

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
from handlers.provisioner.job import Head, Job
from handlers.provisioner.journal import BuildJournal, BuildRecord, WorkspaceRecord
from handlers.provisioner.quota import Quotas
from handlers.provisioner.scheduler import QueuedJob
from handlers.provisioner.step import Failed
from handlers.publishing import BuildLog, FactMessage, deliver, new_fact
from handlers.supervise import cancel_and_wait, run_until_one_ends
from statemachine.events import Transition

_LAST_LINES: Final = 2.0
"""Seconds that a build's end waits at most for its lines to leave before it."""

_ERROR_SIZE: Final = 4096
"""Characters of an error of the provisioner that are told."""

_log = logging.getLogger(__name__)


class Canceled:
    """The build was ended because its workspace is to be deleted."""


Outcome = Succeeded | Failed | Canceled


class JobRunner:
    """Works jobs; each is answered by one terminal fact, the same one however often it comes."""

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

    def highest(self, head: Head) -> int:
        """Return the highest number seen of the job's workspace."""
        return self._journal.of(head).highest

    async def run(self, queued: QueuedJob) -> None:
        """Answer the job, and ack it once its terminal fact is stored."""
        head, record = queued.head, self._journal.of(queued.head)
        build = record.find(head.build_id)
        if build is not None and build.finished:
            # It came again: its ack was lost, or the bus forgot that it was done.
            self._agents.ensure(record)
            for fact in build.facts:
                await deliver(self._bus, fact)
        else:
            highest = max(queued.highest, record.highest)
            begun = build is not None
            build = build or record.add(head)
            if head.build_number < highest or (queued.late and not begun):
                self._finish(record, build, head, Canceled())
                await deliver(self._bus, build.facts[-1])
            else:
                await self._build(queued, record, build)
        await queued.over(answered=True)

    async def _build(self, queued: QueuedJob, record: WorkspaceRecord, build: BuildRecord) -> None:
        """Build it, and state how it ended: whatever is raised here is the end of this build."""
        head, log = queued.head, self._log_of(queued.head)
        logging_ = asyncio.create_task(log.run())
        announced: asyncio.Task[None] | None = None
        try:
            try:
                if queued.job is None:
                    outcome: Outcome = Failed(f"The job can't be read: {queued.problem}")
                else:
                    self._begin(queued, queued.job, record, build)
                    # Beside the build, which goes on while there is no bus.
                    announced = asyncio.create_task(self._announce(build.facts[0]))
                    await self._agents.shut_down(record)
                    if record.agents:
                        record.agents = []
                        self._journal.save(record)
                    outcome = await self._outcome(queued, queued.job, record, log)
            except Exception as fault:  # noqa: BLE001 — whatever it is, the chat hears of it
                _log.exception("build %s could not be worked", head.build_id)
                outcome = _fault(fault)
            outcome = self._finish(record, build, head, outcome)
            self._quotas.release(head.workspace_id)
            self._agents.ensure(record)
            if isinstance(outcome, Failed):
                log.verdict(head.transition.value, f"{outcome.error}\n")
            # Those who watch see the last lines before they see the end.
            await log.drained(_LAST_LINES)
            if announced is not None:
                await announced
            await deliver(self._bus, build.facts[-1])
        finally:
            self._quotas.release(head.workspace_id)
            tasks = [task for task in (announced, logging_) if task is not None]
            await cancel_and_wait(*tasks)
            log.close()
        with suppress(OSError):
            (self._ledgers / f"{head.build_id}.json").unlink(missing_ok=True)

    async def _announce(self, fact: FactMessage) -> None:
        try:
            await deliver(self._bus, fact)
        except Refused as no:
            _log.error("the begin of a build can't be told: %s", no)

    def _begin(
        self, queued: QueuedJob, job: Job, record: WorkspaceRecord, build: BuildRecord
    ) -> None:
        """Write down that the build has begun. Raises OSError."""
        changed = self._identify(record, job) or build.reply != queued.reply
        build.reply = queued.reply
        if not build.facts:
            self._state(build, job, "build_started", _whose(job))
            changed = True
        if changed:
            self._journal.save(record)

    def _identify(self, record: WorkspaceRecord, job: Job) -> bool:
        """Note whose the workspace is, and whether it is still to come to be; tell of a change."""
        starts = job.transition is Transition.START
        new = record.new or (starts and not self._builder.has(job.workspace_id))
        before = (record.owner_id, record.name, record.new)
        record.owner_id = job.owner_id or record.owner_id
        record.name, record.new = job.workspace_name, new
        return before != (record.owner_id, record.name, record.new)

    def _log_of(self, head: Head) -> BuildLog:
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
        self, queued: QueuedJob, job: Job, record: WorkspaceRecord, log: BuildLog
    ) -> Outcome:
        async def call_off() -> Outcome:
            await queued.called_off.wait()
            log.write(job.transition.value, "warn", "The workspace is to be deleted.\n")
            return Canceled()

        build = self._builder.build(job, log, new=record.new)
        return await run_until_one_ends(build, call_off())

    def _finish(
        self, record: WorkspaceRecord, build: BuildRecord, head: Head, outcome: Outcome
    ) -> Outcome:
        """Write down how the build ended, before anybody is told; return how it did.

        A success that can't be written down is none: nobody would find its agents again. Any other
        end is told all the same, since the job would come again for ever else.
        """
        was_new = record.new
        match outcome:
            case Succeeded():
                self._state(build, head, "build_succeeded", outcome.data())
                record.agents = [config.agent_id for config in outcome.agents]
                record.new = record.new and head.transition is not Transition.START
            case Failed():
                self._state(build, head, "build_failed", outcome.data())
            case Canceled():
                self._state(build, head, "build_canceled")
            case _:
                assert_never(outcome)
        build.finished = True
        try:
            self._journal.save(record)
        except OSError as no:
            _log.exception("the end of build %s can't be written down", head.build_id)
            if isinstance(outcome, Succeeded):
                build.facts.pop()
                record.agents, record.new = [], was_new
                return self._finish(record, build, head, _fault(no))
        _log.info("build %s of workspace %s: %s", head.build_id, head.workspace_id, outcome)
        return outcome

    def _state(
        self, build: BuildRecord, head: Head, type_name: str, more: Mapping[str, Any] | None = None
    ) -> None:
        data = {
            "workspace_id": head.workspace_id,
            "build_id": head.build_id,
            "build_number": head.build_number,
            "transition": head.transition.value,
            **(more or {}),
        }
        fact = new_fact(
            "provisioner",
            self._name,
            head.chat_id,
            type_name,
            data,
            traceparent=head.traceparent,
        )
        build.facts.append(fact)


def _fault(fault: Exception) -> Failed:
    """Say of a build that the provisioner itself could not work it."""
    words = str(fault) if isinstance(fault, OSError) else f"{type(fault).__name__}: {fault}"
    error = f"The provisioner could not work this build: {words}"[:_ERROR_SIZE]
    return Failed(error.encode(errors="replace").decode())


def _whose(job: Job) -> dict[str, str]:
    """Return what a chat must know of a workspace that its database has forgotten."""
    said = {
        "workspace_name": job.workspace_name,
        "owner_name": job.owner_name,
        "template_id": job.template.id,
        "template_version_id": job.template.version_id,
    }
    return {key: value for key, value in said.items() if value}
