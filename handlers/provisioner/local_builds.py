"""What the kit calls to build a job on this machine: agents end, the step runs, the agents start."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from workspaced.provisioning.jobs import Built, JobHead
from workspaced.provisioning.journal import Build, Journal
from workspaced.provisioning.session import provisioner_fault

from handlers.provisioner.agent_supervisor import AgentSupervisor
from handlers.provisioner.builder import OWN_LOG, Builder, Succeeded
from handlers.provisioner.job import Job, read_job
from handlers.provisioner.journal import LocalWorkspace
from handlers.provisioner.quota import Quotas
from handlers.provisioner.step import Failed
from handlers.publishing.build_log import BuildLog, Send
from statemachine.events import Transition

_LOST: Final = "The workspace's directory is gone from this machine, with all files in it: create a new workspace"
_log: Final = logging.getLogger(__name__)


class LocalBuilds:
    """Builds in the directories of workspaces, one at a time in each."""

    def __init__(
        self,
        send: Send,
        journal: Journal[LocalWorkspace],
        *,
        name: str,
        builder: Builder,
        agents: AgentSupervisor,
        quotas: Quotas,
    ) -> None:
        self._send, self._journal, self._name = send, journal, name
        self._builder, self._agents, self._quotas = builder, agents, quotas

    def read(self, body: bytes) -> Job:
        """Read a job. Raises BadJob."""
        return read_job(body)

    def new_log(self, head: JobHead, ledger: Path) -> BuildLog:
        """Return the log of a build, which leaves room for those of its agents."""
        return BuildLog(
            head.chat_id,
            head.build_id,
            "provisioner",
            f"/provisioner/{self._name}",
            self._send,
            ledger=ledger,
            limit=OWN_LOG,
            traceparent=head.traceparent,
        )

    def begin(self, job: Job, record: LocalWorkspace) -> None:
        """Set the workspace's owner, and `new`."""
        starts = job.transition is Transition.START
        record.new = record.new or (starts and self._builder.lacks(job.workspace_id))
        record.owner_id = job.owner_id or record.owner_id

    async def build(self, job: Job, record: LocalWorkspace, log: BuildLog) -> Built:
        """End the agents of the build before, and build. Raises BuildFailed."""
        try:
            outcome = self._builder.unusable() or await self._build(job, record, log)
        except Exception as fault:
            _log.exception("build %s failed in the provisioner", job.build_id)
            raise provisioner_fault(fault) from fault
        if isinstance(outcome, Failed):
            raise outcome.failure()
        return outcome.built()

    async def _build(self, job: Job, record: LocalWorkspace, log: BuildLog) -> Succeeded | Failed:
        await self._agents.shut_down(record)
        if record.agents:
            record.agents = []
            self._journal.save(record)
        starts = job.transition is Transition.START
        # A new directory would look like the old one until somebody misses their work.
        lost = starts and record.exists and self._builder.lacks(job.workspace_id)
        return Failed(_LOST) if lost else await self._builder.build(job, log, new=record.new)

    async def clean_up(self, job: Job, record: LocalWorkspace, log: BuildLog) -> None:
        """End the agents at once, which were asked to shut down when the build began, and remove files."""
        await self._agents.shut_down(record, at_once=True)
        record.agents = []
        await self._builder.clean_up(job, log, new=record.new)

    async def abandon(self, record: LocalWorkspace, build: Build) -> None:
        """End the agents and processes of the build and, if it was to start a new workspace, remove its files.

        The delete step does not run: it is in the job, which can't be read.
        """
        remove = False
        if record.newest is build:  # otherwise agents and files are those of a newer build
            await self._agents.shut_down(record, at_once=True)
            record.agents = []
            remove = record.new and build.transition == Transition.START.value
        await self._builder.abandon(record.workspace_id, build.build_id, remove=remove)

    def ended(self, record: LocalWorkspace) -> None:
        """Keep the workspace's agents running, or report that its files are gone.

        The journal decides now whether it counts for the quota.
        """
        self._quotas.release(record.workspace_id)
        if record.exists and self._builder.lacks(record.workspace_id):
            _log.error("workspace %s is gone: its directory was deleted", record.workspace_id)
            record.vanish(self._name)
            try:
                self._journal.save(record)
            except OSError:  # the next process reports it
                _log.exception("the journal of workspace %s can't be saved", record.workspace_id)
        self._agents.ensure(record)

    def resend(self) -> None:
        """Get new credentials for all agents: NATS may not accept the old ones any more."""
        self._agents.renew()
