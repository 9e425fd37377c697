"""Models of what provisioner and agents use: files, build steps, scripts and processes.

The code of the provisioner and the agents is the real one; `install` replaces its access to disk
and processes by these models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from uuid import uuid4

import workspaced.provisioning.journal

import handlers.agent.agent
import handlers.agent.journal
import handlers.agent.link
import handlers.provisioner.local_builds
import handlers.provisioner.provisioner
from handlers.provisioner.agent_exits import AgentExit
from handlers.provisioner.builder import Succeeded
from handlers.provisioner.job import Job
from handlers.provisioner.journal import LocalWorkspace
from handlers.provisioner.quota import CODE
from handlers.provisioner.step import Failed
from handlers.publishing.agent_files import AgentAlreadyRuns, AgentConfig, AgentCredential
from statemachine.events import Lifecycle, Transition
from tests.simulation.loop import process_here
from tests.simulation.machine import DiskPath, HungStep, Machine, write_atomically

_FAREWELL: Final = 15.0
MOST_FAILURES: Final = 2
"""Number of stops and deletes of one workspace that fail: after the fourth one, the next one is made a day later."""
CREDENTIAL: Final = AgentCredential(seed="", inbox_prefix="")


class Silent:
    """A build log that discards its lines: real lines may get lost, so no check depends on them."""

    def __init__(self, *_args: Any, **_more: Any) -> None:
        self._over = asyncio.Event()

    def write(self, *_words: str) -> None:
        """Discard the line."""

    def verdict(self, *_words: str) -> None:
        """Discard the line."""

    async def run(self) -> None:
        await self._over.wait()

    async def drained(self, _within: float) -> None:
        """Return at once: there is nothing to send."""

    def mask(self, text: str) -> str:
        """Return the text: there is nothing to hide."""
        return text

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


class ExecRequests:
    """Somebody who works in a workspace from time to time, in place of the commands that an agent serves."""

    machine: Machine

    def __init__(self, _home: Any, config: Any, _mask: Any, _publish: Any, during: Any) -> None:
        self._config, self._during = config, during
        self._working: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self.machine.loop.random.random() < self.machine.ways.worked_in:
            self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        machine = self.machine
        for _ in range(3):
            await asyncio.sleep(machine.pace(3.0))
            with self._during():
                await asyncio.sleep(machine.pace(8.0))

    async def serve(self, _bus: Any) -> None:
        await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        if self._working is not None:
            self._working.cancel()

    async def published(self, *_within: float) -> None:
        """Return at once: nothing is published."""

    async def close(self) -> None:
        await self.stop()


class Builder:
    """Simulates build steps."""

    machine: Machine

    def __init__(self, *_args: Any, **_more: Any) -> None:
        """Accept the real builder's arguments; the model uses only its machine."""

    def lacks(self, workspace_id: str) -> bool:
        return workspace_id not in self.machine.running

    def unusable(self) -> None:
        """Return None: the disk is always there."""

    async def end_processes(self, _workspace_id: str) -> None:
        """Do nothing: a workspace has no processes but its agents."""

    async def build(self, job: Job, _log: Any, *, new: bool) -> Succeeded | Failed:
        del new
        machine = self.machine
        if job.build_id in machine.ends():
            machine.built_again.add(job.build_id)
        machine.begun.add(job.build_id)
        if (process := process_here()) is not None:
            machine.steps[job.build_id] = process
        try:
            await self._run_step(job)
        finally:
            machine.steps.pop(job.build_id, None)
            machine.hung.pop(job.build_id, None)
        chance = machine.loop.random.random
        machine.made[job.build_id] += 1
        if chance() < machine.ways.fails and machine.failed[job.workspace_id] < MOST_FAILURES:
            if job.transition is Transition.START:
                machine.running[job.workspace_id] = "failed"
            else:
                machine.failed[job.workspace_id] += 1
            return Failed("disk full", CODE if chance() < 0.5 else None)
        if job.transition is not Transition.START:
            if job.transition is Transition.DELETE:
                machine.running.pop(job.workspace_id, None)
            elif job.workspace_id in machine.running:
                machine.running[job.workspace_id] = "stop"
            return Succeeded(job.template.version_id)
        machine.running[job.workspace_id] = "start"
        drawn = chance() - machine.ways.without_agents
        names = () if drawn < 0 else ("a-coderd-chat", "b-coderd-chat")
        if drawn >= machine.ways.torn:
            names = ("main",)
        agents = tuple(self._agent(job, name) for name in names)
        listed = tuple({"id": a.agent_id, "name": a.name} for a in agents)
        return Succeeded(job.template.version_id, agents, listed)

    async def _run_step(self, job: Job) -> None:
        """Take the time of a build step, which may hang until it is canceled."""
        machine = self.machine
        if job.transition is Transition.START:
            machine.running.setdefault(job.workspace_id, "half")
            if machine.loop.random.random() < machine.ways.hangs:
                goes_on: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                machine.hung[job.build_id] = HungStep(job.chat_id, machine.loop.now, goes_on)
                await goes_on
        await asyncio.sleep(machine.pace(machine.ways.build))

    async def clean_up(self, job: Job, _log: Any, *, new: bool) -> None:
        if new and job.transition is Transition.START:
            self.machine.running.pop(job.workspace_id, None)

    def _agent(self, job: Job, name: str) -> AgentConfig:
        config = AgentConfig.model_construct(
            chat_id=job.chat_id,
            workspace_id=job.workspace_id,
            build_id=job.build_id,
            agent_id=str(uuid4()),
            name=name,
            nats_url="",
            directory=Path("/"),
            activity_seconds=job.activity_seconds,
        )
        self.machine.configs[config.agent_id] = config
        if self.machine.loop.random.random() < self.machine.ways.exits:
            self.machine.doomed.add(config.agent_id)
        return config


class AgentSupervisor:
    """Keeps agents running, as the real supervisor does with real processes."""

    machine: Machine

    def __init__(self, *_args: Any, report_exit: Any, **_more: Any) -> None:
        self._report_exit = report_exit
        self._keepers: dict[str, asyncio.Task[None]] = {}

    def ensure(self, record: LocalWorkspace) -> None:
        for agent_id in record.agents:
            if (keeper := self._keepers.get(agent_id)) is None or keeper.done():
                self._keepers[agent_id] = asyncio.create_task(
                    self._keep(record.workspace_id, agent_id)
                )

    async def shut_down(self, record: LocalWorkspace, *, at_once: bool = False) -> None:
        ending = (self._shut_down(agent_id, at_once=at_once) for agent_id in record.agents)
        await asyncio.gather(*ending)

    def renew(self) -> None:
        """Do nothing: the simulation has no credentials."""

    async def leave(self) -> None:
        for keeper in self._keepers.values():
            keeper.cancel()

    async def _keep(self, workspace_id: str, agent_id: str) -> None:
        while True:
            if agent_id not in self.machine.agents:
                await asyncio.sleep(self.machine.pace(self.machine.ways.agent))
            if agent_id in self.machine.doomed:
                ended = AgentExit(127, "the agent's program is not there")
                await self._report_exit(workspace_id, agent_id, ended)
                return
            if agent_id not in self.machine.agents:
                self.machine.start_agent(agent_id)
            if await self.machine.gone(agent_id):
                await self._report_exit(workspace_id, agent_id, AgentExit(0))
                return
            await asyncio.sleep(self.machine.pace(1.0))

    async def _shut_down(self, agent_id: str, *, at_once: bool) -> None:
        if (keeper := self._keepers.pop(agent_id, None)) is not None:
            keeper.cancel()
        process = self.machine.agents.get(agent_id)
        if process is None:
            return
        if at_once:
            self.machine.loop.kill(process)
            return
        agent = self.machine.instances.get(agent_id)
        if agent is not None:
            self.machine.loop.spawn(process, _stop(agent))
        try:
            async with asyncio.timeout(_FAREWELL):
                await self.machine.gone(agent_id)
        except TimeoutError:  # the agent is paused; kill it, as SIGKILL would
            self.machine.loop.kill(process)


async def _stop(agent: Any) -> None:
    agent.stop()


class Scripts:
    """Simulates an agent's scripts."""

    machine: Machine

    still_running = False

    def __init__(self, _home: Any, _config: Any, _log: Any, report: Any) -> None:
        self._report = report

    def must_run_again(self, reached: Lifecycle | None) -> bool:
        return reached is Lifecycle.STARTING

    async def resume(self, _reached: Lifecycle | None) -> None:
        """Do nothing: the model has no processes to find again."""

    async def startup(self) -> None:
        machine = self.machine
        self._report(Lifecycle.STARTING)
        await asyncio.sleep(machine.pace(machine.ways.script))
        fails = machine.loop.random.random() < machine.ways.script_fails
        self._report(Lifecycle.START_ERROR if fails else Lifecycle.READY)

    async def shutdown(self, ending: Awaitable[None]) -> None:
        self._report(Lifecycle.SHUTTING_DOWN)
        await ending
        await asyncio.sleep(self.machine.pace(0.1))
        self._report(Lifecycle.OFF)

    async def end_all(self, _grace: float) -> None:
        """Do nothing: the scripts have no child processes."""


class Quotas:
    """A quota that never refuses a build."""

    def __init__(self, *_args: Any) -> None:
        """Ignore the arguments: the model counts nothing."""

    def release(self, _workspace_id: str) -> None:
        """Do nothing: the workspace has claimed nothing."""


class StartCheck:
    """A comparison of directories that finds nothing: only builds change them here."""

    def __init__(self, *_args: Any, **_more: Any) -> None:
        """Ignore the arguments."""

    def run(self) -> list[str]:
        """Find nothing: the model has no directories."""
        return []


class Archives:
    """An archive cache that unpacks nothing."""

    def __init__(self, *_args: Any) -> None:
        """Ignore the arguments: the model keeps no archives."""

    async def prune(self) -> None:
        """Do nothing: there are no archives to remove."""


def install() -> None:
    """Replace disk, build steps, scripts and processes by the models, permanently."""
    provisioner = handlers.provisioner.provisioner
    for name, model in (
        ("StartCheck", StartCheck),
        ("Archives", Archives),
        ("Quotas", Quotas),
        ("AgentSupervisor", AgentSupervisor),
        ("Builder", Builder),
        ("locked", lambda _root: nullcontext()),
    ):
        setattr(provisioner, name, model)
    for journal in (workspaced.provisioning.journal, handlers.agent.journal):
        journal.write_atomically = write_atomically  # type: ignore[attr-defined]
    handlers.provisioner.local_builds.BuildLog = Silent  # type: ignore[misc,assignment]
    handlers.agent.agent.BuildLog = Silent  # type: ignore[misc,assignment]
    handlers.agent.agent.Scripts = Scripts  # type: ignore[misc,assignment]
    handlers.agent.agent.ExecRequests = ExecRequests  # type: ignore[misc,assignment]
    files = SimpleNamespace(
        agent_lock=_agent_lock, read_config=_read_config, read_credential=lambda _home: CREDENTIAL
    )
    handlers.agent.agent.agent_files = files  # type: ignore[assignment]
    handlers.agent.link.agent_files = files  # type: ignore[assignment]


def belongs(machine: Machine) -> None:
    """Make all models use this machine."""
    for model in (Builder, AgentSupervisor, Scripts, ExecRequests):
        model.machine = machine  # type: ignore[attr-defined]


@contextmanager
def _agent_lock(home: DiskPath) -> Iterator[None]:
    agent_id = home.path.rsplit("/", 1)[1]
    if Scripts.machine.agents.get(agent_id) is not process_here():
        raise AgentAlreadyRuns(agent_id)
    yield


def _read_config(home: DiskPath) -> AgentConfig:
    return Scripts.machine.configs[home.path.rsplit("/", 1)[1]]
