"""The agents of this machine's workspaces: started, started again, renewed, shut down.

They are no children to care for: each outlives us, and is found again by the lock it holds.

An agent's folder lies in its workspace, so the template's code can write there. We, who are not
confined, take from it nothing that would give an agent more than its own: which agent of which
build and chat it is, and where its workspace is, comes from our journal.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Final

from pydantic import ValidationError

from bus import Bus, BusError, ServiceError, subjects
from bus.backoff import Backoff, is_final
from handlers.provisioner.builder import LAUNCHER
from handlers.provisioner.journal import WorkspaceRecord
from handlers.provisioner.step import is_passed_on
from handlers.publishing import agent_files
from handlers.publishing.agent_files import AgentConfig, AgentCredential
from handlers.sandbox.policy import Confinement
from handlers.sandbox.processes import end_marked, hold_process, machine_identity, wait_for_exit
from handlers.sandbox.shell import environment_faults
from handlers.supervise import cancel_and_wait

_FAREWELL: Final = 20.0
"""Seconds that an agent gets beyond its shutdown script."""
_GRACE: Final = 5.0
"""Seconds between the polite and the forced end of what it did not end itself."""
_SETTLED: Final = 60.0
PATIENCE: Final = 600.0
"""Seconds that an agent is refused before it gives up, and so that a new credential may take."""
_LOG: Final = "agent.log"
_LOG_SIZE: Final = 5 * 1024 * 1024
"""Bytes past which an agent begins a new log when it is started."""
_ENTER: Final = 'cd -- "$0" && exec "$@"'
_OWN_DIRECTORY: Final = Path(__file__).parents[2]

_log = logging.getLogger(__name__)


class _Hopeless(Exception):
    """The agent can't be started, and never could: trying again is of no use."""


class AgentSupervisor:
    """Sees to it that the agents which should run do, and ends those which should not."""

    def __init__(
        self,
        bus: Bus,
        workspaces: Path,
        *,
        command: Sequence[str],
        nats_url: str,
        nats_ca: Path | None = None,
        confinement: Confinement,
    ) -> None:
        self._bus, self._workspaces, self._command = bus, workspaces, command
        self._here = {"nats_url": nats_url, "nats_ca": nats_ca, "machine": machine_identity()}
        self._confinement = confinement
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._started: dict[str, int] = {}
        self._known: dict[str, Mapping[str, Any]] = {}
        """What the configuration of each agent has to say, whatever it says."""
        self._renewals: dict[str, asyncio.Task[None]] = {}
        self._renewed: dict[str, float] = {}

    def ensure(self, record: WorkspaceRecord) -> None:
        """See to it, from now on, that the record's agents run."""
        for agent_id in record.agents:
            if (keeper := self._keepers.get(agent_id)) is None or keeper.done():
                self._known[agent_id] = {
                    **self._here,
                    "chat_id": record.chat_id,
                    "workspace_id": record.workspace_id,
                    "build_id": record.build_of(agent_id),
                    "agent_id": agent_id,
                    "directory": self._workspaces / record.workspace_id,
                }
                self._keepers[agent_id] = asyncio.create_task(self._keep(agent_id))

    def renew(self) -> None:
        """Get the agents new credentials: the old ones may be forgotten."""
        now = monotonic()
        for agent_id, keeper in self._keepers.items():
            there = self._renewals.get(agent_id)
            lately = now - self._renewed.get(agent_id, -_SETTLED) < _SETTLED
            if not (keeper.done() or lately or (there is not None and not there.done())):
                renewal = asyncio.create_task(self._renew(agent_id))
                self._renewals[agent_id] = renewal

    async def shut_down(self, record: WorkspaceRecord) -> None:
        """End the record's agents, each with its shutdown script, and wait until they are gone."""
        await asyncio.gather(
            *(self._shut_down(record.workspace_id, agent) for agent in record.agents)
        )

    async def leave(self) -> None:
        """Look after the agents no longer; they go on."""
        await cancel_and_wait(*self._keepers.values(), *self._renewals.values())

    def _home(self, agent_id: str) -> AbstractContextManager[Path]:
        return agent_files.pinned_home(self._known[agent_id]["directory"], agent_id)

    async def _keep(self, agent_id: str) -> None:
        """Have the agent run until it ends by itself, or never can: what only fails now is tried again."""
        backoff = Backoff(first=0.5, limit=30.0)
        while True:
            since = monotonic()
            try:
                ended = await self._run_once(agent_id)
            except Superseded as no:
                _log.info("agent %s is no longer wanted: %s", agent_id, no)
                return
            except _Hopeless as no:
                _log.error("agent %s can't be started: %s", agent_id, no)
                return
            except OSError as no:
                _log.error("agent %s can't be started now: %s", agent_id, no)
            else:
                if ended is _STILL_RUNS:
                    continue
                if ended == 0:
                    _log.info("agent %s has ended", agent_id)
                    return
                _log.warning("agent %s ended unasked (%s) and is started again", agent_id, ended)
            if monotonic() - since > _SETTLED:
                backoff.reset()
            await backoff.wait()

    async def _run_once(self, agent_id: str) -> int | str:
        """Start the agent unless it runs, and return how it ended.

        Raises Superseded, _Hopeless, and OSError when it can't be started now.
        """
        try:
            config = self._config(agent_id)
        except (FileNotFoundError, ValueError) as gone:
            raise _Hopeless(
                f"its configuration can't be read ({gone}); start a new build"
            ) from gone
        credential = await self._credential(config)
        with self._home(agent_id) as home:
            pid = agent_files.running_agent(home)
            if pid is None:
                pid = self._start(home, config)
        ended = await self._ended(agent_id, pid, renewed_in(credential))
        with self._home(agent_id) as home:
            return ended if agent_files.running_agent(home) is None else _STILL_RUNS

    async def _renew(self, agent_id: str) -> None:
        """Ask until there is an answer: what makes the build known again may not be applied yet."""
        backoff, until = Backoff(first=0.5, limit=30.0), monotonic() + PATIENCE
        while monotonic() < until:
            try:
                await self._obtained(self._config(agent_id))
            except (Superseded, OSError) as no:
                _log.info("no new credential for agent %s yet: %s", agent_id, no)
                await backoff.wait()
            except ValueError:
                _log.exception("agent %s gets no new credential", agent_id)
                return
            else:
                self._renewed[agent_id] = monotonic()
                return

    def _config(self, agent_id: str) -> AgentConfig:
        """Return the agent's configuration, after having put right in it what we know better."""
        known = dict(self._known[agent_id])
        if known["build_id"] is None:
            raise ValueError("the journal has no build that made this agent")
        with self._home(agent_id) as home:
            there = agent_files.read_config(home)
            config = there.model_copy(update=known)
            if config != there:
                agent_files.write_config(home, config)
        return config

    async def _credential(self, config: AgentConfig) -> AgentCredential:
        """Return the credential that is there while it is young, else a new one."""
        with self._home(config.agent_id) as home:
            if agent_files.running_agent(home) is not None:
                with suppress(OSError, ValueError):
                    there = agent_files.read_credential(home)
                    if renewed_in(there) != 0:
                        return there
        return await self._obtained(config)

    async def _obtained(self, config: AgentConfig) -> AgentCredential:
        credential = await obtain(self._bus, config)
        with self._home(config.agent_id) as home:
            agent_files.write_credential(home, credential)
        return credential

    def _start(self, home: Path, config: AgentConfig) -> int:
        """Start the agent as a session of its own that has nothing of ours but the environment."""
        launcher = config.directory / agent_files.OWN_FOLDER / LAUNCHER
        # By its own name: the path that we have of its folder is good for this process only.
        own_home = agent_files.agent_home(config.directory, config.agent_id)
        program = [*self._command, str(agent_files.config_path(own_home))]
        if os.access(launcher, os.X_OK):
            program.insert(0, str(launcher))
        _rotate(home / _LOG)
        output = str(home / _LOG)
        # What scripts left in its place is neither followed nor waited for.
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        confined = self._confinement.prefix(config.directory, step=False)
        # Not the template's `env`, which is meant for scripts: it could break our Python.
        env = {name: value for name, value in config.env.items() if is_passed_on(name)}
        for name in dict(environment_faults(env)):
            del env[name]
        try:
            pid = os.posix_spawn(
                confined[0],
                [*confined, "/bin/sh", "-c", _ENTER, str(config.directory), *program],
                {**env, "PYTHONPATH": str(_OWN_DIRECTORY)},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, output, append, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except ValueError as bad:
            raise _Hopeless(str(bad)) from bad
        self._started[config.agent_id] = pid
        return pid

    async def _ended(self, agent_id: str, pid: int, limit: float | None) -> int | str:
        """Return the exit status, or what is to be said instead of it."""
        try:
            with hold_process(pid) as descriptor:
                async with asyncio.timeout(limit):
                    await wait_for_exit(descriptor)
        except TimeoutError:
            return _STILL_RUNS
        except ProcessLookupError:
            pass
        if self._started.get(agent_id) != pid:
            return "status unknown"
        del self._started[agent_id]
        return _status_of(pid)

    async def _shut_down(self, workspace_id: str, agent_id: str) -> None:
        for tasks in (self._keepers, self._renewals):
            if (task := tasks.pop(agent_id, None)) is not None:
                await cancel_and_wait(task)
        started, pid = self._started.pop(agent_id, None), None
        limit = _FAREWELL
        workspace = self._workspaces / workspace_id
        with suppress(OSError, ValueError), agent_files.pinned_home(workspace, agent_id) as home:
            pid = agent_files.running_agent(home)
            limit += agent_files.read_config(home).shutdown_timeout_seconds
        if (pid := pid or started) is not None:
            with suppress(ProcessLookupError, TimeoutError), hold_process(pid) as descriptor:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
                async with asyncio.timeout(limit):
                    await wait_for_exit(descriptor)
        # What is left: an agent that does not end, a launcher, processes that left their group.
        await end_marked(f"WORKSPACED_AGENT_ID={agent_id}", grace=_GRACE)
        if started is not None:
            _status_of(started)


_STILL_RUNS: Final = "still runs"


def _rotate(log: Path) -> None:
    """Set a log that has grown too large aside, in place of the one before it."""
    with suppress(FileNotFoundError):
        if log.lstat().st_size > _LOG_SIZE:
            log.replace(log.with_name(f"{_LOG}.1"))


def _status_of(pid: int) -> int | str:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, os.WNOHANG)[1])
    except ChildProcessError:
        return "status unknown"


_ANSWER_WITHIN: Final = 5.0

_log = logging.getLogger(__name__)


class Superseded(Exception):
    """The agent gets no credential, and will get none: its build is over, or NATS refuses to ask."""


async def obtain(bus: Bus, config: AgentConfig) -> AgentCredential:
    """Ask until there is an answer. Raises Superseded."""
    backoff = Backoff()
    request = {
        "chat_id": config.chat_id,
        "workspace_id": config.workspace_id,
        "build_id": config.build_id,
        "agent_id": config.agent_id,
    }
    while True:
        try:
            answer = await bus.request(
                subjects.rpc("agent_credential"),
                json.dumps(request).encode(),
                timeout=_ANSWER_WITHIN,
            )
            return AgentCredential.model_validate_json(answer.data)
        except BusError as no:
            if is_final(no):
                raise Superseded(str(no)) from None
            level = logging.WARNING if isinstance(no, ServiceError) else logging.INFO
            _log.log(level, "no credential for agent %s yet: %s", config.agent_id, no)
        except TimeoutError as no:
            _log.info("no credential for agent %s yet: %s", config.agent_id, no)
        except ValidationError as bad:
            _log.warning("a credential for agent %s can't be read: %s", config.agent_id, bad)
        await backoff.wait()


def renewed_in(credential: AgentCredential) -> float | None:
    """Return the seconds until it should be renewed, in the middle of its life; None for never."""
    if credential.expires_at is None:
        return None
    half = (credential.expires_at - credential.issued_at) / 2
    return max(0.0, (credential.issued_at + half - datetime.now(UTC)).total_seconds())
