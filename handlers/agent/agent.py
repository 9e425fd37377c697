"""One agent from its start to its end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import Final

from handlers.agent.journal import AgentJournal
from handlers.agent.link import PATIENCE, Connect, Link
from handlers.agent.scripts import GRACE, Scripts
from handlers.publishing import BuildLog, agent_files
from handlers.supervise import cancel_and_wait, first_to_end
from statemachine.events import Lifecycle
from statemachine.mask import Mask

FAREWELL: Final = 5.0
"""Seconds that the last facts and lines get to leave."""
CUT_OFF: Final = 1.0
"""Seconds that they get without a server: an agent whose build is superseded is let in by none."""
_TOLD_AGAIN: Final = 1.0

_log = logging.getLogger(__name__)


class Agent:
    """The agent of one folder; `stop` makes it shut down and `run` return."""

    def __init__(self, home: Path, connect: Connect, *, patience: float = PATIENCE) -> None:
        self._home, self._connect, self._patience = home, connect, patience
        self._stopping = asyncio.Event()
        self.given_up = False
        """It was let in by nobody for so long that its build must be superseded."""

    def stop(self) -> None:
        """Shut down: run the shutdown script, report, leave."""
        self._stopping.set()

    async def run(self) -> None:
        """Be this agent until it is stopped or superseded.

        Raises AgentAlreadyRuns, and OSError or ValueError when its folder can't be read.
        """
        with agent_files.agent_lock(self._home):
            config = agent_files.read_config(self._home)
            journal = AgentJournal(self._home, config)
            link = Link(self._home, config, journal, self._connect, patience=self._patience)
            log = BuildLog(
                config.chat_id,
                config.build_id,
                "agent",
                f"/agent/{config.agent_id}",
                link.send,
                ledger=self._home / "log.json",
                mask=Mask(config.secrets),
                limit=config.log_limit,
                traceparent=config.traceparent,
            )
            scripts = Scripts(self._home, config, log, journal.reached)
            linked, logging_ = asyncio.create_task(link.run()), asyncio.create_task(log.run())
            try:
                await self._live(journal, scripts, linked)
                if not (linked.done() or link.refused):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(FAREWELL if link.connected else CUT_OFF):
                            await _all_said(journal, log)
            finally:
                await cancel_and_wait(linked, logging_, cancel_again_after=_TOLD_AGAIN)
                log.close()

    async def _live(
        self, journal: AgentJournal, scripts: Scripts, linked: asyncio.Task[None]
    ) -> None:
        startup = asyncio.create_task(_start(journal, scripts))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await first_to_end(stopping, linked, startup)
            if startup.done():
                startup.result()
                await first_to_end(stopping, linked)
        finally:
            await cancel_and_wait(stopping, startup, cancel_again_after=_TOLD_AGAIN)
        if linked.done():
            linked.result()
            self.given_up = True
            # Superseded: the workspace belongs to another build, so nothing is run in it any more.
            await scripts.end_all(GRACE)
            return
        _log.info("shutting down")
        await scripts.shutdown()
        journal.disconnected("the workspace is stopped")


async def _start(journal: AgentJournal, scripts: Scripts) -> None:
    """Run the startup script, unless it ran already and what it started is still there."""
    reached = journal.lifecycle
    lost = journal.moved and not scripts.still_there
    if journal.must_start or lost or scripts.must_run_again(reached):
        journal.reached(Lifecycle.CREATED)
        await scripts.startup()
    else:
        await scripts.go_on(reached)


async def _all_said(journal: AgentJournal, log: BuildLog) -> None:
    await log.drained(FAREWELL)
    await journal.all_sent()
