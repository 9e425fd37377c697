"""Runs the startup and shutdown scripts of an agent, logs their output, and enforces their time limits."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from handlers.agent.detached_command import DetachedCommand
from handlers.publishing.agent_files import AgentConfig
from handlers.publishing.build_log import BuildLog
from handlers.sandbox.processes import end_marked
from handlers.sandbox.shell import Shell, command_fault, describe_status, environment_faults
from statemachine.events import Lifecycle

GRACE: Final = 5.0
"""Seconds between SIGTERM and SIGKILL for processes that a script has left running."""
_EXTRA_OUTPUT: Final = 64 * 1024
"""Bytes of output stored beyond the log's limit, so that the log reports that it is full."""
_STILL_STARTING: Final = (Lifecycle.STARTING, Lifecycle.START_TIMEOUT)

_log = logging.getLogger(__name__)


class Scripts:
    """Runs the scripts; `report` is called with each lifecycle state that the agent reaches.

    `home` is the agent's folder, in which a startup script of an earlier process of this agent is found.

    """

    def __init__(
        self, home: Path, config: AgentConfig, log: BuildLog, report: Callable[[Lifecycle], None]
    ) -> None:
        self._folder = home / "startup"
        self._config, self._log, self._report = config, log, report
        self._shell: Shell | None = None
        try:
            self._startup: DetachedCommand | None = DetachedCommand(self._folder)
        except OSError:
            self._startup = None

    def must_run_again(self, reached: Lifecycle | None) -> bool:
        """Return whether a startup script that has run has to run again, since its processes are gone.

        `reached` is the agent's last lifecycle state.

        """
        command = self._startup
        if command is None or command.alive:
            return command is None and reached in _STILL_STARTING
        return command.ended is None or command.ended[1]

    @property
    def still_running(self) -> bool:
        """Whether the startup script or a process that it started is still running."""
        return self._startup is not None and self._startup.alive

    async def startup(self) -> None:
        """Run the startup script to its end. After its time limit it goes on, and may still succeed."""
        script, limit = self._config.startup_script, self._config.startup_timeout_seconds
        if not script:
            self._report(Lifecycle.READY)
            return
        self._report(Lifecycle.STARTING)
        try:
            if self._startup is not None:  # its keeper alone may have been killed
                await self._end_all_processes(GRACE)
            self._require_runnable(script)
            self._startup = DetachedCommand.start(
                self._folder,
                script,
                cwd=self._config.directory,
                env=self._config.env,
                limit=self._config.log_limit + _EXTRA_OUTPUT,
            )
            await self._follow_to_end(self._startup, limit)
        except Exception as error:  # noqa: BLE001 — any error becomes a lifecycle state of the agent
            self._report_problem(
                "startup", f"the startup script could not be run: {_describe(error)}"
            )
            self._report(Lifecycle.START_ERROR)

    async def resume(self, reached: Lifecycle | None) -> None:
        """Follow the startup script of an earlier process of this agent, and the processes it started."""
        if (command := self._startup) is None:
            return
        if reached not in _STILL_STARTING:
            command.listen(self._log.stream("startup").feed)
            return
        late = reached is Lifecycle.START_TIMEOUT
        await self._follow_to_end(command, None if late else self._config.startup_timeout_seconds)

    async def shutdown(self, ending: Awaitable[None]) -> None:
        """Run the shutdown script within its time limit, then end all processes of the scripts.

        `ending` ends other processes of this agent; it is awaited before the script runs.

        """
        self._report(Lifecycle.SHUTTING_DOWN)
        await asyncio.gather(self._end_startup(), ending)
        try:
            reached = await self._shutdown_script()
        except Exception as error:  # noqa: BLE001 — any error becomes a lifecycle state of the agent
            self._report_problem(
                "shutdown", f"the shutdown script could not be run: {_describe(error)}"
            )
            reached = Lifecycle.SHUTDOWN_ERROR
        await self.end_all(GRACE)
        self._report(reached)

    async def end_all(self, grace: float) -> None:
        """End every descendant of this agent's scripts."""
        await self._end_all_processes(grace)
        if self._shell is not None:
            self._shell.end()

    async def _end_all_processes(self, grace: float) -> None:
        mark = f"WORKSPACED_AGENT_ID={self._config.agent_id}"
        try:
            # Not our own group, where a launcher of this agent may be.
            await end_marked(mark, grace=grace, spare_group=os.getpgrp())
        except OSError as error:  # the provisioner ends them as well
            _log.warning("processes of the scripts can't be ended: %s", error)
        if self._startup is not None:
            self._startup.close()
            self._startup = None

    async def _end_startup(self) -> None:
        """End a startup script that is still running; its background processes stay for now."""
        command = self._startup
        if command is None or command.ended is not None or not command.alive:
            return
        if not command.listening:
            command.listen(self._log.stream("startup").feed)
        command.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(GRACE):
                await command.wait()
        except TimeoutError:
            command.signal(signal.SIGKILL)

    async def _follow_to_end(self, command: DetachedCommand, limit: float | None) -> None:
        command.listen(self._log.stream("startup").feed)
        ended = asyncio.ensure_future(command.wait())
        try:
            done, _ = await asyncio.wait({ended}, timeout=limit)
            if not done:
                self._report_problem(
                    "startup",
                    f"the startup script has not ended within {limit:g} s "
                    "(startup_timeout_seconds); it keeps running",
                )
                self._report(Lifecycle.START_TIMEOUT)
            status = await ended
        finally:
            ended.cancel()
        if status is None:
            self._report_problem(
                "startup",
                "the exit status of the startup script is unknown, because its keeper was killed",
            )
        elif status:
            self._report_problem("startup", f"the startup script {describe_status(status)}")
        self._report(Lifecycle.READY if status == 0 else Lifecycle.START_ERROR)

    async def _shutdown_script(self) -> Lifecycle:
        script, limit = self._config.shutdown_script, self._config.shutdown_timeout_seconds
        if not script:
            return Lifecycle.OFF
        self._require_runnable(script)
        output, config = self._log.stream("shutdown"), self._config
        shell = Shell(script, cwd=config.directory, env=config.env, output=output.feed)
        self._shell = shell
        try:
            async with asyncio.timeout(limit):
                status = await shell.wait()
        except TimeoutError:
            self._report_problem(
                "shutdown", f"the shutdown script did not end within {limit:g} s and was killed"
            )
            return Lifecycle.SHUTDOWN_TIMEOUT
        finally:
            shell.end()
        if status:
            self._report_problem("shutdown", f"the shutdown script {describe_status(status)}")
        return Lifecycle.SHUTDOWN_ERROR if status else Lifecycle.OFF

    def _require_runnable(self, script: str) -> None:
        """Raise ValueError with the reason why no program can be started with this script."""
        problems = [message for _, message in environment_faults(self._config.env)]
        if fault := command_fault(script):
            problems.append(fault)
        if problems:
            raise ValueError("; ".join(problems))

    def _report_problem(self, stage: str, message: str) -> None:
        _log.warning("%s", message)
        self._log.verdict(stage, f"{message}\n")


def _describe(error: Exception) -> str:
    if isinstance(error, (OSError, ValueError)):
        return str(error)
    return f"{type(error).__name__}: {error}"
