"""The scripts of one agent: started in the workspace, heard, bounded, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from typing import Final

from handlers.agent_files import AgentConfig
from handlers.processes import end_marked
from handlers.sending import BuildLog
from handlers.shell import Shell, status_words
from statemachine.events import Lifecycle

GRACE: Final = 5.0
"""Seconds between the polite and the forced end of what a script left running."""

_log = logging.getLogger(__name__)


class Scripts:
    """Runs the scripts; `report` is told each point of the agent's life."""

    def __init__(
        self, config: AgentConfig, log: BuildLog, report: Callable[[Lifecycle], None]
    ) -> None:
        self._config, self._log, self._report = config, log, report
        self._shells: list[Shell] = []

    async def startup(self) -> None:
        """Run the startup script to its end; past its limit it goes on, and may still succeed."""
        script, limit = self._config.startup_script, self._config.startup_timeout_seconds
        if not script:
            self._report(Lifecycle.READY)
            return
        self._report(Lifecycle.STARTING)
        try:
            shell = self._start("startup", script)
        except OSError as no:
            self._say("startup", f"the startup script could not be started: {no}")
            self._report(Lifecycle.START_ERROR)
            return
        ended = asyncio.ensure_future(shell.wait())
        try:
            done, _ = await asyncio.wait({ended}, timeout=limit)
            if not done:
                self._say(
                    "startup", f"the startup script runs for more than {limit:g} s; it goes on"
                )
                self._report(Lifecycle.START_TIMEOUT)
            status = await asyncio.shield(ended)
        except asyncio.CancelledError:
            shell.signal(signal.SIGTERM)
            await asyncio.wait({ended}, timeout=GRACE)
            shell.end()
            raise
        # What it started in the background is what it was for.
        shell.release()
        if status:
            self._say("startup", f"the startup script {status_words(status)}")
        self._report(Lifecycle.START_ERROR if status else Lifecycle.READY)

    async def shutdown(self) -> None:
        """Run the shutdown script within its limit, then end all that the scripts left running."""
        self._report(Lifecycle.SHUTTING_DOWN)
        reached = await self._shutdown_script()
        await self.end_all(GRACE)
        self._report(reached)

    async def end_all(self, grace: float) -> None:
        """End every process that descends from this agent's scripts."""
        mark = f"WORKSPACED_AGENT_ID={self._config.agent_id}"
        # Not our own group: a launcher around us is none of the scripts' work.
        await end_marked(mark, grace=grace, spare_group=os.getpgrp())
        for shell in self._shells:
            shell.end()

    async def _shutdown_script(self) -> Lifecycle:
        script, limit = self._config.shutdown_script, self._config.shutdown_timeout_seconds
        if not script:
            return Lifecycle.OFF
        try:
            shell = self._start("shutdown", script)
        except OSError as no:
            self._say("shutdown", f"the shutdown script could not be started: {no}")
            return Lifecycle.SHUTDOWN_ERROR
        try:
            async with asyncio.timeout(limit):
                status = await shell.wait()
        except TimeoutError:
            self._say(
                "shutdown", f"the shutdown script did not end within {limit:g} s and was killed"
            )
            return Lifecycle.SHUTDOWN_TIMEOUT
        finally:
            shell.end()
        if status:
            self._say("shutdown", f"the shutdown script {status_words(status)}")
        return Lifecycle.SHUTDOWN_ERROR if status else Lifecycle.OFF

    def _start(self, stage: str, script: str) -> Shell:
        heard = self._log.stream(stage)
        config = self._config
        shell = Shell(script, cwd=config.directory, env=config.env, output=heard.feed)
        self._shells.append(shell)
        return shell

    def _say(self, stage: str, words: str) -> None:
        _log.warning("%s", words)
        self._log.write(stage, "error", f"{words}\n")
