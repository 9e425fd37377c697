"""The local provisioner: it takes the jobs of one pool, and answers each with the facts of its build."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from workspaced.provisioning.journal import Journal, locked
from workspaced.provisioning.session import BUILDS, HEARTBEAT, Session

from bus import Bus
from handlers.errors import CannotServe
from handlers.provisioner.agent_exits import AgentExit
from handlers.provisioner.agent_supervisor import AgentSupervisor
from handlers.provisioner.archive import Archives
from handlers.provisioner.builder import Builder
from handlers.provisioner.bus_link import BusLink
from handlers.provisioner.job import Job
from handlers.provisioner.journal import LocalWorkspace
from handlers.provisioner.local_builds import LocalBuilds
from handlers.provisioner.quota import QuotaLimits, Quotas
from handlers.provisioner.start_check import StartCheck
from handlers.publishing.agent_files import PRESENCE_TTL
from handlers.publishing.build_log import BuildLog
from handlers.runtime.supervise import run_until_one_ends
from handlers.sandbox.policy import Confinement
from handlers.sandbox.processes import machine_identity, umask_fault

NO_LIMIT: Final = QuotaLimits()
UNCONFINED: Final = Confinement()
AGENT: Final = (sys.executable, "-P", "-m", "handlers.agent")
"""The command that starts an agent; the path of its configuration is appended."""


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
        self._presence_ttl, self._confinement = presence_ttl, confinement
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
        try:
            with locked(self._root):
                await self._serve()
        except BlockingIOError:
            raise CannotServe(
                f"{self._root} is in use by another provisioner (perhaps that of `workspaced up`): stop it, or "
                "choose another --name or --data-dir"
            ) from None

    async def _serve(self) -> None:
        link, workspaces = BusLink(self._bus), self._root / "workspaces"
        journal = Journal(self._root / "journal", LocalWorkspace)
        check = StartCheck(journal, workspaces, name=self._name, machine=machine_identity())
        vanished = check.run()
        archives = Archives(link, self._root / "templates", workspaces)
        await archives.prune()
        quotas = Quotas(journal, workspaces, self._limits)

        async def report_exit(workspace_id: str, agent_id: str, ended: AgentExit) -> None:
            await session.report_exit(workspace_id, agent_id, ended.data())

        agents = AgentSupervisor(
            link,
            workspaces,
            command=self._agent_command,
            nats_url=self._nats_url,
            nats_ca=self._nats_ca,
            confinement=self._confinement,
            report_exit=report_exit,
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
        builds = LocalBuilds(
            self._bus.send, journal, name=self._name, builder=builder, agents=agents, quotas=quotas
        )
        session: Session[Job, LocalWorkspace, BuildLog] = Session(
            link,
            builds,
            journal,
            pool=self._pool,
            name=self._name,
            directory=self._root,
            concurrency=self._builds,
            heartbeat=self._heartbeat,
        )
        for record in journal.workspaces():
            agents.ensure(record)
        await asyncio.gather(*map(builder.end_processes, vanished))
        try:
            await run_until_one_ends(session.run(self.ready), self._until_stopped())
        finally:
            await agents.leave()

    async def _until_stopped(self) -> None:
        await self._stopped.wait()
