"""Supervises the agents of this machine's workspaces: starts and restarts them, renews their credentials, ends them.

Agents do not end with this process: they keep running, and the next provisioner finds them by the lock
that they hold.

An agent's folder is in its workspace, where the template's code can write. This process is not confined,
so it trusts nothing in the folder that would give an agent more rights than its own: the agent's id,
build, chat and directory come from the journal.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Final

from pydantic import ValidationError
from workspaced import errors
from workspaced.errors import WorkspacedError
from workspaced.provisioning.link import Link

from bus import Backoff
from handlers.provisioner.agent_exits import (
    OUTPUT_SIZE,
    AgentExit,
    last_lines,
    unwrapped,
)
from handlers.provisioner.builder import LAUNCHER
from handlers.provisioner.journal import LocalWorkspace
from handlers.provisioner.step import is_passed_on
from handlers.publishing import agent_files
from handlers.publishing.agent_files import AgentConfig, AgentCredential
from handlers.publishing.atomic_files import rotate
from handlers.runtime.supervise import cancel_and_wait
from handlers.sandbox.policy import Confinement, Mechanism
from handlers.sandbox.processes import end_marked, hold_process, machine_identity, wait_for_exit
from handlers.sandbox.shell import environment_faults

_SHUTDOWN_MARGIN: Final = 20.0
"""Seconds that an agent gets to end, in addition to the limit of its shutdown script."""
_GRACE: Final = 5.0
"""Seconds between SIGTERM and SIGKILL for processes that the agent has not ended."""
_SETTLED: Final = 60.0
"""Seconds after which an agent that ran is restarted without delay, and a credential may be renewed again."""
CREDENTIAL_TIMEOUT: Final = 600.0
"""Seconds of refusals after which an agent exits; a new credential must arrive before that."""
_LOG: Final = "agent.log"
_LOG_SIZE: Final = 5 * 1024 * 1024
"""Size in bytes above which the log is rotated when the agent is started."""
_STILL_RUNNING: Final = "still running"
_CHANGE_DIRECTORY_AND_EXEC: Final = 'cd -- "$0" && exec "$@"'
_OWN_PACKAGES: Final = os.pathsep.join(
    dict.fromkeys((str(Path(__file__).parents[2]), str(Path(errors.__file__).parents[1])))
)
"""Where agents find the packages of the server and of the client, which may be the same directory."""

_log = logging.getLogger(__name__)


class Superseded(Exception):
    """The agent can't get a credential any more: its build is superseded, or NATS refuses the request."""


class _CannotStart(Exception):
    """The agent can never be started, so a retry is useless."""


class AgentSupervisor:
    """Keeps the agents of the newest builds running, and ends the others."""

    def __init__(
        self,
        link: Link,
        workspaces: Path,
        *,
        command: Sequence[str],
        nats_url: str,
        nats_ca: Path | None = None,
        confinement: Confinement,
        report_exit: Callable[[str, str, AgentExit], Awaitable[None]],
    ) -> None:
        self._link, self._workspaces, self._command = link, workspaces, command
        self._report_exit = report_exit
        self._local = {"nats_url": nats_url, "nats_ca": nats_ca, "machine": machine_identity()}
        self._confinement = confinement
        self._supervising: dict[str, asyncio.Task[None]] = {}
        self._started: dict[str, int] = {}
        self._known: dict[str, Mapping[str, Any]] = {}
        """Values that override those in the configuration file of each agent."""
        self._renewals: dict[str, asyncio.Task[None]] = {}
        self._renewed: dict[str, float] = {}

    def ensure(self, record: LocalWorkspace) -> None:
        """Keep the record's agents running from now on."""
        for agent_id in record.agents:
            if (supervision := self._supervising.get(agent_id)) is None or supervision.done():
                creator = record.creator_of(agent_id)
                self._known[agent_id] = {
                    **self._local,
                    "chat_id": record.chat_id,
                    "workspace_id": record.workspace_id,
                    "build_id": None if creator is None else creator.build_id,
                    "agent_id": agent_id,
                    "directory": self._workspaces / record.workspace_id,
                }
                self._supervising[agent_id] = asyncio.create_task(self._keep(agent_id))

    def renew(self) -> None:
        """Get new credentials for all agents: NATS may not accept the old ones any more."""
        now = monotonic()
        for agent_id, supervision in self._supervising.items():
            existing = self._renewals.get(agent_id)
            lately = now - self._renewed.get(agent_id, -_SETTLED) < _SETTLED
            if not (supervision.done() or lately or (existing is not None and not existing.done())):
                renewal = asyncio.create_task(self._renew(agent_id))
                self._renewals[agent_id] = renewal

    async def shut_down(self, record: LocalWorkspace, *, at_once: bool = False) -> None:
        """End the record's agents, and wait until they have ended.

        Each runs its shutdown script, unless they are to be ended `at_once`.

        """
        await asyncio.gather(
            *(
                self._shut_down(record.workspace_id, agent, at_once=at_once)
                for agent in record.agents
            )
        )

    async def leave(self) -> None:
        """Stop supervising; the agents go on running."""
        await cancel_and_wait(*self._supervising.values(), *self._renewals.values())

    def _pinned_home(self, agent_id: str) -> AbstractContextManager[Path]:
        return agent_files.pinned_home(self._known[agent_id]["directory"], agent_id)

    async def _keep(self, agent_id: str) -> None:
        """Run the agent, again if it fails, until it has to be given up; report that then.

        It is given up if it can never be started, has ended by itself, or has failed before it connected for
        the first time: somebody waits for it now, and would learn of the failure only after minutes.

        """
        backoff = Backoff(first=0.5, limit=30.0)
        while True:
            since = monotonic()
            try:
                ended = await self._run_once(agent_id)
            except Superseded as error:
                _log.info("agent %s is superseded: %s", agent_id, error)
                return
            except _CannotStart as error:
                _log.error("agent %s can't be started: %s", agent_id, error)
                await self._give_up(agent_id, AgentExit(output=str(error)[-OUTPUT_SIZE:]))
                return
            except OSError as error:
                _log.error("agent %s can't be started now, trying again: %s", agent_id, error)
            else:
                if ended is _STILL_RUNNING:
                    continue
                # It exits with this status after minutes of refusals, and a new credential may help.
                refused = ended == agent_files.REFUSED_STATUS and monotonic() - since > _SETTLED
                if ended == 0 or not (refused or self._has_connected(agent_id)):
                    _log.warning("agent %s ended (%s) and is not restarted", agent_id, ended)
                    await self._give_up(agent_id, await self._exit_of(agent_id, ended))
                    return
                _log.warning("agent %s ended unexpectedly (%s) and is restarted", agent_id, ended)
            if monotonic() - since > _SETTLED:
                backoff.reset()
            await backoff.wait()

    def _has_connected(self, agent_id: str) -> bool:
        """Return whether the agent has ever connected to NATS."""
        try:
            with self._pinned_home(agent_id) as home:
                return agent_files.has_connected(home)
        except OSError:
            return False

    async def _exit_of(self, agent_id: str, ended: int | str) -> AgentExit:
        """Return how the agent ended, with its last lines."""
        status = ended if isinstance(ended, int) else None
        if status is not None and self._confinement.mechanism is Mechanism.BUBBLEWRAP:
            status = unwrapped(status)
        lines = ""
        with suppress(OSError, ValueError), self._pinned_home(agent_id) as home:
            lines = await last_lines(home / _LOG, agent_files.read_config(home).secrets)
        return AgentExit(status, lines)

    async def _give_up(self, agent_id: str, ended: AgentExit) -> None:
        """Report that the agent is gone, and end what it has left."""
        await self._report_exit(self._known[agent_id]["workspace_id"], agent_id, ended)
        await end_marked(f"WORKSPACED_AGENT_ID={agent_id}", grace=_GRACE)

    async def _run_once(self, agent_id: str) -> int | str:
        """Start the agent unless it is running, and return how it ended: its exit status, or a text.

        Raises Superseded, _CannotStart, and OSError if it can't be started now.

        """
        try:
            config = self._config(agent_id)
        except (FileNotFoundError, ValueError) as error:
            raise _CannotStart(
                f"its configuration can't be read ({error}); start a new build"
            ) from error
        credential = await self._credential(config)
        with self._pinned_home(agent_id) as home:
            pid = agent_files.running_agent(home)
            if pid is None:
                pid = self._start(home, config)
        ended = await self._wait_for_end(agent_id, pid, _renewed_in(credential))
        with self._pinned_home(agent_id) as home:
            return ended if agent_files.running_agent(home) is None else _STILL_RUNNING

    async def _renew(self, agent_id: str) -> None:
        """Request a new credential, with retries: workers may not know the build again yet."""
        backoff, until = Backoff(first=0.5, limit=30.0), monotonic() + CREDENTIAL_TIMEOUT
        while monotonic() < until:
            try:
                await self._obtain(self._config(agent_id))
            except (Superseded, OSError) as error:
                _log.info("no new credential for agent %s yet: %s", agent_id, error)
                await backoff.wait()
            except ValueError:
                _log.exception("agent %s gets no new credential", agent_id)
                return
            else:
                self._renewed[agent_id] = monotonic()
                return

    def _config(self, agent_id: str) -> AgentConfig:
        """Return the agent's configuration, after correcting it by what the journal knows."""
        known = dict(self._known[agent_id])
        if known["build_id"] is None:
            raise ValueError("the journal has no build that created this agent")
        with self._pinned_home(agent_id) as home:
            existing = agent_files.read_config(home)
            config = existing.model_copy(update=known)
            if config != existing:
                agent_files.write_config(home, config)
        return config

    async def _credential(self, config: AgentConfig) -> AgentCredential:
        """Return the existing credential of a running agent if it is young enough, otherwise a new one."""
        with self._pinned_home(config.agent_id) as home:
            if agent_files.running_agent(home) is not None:
                with suppress(OSError, ValueError):
                    existing = agent_files.read_credential(home)
                    if _renewed_in(existing) != 0:
                        return existing
        return await self._obtain(config)

    async def _obtain(self, config: AgentConfig) -> AgentCredential:
        credential = await _obtain_credential(self._link, config)
        with self._pinned_home(config.agent_id) as home:
            agent_files.write_credential(home, credential)
        return credential

    def _start(self, home: Path, config: AgentConfig) -> int:
        """Start the agent in a new session, with a small environment."""
        launcher = config.directory / agent_files.OWN_FOLDER / LAUNCHER
        # The real path: the pinned one is valid only in this process.
        own_home = agent_files.agent_home(config.directory, config.agent_id)
        program = [*self._command, str(agent_files.config_path(own_home))]
        if os.access(launcher, os.X_OK):
            program.insert(0, str(launcher))
        rotate(home / _LOG, _LOG_SIZE)
        output = str(home / _LOG)
        # Neither follows a link nor blocks on a FIFO that a script has put there.
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        confined = self._confinement.prefix(config.directory, step=False)
        # Without the template's `env`, which is for scripts and could break this Python.
        env = {name: value for name, value in config.env.items() if is_passed_on(name)}
        for name in dict(environment_faults(env)):
            del env[name]
        try:
            pid = os.posix_spawn(
                confined[0],
                [
                    *confined,
                    "/bin/sh",
                    "-c",
                    _CHANGE_DIRECTORY_AND_EXEC,
                    str(config.directory),
                    *program,
                ],
                {**env, "PYTHONPATH": _OWN_PACKAGES},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, output, append, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except ValueError as error:
            raise _CannotStart(str(error)) from error
        self._started[config.agent_id] = pid
        return pid

    async def _wait_for_end(self, agent_id: str, pid: int, limit: float | None) -> int | str:
        """Return the exit status, or a text if it is unknown or the agent is still running after `limit` s."""
        try:
            with hold_process(pid) as descriptor:
                async with asyncio.timeout(limit):
                    await wait_for_exit(descriptor)
        except TimeoutError:
            return _STILL_RUNNING
        except ProcessLookupError:
            pass
        if self._started.get(agent_id) != pid:
            return "unknown status"
        del self._started[agent_id]
        return _status_of(pid)

    async def _shut_down(self, workspace_id: str, agent_id: str, *, at_once: bool) -> None:
        for tasks in (self._supervising, self._renewals):
            if (task := tasks.pop(agent_id, None)) is not None:
                await cancel_and_wait(task)
        started, pid = self._started.get(agent_id), None
        limit = _SHUTDOWN_MARGIN
        workspace = self._workspaces / workspace_id
        with (
            suppress(OSError, ValueError),
            agent_files.pinned_home(workspace, agent_id) as home,
        ):
            pid = agent_files.running_agent(home)
            limit += agent_files.read_config(home).shutdown_timeout_seconds
        if (pid := pid or started) is not None and not at_once:
            with suppress(ProcessLookupError, TimeoutError), hold_process(pid) as descriptor:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
                async with asyncio.timeout(limit):
                    await wait_for_exit(descriptor)
        # The rest: an agent that has not ended, a launcher, processes that left their group.
        await end_marked(f"WORKSPACED_AGENT_ID={agent_id}", grace=0 if at_once else _GRACE)
        if started is not None:
            self._started.pop(agent_id, None)
            _status_of(started)


def _status_of(pid: int) -> int | str:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, os.WNOHANG)[1])
    except ChildProcessError:
        return "unknown status"


async def _obtain_credential(link: Link, config: AgentConfig) -> AgentCredential:
    """Request a credential, with retries. Raises Superseded."""
    backoff = Backoff()
    while True:
        try:
            answer = await link.rpc_until_answered("agent_credential", config.ids())
            return AgentCredential.model_validate_json(answer)
        except WorkspacedError as error:
            raise Superseded(str(error)) from None
        except ValidationError as error:
            _log.warning("the credential of agent %s can't be read: %s", config.agent_id, error)
        await backoff.wait()


def _renewed_in(credential: AgentCredential) -> float | None:
    """Return the seconds until the middle of the lifetime, when to renew; None if it does not expire."""
    if credential.expires_at is None:
        return None
    half = (credential.expires_at - credential.issued_at) / 2
    return max(0.0, (credential.issued_at + half - datetime.now(UTC)).total_seconds())
