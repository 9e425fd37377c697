"""Runs the build of a job on this machine and returns its outcome. Nothing here uses the bus."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from workspaced.build_log import BUILD_LOG_SIZE, VERDICT_SIZE
from workspaced.provisioning.jobs import Built, BuiltAgent

from handlers.provisioner import archive, workspaces_folder
from handlers.provisioner.archive import Archives
from handlers.provisioner.job import Job
from handlers.provisioner.quota import Quotas
from handlers.provisioner.step import LIMIT, Failed, agent_environment, job_environment, run_step
from handlers.publishing import agent_files
from handlers.publishing.agent_files import OWN_FOLDER, AgentConfig
from handlers.publishing.atomic_files import ensure_directory
from handlers.publishing.build_log import BuildLog
from handlers.sandbox.policy import Confinement
from handlers.sandbox.processes import end_marked
from handlers.sandbox.shell import environment_faults
from handlers.template_archive import BadArchive
from statemachine.events import Transition
from statemachine.local_template import AgentTable, agent_faults
from statemachine.mask import Mask

FOR_AGENTS: Final = 256 * 1024
"""Bytes of a build's log that are reserved for its agents."""
OWN_LOG: Final = BUILD_LOG_SIZE - FOR_AGENTS - VERDICT_SIZE
"""Bytes of a build's log for the build itself."""
LAUNCHER: Final = "agent-launcher"
"""A program that a start step may leave; agents are started through it."""
_GRACE: Final = 2.0
_DISCARD_TIMEOUT: Final = 60.0
"""Seconds that the delete step may take after a build that exceeded its owner's quota."""
_CLEAN_UP_TIMEOUT: Final = 20.0
"""Seconds that the delete step may take after a canceled build; workers wait a minute for the end of the build."""
_UNPACK_TIMEOUT: Final = 30.0
"""Seconds that a stop or delete step waits for template files that are not on this machine yet."""
_NOTHING_TO_DO: Final = ("", "true", ":")


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The build has succeeded and created these agents."""

    version_id: str | None
    agents: tuple[AgentConfig, ...] = field(default=(), repr=False)
    listed: tuple[Mapping[str, Any], ...] = ()

    def built(self) -> Built:
        """Return what workers learn of it."""
        return Built([BuiltAgent(**agent) for agent in self.listed])


class Builder:
    """Runs builds in the directory of workspaces."""

    def __init__(
        self,
        directory: Path,
        archives: Archives,
        quotas: Quotas,
        *,
        environ: Mapping[str, str],
        nats_url: str,
        nats_ca: Path | None = None,
        confinement: Confinement,
        presence_ttl: float = agent_files.PRESENCE_TTL,
    ) -> None:
        self._directory, self._archives, self._quotas = directory, archives, quotas
        self._environ, self._nats_url = environ, nats_url
        self._presence_ttl, self._nats_ca = presence_ttl, nats_ca
        self._confinement = confinement

    def directory_of(self, workspace_id: str) -> Path:
        """Return the directory of a workspace."""
        return self._directory / workspace_id

    def exists(self, workspace_id: str) -> bool:
        """Return whether the workspace's directory exists."""
        return self.directory_of(workspace_id).exists()

    def lacks(self, workspace_id: str) -> bool:
        """Return whether the workspace has no directory. False if that is unknown, because no disk is mounted."""
        return workspaces_folder.is_there(self._directory) and not self.exists(workspace_id)

    def unusable(self) -> Failed | None:
        """Return Failed if the disk with the workspaces is not mounted.

        A start would make a new directory where it is to be mounted, and a delete would delete nothing.

        """
        if workspaces_folder.is_there(self._directory):
            return None
        return Failed(f"Nothing can be built: {workspaces_folder.missing(self._directory)}.")

    async def end_processes(self, workspace_id: str) -> None:
        """End all processes of a workspace, its agents included."""
        await end_marked(f"WORKSPACED_WORKSPACE_ID={workspace_id}", grace=_GRACE)

    async def build(self, job: Job, log: BuildLog, *, new: bool) -> Succeeded | Failed:
        """Run the job's step; the agents of earlier builds must have ended. If cancelled, no process is left.

        If the workspace is `new`, so that nobody has worked in it, and exceeds the quota, its files are removed.
        A start keeps its reservation in the owner's quota until the caller releases it.

        """
        workspace = self.directory_of(job.workspace_id)
        # Processes of an earlier attempt of this build, if the provisioner was killed.
        await end_marked(f"WORKSPACED_BUILD_ID={job.build_id}", grace=0)
        try:
            if job.transition is Transition.START:
                return await self._start(job, workspace, log, new=new)
            failed = await self._run(job, workspace, log)
            if failed is None:
                await self.end_processes(job.workspace_id)
            if failed is None and job.transition is Transition.DELETE:
                await _run_to_end(_remove, workspace)
        except asyncio.CancelledError:
            # Those that have left the process group of the step.
            await end_marked(f"WORKSPACED_BUILD_ID={job.build_id}", grace=0)
            raise
        except BadArchive as error:
            failed = Failed(f"The template can't be used: {error}")
        except OSError as error:
            failed = Failed(f"The provisioner can't work in the workspace's directory: {error}")
        return failed or Succeeded(job.template.version_id)

    async def clean_up(self, job: Job, log: BuildLog, *, new: bool) -> None:
        """Remove what a canceled build has left: its processes and, if the workspace is `new`, its files.

        The files stay if the delete step fails: a later job may run it again.

        """
        await end_marked(f"WORKSPACED_BUILD_ID={job.build_id}", grace=0)
        if new and job.transition is Transition.START and self.exists(job.workspace_id):
            workspace = self.directory_of(job.workspace_id)
            await self._discard(job, workspace, log, _CLEAN_UP_TIMEOUT, even_if_step_fails=False)

    async def abandon(self, workspace_id: str, build_id: str, *, remove: bool) -> None:
        """End the processes of a canceled build whose job is not at hand; `remove` its files as well."""
        await end_marked(f"WORKSPACED_BUILD_ID={build_id}", grace=0)
        if remove:
            await self.end_processes(workspace_id)
            await _run_to_end(_remove, self.directory_of(workspace_id))

    async def _start(
        self, job: Job, workspace: Path, log: BuildLog, *, new: bool
    ) -> Succeeded | Failed:
        refused = _agent_problems(job.template.spec.agent) or self._unusable_values(job, workspace)
        refused = refused or self._quotas.admit(job)
        if refused := refused or await self._check_disk(job, workspace, log, new=new, again=new):
            return refused
        failed = await self._run(job, workspace, log)
        # Checked even if the step failed: its files use disk space as well.
        over = await self._check_disk(job, workspace, log, new=new)
        return failed or over or await self._with_agents(job, workspace, log)

    def _unusable_values(self, job: Job, workspace: Path) -> Failed | None:
        """Return Failed if a step or a script of an agent could not be started with these values."""
        env = job_environment(job, workspace, self._environ)
        found: dict[object, str] = dict(environment_faults(env))
        for spec in job.template.spec.agent:
            faults = environment_faults(agent_environment(env, spec, ""))
            found |= {
                (spec.name, name): f"agent {spec.name!r}: {message}"
                for name, message in faults
                if name not in found
            }
        return Failed(f"Nothing can be built: {'; '.join(found.values())}.") if found else None

    async def _check_disk(
        self, job: Job, workspace: Path, log: BuildLog, *, new: bool, again: bool = False
    ) -> Failed | None:
        """Return Failed if the owner's disk quota is exceeded; then the files of a new workspace are removed.

        `again`: check once more after the removal, because an earlier attempt may have left the files.

        """
        async with self._quotas.disk_lock(job):
            failed = await self._quotas.check_disk(job)
            if failed is not None and new and self.exists(job.workspace_id):
                await self._discard(job, workspace, log, _DISCARD_TIMEOUT)
                failed = await self._quotas.check_disk(job) if again else failed
        return failed

    async def _discard(
        self,
        job: Job,
        workspace: Path,
        log: BuildLog,
        limit: float,
        *,
        even_if_step_fails: bool = True,
    ) -> None:
        """Run the delete step, then remove the files that builds left."""
        step = job.template.spec.build.delete
        try:
            version = job.template.version_id
            unpacked = version is not None and archive.is_unpacked(version, workspace)
            if unpacked and step.strip() not in _NOTHING_TO_DO:
                log.mask = await _mask_of(workspace, job)
                failed = await self._step(job, Transition.DELETE, step, workspace, log, limit)
                if failed is not None:
                    log.write("delete", "warn", f"{failed.error}\n")
                    if not even_if_step_fails:
                        return
            await self.end_processes(job.workspace_id)
            await _run_to_end(_remove, workspace)
        except OSError as error:
            log.write("delete", "warn", f"The files of the build can't be removed: {error}\n")
        else:
            log.write("delete", "info", "The files of the build are removed.\n")

    async def _run(self, job: Job, workspace: Path, log: BuildLog) -> Failed | None:
        starts, name = job.transition is Transition.START, job.transition.value
        if not _prepare_directory(workspace, make=starts):
            log.write(
                "prepare",
                "info",
                "The workspace has no directory on this machine: nothing to do.\n",
            )
            return None
        template, idle = job.template, job.step.strip() in _NOTHING_TO_DO
        if starts:
            await self._unpack(job, workspace, log)
        elif not idle:
            await self._unpack_if_possible(job, workspace, log)
        log.mask = await _mask_of(workspace, job)
        if starts:
            (workspace / OWN_FOLDER / LAUNCHER).unlink(missing_ok=True)
        if idle:
            return None
        log.write("prepare", "info", f"{template.name}: the {name} step starts.\n")
        return await self._step(job, job.transition, job.step, workspace, log, LIMIT)

    async def _step(
        self,
        job: Job,
        transition: Transition,
        command: str,
        workspace: Path,
        log: BuildLog,
        limit: float,
    ) -> Failed | None:
        env = job_environment(job, workspace, self._environ)
        for unusable, message in dict(environment_faults(env)).items():
            # A start build fails because of such a value; stop and delete builds run without it.
            log.write(transition.value, "warn", f"{message}; the step runs without it.\n")
            del env[unusable]
        env["WORKSPACED_TRANSITION"] = name = transition.value
        env["WORKSPACED_AGENT_LAUNCHER"] = str(workspace / OWN_FOLDER / LAUNCHER)
        ends = transition is not Transition.START
        prefix = self._confinement.prefix(workspace, step=True, signals=ends)
        return await run_step(
            name, command, workspace=workspace, env=env, log=log, limit=limit, prefix=prefix
        )

    async def _unpack(self, job: Job, workspace: Path, log: BuildLog) -> None:
        """Put the template's files into the workspace. Raises BadArchive."""
        template = job.template.packed
        if template is None:
            raise BadArchive("the job has no archive")
        version = template.version_id
        if not archive.is_unpacked(version, workspace):
            async with self._archives.fetched(template) as packed:
                await _run_to_end(archive.unpack, packed, version, workspace)
            log.write("prepare", "info", f"{job.template.name}: version {version} is unpacked.\n")

    async def _unpack_if_possible(self, job: Job, workspace: Path, log: BuildLog) -> None:
        """Unpack for a stop or delete step, which runs with or without the files."""
        try:
            async with asyncio.timeout(_UNPACK_TIMEOUT):
                await self._unpack(job, workspace, log)
        except (BadArchive, OSError) as error:
            why = (
                f"no answer within {_UNPACK_TIMEOUT:g} s"
                if isinstance(error, TimeoutError)
                else error
            )
            message = f"The step runs without the files of this version of the template: {why}"
            log.write("prepare", "warn", f"{message}\n")

    async def _with_agents(self, job: Job, workspace: Path, log: BuildLog) -> Succeeded:
        """Give each agent a new id and write its configuration."""
        specs = job.template.spec.agent
        ids = {spec.name: str(uuid4()) for spec in specs}
        env = job_environment(job, workspace, self._environ)
        share = (log.left + FOR_AGENTS) // max(1, len(specs)) - VERDICT_SIZE
        # The agents of earlier builds have ended, and their ids are never reused.
        await asyncio.to_thread(_remove, agent_files.agent_homes(workspace))
        ensure_directory(agent_files.agent_homes(workspace))
        agents, listed = [], []
        for spec in specs:
            agent_id = ids[spec.name]
            config = AgentConfig(
                chat_id=job.chat_id,
                workspace_id=job.workspace_id,
                build_id=job.build_id,
                agent_id=agent_id,
                name=spec.name,
                nats_url=self._nats_url,
                nats_ca=self._nats_ca,
                directory=workspace,
                work_directory=spec.directory,
                startup_script=spec.startup_script,
                startup_timeout_seconds=spec.startup_timeout_seconds,
                shutdown_script=spec.shutdown_script,
                shutdown_timeout_seconds=spec.shutdown_timeout_seconds,
                env=agent_environment(env, spec, agent_id),
                secrets=log.mask.values,
                log_limit=share,
                presence_ttl=self._presence_ttl,
                activity_seconds=job.activity_seconds,
                traceparent=job.traceparent,
            )
            agent_files.write_config(agent_files.agent_home(workspace, agent_id), config)
            agents.append(config)
            parent = {} if spec.parent is None else {"parent_id": ids[spec.parent]}
            listed.append(
                {"id": agent_id, "name": spec.name, "display_order": spec.display_order, **parent}
            )
        return Succeeded(job.template.version_id, tuple(agents), tuple(listed))


async def _run_to_end(work: Callable[..., None], *arguments: object) -> None:
    """Run a function in a thread. If cancelled, wait for its end: the next build works on the same files."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        raise


async def _mask_of(workspace: Path, job: Job) -> Mask:
    """Return the mask for the job's sensitive values.

    It is built in a thread: for a value of 100 KiB that takes seconds, in which the event loop has to
    go on.
    """
    values = await asyncio.to_thread(archive.sensitive_values, workspace, job.parameters)
    return await asyncio.to_thread(Mask, values)


def _agent_problems(agents: Sequence[AgentTable]) -> Failed | None:
    """Return Failed if the template's agents can't be started; checked before anything is built."""
    faults = agent_faults(agents)
    found = [f"agent {agents[index].name!r}: {message}" for index, _, message in faults]
    return Failed(f"The template's agents can't be started: {'; '.join(found)}.") if found else None


def _prepare_directory(workspace: Path, *, make: bool) -> bool:
    """Create the directory if `make` is set, and our folder in it; return whether it exists."""
    if not make and not workspace.exists():
        return False
    workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
    ensure_directory(workspace / OWN_FOLDER)
    workspace.chmod(0o700)
    return True


def _remove(workspace: Path) -> None:
    """Delete the directory, even if parts of it are read-only."""

    def writable(again: Callable[[str], object], path: str, _: object) -> None:
        with suppress(FileNotFoundError):
            for place in (Path(path).parent, Path(path)):
                if not place.is_symlink():
                    place.chmod(place.stat().st_mode | stat.S_IRWXU)
            if again in (os.scandir, os.open, os.listdir):
                shutil.rmtree(path, onerror=writable)
            else:
                again(path)

    with suppress(FileNotFoundError):
        shutil.rmtree(workspace, onerror=writable)
